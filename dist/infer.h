// Forward without backward: one sequence, token by token over a key/value cache or window by
// window for its loss. Every rank of tp x pp calls together.
#ifndef TSR_DIST_INFER_H
#define TSR_DIST_INFER_H

#include "core/sampler.h"
#include "dist/stage.h"

struct tsr_infer {
    struct tsr_model m;
    struct tsr_net net;
    struct tsr_model_state state;
    struct tsr_batch batch;
    int most;                    // tokens of one forward
    int capacity;                // tokens of the cache
    struct tsr_kv_cache *caches; // per layer held here
    struct tsr_segment *segs;    // the batch's one with each layer's cache
    int32_t *blocks;
    void *cache_slab;
    size_t cache_bytes;
    tsr_elem *x; // (most, C)

    // Of the last token, on the last stage's device: all ranks' logits, the same in fp32 (the same
    // memory where that is the type), and the token that was picked.
    tsr_elem *gathered;
    float *logits;
    int32_t *picked;
    void *pick_slab;
    size_t pick_bytes;
    // What picking reads and writes on the host, at addresses that stay.
    struct tsr_sampling sampling;
    uint64_t index;
    int32_t next;
    void *step; // a step of one token as it was recorded, or NULL
};

// Opens a model directory over the ranks of the communicator. `capacity` tokens of cache (0: no
// cache), `most` tokens in one forward. Virtual shards come from the directory's state.json,
// else 8.
int tsr_infer_open(struct tsr_infer *g, const char *dir, struct tsr_ctx *ctx, struct tsr_comm *comm,
                   int tp, int pp, int capacity, int most);
void tsr_infer_close(struct tsr_infer *g);

// Runs n tokens that stand at `position`.. of the sequence through the model, extends the cache,
// and picks the next token; all ranks get it.
int tsr_infer_next(struct tsr_infer *g, const int32_t *tokens, int n, int position,
                   const struct tsr_sampling *s, int32_t *next);

// Losses (nats) of targets[0..n) after tokens[0..n), without a cache; summed in order, in double.
int tsr_infer_loss(struct tsr_infer *g, const int32_t *tokens, const int32_t *targets, int n,
                   double *sum);

#endif

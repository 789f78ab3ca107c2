// A pipeline stage's chunk of the model: what stands before, between and after its blocks.
#ifndef TSR_DIST_STAGE_H
#define TSR_DIST_STAGE_H

#include "dist/block.h"

// What one micro-batch in flight leaves in one chunk.
struct tsr_slot {
    struct tsr_acts *acts; // per layer of the chunk
    tsr_elem *y;           // (Nl, C) output of the last block
    float *mean, *rstd;    // (Nl) of the final norm; last stage only
    tsr_elem *dh;          // (Nl, C) gradient of the final norm's output; last stage only
};

struct tsr_stage {
    int chunk, n_layers, n_slots;
    bool first, last;
    struct tsr_slot *slots;
};

// Scratch of the ends of the model.
struct tsr_ends {
    tsr_elem *h;       // (Nl, C) final norm's output
    tsr_elem *logits;  // (tsr_head_rows, vocabulary rows held)
    float *max, *loss; // (N)
    float *sum_target; // (2, N)
};

struct tsr_model_state {
    struct tsr_net *net;
    enum tsr_recompute recompute;
    int n_chunks;
    struct tsr_stage *stages; // one per chunk
    struct tsr_acts shared;
    struct tsr_work work;
    struct tsr_ends ends;
    tsr_elem *spare; // (Nl, C) second buffer of inference
    void *slab;
    size_t slab_bytes;
};

// Allocates activations for micro-batches shaped like `b`, n_slots[c] in flight of chunk c.
int tsr_model_state_open(struct tsr_model_state *s, struct tsr_net *net, const struct tsr_batch *b,
                         enum tsr_recompute recompute, const int *n_slots, bool training);
void tsr_model_state_close(struct tsr_model_state *s);
// How much of a training state's slab is scratch of the blocks, and how much the head's.
void tsr_model_state_parts(const struct tsr_model_state *s, const struct tsr_batch *b,
                           size_t *blocks, size_t *head);

// Where a chunk's input belongs: the first block's x, or y when the chunk has no block.
static inline tsr_elem *tsr_slot_input(const struct tsr_stage *st, int slot) {
    return st->n_layers ? st->slots[slot].acts[0].x : st->slots[slot].y;
}

// Forward of chunk `c` on a micro-batch whose input stands in tsr_slot_input (the first stage
// embeds by itself). On the last stage has b->loss filled, and when training the head's gradients
// and slot->dh; `loss_scale` is 1 / (target tokens of the global batch).
int tsr_stage_forward(struct tsr_model_state *s, int c, int slot, const struct tsr_batch *b,
                      bool training, float loss_scale);

// Forward without a backward to come: x (Nl, C) in (filled here on the first stage), *out (Nl, C)
// is x or s->spare. `segs` (layers of the chunk, b->n_segs): the batch's segments with each layer's
// cache, which they extend; NULL: without caches. Recorded calls read them again from where they
// are.
int tsr_stage_infer(struct tsr_model_state *s, int c, const struct tsr_batch *b, tsr_elem *x,
                    struct tsr_segment *segs, tsr_elem **out);

// dx (Nl, C): gradient of the chunk's output in (ignored on the last stage), of its input out.
// `last`: no other micro-batch of the step will add to this chunk's gradients, which are summed up
// and sent as soon as they are complete.
int tsr_stage_backward(struct tsr_model_state *s, int c, int slot, const struct tsr_batch *b,
                       tsr_elem *dx, bool last);

#endif

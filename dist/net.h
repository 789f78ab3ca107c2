// One rank's share of a model: the shards it holds, the ranges of heads, columns and rows that
// they cover, the groups it talks to, and its slabs. Everything else in dist works on this.
//
// Dims: N tokens of a micro-batch, Nl rows held between blocks (N, or this rank's token pieces
// under sequence parallelism), C hidden, D head size, Vl = V / tp virtual pieces of this rank,
// Wl = W / dp virtual replicas of this rank.
#ifndef TSR_DIST_NET_H
#define TSR_DIST_NET_H

#include "core/arena.h"
#include "core/tensor.h"
#include "dist/comm.h"
#include "dist/mesh.h"
#include "kernels/ops.h"

// How a parameter's gradient is summed (docs/exactness.md).
enum tsr_grad_sum {
    TSR_GRAD_MATRIX, // a chain over tokens per virtual replica, in the product itself
    TSR_GRAD_TABLE,  // embedding rows: chains over the tokens that picked the row
    TSR_GRAD_COLUMN, // bias of a column-parallel product: one chain per replica
    TSR_GRAD_TOKEN,  // norm weights, row-parallel biases: V token pieces per sequence
    TSR_GRAD_NONE,   // frozen
};

enum { TSR_MAX_DP = 256, TSR_MAX_PIECES = 256, TSR_MAX_CHUNKS = 64 };

struct tsr_param {
    const struct tsr_tensor *t;
    struct tsr_region held; // of the canonical tensor
    int64_t rows, cols;     // of what is held
    int chunk;              // virtual stage of this rank that uses it
    enum tsr_grad_sum sum;
    tsr_elem *w;  // (rows, cols)
    float *acc;   // COLUMN: (Wl, rows); TOKEN: (Wl, token pieces held, rows)
    size_t g_at;  // elements from the start of each gradient buffer
    bool alias;   // output side of a tied embedding on the rank that also holds the input side
    bool counted; // its squares enter the global norm here
    int n_slices; // rows of it whose optimizer state this data-parallel rank owns
    struct tsr_range *slices;
    int64_t n_own; // elements of those slices
    float *m, *v;  // n_own each, slice after slice
    float *master; // likewise: fp32 weights when w is of another type; NULL: w is the master
};

struct tsr_net_opt {
    bool sequence_parallel;
    bool training; // gradients and optimizer state exist
    struct {
        float embedding, attention, residual, ffn;
    } dropout;
    uint64_t seed;
    int n_grad_buffers; // levels of the tree over replicas that are open at once
};

struct tsr_net {
    struct tsr_ctx *ctx;
    struct tsr_comm *comm;
    struct tsr_mesh mesh;
    struct tsr_group tp, pp, dp, embed; // embed: first and last stage, for tied embeddings
    const struct tsr_model *m;
    struct tsr_tensor_table tensors;
    struct tsr_net_opt opt;

    int Vl, Wl;
    struct tsr_range q, kv, f, vocab;     // heads, heads, FFN columns, vocabulary rows held
    int *q_bound, *f_bound, *vocab_bound; // (Vl + 1) in local units
    int *kv_first;                        // (Vl + 1) local KV heads that a piece owns
    struct tsr_kv_slot *slots;
    int n_slots;
    int *shared_kv; // global KV heads that two or more ranks need, the same list on all
    int n_shared_kv;

    int n_params;
    struct tsr_param *params;
    struct tsr_param *(*layer)[TSR_N_KINDS]; // (L): NULL where not held
    struct tsr_param *tok_embed, *pos_embed, *final_w, *final_b, *head;
    int64_t first_param[TSR_MAX_CHUNKS + 1],
        n_chunks; // params of chunk c: [first_param[c], first_param[c+1])

    void *weights, *gradients, *moments, *masters, *accumulators; // slabs
    size_t weights_bytes, gradients_bytes, moments_bytes, masters_bytes, accumulators_bytes;
    size_t grad_elems; // of one gradient buffer
    float *bucket[2];  // exchange of gradients and weights, dp * bucket_elems each, or NULL
    size_t bucket_elems;
    struct tsr_zero *zero;    // dist/zero.c; NULL: one data-parallel rank
    double *sums, *host_sums; // (n_sums) of squares, in the accumulators' slab and on the host
    int64_t n_sums;
    float *rope; // (max_positions, D/2, 2) on the device, or NULL
    int64_t rope_positions;
};

static inline tsr_elem *tsr_at(const struct tsr_ctx *ctx, const tsr_elem *p, int64_t n_elems) {
    return (char *)(uintptr_t)p + n_elems * (int64_t)tsr_dtype_size(ctx->dtype);
}

// Lays the model out over the mesh and allocates the slabs. `positions` rows of rotary table.
// TSR_ENOMEM, TSR_ECONFIG.
int tsr_net_open(struct tsr_net *net, struct tsr_ctx *ctx, struct tsr_comm *comm,
                 const struct tsr_mesh *mesh, const struct tsr_model *m,
                 const struct tsr_net_opt *opt, int64_t positions);
void tsr_net_close(struct tsr_net *net);
// Whether dist can hold so many pieces, replicas and chunks. TSR_ECONFIG; open asks, too.
int tsr_net_check_limits(const struct tsr_mesh *m);

// Whether the device has kernels for this model's attention: the same on all ranks. TSR_ECONFIG
// says what was found and what it has; open asks, too.
int tsr_net_check_device(const struct tsr_ctx *ctx, const struct tsr_model *m);

bool tsr_net_is_first(const struct tsr_net *net, int chunk); // virtual stage 0
bool tsr_net_is_last(const struct tsr_net *net, int chunk);
struct tsr_range tsr_net_layers(const struct tsr_net *net, int chunk);

// Gradient buffer `level` of a parameter; level 0 holds the final sum. (rows, cols)
float *tsr_net_grad(const struct tsr_net *net, const struct tsr_param *p, int level);

// Rows of a held parameter whose optimizer state data-parallel rank `dp_rank` owns: inside each
// virtual piece, that rank's share of W row blocks. Returns how many ranges were written (at most
// V).
int tsr_param_slices(const struct tsr_net *net, const struct tsr_param *p, int dp_rank,
                     struct tsr_range *out);

// Token pieces per replica whose TOKEN sums run here: V, or Vl under sequence parallelism.
int tsr_net_token_chains(const struct tsr_net *net);

// Fresh weights by the tensor table's init rules, keyed by global position: the same for any
// layout.
int tsr_net_init(struct tsr_net *net);

// Gives a parameter its values (rows, cols) from the host: w, to nearest even, and the master's own
// slices. `narrow`: memory for as many elements of the layers' type; unused in fp32. Returns when
// both may be used again.
int tsr_param_put(struct tsr_net *net, struct tsr_param *p, const float *values, void *narrow);

// Fills the rotary table; called by open.
int tsr_net_rope(struct tsr_net *net, int64_t positions);

#endif

// One decoder block of a shard, forward and backward, and what it keeps in between.
//
// Dims: N tokens, Nl rows held between blocks, C hidden, nq/nkv heads held, D head size, F FFN
// columns held.
#ifndef TSR_DIST_BLOCK_H
#define TSR_DIST_BLOCK_H

#include "core/run.h"
#include "dist/batch.h"

// What forward leaves for backward. A pre-norm block (GPT-2, Llama):
//   h1 = norm1(x), mid = x + attention(h1), h2 = norm2(mid), y = mid + ffn(h2)
// a post-norm block (GPT-1):
//   mid = x + attention(x), h1 = norm1(mid), h2 = h1 + ffn(h1), y = norm2(h2)
struct tsr_acts {
    tsr_elem *x;          // (Nl, C)
    tsr_elem *h1;         // (Nl, C)
    float *mean1, *rstd1; // (Nl)
    tsr_elem *q;          // (N, nq D)
    tsr_elem *k, *v;      // (N, nkv D)
    tsr_elem *o;          // (N, nq D)
    float *lse;           // (nq, N)
    tsr_elem *mid;        // (Nl, C)
    tsr_elem *h2;         // (Nl, C)
    float *mean2, *rstd2; // (Nl)
    tsr_elem *gate;       // (N, F) before the activation; gated models only
    tsr_elem *up;         // (N, F) before the activation when not gated
    tsr_elem *a;          // (N, F) what the down product reads
};

// Scratch of one rank, reused by every block. Sizes in elements of the dtype.
struct tsr_work {
    tsr_elem *whole1, *whole2; // (N, C) each; sequence parallelism only
    float *staged;             // (N, C) likewise
    tsr_elem *part;            // (N, max(C, nq D)) a product
    float *sum;                // (N, C) a product not yet summed over ranks: in fp32 it
                               // is `part`; NULL when there is no such product
    tsr_elem *dy;              // (Nl, C)
    tsr_elem *dmid;            // (Nl, C)
    tsr_elem *dq;              // (N, nq D)
    tsr_elem *dk, *dv;         // (N, nkv D)
    tsr_elem *slot_k, *slot_v; // (N, n_slots D)
    float *shared;             // (2, N, n_shared, D)
    float *wide_kv;            // (N, nkv D) sums of slots that ranks join; NULL: as dk, dv
    tsr_elem *da;              // (N, F)
};

// Lays one block's activations out: `own` gets what must live until backward; what is computed
// again comes from `shared`. That is the norms' outputs in every mode, also what the down product
// reads (TSR_RECOMPUTE_SELECTIVE), or all but x (TSR_RECOMPUTE_FULL).
void tsr_acts_place(struct tsr_acts *a, const struct tsr_net *net, const struct tsr_batch *b,
                    enum tsr_recompute mode, struct tsr_arena *own, const struct tsr_acts *shared);
// The shared part of a mode.
void tsr_acts_place_shared(struct tsr_acts *a, const struct tsr_net *net, const struct tsr_batch *b,
                           enum tsr_recompute mode, struct tsr_arena *arena);
void tsr_work_place(struct tsr_work *w, const struct tsr_net *net, const struct tsr_batch *b,
                    bool training, struct tsr_arena *arena);

// y (Nl, C) = block `layer` of a->x. Fills *a. y may not be a->x. `cache` holds keys and values of
// earlier tokens when the batch's segments have one.
int tsr_block_forward(struct tsr_net *net, int layer, const struct tsr_batch *b, struct tsr_acts *a,
                      struct tsr_work *w, bool training, tsr_elem *y);

// dx (Nl, C), in place: gradient of y in, gradient of x out. Parameters' gradients are added up.
// What `mode` didn't keep is computed again first.
int tsr_block_backward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                       struct tsr_acts *a, struct tsr_work *w, enum tsr_recompute mode,
                       tsr_elem *dx);

// The norm of a block or of the end: LayerNorm or RMSNorm by the model. y (n, C).
int tsr_norm(struct tsr_net *net, tsr_elem *y, float *mean, float *rstd, const tsr_elem *x,
             const struct tsr_param *w, const struct tsr_param *b, int n);
// dx = dres + gradient of x (dres may be NULL or dx); sums of w and b by token pieces.
int tsr_norm_backward(struct tsr_net *net, const struct tsr_batch *b, tsr_elem *dx,
                      const tsr_elem *dres, const tsr_elem *dy, const tsr_elem *x,
                      const float *mean, const float *rstd, const struct tsr_param *w,
                      const struct tsr_param *bias);

#endif

// The packed matrix product's parts: what is cut where (gemm_plan.c), threads (gemm.c), packing
// (gemm_pack.c), the register tile (gemm_tile.c), products of a few rows (gemm_rows.c).
//
// Vocabulary: all terms of a product, segment after segment, are numbered by k from 0. They are
// cut into k-blocks that a packed panel holds; a block is a list of steps; a *panel* is MR rows of
// A or NR columns of B, packed so that a tile reads it from front to back:
//   A panel: (k, MR)   B panel: (k, NR)
// A *slice* is the part of A that is packed at a time, and the columns that it meets.
#ifndef TSR_KERNELS_CPU_ISA_GEMM_H
#define TSR_KERNELS_CPU_ISA_GEMM_H

#include "core/pieces.h"
#include "kernels/cpu/isa/gemm_vec.h"

// Continues the open chain by k terms. Then, where a virtual piece ends, acc = node + acc for the
// `adds` newest nodes of the tree's stack, and `push` puts the sum there and opens a new chain.
struct gemm_step {
    int k;
    int adds;
    bool push;
};

struct gemm_block {
    ptrdiff_t k0;
    int k;
    int step, n_steps;      // in the plan's list
    int n_nodes;            // on the stack when the block begins
    bool open_in, open_out; // a chain crosses the block's lower, upper border
    bool first, last;
};

// The step of k terms that ends piece `piece`: the carries of the tree's counter or, at the last
// piece, all that is left, newest first. n_nodes: on the stack, before and after.
static inline struct gemm_step gemm_end_piece(int k, int piece, int n_pieces, int *n_nodes) {
    bool push = piece + 1 < n_pieces;
    int adds = push ? tsr_tree_carries(piece) : *n_nodes;
    *n_nodes += (push ? 1 : 0) - adds;
    return (struct gemm_step){k, adds, push};
}

// One tile's work on one k-block.
struct gemm_tile {
    const struct tsr_gemm *g;
    const struct gemm_step *steps; // of the block
    const struct gemm_block *block;
    const float *a, *b; // panels at the block's first term
    float *stack;       // the tree's nodes while the tile is worked on: (slots, MR, NR), in L1
    float *state;       // between k-blocks: slot 0 is the open chain, slot 1 + i node i
    int i, j, rows, cols;
    const float *ahead; // the tile that the next call loads first, or NULL
    ptrdiff_t ahead_ld;
};

struct gemm_slice {
    int i0, rows, j0, cols;
    int block0, block1; // k-blocks
    ptrdiff_t a_panel;  // floats of a panel of A
};

// What a thread does in one go: the tiles of A panels [a0, a1) and B panels [b0, b1).
struct gemm_item {
    int a0, a1, b0, b1;
};

struct gemm_plan {
    const struct tsr_gemm *g;
    struct tsr_pool *pool;
    int threads;      // 1 when the product is too small for more
    ptrdiff_t k;      // terms in all
    int slots;        // of a tile's state: the open chain and the most nodes on the stack
    int mc, nc;       // rows, columns of a slice
    int range_blocks; // k-blocks of a slice
    int item_panels;  // of B, at most: they stay in L2
    int n_blocks;
    struct gemm_block *blocks; // (n_blocks)
    struct gemm_step *steps;
    struct gemm_item *items; // of the slice at work
    float *a;                // the packed slice
    float *state;            // (A panels, B panels, slots, MR, NR) of a slice; n_blocks > 1
    ptrdiff_t b_floats;      // a thread's scratch: panels of B, then the stack
    size_t thread_bytes;
};

// Decides on blocks and takes scratch from the pool. TSR_ENOMEM.
int TSR_FN(tsr_gemm_plan)(struct gemm_plan *plan, struct tsr_ctx *ctx, const struct tsr_gemm *g);

// Cuts a slice's tiles into items; returns their number.
int TSR_FN(tsr_gemm_cut_items)(const struct gemm_plan *plan, const struct gemm_slice *slice);

static inline int gemm_ceil_div(ptrdiff_t a, ptrdiff_t b) {
    return (int)((a + b - 1) / b);
}

static inline int gemm_min(ptrdiff_t a, ptrdiff_t b) {
    return (int)(a < b ? a : b);
}

void TSR_FN(tsr_gemm_tile)(const struct gemm_tile *t);

// C(i.., j..) of rows x cols = the epilogue of `sum`, a (rows, NR) tile that is overwritten.
void TSR_FN(tsr_gemm_finish)(const struct tsr_gemm *g, float *sum, int i, int j, int rows,
                             int cols);

static inline bool gemm_is_plain(const struct tsr_gemm *g) {
    return g->mode != TSR_GEMM_ADD && g->bias == NULL && g->pre == NULL && !g->has_act &&
           g->residual == NULL;
}

// Packs terms [k0, k0 + k) of rows [i, i + rows) into panels of k * MR floats each.
void TSR_FN(tsr_gemm_pack_a)(float *panels, const struct tsr_gemm *g, ptrdiff_t k0, int k, int i,
                             int rows);
// Packs terms [k0, k0 + k) of columns [j, j + cols) into panels of k * NR floats each.
void TSR_FN(tsr_gemm_pack_b)(float *panels, const struct tsr_gemm *g, ptrdiff_t k0, int k, int j,
                             int cols);

// Products of a few rows with b_p = 1 everywhere (decoding: weights are (n, k)) read B once,
// unpacked. The same bits as the packed way.
bool TSR_FN(tsr_gemm_is_few_rows)(const struct tsr_gemm *g);
int TSR_FN(tsr_gemm_few_rows)(struct tsr_ctx *ctx, const struct tsr_gemm *g);

#endif

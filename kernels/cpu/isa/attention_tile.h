// Parts that block-wise attention is built of, forward and backward: the blocks of keys, packing
// them, and a small ragged product on packed panels.
//
// Keys are dealt with in blocks of ATTN_KEYS at fixed absolute positions of their sequence, so an
// output row doesn't depend on where its segment began. A *panel* is a matrix in scratch whose
// rows are padded to whole virtual vectors; K and V that are read across keys are transposed.
#ifndef TSR_KERNELS_CPU_ISA_ATTENTION_TILE_H
#define TSR_KERNELS_CPU_ISA_ATTENTION_TILE_H

#include <limits.h>
#include "kernels/cpu/isa/simd.h"

enum {
    ATTN_KEYS = 64, // keys (and, in backward, queries) of a block
    ATTN_ROWS = 6,  // rows of the largest register tile
};

static inline int attn_min(int a, int b) {
    return a < b ? a : b;
}

static inline int attn_max(int a, int b) {
    return a > b ? a : b;
}

// D rounded up to whole virtual vectors: the leading dimension of panels.
static inline int attn_padded(int head_dim) {
    return (head_dim + 15) / 16 * 16;
}

// x clamped to [lo, hi].
static inline int attn_clamp(int64_t x, int lo, int hi) {
    return x < lo ? lo : x > hi ? hi : (int)x;
}

// The first position whose key a segment has.
static inline int attn_low(const struct tsr_segment *s) {
    return s->cache != NULL ? 0 : s->position;
}

// Keys of one block that the query at position `pos` sees: [lo, hi) of [0, ATTN_KEYS). Both ends
// never fall as pos rises. `low` is the sequence's first key, `base` the block's.
static inline void attn_seen(int pos, int low, int window, int base, int *lo, int *hi) {
    int64_t first = window > 0 ? (int64_t)pos - window + 1 : low;
    *lo = attn_clamp((first > low ? first : low) - (int64_t)base, 0, ATTN_KEYS);
    *hi = attn_clamp((int64_t)pos + 1 - base, 0, ATTN_KEYS);
}

// The first block that the query at position `pos` reads.
static inline int attn_first_block(int pos, int low, int window) {
    int64_t first = window > 0 ? (int64_t)pos - window + 1 : low;
    return (int)((first > low ? first : low) / ATTN_KEYS);
}

// Of n parts, those of thing i are [first[i], first[i + 1]); returns the thing of `part`.
static inline int attn_owner(const int *first, int n, int part) {
    int lo = 0, hi = n;
    while (hi - lo > 1) {
        int mid = lo + (hi - lo) / 2;
        if (first[mid] <= part)
            lo = mid;
        else
            hi = mid;
    }
    return lo;
}

// Rows of one head: row i at p + i * ld, D floats.
struct attn_head {
    const float *p;
    ptrdiff_t ld;
};

// Rows row[j] of two heads that are needed soon. Fetching a little at a time between other work
// counts: processors drop prefetches that come in bursts.
struct attn_ahead {
    struct attn_head k, v;
    const ptrdiff_t *row;
};

// row[j] for j in [j0, j1): where the key at position base + j lies in its array.
void TSR_FN(tsr_attn_key_rows)(ptrdiff_t *row, const struct tsr_segment *s, int base, int j0,
                               int j1);
// t(d, j) = head(row[j], d) for j in [j0, j1); the other columns of their groups of 16 are +0.
// t: (D, ATTN_KEYS). Meanwhile what `ahead` names, unless it is NULL, is fetched.
void TSR_FN(tsr_attn_pack_t)(float *t, struct attn_head h, const ptrdiff_t *row,
                             const struct attn_ahead *ahead, int j0, int j1, int head_dim);
// panel(j, d) = head(row[j], d) for j in [j0, j1), +0 from d = D to the padded width.
void TSR_FN(tsr_attn_pack)(float *panel, struct attn_head h, const ptrdiff_t *row, int j0, int j1,
                           int head_dim);

// C(r,:) = alpha[r] C(r,:), then one chain of fused multiply-adds of A(r,k) B(k,:) for k from
// lo[r] up to hi[r]: no term outside reaches C. lo and hi never fall as r rises. C is a panel; n
// is a multiple of 16.
struct attn_product {
    float *c;
    ptrdiff_t ldc;
    bool fresh;         // C starts from +0 instead
    const float *alpha; // NULL: all 1
    const float *a;
    ptrdiff_t a_r, a_k; // A(r,k) = a[r a_r + k a_k]
    const float *b;
    ptrdiff_t ldb;
    const int *lo, *hi;
    int rows, n;
};
void TSR_FN(tsr_attn_product)(const struct attn_product *p);

// s(r, j) = chain over d of x(r, d) t(d, j) for r < rows and columns j of the groups of 16 in
// [c0, c1). s: (rows, ATTN_KEYS), rows <= ATTN_ROWS; t: (D, ATTN_KEYS); x has leading dimension
// ldx.
void TSR_FN(tsr_attn_scores)(float *s, const float *x, ptrdiff_t ldx, const float *t, int head_dim,
                             int rows, int c0, int c1);

// The size of the next register tile when n >= 1 rows are left.
static inline int attn_tile_rows(int n) {
    return n >= 6 ? 6 : n >= 4 ? 4 : n >= 2 ? 2 : 1;
}

#endif

// One part of attention's forward, between attention.c, which deals parts out and moves rows in and
// out, and attention_block.c, which does the arithmetic on one block of keys.
#ifndef TSR_KERNELS_CPU_ISA_ATTENTION_FWD_H
#define TSR_KERNELS_CPU_ISA_ATTENTION_FWD_H

#include "kernels/cpu/isa/attention_drop.h"

struct fwd_job {
    const struct tsr_attn *a;
    float *o, *lse;
    const float *q, *k, *v;
    struct tsr_pool *pool;
    int part_rows;  // most rows of a part
    int part_heads; // KV heads of a part of a short segment
    int *first;     // (n_segs + 1) parts before each segment
};

// One part, and of its KV heads the one in work.
struct fwd_part {
    const struct fwd_job *job;
    const struct tsr_segment *seg;
    struct attn_drop drop;
    int low, ld;      // first key's position; leading dimension of panels
    int kv_lo, kv_hi; // local KV heads
    int row0, row1;   // rows of each head
    int kv, q0, g, n; // the head in work: its query heads [q0, q0 + g), n = rows of the part
    size_t at;        // rows of the heads before it
    float *scratch;
    float *q, *o, *m, *l;     // of the head in work: (n, ld) twice, (n), (n, 16)
    float *keys, *values, *s; // (D, ATTN_KEYS), (ATTN_KEYS, ld), one tile of scores
};

// A block of keys: [j0, j1) of it are read, which lie in rows row[j]; next[j]: rows of the block
// that follows, or some of this one where it ends sooner.
struct fwd_keys {
    int base, j0, j1;
    ptrdiff_t row[ATTN_KEYS], next[ATTN_KEYS];
};

// Position of a row of the head in work.
static inline int attn_position(const struct fwd_part *p, int row) {
    return p->seg->position + row / p->g;
}

// The part's rows of the head in work against a block; few_rows: the part has so few that it waits
// for memory rather than for arithmetic.
void TSR_FN(tsr_attn_block)(struct fwd_part *p, const struct fwd_keys *b, bool few_rows);

#endif

// Flash attention's backward pass: its tiles, its scratch, and the order of its work, which
// flash_bwd_plan.cu writes and flash_bwd.cu follows.
#ifndef TSR_KERNELS_CUDA_FLASH_BWD_CUH
#define TSR_KERNELS_CUDA_FLASH_BWD_CUH

#include "kernels/cuda/attention.cuh"

enum { FLASH_BWD_WARPS = 8 };

// Keys of a block, and queries of a tile; both count from a segment's first token.
struct flash_tiles {
    int keys, rows;
};
constexpr flash_tiles flash_tiles_of(int head_dim) {
    return head_dim == 256  ? flash_tiles{64, 32}
           : head_dim == 64 ? flash_tiles{128, 128}
                            : flash_tiles{128, 64};
}

// What lies in the scratch, in this order.
struct flash_scratch {
    float *sums;     // (nq, n_tiles, rows * D): dQ so far, as the threads hold it
    int *turns;      // (nq, n_tiles, FLASH_BWD_WARPS): how many key blocks have added to a tile
    int *first_tile; // (n_segs): tiles of the segments before
    int *work;       // (n_work, 2): segment and key block, those with most queries first
    int *counts;     // tickets that were taken, entries of `work`
    int n_tiles;     // at most, of all segments
};

struct flash_layout {
    int n_tiles, n_work; // bounds: a segment ends with one part of a tile and of a key block
    size_t n_sums, n_turns, n_floats;
};
inline flash_layout flash_layout_of(const struct tsr_cuda_attn *a) {
    flash_tiles t = flash_tiles_of(a->head_dim);
    flash_layout l = {a->n_tokens / t.rows + a->n_segs, a->n_tokens / t.keys + a->n_segs, 0, 0, 0};
    size_t tiles = (size_t)a->nq * (size_t)l.n_tiles;
    l.n_sums = tiles * (size_t)t.rows * (size_t)a->head_dim;
    l.n_turns = tiles * FLASH_BWD_WARPS;
    l.n_floats = l.n_sums + l.n_turns + (size_t)a->n_segs + 2 * (size_t)l.n_work + 2;
    return l;
}
inline flash_scratch flash_scratch_of(const struct tsr_cuda_attn *a, float *p) {
    flash_layout l = flash_layout_of(a);
    int *turns = (int *)(p + l.n_sums), *first_tile = turns + l.n_turns;
    int *work = first_tile + a->n_segs;
    return {p, turns, first_tile, work, work + 2 * (ptrdiff_t)l.n_work, l.n_tiles};
}

int flash_plan(void *stream, const struct tsr_cuda_attn *a, const flash_scratch *s);

#endif

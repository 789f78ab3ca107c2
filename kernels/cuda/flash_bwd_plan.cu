// The order of work of flash attention's backward pass. A key block of a segment stands before the
// segment's later ones, which wait for it (flash_bwd.cu), and the more queries follow a key block,
// the earlier it stands, so that the last ones to be worked on are short.
#include "kernels/cuda/flash_bwd.cuh"

struct plan_args {
    const struct tsr_cuda_segment *segs;
    int n_segs;
    flash_scratch s;
    flash_tiles tile;
    int64_t n_turns;
};

// A warp for each segment. The key blocks that stand before one which has `left` blocks to its
// segment's end, itself included: of each segment all that have more left, and of the segments
// before its own also the one that has as many.
__global__ void __launch_bounds__(256) plan_kernel(plan_args p) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, n = (int64_t)gridDim.x * blockDim.x;
    for (int64_t at = i; at < p.n_turns; at += n)
        p.s.turns[at] = 0;
    int lane = threadIdx.x % 32;
    for (int64_t s = i / 32; s < p.n_segs; s += n / 32) {
        int blocks = (p.segs[s].length + p.tile.keys - 1) / p.tile.keys, block = lane;
        do {
            int left = blocks - block, place = 0, tiles = 0, all = 0;
            for (int o = 0; o < p.n_segs; o++) {
                int length = p.segs[o].length, theirs = (length + p.tile.keys - 1) / p.tile.keys;
                place += max_of(0, theirs - left) + (o < s && theirs >= left ? 1 : 0);
                tiles += o < s ? (length + p.tile.rows - 1) / p.tile.rows : 0;
                all += theirs;
            }
            if (block < blocks) {
                p.s.work[2 * place] = (int)s;
                p.s.work[2 * place + 1] = block;
            }
            if (block == 0)
                p.s.first_tile[s] = tiles;
            if (block == 0 && s == 0) {
                p.s.counts[0] = 0;
                p.s.counts[1] = all;
            }
            block += 32;
        } while (block < blocks);
    }
}

int flash_plan(void *stream, const struct tsr_cuda_attn *a, const flash_scratch *s) {
    plan_args p = {a->segs, a->n_segs, *s, flash_tiles_of(a->head_dim),
                   (int64_t)flash_layout_of(a).n_turns};
    int64_t threads = (int64_t)a->n_segs * 32 + p.n_turns / 8; // enough; the loops do the rest
    unsigned blocks = threads < 4096 * 256 ? blocks_for(threads, 256) : 4096;
    return launch_kernel("flash_plan", plan_kernel, dim3(blocks), 256, 0, stream, p);
}

// What decoding's kernels share: attention of few queries over long caches (`decode.cu` for 16-bit
// elements, `decode_f32.cu`).
//
// The query heads of a KV head read the same keys, so their rows (query by query) are packed into
// tiles of 16. One row's softmax is a chain over blocks of keys at fixed absolute positions, as in
// flash.cu and attention_f32.cu, and gives the same bits; what isn't a chain is dealt out:
//   scores   by blocks of keys: s = q k, and each row's maximum over the block;
//   weights  by blocks of keys: the maximum up to a block is that of its predecessors' maxima, so
//            weights, and the factor that earlier blocks are scaled by, don't wait for them;
//   values   by columns of V: O = O factor + weights v, block after block.
// Splitting the values by keys as well (Dao et al. 2023, "Flash-Decoding") would join partial O in
// another order than a prompt's attention does: then a row would depend on how it was batched.
//
// Grids depend on sizes alone, never on how many keys there are by now: blocks read that on the
// device, and leave when nothing is left for them. Scratch holds the scores of some blocks of keys
// of all tiles; when it can't hold all, passes follow each other and hand O on.
#ifndef TSR_KERNELS_CUDA_DECODE_CUH
#define TSR_KERNELS_CUDA_DECODE_CUH

#include <algorithm>
#include "kernels/cuda/attention.cuh"

enum {
    DECODE_ROWS = 16,
    DECODE_SPLITS = 64,   // most blocks that one tile's scores are dealt out to
    DECODE_BLOCKS = 1024, // that fill a device
    DECODE_COLUMNS = 16,  // of the narrowest slice of values
    DECODE_CARRIED = 512, // floats that a pass hands on for so many columns
    DECODE_EXTRA = 16     // floats of a tile and block beside its scores
};

// How a call is dealt out. Units are tiles of segments' KV heads.
struct decode_plan {
    int keys;             // of a block: 64, or 32
    int tiles;            // of a KV head
    int64_t units;        // n_segs * nkv * tiles
    int n_blocks;         // of keys, in the longest table
    int pass_blocks;      // of a pass
    int pass_lo, pass_hi; // the pass that runs
    float *maxima;        // (units, n_blocks, 16)
    float *carried;       // (units, columns / 16, DECODE_CARRIED), only for several passes
    float *scores;        // (units, pass_blocks, 16 keys + DECODE_EXTRA)
};

// A tile of rows: row r is query (row0 + r) / heads, query head q0 + (row0 + r) % heads.
struct decode_tile {
    struct tsr_cuda_segment g;
    int64_t unit;
    int kv, q0, heads, row0, n; // n = 0: nothing to do
    int first, end;             // blocks of keys that its rows see
    int lo, hi;                 // those of this pass
};

DEVICE int tile_position(const decode_tile &t, int row) {
    return t.g.position + (t.row0 + row) / t.heads;
}

// Offset of a row in q or o.
DEVICE int64_t tile_row(const decode_tile &t, int row, ptrdiff_t ld, int head_dim) {
    int r = t.row0 + row;
    return (t.g.start + r / t.heads) * ld + (int64_t)(t.q0 + r % t.heads) * head_dim;
}

DEVICE decode_tile tile_of(const struct tsr_cuda_attn &a, const decode_plan &p) {
    decode_tile t = {};
    t.g = a.segs[blockIdx.z];
    t.unit = (int64_t)blockIdx.z * gridDim.y + blockIdx.y;
    t.kv = (int)blockIdx.y / p.tiles;
    t.row0 = (int)blockIdx.y % p.tiles * DECODE_ROWS;
    t.q0 = max_of((a.kv0 + t.kv) * a.group, a.q0) - a.q0;
    t.heads = min_of((a.kv0 + t.kv + 1) * a.group, a.q0 + a.nq) - a.q0 - t.q0;
    if (t.heads <= 0 || !is_few(a, t.g))
        return t;
    t.n = max_of(min_of(t.g.length * t.heads - t.row0, (int)DECODE_ROWS), 0);
    if (t.n == 0)
        return t;
    t.first = keys_seen(tile_position(t, 0), 0, a.window).lo / p.keys;
    t.end = tile_position(t, t.n - 1) / p.keys + 1;
    t.lo = max_of(t.first, p.pass_lo);
    t.hi = min_of(t.end, p.pass_hi);
    if (t.lo >= t.hi)
        t.n = 0;
    return t;
}

// Keys that a tile's rows see, any of them.
DEVICE key_range tile_keys(const struct tsr_cuda_attn &a, const decode_tile &t) {
    return {keys_seen(tile_position(t, 0), 0, a.window).lo, tile_position(t, t.n - 1) + 1};
}

// Keys of a block that a row sees, counted from the block's first; none when the tile lacks it.
DEVICE key_range row_keys(const struct tsr_cuda_attn &a, const decode_tile &t, int row, int block,
                          int keys) {
    if (row >= t.n)
        return {0, 0};
    key_range seen = keys_seen(tile_position(t, row), 0, a.window);
    return {max_of(seen.lo - block * keys, 0), min_of(seen.hi - block * keys, keys)};
}

DEVICE float *maxima_of(const decode_plan &p, const decode_tile &t, int block) {
    return p.maxima + (t.unit * p.n_blocks + block) * DECODE_ROWS;
}
DEVICE float *scores_of(const decode_plan &p, const decode_tile &t, int block) {
    int64_t floats = DECODE_ROWS * p.keys + DECODE_EXTRA;
    return p.scores + (t.unit * p.pass_blocks + block - p.pass_lo) * floats;
}
// What the columns from col0 on hand on from pass to pass.
DEVICE float *carried_of(const decode_plan &p, const decode_tile &t, int col0, int head_dim) {
    int64_t slices = (head_dim + DECODE_COLUMNS - 1) / DECODE_COLUMNS;
    return p.carried + (t.unit * slices + col0 / DECODE_COLUMNS) * DECODE_CARRIED;
}

// Sizes of a call, without its passes.
inline decode_plan decode_sizes(enum tsr_dtype dtype, const struct tsr_cuda_attn *a) {
    decode_plan p = {};
    int queries = std::min(a->max_length, (int)TSR_CUDA_FEW);
    p.keys = dtype == TSR_DT_F32 || a->head_dim <= 128 ? 64 : 32;
    p.tiles = (int)blocks_for((int64_t)queries * std::min(a->group, a->nq), DECODE_ROWS);
    p.units = (int64_t)a->n_segs * a->nkv * p.tiles;
    p.n_blocks = (int)blocks_for(a->n_keys, p.keys);
    return p;
}

int decode_make_plan(decode_plan *p, enum tsr_dtype dtype, const struct tsr_cuda_attn *a);

// Blocks that the work by keys of a tile is dealt out to.
inline unsigned decode_splits(const decode_plan &p) {
    int64_t most = std::min(p.pass_blocks, (int)DECODE_SPLITS);
    return (unsigned)std::max(std::min(DECODE_BLOCKS / p.units, most), (int64_t)1);
}

// Floats before the scores: maxima, and what passes hand on when there are several.
inline size_t fixed_floats(const decode_plan &p, int head_dim, bool passes) {
    size_t slices = blocks_for(head_dim, DECODE_COLUMNS), units = (size_t)p.units;
    return units * (size_t)p.n_blocks * DECODE_ROWS +
           (passes ? units * slices * DECODE_CARRIED : 0);
}

inline size_t block_floats(const decode_plan &p) {
    return (size_t)p.units * (size_t)(DECODE_ROWS * p.keys + DECODE_EXTRA);
}

#endif

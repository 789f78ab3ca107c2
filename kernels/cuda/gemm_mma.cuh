// The matrix product on the matrix units: 16-bit elements, fp32 sums, mma.m16n8k16.
//
// The order of an element's sum is one for all shapes and tiles: terms are taken in groups of 16
// from the beginning of each segment (the last filled up with +0), a group is one instruction, and
// a piece's groups are one chain. So an element depends on its own terms only.
//
// Tiles lie in shared memory as in global memory, by lines of terms (K) or of rows or columns,
// in units of 16 bytes. Unit u of line l stands at u ^ l (its lowest bits): the eight lines that
// ldmatrix reads at a time lie in different banks, and so do the units that one line brings.
#ifndef TSR_KERNELS_CUDA_GEMM_MMA_CUH
#define TSR_KERNELS_CUDA_GEMM_MMA_CUH

#include <type_traits>
#include "kernels/cuda/gemm.cuh"

// WM x WN warps, each with MT x NT products of 16 x 8; BK terms a stage.
template <int WM_, int WN_, int MT_, int NT_, int BK_, int STAGES_, bool TREE_> struct mma_shape {
    static constexpr int WM = WM_, WN = WN_, MT = MT_, NT = NT_, BK = BK_, STAGES = STAGES_;
    static constexpr bool TREE = TREE_;
    static constexpr int BM = 16 * MT * WM, BN = 8 * NT * WN, THREADS = 32 * WM * WN;
    static constexpr int R = MT * NT, NODE_BYTES = R * THREADS * 16;
    static constexpr int STAGE = (BM + BN) * BK;             // elements
    static constexpr int SLAB_LD = 8 * NT + 8;               // floats between rows of the epilogue
    static constexpr int SLAB = 16 * MT * WM * WN * SLAB_LD; // floats
};

// A tile of ROWS rows (or columns) by BK terms.
template <class T, int ROWS, int BK, bool K_LINES> struct mma_tile {
    static constexpr int LINES = K_LINES ? ROWS : BK, LINE = K_LINES ? BK : ROWS, UNITS = LINE / 8;
    static_assert(UNITS == 4 || UNITS % 8 == 0, "eight lines fill the banks evenly");

    static DEVICE int place(int line, int unit) {
        int turn = UNITS == 4 ? line / 2 % 4 : line % 8;
        return line * LINE + (unit ^ turn) * 8;
    }
    // Rows [row0, + 16) and terms [k, + 16) as a left operand.
    static DEVICE void left(uint32_t (&a)[4], smem<T> tile, int row0, int k) {
        int lane = threadIdx.x % 32;
        if (K_LINES)
            ldmatrix_x4(a, tile + place(row0 + lane % 16, k / 8 + lane / 16));
        else
            ldmatrix_x4_trans(a,
                              tile + place(k + lane % 8 + lane / 16 * 8, row0 / 8 + lane / 8 % 2));
    }
    // Terms [k, + 16) and columns [col0, + 16) as right operands of two products: b[0], b[1] and
    // b[2], b[3].
    static DEVICE void right(uint32_t (&b)[4], smem<T> tile, int col0, int k) {
        int lane = threadIdx.x % 32;
        if (K_LINES)
            ldmatrix_x4(b, tile + place(col0 + lane % 8 + lane / 16 * 8, k / 8 + lane / 8 % 2));
        else
            ldmatrix_x4_trans(b, tile + place(k + lane % 16, col0 / 8 + lane / 16));
    }
};

// Brings one tile after the other: 16 bytes at a time past the registers, from aligned lines.
template <class T, class Tile, int THREADS, int BK, bool K_LINES> struct wide_source {
    static constexpr int STEP = THREADS / Tile::UNITS, STEPS = Tile::LINES / STEP;
    static_assert(THREADS % Tile::UNITS == 0 && Tile::LINES % STEP == 0, "whole steps");
    const T *p; // this thread's first unit
    ptrdiff_t ld;

    DEVICE void start(const T *base, ptrdiff_t s_row, ptrdiff_t s_k) {
        ld = K_LINES ? s_row : s_k;
        p = base + (int)threadIdx.x / Tile::UNITS * ld + (int)threadIdx.x % Tile::UNITS * 8;
    }
    DEVICE void begin(smem<T> tile, int rows, int terms) {
        int line = threadIdx.x / Tile::UNITS, unit = threadIdx.x % Tile::UNITS;
        int lines = K_LINES ? rows : terms, left = (K_LINES ? terms : rows) - unit * 8;
        int bytes = min_of(max_of(left, 0), 8) * 2;
        const T *from = p;
        UNROLL(STEPS)
        for (int i = 0; i < STEPS; i++) {
            cp_async16_first(tile + Tile::place(line + i * STEP, unit), from,
                             line + i * STEP < lines ? bytes : 0);
            from += STEP * ld;
        }
        p += K_LINES ? BK : BK * ld;
    }
    DEVICE void end(smem<T>) {
    }
};

// The same one by one through registers, from any strides.
template <class T, class Tile, int THREADS, int BK, bool K_LINES> struct narrow_source {
    static constexpr int STEP = THREADS / Tile::LINE, STEPS = Tile::LINES / STEP;
    static_assert(THREADS % Tile::LINE == 0 && Tile::LINES % STEP == 0, "whole steps");
    const T *p; // this thread's first element
    ptrdiff_t s_line, next;
    float v[STEPS];

    DEVICE void start(const T *base, ptrdiff_t s_row, ptrdiff_t s_k) {
        s_line = K_LINES ? s_row : s_k;
        next = BK * s_k;
        p = base + (int)threadIdx.x / Tile::LINE * s_line +
            threadIdx.x % Tile::LINE * (K_LINES ? s_k : s_row);
    }
    DEVICE void begin(smem<T>, int rows, int terms) {
        int line = threadIdx.x / Tile::LINE, in = threadIdx.x % Tile::LINE;
        int lines = in < (K_LINES ? terms : rows) ? (K_LINES ? rows : terms) : 0;
        const T *from = p;
        UNROLL(STEPS)
        for (int i = 0; i < STEPS; i++) {
            v[i] = line + i * STEP < lines ? to_float(*from) : 0.0f;
            from += STEP * s_line;
        }
        p += next;
    }
    DEVICE void end(smem<T> tile) {
        int line = threadIdx.x / Tile::LINE, in = threadIdx.x % Tile::LINE;
        UNROLL(STEPS)
        for (int i = 0; i < STEPS; i++)
            tile[Tile::place(line + i * STEP, in / 8) + in % 8] = from_float<T>(v[i]);
    }
};

// One step's operands of a warp.
template <class S> struct mma_operands { uint32_t a[S::MT][4], b[S::NT / 2][4]; };

template <class T, class S> DEVICE void mma_step(float (&sums)[S::R][4], const mma_operands<S> &x) {
    UNROLL(S::R)
    for (int r = 0; r < S::R; r++) {
        int j = r % S::NT, half = j % 2 * 2;
        mma_16816<T>(sums[r], x.a[r / S::NT], x.b[j / 2][half], x.b[j / 2][half + 1]);
    }
}

// A warp's sums go through its own part of shared memory (whose stages are done with), so that
// each thread finishes whole 16-byte units of a row; unaligned rows element after element.
template <class T, class S>
DEVICE void mma_finish(const gemm_args &q, const float (&sums)[S::R][4], int i0, int j0) {
    constexpr int ROWS = 16 * S::MT, COLS = 8 * S::NT, LD = S::SLAB_LD;
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    shared_cursor cursor;
    smem<float> slab = cursor.take<float>(S::SLAB) + (int)threadIdx.x / 32 * (ROWS * LD);
    UNROLL(4 * S::R)
    for (int x = 0; x < 4 * S::R; x++) {
        int r = x / 4, e = x % 4;
        int row = r / S::NT * 16 + g + e / 2 * 8, col = r % S::NT * 8 + 2 * t + e % 2;
        slab[row * LD + col] = sums[r][e];
    }
    __syncwarp();
    if (!q.wide_out) {
        UNROLL(1)
        for (int u = lane; u < ROWS * COLS; u += 32) {
            int i = i0 + u / COLS, j = j0 + u % COLS;
            float one[1] = {slab[u / COLS * LD + u % COLS]};
            if (i < q.m && j < q.n)
                gemm_finish<T, 1>(q, i, j, one);
        }
        return;
    }
    UNROLL(1)
    for (int u = lane; u < ROWS * S::NT; u += 32) {
        smem<float> from = slab + u / S::NT * LD + u % S::NT * 8;
        float y[8];
        for (int half = 0; half < 8; half += 4) {
            chunk<float> c;
            unpack(shared_load16(from + half), c);
            UNROLL(4)
            for (int e = 0; e < 4; e++)
                y[half + e] = c.v[e];
        }
        gemm_finish_edge<T, 8>(q, i0 + u / S::NT, j0 + u % S::NT * 8, y);
    }
}

template <class T, class S, bool A_K, bool B_K, bool WIDE>
__global__ void __launch_bounds__(S::THREADS) gemm_mma_kernel(gemm_args q) {
    using tile_a = mma_tile<T, S::BM, S::BK, A_K>;
    using tile_b = mma_tile<T, S::BN, S::BK, B_K>;
    constexpr int STEPS = S::BK / 16;
    static_assert(STEPS % 2 == 0, "operands alternate between two sets");
    shared_cursor cursor;
    smem<T> stages = cursor.template take<T>(S::STAGES * S::STAGE);
    piece_tree<S::TREE ? S::R : 1, S::THREADS> tree;
    tree.nodes = cursor.template take<float>(S::TREE ? (size_t)q.n_nodes * tree.NODE : 0);
    gemm_place block = place_of_block(q);
    int i0 = block.i * S::BM, j0 = block.j * S::BN, lane = threadIdx.x % 32;
    int row0 = threadIdx.x / 32 / S::WN * (16 * S::MT); // the warp's part of the tile
    int col0 = threadIdx.x / 32 % S::WN * (8 * S::NT);
    std::conditional_t<WIDE, wide_source<T, tile_a, S::THREADS, S::BK, A_K>,
                       narrow_source<T, tile_a, S::THREADS, S::BK, A_K>>
        from_a;
    std::conditional_t<WIDE, wide_source<T, tile_b, S::THREADS, S::BK, B_K>,
                       narrow_source<T, tile_b, S::THREADS, S::BK, B_K>>
        from_b;
    gemm_walk load, use;
    load.begin(q);
    use.begin(q);
    int coming = 0, stage = 0;
    bool started = false; // a tile of terms that end() has yet to put in its place
    auto begin = [&] {
        started = load.more();
        if (!started)
            return;
        if (load.fresh) {
            const struct tsr_gemm_seg &g = load.segs[load.i];
            from_a.start((const T *)g.a + i0 * g.a_i, q.m > 1 ? g.a_i : 0, g.k > 1 ? g.a_p : 0);
            from_b.start((const T *)g.b + j0 * g.b_j, q.n > 1 ? g.b_j : 0, g.k > 1 ? g.b_p : 0);
        }
        from_a.begin(stages + coming * S::STAGE, q.m - i0, load.left);
        from_b.begin(stages + coming * S::STAGE + S::BM * S::BK, q.n - j0, load.left);
        load.next(S::BK);
    };
    auto end = [&] {
        if (started) {
            from_a.end(stages + coming * S::STAGE);
            from_b.end(stages + coming * S::STAGE + S::BM * S::BK);
        }
        coming = coming + 1 < S::STAGES ? coming + 1 : 0;
        cp_async_commit();
    };
    mma_operands<S> x[2];
    auto operands = [&](mma_operands<S> &to, int k) {
        smem<T> a = stages + stage * S::STAGE, b = a + S::BM * S::BK;
        UNROLL(S::MT)
        for (int i = 0; i < S::MT; i++)
            tile_a::left(to.a[i], a, row0 + 16 * i, k);
        UNROLL(S::NT / 2)
        for (int j = 0; j < S::NT / 2; j++)
            tile_b::right(to.b[j], b, col0 + 16 * j, k);
    };
    for (int s = 0; s < S::STAGES - 1; s++) {
        begin();
        end();
    }
    float sums[S::R][4];
    UNROLL(4 * S::R)
    for (int x = 0; x < 4 * S::R; x++) {
        int r = x / 4, e = x % 4;
        sums[r][e] = gemm_start<T>(q, i0 + row0 + r / S::NT * 16 + lane / 4 + e / 2 * 8,
                                   j0 + col0 + r % S::NT * 8 + lane % 4 * 2 + e % 2);
    }
    cp_async_wait<S::STAGES - 2>();
    __syncthreads();
    if (use.more())
        operands(x[0], 0);
    for (;;) {
        if constexpr (S::TREE) {
            int piece = use.more() ? use.segs[use.i].piece : q.n_pieces;
            while (tree.leaf < piece)
                tree.push(sums, q.n_pieces);
        }
        if (!use.more())
            break;
        int groups = (use.left + 15) / 16;
        use.next(S::BK);
        auto step = [&](int s, const mma_operands<S> &now, mma_operands<S> &then) {
            if (s == STEPS - 1) { // the next stage must be there, and then this one is done with
                end();
                cp_async_wait<S::STAGES - 2>();
                __syncthreads();
                stage = stage + 1 < S::STAGES ? stage + 1 : 0;
            }
            if (s < STEPS - 1 || use.more())
                operands(then, (s + 1) % STEPS * 16);
            if (s == 0)
                begin();
            if (s < groups)
                mma_step<T, S>(sums, now);
        };
        UNROLL(STEPS / 2)
        for (int s = 0; s < STEPS; s += 2) {
            step(s, x[0], x[1]);
            step(s + 1, x[1], x[0]);
        }
    }
    __syncthreads();
    mma_finish<T, S>(q, sums, i0 + row0, j0 + col0);
}

// One piece: 128 x 256, or 128 x 128 with two blocks at a time. Several: 128 x 128, and 64 x 64 for
// more nodes than its memory takes, or small products. Few rows, as in decoding, read long rows of
// weights: 16 x 32, many blocks, deep stages; a block's memory has room for any tree.
using mma_huge = mma_shape<2, 4, 4, 8, 64, 3, false>;
using mma_large = mma_shape<2, 2, 4, 8, 32, 4, false>;
using mma_large_tree = mma_shape<2, 4, 4, 4, 32, 3, true>;
using mma_middle = mma_shape<2, 2, 2, 4, 32, 3, true>;
using mma_few = mma_shape<1, 2, 1, 2, 128, 6, true>;
using mma_few_narrow = mma_shape<1, 2, 1, 2, 32, 3, true>;

template <class T, class S> size_t mma_bytes(const gemm_args &q) {
    size_t work = (size_t)S::STAGES * S::STAGE * sizeof(T) + (size_t)q.n_nodes * S::NODE_BYTES;
    size_t slab = (size_t)S::SLAB * sizeof(float);
    return work > slab ? work : slab;
}

template <class T, class S, bool A_K, bool B_K, bool WIDE>
int launch_mma_as(const char *name, void *stream, const gemm_args &q) {
    return launch_gemm(name, gemm_mma_kernel<T, S, A_K, B_K, WIDE>, stream, q, S::BM, S::BN,
                       S::THREADS, mma_bytes<T, S>(q));
}

template <class T, class S>
int launch_mma(const char *name, void *stream, const struct gemm_call *call) {
    TSR_ASSERT(call->wide_in && call->layout != GEMM_MK);
    if (call->layout == GEMM_KK)
        return launch_mma_as<T, S, true, true, true>(name, stream, call->args);
    if (call->layout == GEMM_KN)
        return launch_mma_as<T, S, true, false, true>(name, stream, call->args);
    return launch_mma_as<T, S, false, false, true>(name, stream, call->args);
}

template <class T, class S>
int launch_mma_narrow(const char *name, void *stream, const struct gemm_call *call) {
    if (call->layout == GEMM_KK)
        return launch_mma_as<T, S, true, true, false>(name, stream, call->args);
    if (call->layout == GEMM_KN)
        return launch_mma_as<T, S, true, false, false>(name, stream, call->args);
    if (call->layout == GEMM_MN)
        return launch_mma_as<T, S, false, false, false>(name, stream, call->args);
    return launch_mma_as<T, S, false, true, false>(name, stream, call->args);
}

// How long a shape takes, in units of its own: rounds of `per_sm` blocks on each multiprocessor,
// at an estimated share of the matrix units' speed.
template <class S> double mma_time(const struct gemm_call *call, int per_sm, double speed) {
    int64_t tiles = (int64_t)blocks_for(call->args.m, S::BM) * blocks_for(call->args.n, S::BN);
    int64_t at_once = (int64_t)call->n_sms * per_sm;
    int64_t rounds = (tiles + at_once - 1) / at_once;
    return (double)rounds * per_sm * (S::BM * S::BN) / speed;
}

template <class T> int gemm_mma(void *stream, const struct gemm_call *call) {
    const gemm_args &q = call->args;
    size_t max_shared = (size_t)call->max_shared;
    bool keeps = mma_bytes<T, mma_middle>(q) <= max_shared;
    if (q.m <= 16 && call->layout == GEMM_KK && call->wide_in)
        return launch_mma_as<T, mma_few, true, true, true>("gemm_few", stream, q);
    if (!keeps || (q.m <= 16 && call->layout == GEMM_KK))
        return launch_mma_as<T, mma_few_narrow, true, true, false>("gemm_few_narrow", stream, q);
    double middle = mma_time<mma_middle>(call, 3, 0.6), large = mma_time<mma_large>(call, 2, 0.9);
    bool tree_keeps = mma_bytes<T, mma_large_tree>(q) <= max_shared;
    double tree = tree_keeps ? mma_time<mma_large_tree>(call, 1, 0.8) : middle;
    if (!call->wide_in)
        return tree < middle
                   ? launch_mma_narrow<T, mma_large_tree>("gemm_tree_narrow", stream, call)
                   : launch_mma_narrow<T, mma_middle>("gemm_middle_narrow", stream, call);
    if (q.n_pieces > 1 && tree < middle)
        return launch_mma<T, mma_large_tree>("gemm_tree", stream, call);
    if (q.n_pieces > 1 || middle <= large)
        return launch_mma<T, mma_middle>("gemm_middle", stream, call);
    if (mma_time<mma_huge>(call, 1, 1.0) <= large)
        return launch_mma<T, mma_huge>("gemm_huge", stream, call);
    return launch_mma<T, mma_large>("gemm_large", stream, call);
}

#endif

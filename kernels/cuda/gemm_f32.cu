// The matrix product in fp32. Twin: kernels/cpu/isa/gemm.c; an element is one chain of fmaf in k
// order for each piece, joined by the tree, so the bits are the same.
//
// A block makes a BM x BN tile, a thread TM x TN of it in groups of four rows and four columns.
// Terms come by cp.async, BK at a time and some stages ahead, to [term][row] and [term][column]:
// four at once where they lie side by side and are aligned, else one by one, from any strides.
#include "kernels/cuda/gemm.cuh"

template <int BM_, int BN_, int TM_, int TN_, int STAGES_, bool TREE_> struct f32_shape {
    static constexpr int BM = BM_, BN = BN_, TM = TM_, TN = TN_, BK = 16, STAGES = STAGES_;
    static constexpr bool TREE = TREE_;
    static constexpr int THREADS = BM / TM * (BN / TN), R = TM * TN / 4;
    static constexpr int LDA = BM + 4, LDB = BN + 4, STAGE = BK * (LDA + LDB);
    static constexpr int NODE_BYTES = R * THREADS * 16;
};

// A thread's place in its block's tile: four by eight threads make a warp.
template <class S> struct f32_place {
    int x, y;
    DEVICE f32_place() {
        constexpr int WARPS_N = S::BN / S::TN / 8;
        int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
        x = warp % WARPS_N * 8 + lane % 8;
        y = warp / WARPS_N * 4 + lane / 8;
    }
    // Row r of TM; the first of four columns of group g.
    DEVICE int row(int r) const {
        return r / 4 * (S::BM / (S::TM / 4)) + y * 4 + r % 4;
    }
    DEVICE int col(int g) const {
        return g * (S::BN / (S::TN / 4)) + x * 4;
    }
};

// Starts to bring rows [0, rows) and terms [0, terms) from p to [term][row], zeros beyond.
template <int ROWS, int BK, int THREADS>
DEVICE void f32_bring(smem<float> tile, const float *p, ptrdiff_t s_row, ptrdiff_t s_k, int rows,
                      int terms) {
    constexpr int LD = ROWS + 4, UNITS = ROWS / 4;
    if (s_row == 1 && (uintptr_t)p % 16 == 0 && (s_k % 4 == 0 || terms == 1)) {
        for (int u = threadIdx.x; u < UNITS * BK; u += THREADS) {
            int k = u / UNITS, row = u % UNITS * 4;
            int left = k < terms ? min_of(max_of(rows - row, 0), 4) : 0;
            cp_async16_first(tile + k * LD + row, left > 0 ? p + k * s_k + row : p, left * 4);
        }
        return;
    }
    // along rows, or eight terms by four rows a warp: whole sectors of global memory, each bank
    // once
    constexpr int K_WARPS = BK / 8, STEP_ROWS = THREADS / 32 / K_WARPS * 4, STEP_K = THREADS / ROWS;
    constexpr int STEPS = ROWS * BK / THREADS;
    static_assert(ROWS % STEP_ROWS == 0 && BK % STEP_K == 0, "whole steps");
    bool along_rows = s_row == 1;
    int t = threadIdx.x, warp = t / 32, step_row = along_rows ? 0 : STEP_ROWS;
    int row = along_rows ? t % ROWS : warp / K_WARPS * 4 + t % 32 / 8;
    int k = along_rows ? t / ROWS : warp % K_WARPS * 8 + t % 8, step_k = along_rows ? STEP_K : 0;
    ptrdiff_t step = step_row * s_row + step_k * s_k;
    const float *from = p + row * s_row + k * s_k;
    smem<float> to = tile + k * LD + row;
    UNROLL(STEPS)
    for (int i = 0; i < STEPS; i++) {
        cp_async4(to + i * (step_k * LD + step_row), from,
                  row + i * step_row < rows && k + i * step_k < terms);
        from += step;
    }
}

// sums += one term.
template <class S>
DEVICE void f32_term(float (&sums)[S::R][4], smem<float> a, smem<float> b, const f32_place<S> &at) {
    chunk<float> left[S::TM / 4], right[S::TN / 4];
    UNROLL(S::TM / 4)
    for (int g = 0; g < S::TM / 4; g++)
        unpack(shared_load16(a + at.row(4 * g)), left[g]);
    UNROLL(S::TN / 4)
    for (int g = 0; g < S::TN / 4; g++)
        unpack(shared_load16(b + at.col(g)), right[g]);
    UNROLL(S::TM * S::TN)
    for (int x = 0; x < S::TM * S::TN; x++) {
        int r = x / S::TN, c = x % S::TN;
        float &sum = sums[x / 4][x % 4];
        sum = fmaf(left[r / 4].v[r % 4], right[c / 4].v[c % 4], sum);
    }
}

// sums += the terms of a stage, no more than there are: a chain must not meet zeros of padding,
// which would turn its -0 into +0.
template <class S>
DEVICE void f32_terms(float (&sums)[S::R][4], smem<float> stage, const f32_place<S> &at, int n) {
    smem<float> a = stage, b = stage + S::BK * S::LDA;
    if (n == S::BK) {
        UNROLL(4)
        for (int k = 0; k < S::BK; k++)
            f32_term<S>(sums, a + k * S::LDA, b + k * S::LDB, at);
        return;
    }
    UNROLL(1)
    for (int k = 0; k < n; k++)
        f32_term<S>(sums, a + k * S::LDA, b + k * S::LDB, at);
}

// Puts sums where threads can take them one by one (their code would otherwise stand R times).
template <class S>
DEVICE void f32_finish(const gemm_args &q, const float (&sums)[S::R][4], int i0, int j0,
                       const f32_place<S> &at) {
    shared_cursor cursor;
    smem<float> own = cursor.take<float>(S::NODE_BYTES / 4) + (int)threadIdx.x * 4;
    UNROLL(S::R)
    for (int r = 0; r < S::R; r++) {
        chunk<float> c = {{sums[r][0], sums[r][1], sums[r][2], sums[r][3]}};
        shared_store16(own + r * 4 * S::THREADS, pack(c));
    }
    UNROLL(1)
    for (int r = 0; r < S::R; r++) {
        chunk<float> c;
        unpack(shared_load16(own + r * 4 * S::THREADS), c);
        gemm_finish_edge<float, 4>(q, i0 + at.row(r / (S::TN / 4)), j0 + at.col(r % (S::TN / 4)),
                                   c.v);
    }
}

template <class S>
__global__ void __launch_bounds__(S::THREADS, S::TREE ? 1 : 2) gemm_f32_kernel(gemm_args q) {
    shared_cursor cursor;
    smem<float> stages = cursor.take<float>(S::STAGES * S::STAGE);
    piece_tree<S::R, S::THREADS> tree;
    tree.nodes = cursor.take<float>(S::TREE ? (size_t)q.n_nodes * tree.NODE : 0);
    gemm_place block = place_of_block(q);
    f32_place<S> at;
    int i0 = block.i * S::BM, j0 = block.j * S::BN, coming = 0, stage = 0;
    gemm_walk load, use;
    load.begin(q);
    use.begin(q);
    auto bring = [&] {
        if (load.more()) {
            const struct tsr_gemm_seg &g = load.segs[load.i];
            int k = g.k - load.left;
            const float *a = (const float *)g.a + i0 * g.a_i + k * g.a_p;
            const float *b = (const float *)g.b + j0 * g.b_j + k * g.b_p;
            smem<float> to = stages + coming * S::STAGE;
            f32_bring<S::BM, S::BK, S::THREADS>(to, a, g.a_i, g.a_p, q.m - i0, load.left);
            f32_bring<S::BN, S::BK, S::THREADS>(to + S::BK * S::LDA, b, g.b_j, g.b_p, q.n - j0,
                                                load.left);
            load.next(S::BK);
        }
        coming = coming + 1 < S::STAGES ? coming + 1 : 0;
        cp_async_commit();
    };
    for (int s = 0; s < S::STAGES - 1; s++)
        bring();
    float sums[S::R][4];
    UNROLL(4 * S::R)
    for (int x = 0; x < 4 * S::R; x++) {
        int c = x % S::TN;
        sums[x / 4][x % 4] =
            gemm_start<float>(q, i0 + at.row(x / S::TN), j0 + at.col(c / 4) + c % 4);
    }
    for (;;) {
        int piece = use.more() ? use.segs[use.i].piece : q.n_pieces;
        while (S::TREE && tree.leaf < piece)
            tree.push(sums, q.n_pieces);
        if (!use.more())
            break;
        cp_async_wait<S::STAGES - 2>();
        __syncthreads(); // this stage has come, and everyone is done with the one before
        bring();
        f32_terms<S>(sums, stages + stage * S::STAGE, at, min_of(use.left, (int)S::BK));
        stage = stage + 1 < S::STAGES ? stage + 1 : 0;
        use.next(S::BK);
    }
    __syncthreads();
    f32_finish<S>(q, sums, i0, j0, at);
}

template <class S> static size_t f32_bytes(const gemm_args &q) {
    size_t work = (size_t)S::STAGES * S::STAGE * 4 + (size_t)q.n_nodes * S::NODE_BYTES;
    return work > S::NODE_BYTES ? work : S::NODE_BYTES;
}

template <class S> static int launch_f32(const char *name, void *stream, const gemm_call *call) {
    return launch_gemm(name, gemm_f32_kernel<S>, stream, call->args, S::BM, S::BN, S::THREADS,
                       f32_bytes<S>(call->args));
}

// Large, large with a tree, for a tree of many nodes or a small product, for few rows or any tree.
using f32_large = f32_shape<128, 128, 8, 8, 3, false>;
using f32_large_tree = f32_shape<128, 128, 8, 8, 3, true>;
using f32_middle = f32_shape<64, 64, 4, 4, 3, true>;
using f32_few = f32_shape<16, 64, 4, 4, 6, true>;

int gemm_f32(void *stream, const struct gemm_call *call) {
    const gemm_args &q = call->args;
    size_t max_shared = (size_t)call->max_shared;
    bool fills = (int64_t)blocks_for(q.m, 128) * blocks_for(q.n, 128) >= call->n_sms;
    if (q.m <= 16 || f32_bytes<f32_middle>(q) > max_shared)
        return launch_f32<f32_few>("gemm_f32_few", stream, call);
    if (fills && q.n_pieces == 1)
        return launch_f32<f32_large>("gemm_f32", stream, call);
    if (fills && f32_bytes<f32_large_tree>(q) <= max_shared)
        return launch_f32<f32_large_tree>("gemm_f32_tree", stream, call);
    return launch_f32<f32_middle>("gemm_f32_middle", stream, call);
}

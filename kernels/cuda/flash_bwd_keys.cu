// Flash attention on the matrix units, gradients of keys and values (Dao 2023, "FlashAttention-2",
// Algorithm 2). Twin: kernels/cpu/isa/attention_bwd.c. No atomics: a block owns its keys of one
// slot and walks the slot's heads and their queries in order.
//   S^T = K Q^T    dP^T = V dO^T    dV += Z^T dO    dK += dS^T Q scale
// Scores are computed transposed, keys down and queries across, so that weights and their
// gradients are left operands as they stand in registers. Queries have two buffers, as keys have
// in flash.cu.
#include "kernels/cuda/flash_bwd.cuh"

// What a launch produces: with large heads, sums for both don't fit a thread's registers.
enum keys_part { BOTH, ONLY_DK, ONLY_DV };

// Queries and their statistics, the first of two buffers that lie side by side.
template <class T, int D, int ROWS> struct queries_buffer {
    smem<T> q, d_o;
    smem<float> lse, dots;

    DEVICE queries_buffer of(int step) const {
        int tile = step % 2 * ROWS * tile_ld<D>, row = step % 2 * ROWS;
        return {q + tile, d_o + tile, lse + row, dots + row};
    }
};

// Starts to bring the queries [t0, t0 + ROWS) of local head h.
template <class T, int D, int ROWS, int THREADS>
DEVICE void queries_load(const queries_buffer<T, D, ROWS> &to, const flash_grads &p,
                         const struct tsr_cuda_segment &g, int h, int t0) {
    const T *q = (const T *)p.g.q + (int64_t)h * D, *d_o = (const T *)p.g.d_o + (int64_t)h * D;
    int64_t row = g.start + t0, stat = (int64_t)h * p.a.n_tokens + row;
    int n = min_of(ROWS, g.length - t0);
    tile_load<T, ROWS, D, THREADS>(to.q, q + row * p.a.ldq, p.a.ldq, 0, n);
    tile_load<T, ROWS, D, THREADS>(to.d_o, d_o + row * p.a.ldo, p.a.ldo, 0, n);
    for (int i = threadIdx.x; i < ROWS; i += THREADS) {
        cp_async4(to.lse + i, p.g.lse + stat + (i < n ? i : 0), i < n);
        cp_async4(to.dots + i, p.g.dots + stat + (i < n ? i : 0), i < n);
    }
}

// s and dp of 16 keys from position key0 and the queries from position query0 become z and dS.
// ALL: every one of these queries sees every key.
template <int N, bool ALL, bool DROP>
DEVICE void keys_soften(float (&s)[N][4], float (&dp)[N][4], const flash_grads &p,
                        const struct tsr_cuda_segment &g, smem<float> lse, smem<float> dots,
                        int key0, int query0, int head) {
    int lane = threadIdx.x % 32, end = g.position + g.length;
    key_range seen[2];
    for (int half = 0; half < 2; half++)
        seen[half] = queries_seeing(key0 + lane / 4 + 8 * half, end, p.a.window);
    UNROLL(N)
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 2; i++) {
            int col = 8 * n + lane % 4 * 2 + i;
            score_place at = {query0 + col, 0, head, true, lse[col] * LOG2_E, dots[col]};
            for (int half = 0; half < 2; half++) {
                at.key = key0 + lane / 4 + 8 * half;
                at.seen = ALL || (at.query >= seen[half].lo && at.query < seen[half].hi);
                score_gradient<DROP>(s[n][2 * half + i], dp[n][2 * half + i], p.a, g, at);
            }
        }
}

template <class T, int D, int W, int WARPS, int ROWS, enum keys_part PART, bool DROP>
__global__ void __launch_bounds__(32 * WARPS) flash_keys_kernel(flash_grads p) {
    constexpr int KEYS = 16 * W * WARPS, THREADS = 32 * WARPS, N = ROWS / 8, LD = tile_ld<D>;
    struct tsr_cuda_segment g = p.a.segs[blockIdx.z];
    struct tsr_kv_slot slot = p.g.slots[blockIdx.y];
    int key0 = blockIdx.x * KEYS, row0 = threadIdx.x / 32 * 16 * W;
    if (key0 >= g.length)
        return;
    int keys = min_of(KEYS, g.length - key0);
    shared_cursor cursor;
    smem<T> k = cursor.template take<T>(KEYS * LD), v = cursor.template take<T>(KEYS * LD);
    queries_buffer<T, D, ROWS> first = {
        cursor.template take<T>(2 * ROWS * LD), cursor.template take<T>(2 * ROWS * LD),
        cursor.template take<float>(2 * ROWS), cursor.template take<float>(2 * ROWS)};
    const T *own_k = (const T *)p.g.k + (g.start + key0) * p.a.ldk + (int64_t)slot.kv * D;
    const T *own_v = (const T *)p.g.v + (g.start + key0) * p.a.ldv + (int64_t)slot.kv * D;
    tile_load<T, KEYS, D, THREADS>(k, own_k, p.a.ldk, 0, keys);
    tile_load<T, KEYS, D, THREADS>(v, own_v, p.a.ldv, 0, keys);
    int last = queries_seeing(g.position + key0 + keys - 1, g.position + g.length, p.a.window).hi;
    int tiles = (last - g.position - key0 + ROWS - 1) / ROWS, steps = tiles * slot.n;
    queries_load<T, D, ROWS, THREADS>(first, p, g, slot.q, key0);
    cp_async_commit();
    float dk[W][D / 8][4] = {}, dv[W][D / 8][4] = {};
    for (int step = 0; step < steps; step++) {
        cp_async_wait<0>();
        __syncthreads(); // these queries have come, and everyone is done with those before
        const queries_buffer<T, D, ROWS> b = first.of(step);
        if (step + 1 < steps)
            queries_load<T, D, ROWS, THREADS>(first.of(step + 1), p, g, slot.q + (step + 1) / tiles,
                                              key0 + (step + 1) % tiles * ROWS);
        cp_async_commit();
        int t0 = key0 + step % tiles * ROWS, head = p.a.q0 + slot.q + step / tiles;
        if (t0 + ROWS <= key0 + row0)
            continue; // all before the warp's first key
        float s[W][N][4], dp[W][N][4] = {};
        product_of_rows<T, D, W, N>(s, k, row0, b.q);
        if (PART != ONLY_DV)
            product_of_rows<T, D, W, N>(dp, v, row0, b.d_o);
        uint32_t left[W][N / 2][4];
        UNROLL(W)
        for (int w = 0; w < W; w++) {
            int pos = g.position + key0 + row0 + 16 * w, query0 = g.position + t0;
            int end = queries_seeing(pos, g.position + g.length, p.a.window).hi;
            if (query0 >= pos + 15 && query0 + ROWS <= end)
                keys_soften<N, true, DROP>(s[w], dp[w], p, g, b.lse, b.dots, pos, query0, head);
            else
                keys_soften<N, false, DROP>(s[w], dp[w], p, g, b.lse, b.dots, pos, query0, head);
            as_left<T, N>(left[w], s[w]);
        }
        if (PART != ONLY_DK)
            add_product<T, D, W, N / 2>(dv, left, b.d_o);
        if (PART != ONLY_DV) {
            UNROLL(W)
            for (int w = 0; w < W; w++)
                as_left<T, N>(left[w], dp[w]);
            add_product<T, D, W, N / 2>(dk, left, b.q);
        }
    }
    __syncwarp(); // before sums take the place of the warp's keys
    const float once[2] = {1.0f, 1.0f}, scale[2] = {p.a.scale, p.a.scale};
    UNROLL(W)
    for (int w = 0; w < W; w++) {
        int tile0 = row0 + 16 * w;
        auto at = [&](void *out, int i) -> T * {
            int64_t row = (int64_t)(g.start + key0 + tile0 + i) * p.g.n_slots + blockIdx.y;
            return tile0 + i < keys ? (T *)out + row * D : nullptr;
        };
        if (PART != ONLY_DV)
            store_rows<T, D>(dk[w], scale, k, tile0, [&](int i) { return at(p.g.dk, i); });
        if (PART != ONLY_DK)
            store_rows<T, D>(dv[w], once, v, tile0, [&](int i) { return at(p.g.dv, i); });
    }
}

template <class T, int D, int W, int WARPS, int ROWS, enum keys_part PART>
static int launch_keys(void *stream, const flash_grads &p) {
    constexpr int KEYS = 16 * W * WARPS;
    dim3 grid(blocks_for(p.a.max_length, KEYS), (unsigned)p.g.n_slots, (unsigned)p.a.n_segs);
    size_t bytes =
        (size_t)(2 * KEYS + 4 * ROWS) * tile_ld<D> * sizeof(T) + 16 * ROWS; // and statistics
    if (p.a.drop.p > 0.0f)
        return launch_kernel("flash_keys_drop", flash_keys_kernel<T, D, W, WARPS, ROWS, PART, true>,
                             grid, 32 * WARPS, bytes, stream, p);
    return launch_kernel("flash_keys", flash_keys_kernel<T, D, W, WARPS, ROWS, PART, false>, grid,
                         32 * WARPS, bytes, stream, p);
}

template <class T> static int choose_keys(void *stream, const flash_grads &p) {
    if (p.a.head_dim == 64)
        return launch_keys<T, 64, 2, 4, 32, BOTH>(stream, p);
    if (p.a.head_dim == 80)
        return launch_keys<T, 80, 1, 8, 64, BOTH>(stream, p);
    if (p.a.head_dim == 96)
        return launch_keys<T, 96, 1, 8, 64, BOTH>(stream, p);
    if (p.a.head_dim == 128)
        return launch_keys<T, 128, 1, 8, 64, BOTH>(stream, p);
    TSR_TRY((launch_keys<T, 256, 1, 4, 32, ONLY_DV>(stream, p)));
    return launch_keys<T, 256, 1, 4, 32, ONLY_DK>(stream, p);
}

int flash_backward_keys(void *stream, enum tsr_dtype dtype, const flash_grads *p) {
    return dtype == TSR_DT_BF16 ? choose_keys<bf16>(stream, *p) : choose_keys<f16>(stream, *p);
}

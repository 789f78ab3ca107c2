// Flash attention on the matrix units, gradient of queries (Dao 2023, "FlashAttention-2",
// Algorithm 2), and the entry to the whole backward pass. Twin: kernels/cpu/isa/attention_bwd.c.
//   S = Q K^T    dP = dO V^T    dQ += dS K scale
// Scores are computed a second time here, which costs two of seven products but needs neither
// atomics nor an order among blocks: a block owns its queries and walks their keys.
#include "kernels/cuda/flash_bwd.cuh"

// s and dp of 16 queries from position query0 and the keys from position key0: dp becomes dS.
// ALL: every one of these queries sees every key.
template <int N, bool ALL, bool DROP>
DEVICE void queries_soften(float (&s)[N][4], float (&dp)[N][4], const flash_grads &p,
                           const struct tsr_cuda_segment &g, const float (&lse_log2)[2],
                           const float (&dot)[2], int query0, int key0, int head) {
    int lane = threadIdx.x % 32;
    for (int half = 0; half < 2; half++) {
        int query = query0 + lane / 4 + 8 * half;
        key_range seen = keys_seen(query, g.position, p.a.window);
        UNROLL(N)
        for (int n = 0; n < N; n++)
            for (int i = 0; i < 2; i++) {
                int key = key0 + 8 * n + lane % 4 * 2 + i;
                score_place at = {query,          key,
                                  head,           ALL || (key >= seen.lo && key < seen.hi),
                                  lse_log2[half], dot[half]};
                score_gradient<DROP>(s[n][2 * half + i], dp[n][2 * half + i], p.a, g, at);
            }
    }
}

// Starts to bring the keys and values at positions [base, base + KEYS) before `end`.
template <class T, int D, int KEYS, int THREADS>
DEVICE void keys_load(smem<T> k, smem<T> v, const flash_grads &p, const struct tsr_cuda_segment &g,
                      int kv, int base, int end) {
    int64_t row = g.start + base - g.position;
    const T *own_k = (const T *)p.g.k + row * p.a.ldk + (int64_t)kv * D;
    const T *own_v = (const T *)p.g.v + row * p.a.ldv + (int64_t)kv * D;
    tile_load<T, KEYS, D, THREADS>(k, own_k, p.a.ldk, 0, end - base);
    tile_load<T, KEYS, D, THREADS>(v, own_v, p.a.ldv, 0, end - base);
}

template <class T, int D, int W, int WARPS, int KEYS, bool DROP>
__global__ void __launch_bounds__(32 * WARPS) flash_queries_kernel(flash_grads p) {
    constexpr int ROWS = 16 * W * WARPS, THREADS = 32 * WARPS, N = KEYS / 8, LD = tile_ld<D>;
    struct tsr_cuda_segment g = p.a.segs[blockIdx.z];
    int t0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, h = blockIdx.y; // the longest rows first
    if (t0 >= g.length)
        return;
    int kv = kv_of(p.a, h), lane = threadIdx.x % 32, row0 = threadIdx.x / 32 * 16 * W;
    int rows = min_of(ROWS, g.length - t0), pos0 = g.position + t0 + row0;
    shared_cursor cursor;
    smem<T> q = cursor.template take<T>(ROWS * LD), d_o = cursor.template take<T>(ROWS * LD);
    smem<T> k = cursor.template take<T>(2 * KEYS * LD), v = cursor.template take<T>(2 * KEYS * LD);
    const T *own_q = (const T *)p.g.q + (g.start + t0) * p.a.ldq + (int64_t)h * D;
    const T *own_do = (const T *)p.g.d_o + (g.start + t0) * p.a.ldo + (int64_t)h * D;
    tile_load<T, ROWS, D, THREADS>(q, own_q, p.a.ldq, 0, rows);
    tile_load<T, ROWS, D, THREADS>(d_o, own_do, p.a.ldo, 0, rows);
    int base = keys_seen(g.position + t0, g.position, p.a.window).lo;
    int end = g.position + t0 + rows, step = 0;
    keys_load<T, D, KEYS, THREADS>(k, v, p, g, kv, base, end);
    cp_async_commit();
    float dq[W][D / 8][4] = {}, lse_log2[W][2], dot[W][2];
    for (int i = 0; i < 2 * W; i++) {
        int row = row0 + 16 * (i / 2) + lane / 4 + 8 * (i % 2);
        int64_t at = (int64_t)h * p.a.n_tokens + g.start + t0 + min_of(row, rows - 1);
        lse_log2[i / 2][i % 2] = p.g.lse[at] * LOG2_E;
        dot[i / 2][i % 2] = p.g.dots[at];
    }
    for (; base < end; base += KEYS, step ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); // these keys have come, and everyone is done with those before
        int now = step * KEYS * LD, other = (step ^ 1) * KEYS * LD;
        if (base + KEYS < end)
            keys_load<T, D, KEYS, THREADS>(k + other, v + other, p, g, kv, base + KEYS, end);
        cp_async_commit();
        if (base > pos0 + 16 * W - 1)
            continue; // nobody sees a key
        float s[W][N][4], dp[W][N][4];
        product_of_rows<T, D, W, N>(s, q, row0, k + now);
        product_of_rows<T, D, W, N>(dp, d_o, row0, v + now);
        uint32_t left[W][N / 2][4];
        UNROLL(W)
        for (int w = 0; w < W; w++) {
            int pos = pos0 + 16 * w, head = p.a.q0 + h;
            if (base + KEYS <= pos + 1 && base >= keys_seen(pos + 15, g.position, p.a.window).lo)
                queries_soften<N, true, DROP>(s[w], dp[w], p, g, lse_log2[w], dot[w], pos, base,
                                              head);
            else
                queries_soften<N, false, DROP>(s[w], dp[w], p, g, lse_log2[w], dot[w], pos, base,
                                               head);
            as_left<T, N>(left[w], dp[w]);
        }
        add_product<T, D, W, N / 2>(dq, left, k + now);
    }
    __syncwarp(); // before the sums take the place of the warp's queries
    const float scale[2] = {p.a.scale, p.a.scale};
    UNROLL(W)
    for (int w = 0; w < W; w++) {
        int tile0 = row0 + 16 * w;
        store_rows<T, D>(dq[w], scale, q, tile0, [&](int i) -> T * {
            int64_t token = g.start + t0 + tile0 + i;
            return tile0 + i < rows ? (T *)p.g.dq + token * p.a.ldq + (int64_t)h * D : nullptr;
        });
    }
}

template <class T, int D, int W, int WARPS, int KEYS>
static int launch_queries(void *stream, const flash_grads &p) {
    constexpr int ROWS = 16 * W * WARPS;
    dim3 grid(blocks_for(p.a.max_length, ROWS), (unsigned)p.a.nq, (unsigned)p.a.n_segs);
    size_t bytes = (size_t)(2 * ROWS + 4 * KEYS) * tile_ld<D> * sizeof(T);
    if (p.a.drop.p > 0.0f)
        return launch_kernel("flash_queries_drop", flash_queries_kernel<T, D, W, WARPS, KEYS, true>,
                             grid, 32 * WARPS, bytes, stream, p);
    return launch_kernel("flash_queries", flash_queries_kernel<T, D, W, WARPS, KEYS, false>, grid,
                         32 * WARPS, bytes, stream, p);
}

template <class T> static int choose_queries(void *stream, const flash_grads &p) {
    if (p.a.head_dim == 64)
        return launch_queries<T, 64, 2, 4, 32>(stream, p);
    if (p.a.head_dim == 80)
        return launch_queries<T, 80, 2, 4, 32>(stream, p);
    if (p.a.head_dim == 96)
        return launch_queries<T, 96, 2, 4, 32>(stream, p);
    if (p.a.head_dim == 128)
        return launch_queries<T, 128, 2, 4, 32>(stream, p);
    return launch_queries<T, 256, 1, 4, 32>(stream, p);
}

int flash_backward_queries(void *stream, enum tsr_dtype dtype, const flash_grads *p) {
    return dtype == TSR_DT_BF16 ? choose_queries<bf16>(stream, *p)
                                : choose_queries<f16>(stream, *p);
}

int flash_backward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                   const attention_grads *g) {
    const flash_grads p = {*a, *g};
    bool ok = true;
    for (const void *at :
         {g->q, g->k, g->v, g->d_o, (const void *)g->dq, (const void *)g->dk, (const void *)g->dv})
        ok = ok && aligned16((const char *)at);
    for (ptrdiff_t ld : {a->ldq, a->ldk, a->ldv, a->ldo})
        ok = ok && ld % 8 == 0;
    if (!ok)
        return tsr_fail(TSR_EUSAGE, "device: attention: rows must be aligned to 16 bytes");
    TSR_TRY(flash_backward_keys(stream, dtype, &p));
    return flash_backward_queries(stream, dtype, &p);
}

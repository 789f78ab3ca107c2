// Flash attention on the matrix units, forward (Dao 2023, "FlashAttention-2", Algorithm 1), for
// 16-bit elements with fp32 sums. Twin: kernels/cpu/isa/attention.c, whose formulas these are.
//   s = q k scale    m' = max(m, max s)    p = e^(s - m')    l = l e^(m - m') + sum p
//   O = O e^(m - m') + p v;  at the end o = O / l, lse = m + log l
//
// A block has WARPS warps, each of WM times 16 queries of one head; it walks the keys in blocks at
// fixed absolute positions. Keys and values have two buffers: while one block is worked on, the
// next is on its way, so a step needs one barrier. Weights stay in registers between the products.
#include "kernels/cuda/flash.cuh"
#include "kernels/cuda/flash_row.cuh"

template <class T> struct flash_args {
    struct tsr_cuda_attn a;
    T *o;
    float *lse;
    const T *q, *k, *v;
};

// What a thread keeps of its two rows of a 16-row tile: maximum (of scores before scaling), sum.
struct flash_stats {
    float m[2], l[2];
};

struct flash_place {
    int pos, first; // position of the warp's first row; the sequence's first key
    int head;       // global
};

// Scores of keys that a row doesn't see become -inf.
template <int N>
DEVICE void flash_mask(float (&s)[N][4], const struct tsr_cuda_attn &a, const flash_place &at,
                       int base) {
    int lane = threadIdx.x % 32;
    for (int half = 0; half < 2; half++) {
        key_range seen = keys_seen(at.pos + lane / 4 + 8 * half, at.first, a.window);
        UNROLL(N)
        for (int n = 0; n < N; n++)
            for (int i = 0; i < 2; i++) {
                int key = base + 8 * n + lane % 4 * 2 + i;
                if (key < seen.lo || key >= seen.hi)
                    s[n][2 * half + i] = -INF;
            }
    }
}

template <int N>
DEVICE void flash_drop(float (&s)[N][4], const struct tsr_cuda_attn &a,
                       const struct tsr_cuda_segment &g, const flash_place &at, int base) {
    int lane = threadIdx.x % 32, t = lane % 4;
    UNROLL(2)
    for (int half = 0; half < 2; half++) {
        uint32_t cut = 0; // of (n, i) bit 2n + i: registers have no indices
        UNROLL(1)
        for (int n = 0; n < N; n++) {
            uint4 draws =
                mask_draws(a, g, (base + 8 * n) / 4 + t / 2, at.pos + lane / 4 + 8 * half, at.head);
            for (int i = 0; i < 2; i++)
                cut |= (uint32_t)(word_of(draws, t % 2 * 2 + i) < a.drop_threshold) << (2 * n + i);
        }
        UNROLL(2 * N)
        for (int x = 0; x < 2 * N; x++)
            if (cut >> x & 1)
                s[x / 2][2 * half + x % 2] = 0.0f;
    }
}

// Scores become weights; the rows' O and sums follow.
template <int D, int N>
DEVICE void flash_soften(float (&s)[N][4], float (&o)[D / 8][4], flash_stats &rows,
                         float scale_log2) {
    float alpha[2];
    for (int half = 0; half < 2; half++) {
        float most = rows.m[half], sum;
        UNROLL(N)
        for (int n = 0; n < N; n++)
            most = fmaxf(most, fmaxf(s[n][2 * half], s[n][2 * half + 1]));
        most = max4(most);
        alpha[half] = flash_weights<N>(s, half, rows.m[half], most, scale_log2, &sum);
        rows.m[half] = most;
        rows.l[half] = fmaf(rows.l[half], alpha[half], sum);
    }
    if (warp_ballot(alpha[0] != 1.0f || alpha[1] != 1.0f) == 0)
        return; // no maximum rose, as in most blocks of a long row
    UNROLL(D / 8)
    for (int n = 0; n < D / 8; n++)
        for (int i = 0; i < 4; i++)
            o[n][i] *= alpha[i / 2];
}

// Starts to bring the keys (or values) at positions [base, base + KEYS) within `all`.
template <class T, int D, int KEYS, int THREADS>
DEVICE void flash_load(smem<T> tile, const struct tsr_cuda_attn &a,
                       const struct tsr_cuda_segment &g, const T *own, ptrdiff_t ld,
                       const void *cache, int kv, int base, key_range all) {
    int lo = max_of(all.lo - base, 0), hi = all.hi - base;
    if (cache == nullptr) {
        const T *first = own + (int64_t)(g.start + base - g.position) * ld + (int64_t)kv * D;
        tile_load<T, KEYS, D, THREADS>(tile, first, ld, lo, hi);
    } else {
        tile_gather<T, KEYS, D, THREADS>(
            tile, lo, hi, [&](int i) { return key_row(a, g, own, ld, cache, kv, base + i); });
    }
}

template <class T, int D, int WM, int WARPS, int KEYS, bool DROP>
__global__ void __launch_bounds__(32 * WARPS) flash_kernel(flash_args<T> p) {
    constexpr int ROWS = 16 * WM * WARPS, THREADS = 32 * WARPS, N = KEYS / 8, LD = tile_ld<D>;
    struct tsr_cuda_segment g = p.a.segs[blockIdx.z];
    int t0 = (int)(gridDim.x - 1 - blockIdx.x) * ROWS, h = blockIdx.y; // the longest rows first
    if (t0 >= g.length || is_few(p.a, g))
        return;
    int kv = kv_of(p.a, h), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    int rows = min_of(ROWS, g.length - t0), first = first_key(g);
    shared_cursor cursor;
    smem<T> q = cursor.template take<T>(ROWS * LD);
    smem<T> k = cursor.template take<T>(2 * KEYS * LD), v = cursor.template take<T>(2 * KEYS * LD);
    key_range all = {keys_seen(g.position + t0, first, p.a.window).lo, g.position + t0 + rows};
    const T *own_q = p.q + (g.start + t0) * p.a.ldq + (int64_t)h * D;
    tile_load<T, ROWS, D, THREADS>(q, own_q, p.a.ldq, 0, rows);
    int base = all.lo / KEYS * KEYS, step = 0;
    flash_load<T, D, KEYS, THREADS>(k, p.a, g, p.k, p.a.ldk, g.k, kv, base, all);
    flash_load<T, D, KEYS, THREADS>(v, p.a, g, p.v, p.a.ldv, g.v, kv, base, all);
    cp_async_commit();
    float o[WM][D / 8][4] = {};
    flash_stats stats[WM];
    for (int w = 0; w < WM; w++)
        stats[w] = {{-INF, -INF}, {0.0f, 0.0f}};
    int row0 = 16 * WM * warp, pos0 = g.position + t0 + row0; // the warp's first row
    float scale_log2 = p.a.scale * LOG2_E;
    for (; base < all.hi; base += KEYS, step ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); // this block has come, and everyone is done with the one before
        if (base + KEYS < all.hi) {
            int other = (step ^ 1) * KEYS * LD, next = base + KEYS;
            flash_load<T, D, KEYS, THREADS>(k + other, p.a, g, p.k, p.a.ldk, g.k, kv, next, all);
            flash_load<T, D, KEYS, THREADS>(v + other, p.a, g, p.v, p.a.ldv, g.v, kv, next, all);
        }
        cp_async_commit();
        if (base > pos0 + 16 * WM - 1)
            continue; // nobody sees a key
        float s[WM][N][4];
        product_of_rows<T, D, false, WM, N>(s, q, row0, k + step * KEYS * LD, 0);
        UNROLL(WM)
        for (int w = 0; w < WM; w++) {
            flash_place at = {pos0 + 16 * w, first, p.a.q0 + h};
            if (base + KEYS > at.pos + 1 || base < keys_seen(at.pos + 15, first, p.a.window).lo)
                flash_mask(s[w], p.a, at, base);
            flash_soften<D, N>(s[w], o[w], stats[w], scale_log2);
            if (DROP)
                flash_drop(s[w], p.a, g, at, base);
        }
        UNROLL(N / 2)
        for (int n = 0; n < N; n += 2) {
            uint32_t weights[WM][4];
            UNROLL(WM)
            for (int w = 0; w < WM; w++)
                as_left<T>(weights[w], s[w][n], s[w][n + 1]);
            add_slice<T, D, false, WM, D / 8>(o, weights, v + step * KEYS * LD, 8 * n, 0);
        }
    }
    __syncwarp(); // before O takes the place of the warp's queries
    UNROLL(WM)
    for (int w = 0; w < WM; w++) {
        float factor[2];
        int tile0 = row0 + 16 * w;
        for (int half = 0; half < 2; half++) {
            float sum = sum4(stats[w].l[half]);
            int i = tile0 + lane / 4 + 8 * half;
            factor[half] = 1.0f / (DROP ? sum * (1.0f - p.a.drop.p) : sum);
            if (p.lse != nullptr && lane % 4 == 0 && i < rows)
                p.lse[(int64_t)h * p.a.n_tokens + g.start + t0 + i] =
                    fmaf(stats[w].m[half], p.a.scale, fast_log2(sum) * LN_2);
        }
        store_patch<T, D, false, D / 8>(o[w], factor, q, tile0, 0, [&](int i) -> T * {
            int64_t token = g.start + t0 + tile0 + i;
            return tile0 + i < rows ? p.o + token * p.a.ldo + (int64_t)h * D : nullptr;
        });
    }
}

template <class T, int D, int WM, int WARPS>
static int launch_flash(void *stream, const flash_args<T> &p) {
    constexpr int ROWS = 16 * WM * WARPS, KEYS = flash_keys<D>;
    dim3 grid(blocks_for(p.a.max_length, ROWS), (unsigned)p.a.nq, (unsigned)p.a.n_segs);
    size_t bytes = (size_t)(ROWS + 4 * KEYS) * tile_ld<D> * sizeof(T);
    if (p.a.drop.p > 0.0f)
        return launch_kernel("flash_drop", flash_kernel<T, D, WM, WARPS, KEYS, true>, grid,
                             32 * WARPS, bytes, stream, p);
    return launch_kernel("flash", flash_kernel<T, D, WM, WARPS, KEYS, false>, grid, 32 * WARPS,
                         bytes, stream, p);
}

template <class T>
static int choose_flash(void *stream, const struct tsr_cuda_attn *a, void *o, float *lse,
                        const void *q, const void *k, const void *v) {
    flash_args<T> p = {*a, (T *)o, lse, (const T *)q, (const T *)k, (const T *)v};
    if (!aligned16(p.o, a->ldo) || !aligned16(p.q, a->ldq) || !aligned16(p.k, a->ldk) ||
        !aligned16(p.v, a->ldv))
        return tsr_fail(TSR_EUSAGE, "device: attention: rows must be aligned to 16 bytes");
    if (a->head_dim == 64)
        return launch_flash<T, 64, 2, 4>(stream, p);
    if (a->head_dim == 80)
        return launch_flash<T, 80, 2, 4>(stream, p);
    if (a->head_dim == 96)
        return launch_flash<T, 96, 2, 4>(stream, p);
    if (a->head_dim == 128)
        return launch_flash<T, 128, 2, 4>(stream, p);
    return launch_flash<T, 256, 1, 4>(stream, p);
}

int flash_forward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a, void *o,
                  float *lse, const void *q, const void *k, const void *v) {
    if (dtype == TSR_DT_BF16)
        return choose_flash<bf16>(stream, a, o, lse, q, k, v);
    return choose_flash<f16>(stream, a, o, lse, q, k, v);
}

// Decoding for 16-bit elements, on the matrix units; decode.cuh says how it is dealt out. Scores,
// weights and O have the layouts of flash.cu's fragments, and its arithmetic.
#include <algorithm>
#include "kernels/cuda/decode.cuh"
#include "kernels/cuda/flash.cuh"
#include "kernels/cuda/flash_row.cuh"

enum { MOST_SCRATCH = 256 << 20, VALUE_STAGES = 6 };

template <class T> struct decode_args {
    struct tsr_cuda_attn a;
    decode_plan plan;
    T *o;
    float *lse;
    const T *q;
};

// ---- how a call is dealt out (fp32 too)

size_t tsr_cuda_attention_scratch(enum tsr_dtype dtype, const struct tsr_cuda_attn *a) {
    if (a->n_few == 0 || a->nq == 0 || a->max_length == 0)
        return 0;
    decode_plan p = decode_sizes(dtype, a);
    size_t one = block_floats(p) * sizeof(float);
    size_t all = fixed_floats(p, a->head_dim, false) * sizeof(float) + (size_t)p.n_blocks * one;
    if (all <= MOST_SCRATCH)
        return all;
    return fixed_floats(p, a->head_dim, true) * sizeof(float) +
           std::max((size_t)MOST_SCRATCH / one, (size_t)1) * one;
}

int decode_make_plan(decode_plan *p, enum tsr_dtype dtype, const struct tsr_cuda_attn *a) {
    *p = decode_sizes(dtype, a);
    size_t floats = a->scratch_bytes / sizeof(float), one = block_floats(*p);
    size_t fixed = fixed_floats(*p, a->head_dim, false);
    bool passes = floats < fixed + (size_t)p->n_blocks * one;
    if (passes)
        fixed = fixed_floats(*p, a->head_dim, true);
    if (floats < fixed + one)
        return tsr_fail(TSR_EUSAGE, "device: attention: expected scratch of %zu bytes, found %zu",
                        (fixed + one) * sizeof(float), a->scratch_bytes);
    if ((int64_t)a->nkv * p->tiles > 65535)
        return tsr_fail(TSR_EUSAGE, "device: attention of %d query heads for each of %d KV heads",
                        a->group, a->nkv);
    p->pass_blocks = (int)std::min((floats - fixed) / one, (size_t)p->n_blocks);
    p->maxima = (float *)a->scratch;
    p->carried = p->maxima + fixed_floats(*p, a->head_dim, false);
    p->scores = p->maxima + fixed;
    return 0;
}

// ---- scores

template <class T, int D, int KEYS>
DEVICE void load_keys(smem<T> tile, const decode_args<T> &p, const decode_tile &t, key_range all,
                      int block) {
    int base = block * KEYS;
    tile_gather<T, KEYS, D, 2 * KEYS>(tile, max_of(all.lo - base, 0), all.hi - base, [&](int i) {
        return key_row<T>(p.a, t.g, nullptr, 0, t.g.k, t.kv, base + i);
    });
}

// A warp's 16 keys: scores to their place, each row's maximum to `most`.
template <class T, int D, int KEYS>
DEVICE void score_keys(const decode_args<T> &p, const decode_tile &t, smem<T> q, smem<T> k,
                       smem<float> most, int block) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float s[2][4] = {};
    UNROLL(D / 16)
    for (int d = 0; d < D; d += 16) {
        uint32_t a[4], b[4];
        load_left<T, D>(a, q, 0, d);
        load_right_rows<T, D>(b, k, 16 * warp, d);
        mma_16816<T>(s[0], a, b[0], b[1]);
        mma_16816<T>(s[1], a, b[2], b[3]);
    }
    for (int half = 0; half < 2; half++) {
        int row = lane / 4 + 8 * half;
        key_range seen = row_keys(p.a, t, row, block, KEYS);
        float m = -INF;
        for (int n = 0; n < 2; n++)
            for (int i = 0; i < 2; i++) {
                int key = 16 * warp + 8 * n + lane % 4 * 2 + i;
                if (key < seen.lo || key >= seen.hi)
                    s[n][2 * half + i] = -INF;
                m = max_of(m, s[n][2 * half + i]);
            }
        m = max4(m);
        if (lane % 4 == 0)
            most[DECODE_ROWS * warp + row] = m;
    }
    float *to = scores_of(p.plan, t, block);
    for (int n = 0; n < 2; n++) {
        chunk<float> c = {{s[n][0], s[n][1], s[n][2], s[n][3]}};
        store16(to + ((2 * warp + n) * 32 + lane) * 4, pack(c));
    }
}

template <class T, int D, int KEYS>
__global__ void __launch_bounds__(2 * KEYS) decode_scores_kernel(decode_args<T> p) {
    constexpr int WARPS = KEYS / 16, LD = tile_ld<D>;
    decode_tile t = tile_of(p.a, p.plan);
    int block = t.lo + (int)blockIdx.x, stride = (int)gridDim.x, step = 0;
    if (t.n == 0 || block >= t.hi)
        return;
    shared_cursor cursor;
    smem<T> q = cursor.template take<T>(DECODE_ROWS * LD);
    smem<T> k = cursor.template take<T>(2 * KEYS * LD);
    smem<float> most = cursor.template take<float>(WARPS * DECODE_ROWS);
    key_range all = tile_keys(p.a, t);
    tile_gather<T, DECODE_ROWS, D, 2 * KEYS>(
        q, 0, t.n, [&](int i) { return p.q + tile_row(t, i, p.a.ldq, D); });
    load_keys<T, D, KEYS>(k, p, t, all, block);
    cp_async_commit();
    for (; block < t.hi; block += stride, step ^= 1) {
        cp_async_wait<0>();
        __syncthreads(); // this block has come, and everyone is done with the one before
        if (block + stride < t.hi)
            load_keys<T, D, KEYS>(k + (step ^ 1) * KEYS * LD, p, t, all, block + stride);
        cp_async_commit();
        score_keys<T, D, KEYS>(p, t, q, k + step * KEYS * LD, most, block);
        __syncthreads();
        if (threadIdx.x < DECODE_ROWS) {
            float m = most[threadIdx.x];
            for (int w = 1; w < WARPS; w++)
                m = max_of(m, (float)most[w * DECODE_ROWS + threadIdx.x]);
            maxima_of(p.plan, t, block)[threadIdx.x] = m;
        }
    }
}

// ---- weights

// The scores of a block, 16-byte unit n * 32 + lane for a thread's part n, give way to weights,
// the left operands of KEYS / 16 products in units k * 32 + lane, then the factors of earlier
// blocks and the sums. A thread only writes what it alone has read.
template <class T, int KEYS>
DEVICE void weigh_block(const decode_args<T> &p, float *at, const float (&old)[2],
                        const float (&most)[2]) {
    constexpr int N = KEYS / 8;
    int lane = threadIdx.x % 32;
    float s[N][4], factor[2], sum[2], scale_log2 = p.a.scale * LOG2_E;
    UNROLL(N)
    for (int n = 0; n < N; n++) {
        chunk<float> c;
        unpack(load16(at + (n * 32 + lane) * 4), c);
        for (int i = 0; i < 4; i++)
            s[n][i] = c.v[i];
    }
    for (int half = 0; half < 2; half++)
        factor[half] = flash_weights<N>(s, half, old[half], most[half], scale_log2, &sum[half]);
    UNROLL(N / 2)
    for (int k = 0; k < N / 2; k++) {
        const float *left = s[2 * k], *right = s[2 * k + 1];
        store16(at + (k * 32 + lane) * 4,
                uint4{pack2<T>(left[0], left[1]), pack2<T>(left[2], left[3]),
                      pack2<T>(right[0], right[1]), pack2<T>(right[2], right[3])});
    }
    chunk<float> rest = {{factor[0], factor[1], sum[0], sum[1]}};
    store16(at + (N / 2 * 32 + lane) * 4, pack(rest));
}

template <class T, int KEYS>
__global__ void __launch_bounds__(128) decode_weights_kernel(decode_args<T> p) {
    decode_tile t = tile_of(p.a, p.plan);
    int per = (t.hi - t.lo + (int)gridDim.x - 1) / (int)gridDim.x;
    int from = t.lo + (int)blockIdx.x * per, to = min_of(from + per, t.hi);
    if (t.n == 0 || from >= to)
        return;
    shared_cursor cursor;
    smem<float> parts = cursor.take<float>(128);
    float before = -INF; // the maximum of every eighth block before `from`, of one row
    for (int b = t.first + (int)threadIdx.x / 16; b < from; b += 8)
        before = max_of(before, maxima_of(p.plan, t, b)[threadIdx.x % 16]);
    parts[threadIdx.x] = before;
    __syncthreads();
    float m[2] = {-INF, -INF};
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (int half = 0; half < 2; half++)
        for (int i = 0; i < 8; i++)
            m[half] = max_of(m[half], (float)parts[16 * i + lane / 4 + 8 * half]);
    for (int b = from; b < to; b++) {
        const float *of_block = maxima_of(p.plan, t, b);
        float most[2];
        for (int half = 0; half < 2; half++)
            most[half] = max_of(m[half], of_block[lane / 4 + 8 * half]);
        if ((b - from) % 4 == warp)
            weigh_block<T, KEYS>(p, scores_of(p.plan, t, b), m, most);
        m[0] = most[0];
        m[1] = most[1];
    }
}

// ---- values

// What a thread keeps: O as one result of flash.cu, sums of its columns' weights.
template <int SLICE> struct decode_state { float o[SLICE / 8][4], l[2]; };

// Starts to bring a block's values (a slice of their columns) and weights.
template <class T, int SLICE, int KEYS>
DEVICE void load_values(smem<T> v, smem<T> w, const decode_args<T> &p, const decode_tile &t,
                        key_range all, int block) {
    constexpr int PER = SLICE / 8;
    int lane = threadIdx.x, base = block * KEYS, col0 = (int)blockIdx.x * SLICE;
    UNROLL(4)
    for (int i = lane; i < KEYS * PER; i += 32) {
        int row = i / PER, col = i % PER * 8;
        bool in = base + row >= all.lo && base + row < all.hi;
        const T *from = key_row<T>(p.a, t.g, nullptr, 0, t.g.v, t.kv, in ? base + row : all.lo);
        cp_async16(v + row * tile_ld<SLICE> + col, from + col0 + col, in);
    }
    const T *from = (const T *)scores_of(p.plan, t, block);
    UNROLL(KEYS / 16 + 1)
    for (int i = 0; i < KEYS / 16 + 1; i++)
        cp_async16(w + (i * 32 + lane) * 8, from + (i * 32 + lane) * 8, true);
}

template <class T, int SLICE, int KEYS>
DEVICE void add_block(decode_state<SLICE> &st, smem<T> v, smem<T> w) {
    int lane = threadIdx.x;
    uint32_t weights[KEYS / 16][4];
    UNROLL(KEYS / 16)
    for (int k = 0; k < KEYS / 16; k++) {
        uint4 u = shared_load16(w + (k * 32 + lane) * 8);
        weights[k][0] = u.x;
        weights[k][1] = u.y;
        weights[k][2] = u.z;
        weights[k][3] = u.w;
    }
    chunk<float> rest;
    unpack(shared_load16(w + (KEYS / 16 * 32 + lane) * 8), rest);
    for (int half = 0; half < 2; half++) {
        st.l[half] = fmaf(st.l[half], rest.v[half], rest.v[2 + half]);
        UNROLL(SLICE / 8)
        for (int n = 0; n < SLICE / 8; n++) {
            st.o[n][2 * half] *= rest.v[half];
            st.o[n][2 * half + 1] *= rest.v[half];
        }
    }
    UNROLL(KEYS / 16)
    for (int k = 0; k < KEYS / 16; k++) {
        UNROLL(SLICE / 16)
        for (int n = 0; n < SLICE / 8; n += 2) {
            uint32_t b[4];
            load_right_cols<T, SLICE>(b, v, 16 * k, 8 * n);
            mma_16816<T>(st.o[n], weights[k], b[0], b[1]);
            mma_16816<T>(st.o[n + 1], weights[k], b[2], b[3]);
        }
    }
}

// Between passes.
template <int SLICE> DEVICE void carry(decode_state<SLICE> &st, float *at, bool store) {
    float *state = (float *)&st;
    at += threadIdx.x;
    UNROLL(SLICE / 2 + 2)
    for (int i = 0; i < SLICE / 2 + 2; i++) {
        if (store)
            at[i * 32] = state[i];
        else
            state[i] = at[i * 32];
    }
}

template <class T, int SLICE>
DEVICE void finish(const decode_args<T> &p, const decode_tile &t, const decode_state<SLICE> &st) {
    int lane = threadIdx.x, col = (int)blockIdx.x * SLICE + lane % 4 * 2;
    bool has_lse = p.lse != nullptr && blockIdx.x == 0;
    for (int half = 0; half < 2; half++) {
        int row = lane / 4 + 8 * half;
        float sum = sum4(st.l[half]), factor = 1.0f / sum, m = -INF;
        for (int b = t.first + lane % 4; has_lse && b < t.end; b += 4)
            m = max_of(m, maxima_of(p.plan, t, b)[row]);
        m = max4(m);
        if (row >= t.n)
            continue;
        T *to = p.o + tile_row(t, row, p.a.ldo, p.a.head_dim) + col;
        UNROLL(SLICE / 8)
        for (int n = 0; n < SLICE / 8; n++)
            *(uint32_t *)(to + 8 * n) =
                pack2<T>(st.o[n][2 * half] * factor, st.o[n][2 * half + 1] * factor);
        int r = t.row0 + row, head = t.q0 + r % t.heads;
        if (has_lse && lane % 4 == 0)
            p.lse[(int64_t)head * p.a.n_tokens + t.g.start + r / t.heads] =
                fmaf(m, p.a.scale, fast_log2(sum) * LN_2);
    }
}

// One warp walks the blocks of keys for a slice of the columns.
template <class T, int SLICE, int KEYS>
__global__ void __launch_bounds__(32) decode_values_kernel(decode_args<T> p) {
    constexpr int V = KEYS * tile_ld<SLICE>, W = (KEYS / 16 + 1) * 32 * 8, STAGES = VALUE_STAGES;
    decode_tile t = tile_of(p.a, p.plan);
    if (t.n == 0)
        return;
    shared_cursor cursor;
    smem<T> v = cursor.template take<T>(STAGES * V), w = cursor.template take<T>(STAGES * W);
    key_range all = tile_keys(p.a, t);
    decode_state<SLICE> st = {};
    float *carried = carried_of(p.plan, t, (int)blockIdx.x * SLICE, p.a.head_dim);
    if (t.first < p.plan.pass_lo)
        carry(st, carried, false);
    for (int i = 0; i < STAGES - 1; i++) {
        if (t.lo + i < t.hi)
            load_values<T, SLICE, KEYS>(v + i * V, w + i * W, p, t, all, t.lo + i);
        cp_async_commit();
    }
    for (int b = t.lo; b < t.hi; b++) {
        int now = (b - t.lo) % STAGES, next = (now + STAGES - 1) % STAGES;
        cp_async_wait<STAGES - 2>();
        __syncwarp(); // the block has come, and everyone is done with the one before
        if (b + STAGES - 1 < t.hi)
            load_values<T, SLICE, KEYS>(v + next * V, w + next * W, p, t, all, b + STAGES - 1);
        cp_async_commit();
        add_block<T, SLICE, KEYS>(st, v + now * V, w + now * W);
    }
    cp_async_wait<0>();
    if (t.end > p.plan.pass_hi)
        carry(st, carried, true);
    else
        finish(p, t, st);
}

// ---- launches

template <class T, int SLICE, int KEYS> static int launch_values(void *stream, decode_args<T> p) {
    constexpr size_t STAGE = KEYS * tile_ld<SLICE> + (KEYS / 16 + 1) * 32 * 8;
    dim3 grid((unsigned)(p.a.head_dim / SLICE), (unsigned)(p.a.nkv * p.plan.tiles),
              (unsigned)p.a.n_segs);
    return launch_kernel("decode_values", decode_values_kernel<T, SLICE, KEYS>, grid, 32,
                         VALUE_STAGES * STAGE * sizeof(T), stream, p);
}

template <class T, int D> static int launch_decode(void *stream, decode_args<T> p) {
    constexpr int KEYS = flash_keys<D>;
    decode_plan &plan = p.plan;
    dim3 grid(decode_splits(plan), (unsigned)(p.a.nkv * plan.tiles), (unsigned)p.a.n_segs);
    size_t bytes = (DECODE_ROWS + 2 * KEYS) * tile_ld<D> * sizeof(T) + KEYS * sizeof(float);
    // Wide slices read weights less often, narrow ones keep more of the device at work.
    bool wide = D % 32 == 0 && plan.units * (D / 32) >= DECODE_BLOCKS / 2;
    for (int lo = 0; lo < plan.n_blocks; lo += plan.pass_blocks) {
        plan.pass_lo = lo;
        plan.pass_hi = lo + plan.pass_blocks;
        TSR_TRY(launch_kernel("decode_scores", decode_scores_kernel<T, D, KEYS>, grid, 2 * KEYS,
                              bytes, stream, p));
        TSR_TRY(launch_kernel("decode_weights", decode_weights_kernel<T, KEYS>, grid, 128,
                              128 * sizeof(float), stream, p));
        TSR_TRY((wide ? launch_values<T, 32, KEYS> : launch_values<T, 16, KEYS>)(stream, p));
    }
    return 0;
}

template <class T>
static int choose_decode(void *stream, const struct tsr_cuda_attn *a, const decode_plan &plan,
                         void *o, float *lse, const void *q) {
    decode_args<T> p = {*a, plan, (T *)o, lse, (const T *)q};
    if (!aligned16(p.o, a->ldo) || !aligned16(p.q, a->ldq))
        return tsr_fail(TSR_EUSAGE, "device: attention: rows must be aligned to 16 bytes");
    if (a->head_dim == 64)
        return launch_decode<T, 64>(stream, p);
    if (a->head_dim == 80)
        return launch_decode<T, 80>(stream, p);
    if (a->head_dim == 96)
        return launch_decode<T, 96>(stream, p);
    if (a->head_dim == 128)
        return launch_decode<T, 128>(stream, p);
    return launch_decode<T, 256>(stream, p);
}

int decode_forward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a, void *o,
                   float *lse, const void *q) {
    decode_plan plan;
    TSR_TRY(decode_make_plan(&plan, dtype, a));
    if (dtype == TSR_DT_BF16)
        return choose_decode<bf16>(stream, a, plan, o, lse, q);
    return choose_decode<f16>(stream, a, plan, o, lse, q);
}

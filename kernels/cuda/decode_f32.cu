// Decoding in fp32, with the bits of attention_f32.cu and of the CPU; decode.cuh says how it is
// dealt out. In the 128 threads of a block half-warp y has rows y and y + 8 of a tile, and thread x
// of it is lane x of their virtual vectors.
#include "kernels/cuda/attention_f32.cuh"
#include "kernels/cuda/decode.cuh"

enum { DECODE_KEYS = 64, DECODE_STAGES = 3, DECODE_HALVES = F32_THREADS / 16 };

struct decode_f32_args {
    struct tsr_cuda_attn a;
    decode_plan plan;
    float *o, *lse;
    const float *q;
};

// ---- scores

// Scores (times scale) of one row and 16 keys at a time, and the maximum of those that it sees.
DEVICE void score_tile(const decode_f32_args &p, const decode_tile &t, smem<float> q,
                       smem<float> keys, smem<float> most, int ld, int block) {
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
    float *to = scores_of(p.plan, t, block);
    for (int i0 = 0; i0 < 4 * t.n; i0 += DECODE_HALVES) {
        int i = i0 + y, row = i / 4, j = x + i % 4 * 16;
        float s = 0.0f, m = -INF;
        if (i < 4 * t.n) {
            UNROLL(4)
            for (int d = 0; d < p.a.head_dim; d++)
                s = fmaf(q[row * ld + d], keys[j * ld + d], s);
            s = s * p.a.scale;
            to[row * DECODE_KEYS + j] = s;
            key_range seen = row_keys(p.a, t, row, block, DECODE_KEYS);
            m = j >= seen.lo && j < seen.hi ? s : m;
        }
        m = max16(m);
        if (x == 0 && i < 4 * t.n)
            most[i] = m;
    }
}

__global__ void __launch_bounds__(F32_THREADS) decode_f32_scores_kernel(decode_f32_args p) {
    decode_tile t = tile_of(p.a, p.plan);
    int block = t.lo + (int)blockIdx.x, dim = p.a.head_dim, ld = f32_ld(dim);
    if (t.n == 0 || block >= t.hi)
        return;
    shared_cursor cursor;
    smem<float> q = cursor.take<float>(DECODE_ROWS * ld),
                keys = cursor.take<float>(DECODE_KEYS * ld);
    smem<float> most = cursor.take<float>(DECODE_ROWS * 4);
    key_range all = tile_keys(p.a, t);
    f32_load(q, t.n, ld, dim, [&](int i) { return p.q + tile_row(t, i, p.a.ldq, dim); });
    for (; block < t.hi; block += (int)gridDim.x) {
        __syncthreads(); // everyone is done with the block before
        f32_load(keys, DECODE_KEYS, ld, dim, [&](int j) -> const float * {
            int key = block * DECODE_KEYS + j;
            bool in = key >= all.lo && key < all.hi;
            return in ? key_row<float>(p.a, t.g, nullptr, 0, t.g.k, t.kv, key) : nullptr;
        });
        __syncthreads();
        score_tile(p, t, q, keys, most, ld, block);
        __syncthreads();
        if ((int)threadIdx.x < t.n) {
            float m = most[4 * threadIdx.x];
            for (int c = 1; c < 4; c++)
                m = max_of(m, (float)most[4 * threadIdx.x + c]);
            maxima_of(p.plan, t, block)[threadIdx.x] = m;
        }
    }
}

// ---- weights

// Scores give way to weights; behind them stand the factors of earlier blocks.
__global__ void __launch_bounds__(F32_THREADS) decode_f32_weights_kernel(decode_f32_args p) {
    decode_tile t = tile_of(p.a, p.plan);
    int per = (t.hi - t.lo + (int)gridDim.x - 1) / (int)gridDim.x;
    int from = t.lo + (int)blockIdx.x * per, to = min_of(from + per, t.hi);
    int x = threadIdx.x % 16;
    if (t.n == 0 || from >= to)
        return;
    for (int half = 0; half < 2; half++) {
        int row = (int)threadIdx.x / 16 + 8 * half;
        float m = -INF;
        for (int b = t.first + x; row < t.n && b < from; b += 16)
            m = max_of(m, maxima_of(p.plan, t, b)[row]);
        m = max16(m);
        for (int b = from; row < t.n && b < to; b++) {
            float *s = scores_of(p.plan, t, b), most = maxima_of(p.plan, t, b)[row], old = m;
            key_range seen = row_keys(p.a, t, row, b, DECODE_KEYS);
            m = most > m ? most : m;
            for (int j = x; j < DECODE_KEYS; j += 16)
                if (j >= seen.lo && j < seen.hi)
                    s[row * DECODE_KEYS + j] = exp_exact(s[row * DECODE_KEYS + j] - m);
            if (x == 0)
                s[DECODE_ROWS * DECODE_KEYS + row] = seen.lo < seen.hi ? exp_exact(old - m) : 1.0f;
        }
    }
}

// ---- values

struct decode_f32_state {
    float o[2], l[2];
};

DEVICE void load_values_f32(smem<float> v, smem<float> w, const decode_f32_args &p,
                            const decode_tile &t, key_range all, int block) {
    int col = (int)blockIdx.x * DECODE_COLUMNS + (int)threadIdx.x % 16;
    for (int j = threadIdx.x / 16; j < DECODE_KEYS; j += DECODE_HALVES) {
        int key = block * DECODE_KEYS + j;
        bool in = key >= all.lo && key < all.hi && col < p.a.head_dim;
        const float *from = in ? key_row<float>(p.a, t.g, nullptr, 0, t.g.v, t.kv, key) + col : p.q;
        cp_async4(v + j * DECODE_COLUMNS + threadIdx.x % 16, from, in);
    }
    const float *from = scores_of(p.plan, t, block);
    for (int i = threadIdx.x; i < (DECODE_ROWS * DECODE_KEYS + DECODE_EXTRA) / 4; i += F32_THREADS)
        cp_async16(w + i * 4, from + i * 4, true);
}

DEVICE void add_block_f32(decode_f32_state &st, const decode_f32_args &p, const decode_tile &t,
                          smem<float> v, smem<float> w, int block) {
    int x = threadIdx.x % 16;
    for (int half = 0; half < 2; half++) {
        int row = (int)threadIdx.x / 16 + 8 * half;
        key_range seen = row_keys(p.a, t, row, block, DECODE_KEYS);
        if (seen.lo >= seen.hi)
            continue;
        float factor = w[DECODE_ROWS * DECODE_KEYS + row];
        st.l[half] = st.l[half] * factor;
        st.o[half] = st.o[half] * factor;
        for (int j = x; j < DECODE_KEYS; j += 16)
            if (j >= seen.lo && j < seen.hi)
                st.l[half] = st.l[half] + w[row * DECODE_KEYS + j];
        for (int j = seen.lo; j < seen.hi; j++)
            st.o[half] = fmaf(w[row * DECODE_KEYS + j], v[j * DECODE_COLUMNS + x], st.o[half]);
    }
}

DEVICE void carry_f32(decode_f32_state &st, float *at, bool store) {
    at += threadIdx.x;
    for (int half = 0; half < 2; half++) {
        float *o = at + 2 * half * F32_THREADS, *l = o + F32_THREADS;
        if (store) {
            *o = st.o[half];
            *l = st.l[half];
        } else {
            st.o[half] = *o;
            st.l[half] = *l;
        }
    }
}

DEVICE void finish_f32(const decode_f32_args &p, const decode_tile &t, const decode_f32_state &st) {
    int x = threadIdx.x % 16, col = (int)blockIdx.x * DECODE_COLUMNS + x, dim = p.a.head_dim;
    bool has_lse = p.lse != nullptr && blockIdx.x == 0;
    for (int half = 0; half < 2; half++) {
        int row = (int)threadIdx.x / 16 + 8 * half;
        float sum = sum16(st.l[half]), m = -INF;
        for (int b = t.first + x; has_lse && row < t.n && b < t.end; b += 16)
            m = max_of(m, maxima_of(p.plan, t, b)[row]);
        m = max16(m);
        if (row >= t.n)
            continue;
        if (col < dim)
            p.o[tile_row(t, row, p.a.ldo, dim) + col] = st.o[half] / sum;
        int r = t.row0 + row, head = t.q0 + r % t.heads;
        if (has_lse && x == 0)
            p.lse[(int64_t)head * p.a.n_tokens + t.g.start + r / t.heads] = m + log_exact(sum);
    }
}

__global__ void __launch_bounds__(F32_THREADS) decode_f32_values_kernel(decode_f32_args p) {
    constexpr int V = DECODE_KEYS * DECODE_COLUMNS, W = DECODE_ROWS * DECODE_KEYS + DECODE_EXTRA;
    decode_tile t = tile_of(p.a, p.plan);
    if (t.n == 0)
        return;
    shared_cursor cursor;
    smem<float> v = cursor.take<float>(DECODE_STAGES * V),
                w = cursor.take<float>(DECODE_STAGES * W);
    key_range all = tile_keys(p.a, t);
    decode_f32_state st = {};
    float *carried = carried_of(p.plan, t, (int)blockIdx.x * DECODE_COLUMNS, p.a.head_dim);
    if (t.first < p.plan.pass_lo)
        carry_f32(st, carried, false);
    for (int i = 0; i < DECODE_STAGES - 1; i++) {
        if (t.lo + i < t.hi)
            load_values_f32(v + i * V, w + i * W, p, t, all, t.lo + i);
        cp_async_commit();
    }
    for (int b = t.lo; b < t.hi; b++) {
        int now = (b - t.lo) % DECODE_STAGES, next = (now + DECODE_STAGES - 1) % DECODE_STAGES;
        cp_async_wait<DECODE_STAGES - 2>();
        __syncthreads(); // the block has come, and everyone is done with the one before
        if (b + DECODE_STAGES - 1 < t.hi)
            load_values_f32(v + next * V, w + next * W, p, t, all, b + DECODE_STAGES - 1);
        cp_async_commit();
        add_block_f32(st, p, t, v + now * V, w + now * W, b);
    }
    cp_async_wait<0>();
    if (t.end > p.plan.pass_hi)
        carry_f32(st, carried, true);
    else
        finish_f32(p, t, st);
}

// ---- launches

int decode_f32_forward(void *stream, const struct tsr_cuda_attn *a, float *o, float *lse,
                       const float *q) {
    decode_f32_args p = {*a, {}, o, lse, q};
    decode_plan &plan = p.plan;
    TSR_TRY(decode_make_plan(&plan, TSR_DT_F32, a));
    unsigned rows = (unsigned)(a->nkv * plan.tiles), n_segs = (unsigned)a->n_segs;
    dim3 splits(decode_splits(plan), rows, n_segs);
    dim3 slices(blocks_for(a->head_dim, DECODE_COLUMNS), rows, n_segs);
    size_t ld = (size_t)a->head_dim | 1, score_floats = (DECODE_ROWS + DECODE_KEYS) * ld + 64;
    size_t value_floats =
        DECODE_STAGES * (DECODE_KEYS * DECODE_COLUMNS + DECODE_ROWS * DECODE_KEYS + DECODE_EXTRA);
    for (int lo = 0; lo < plan.n_blocks; lo += plan.pass_blocks) {
        plan.pass_lo = lo;
        plan.pass_hi = lo + plan.pass_blocks;
        TSR_TRY(launch_kernel("decode_f32_scores", decode_f32_scores_kernel, splits, F32_THREADS,
                              score_floats * sizeof(float) + 32, stream, p));
        TSR_TRY(launch_kernel("decode_f32_weights", decode_f32_weights_kernel, splits, F32_THREADS,
                              0, stream, p));
        TSR_TRY(launch_kernel("decode_f32_values", decode_f32_values_kernel, slices, F32_THREADS,
                              value_floats * sizeof(float), stream, p));
    }
    return 0;
}

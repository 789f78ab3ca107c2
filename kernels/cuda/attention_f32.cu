// fp32 attention for parity: block-wise causal attention with an online softmax (Dao 2023,
// "FlashAttention-2", Algorithm 1). Twin: kernels/cpu/isa/attention.c; the same chains over
// d and over keys, blocks of keys and virtual vectors, so the same bits.
//   s = (chain over d of q k) scale      m' = max(m, max s)      p = e^(s - m')
//   l = l e^(m - m') + sum p             O = O e^(m - m') + chain over keys of p v
// and at the end o = O / sum(l), lse = m' + log sum(l). Keys that a row doesn't see are left out.
#include "kernels/cuda/attention_f32.cuh"

enum { KEYS = 64 };

struct f32_args {
    struct tsr_cuda_attn a;
    float *o, *lse;
    const float *q, *k, *v;
};

// What a half-warp keeps of its four rows.
template <int NC> struct f32_state { float o[4][NC], l[4], m[4]; };

// One row's softmax over a block: s becomes the weights, which also go to `out`; O is scaled.
template <int NC>
DEVICE void f32_soften(const f32_args &p, const struct tsr_cuda_segment &g, f32_state<NC> &st,
                       float (&s)[4], smem<float> out, int r, int pos, int head, int base, int lo,
                       int hi) {
    int x = threadIdx.x % 16;
    float most = -INF;
    for (int c = 0; c < 4; c++) {
        s[c] = s[c] * p.a.scale;
        if (x + 16 * c >= lo && x + 16 * c < hi)
            most = max_of(most, s[c]);
    }
    most = max16(most);
    if (lo >= hi)
        return;
    float m = most > st.m[r] ? most : st.m[r], alpha = exp_exact(st.m[r] - m);
    st.m[r] = m;
    st.l[r] = st.l[r] * alpha;
    for (int c = 0; c < NC; c++)
        st.o[r][c] = st.o[r][c] * alpha;
    for (int c = 0; c < 4; c++) {
        int j = x + 16 * c;
        if (j < lo || j >= hi)
            continue;
        float w = exp_exact(s[c] - m);
        st.l[r] = st.l[r] + w;
        if (p.a.drop.p > 0.0f)
            w = mask_keeps(p.a, g, base + j, pos, head) ? w / (1.0f - p.a.drop.p) : 0.0f;
        out[j] = w;
    }
}

template <int NC> __global__ void __launch_bounds__(F32_THREADS) attention_f32_kernel(f32_args p) {
    struct tsr_cuda_segment g = p.a.segs[blockIdx.z];
    int t0 = (int)(gridDim.x - 1 - blockIdx.x) * F32_ROWS, h = blockIdx.y; // the longest rows first
    if (t0 >= g.length || is_few(p.a, g))
        return;
    int n = min_of((int)F32_ROWS, g.length - t0), kv = kv_of(p.a, h), dim = p.a.head_dim;
    int x = threadIdx.x % 16, y = threadIdx.x / 16, ld = f32_ld(dim), first = first_key(g);
    shared_cursor cursor;
    smem<float> q = cursor.take<float>(F32_ROWS * ld), keys = cursor.take<float>(KEYS * ld);
    smem<float> values = cursor.take<float>(KEYS * ld), w = cursor.take<float>(F32_ROWS * KEYS);
    f32_load(q, F32_ROWS, ld, dim, [&](int i) -> const float * {
        return i < n ? p.q + (g.start + t0 + i) * p.a.ldq + (int64_t)h * dim : nullptr;
    });
    f32_state<NC> st;
    for (int r = 0; r < 4; r++) {
        st.m[r] = -INF;
        st.l[r] = 0.0f;
        for (int c = 0; c < NC; c++)
            st.o[r][c] = 0.0f;
    }
    int from = keys_seen(g.position + t0, first, p.a.window).lo, to = g.position + t0 + n;
    for (int base = from / KEYS * KEYS; base < to; base += KEYS) {
        __syncthreads();
        f32_load(keys, KEYS, ld, dim, [&](int j) -> const float * {
            bool in = base + j >= from && base + j < to;
            return in ? key_row(p.a, g, p.k, p.a.ldk, g.k, kv, base + j) : nullptr;
        });
        f32_load(values, KEYS, ld, dim, [&](int j) -> const float * {
            bool in = base + j >= from && base + j < to;
            return in ? key_row(p.a, g, p.v, p.a.ldv, g.v, kv, base + j) : nullptr;
        });
        __syncthreads();
        float s[4][4];
        f32_scores(s, q, keys, ld, dim);
        int lo[4], hi[4];
        for (int r = 0; r < 4; r++) {
            int i = 4 * y + r, pos = g.position + t0 + i;
            key_range seen = keys_seen(pos, first, p.a.window);
            lo[r] = i < n ? max_of(seen.lo - base, 0) : 0;
            hi[r] = i < n ? min_of(seen.hi - base, (int)KEYS) : 0;
            f32_soften(p, g, st, s[r], w + i * KEYS, r, pos, p.a.q0 + h, base, lo[r], hi[r]);
        }
        __syncwarp(); // a row's weights are read by its own half-warp only
        f32_accumulate(st.o, w, KEYS, values, ld, dim, lo, hi);
    }
    for (int r = 0; r < 4; r++) {
        int i = 4 * y + r, token = g.start + t0 + i;
        float sum = sum16(st.l[r]);
        if (i >= n)
            continue;
        for (int c = 0; c < NC; c++)
            if (x + 16 * c < dim)
                p.o[token * p.a.ldo + (int64_t)h * dim + x + 16 * c] = st.o[r][c] / sum;
        if (p.lse != nullptr && x == 0)
            p.lse[(int64_t)h * p.a.n_tokens + token] = st.m[r] + log_exact(sum);
    }
}

int attention_f32(void *stream, const struct tsr_cuda_attn *a, float *o, float *lse, const float *q,
                  const float *k, const float *v) {
    f32_args p = {*a, o, lse, q, k, v};
    size_t ld = (size_t)a->head_dim | 1;
    size_t floats = F32_ROWS * ld + 2 * KEYS * ld + F32_ROWS * KEYS;
    dim3 grid(blocks_for(a->max_length, F32_ROWS), (unsigned)a->nq, (unsigned)a->n_segs);
    F32_WITH_COLUMNS(a->head_dim, NC, {
        return launch_kernel("attention_f32", attention_f32_kernel<NC>, grid, F32_THREADS,
                             floats * sizeof(float) + 64, stream, p);
    })
}

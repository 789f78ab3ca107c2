// Gradient of fp32 attention for parity (Dao 2023, "FlashAttention-2", Algorithm 2). Twin:
// kernels/cpu/isa/attention_bwd.c, whose two-pass form this is: the same chains, the same bits.
// For query i and key j that it sees, with dropout's mask and its factor in Z (1 when off):
//   p = e^(s - lse)      dV_j = sum over i of p Z dO_i      dP = Z (chain over d of dO_i v_j)
//   D_i = dO_i . O_i     dS = p (dP - D_i) scale
//   dQ_i = sum over j of dS k_j       dK_j = sum over i of dS q_i
#include "kernels/cuda/attention_f32.cuh"

struct f32_grads {
    struct tsr_cuda_attn a;
    attention_grads g;
};

struct f32_pair {
    float z, ds; // the weight with dropout, the score's gradient
};

// A query and a key that it sees: s and dp are the two dot products.
DEVICE f32_pair f32_weight(const f32_grads &p, const struct tsr_cuda_segment &g, float s, float dp,
                           int token, int head, int pos, int key) {
    int64_t at = (int64_t)head * p.a.n_tokens + token;
    float w = exp_exact(s * p.a.scale - p.g.lse[at]), z = w;
    if (p.a.drop.p > 0.0f) {
        float rest = 1.0f - p.a.drop.p;
        bool keep = mask_keeps(p.a, g, key, pos, p.a.q0 + head);
        z = keep ? w / rest : 0.0f;
        dp = keep ? dp / rest : 0.0f;
    }
    return {z, (w * (dp - p.g.dots[at])) * p.a.scale};
}

// A tile of keys of one slot: dK and dV, over the slot's heads and then their queries.
template <int NC> __global__ void __launch_bounds__(F32_THREADS) f32_keys_kernel(f32_grads p) {
    struct tsr_cuda_segment g = p.a.segs[blockIdx.z];
    struct tsr_kv_slot slot = p.g.slots[blockIdx.y];
    int key0 = blockIdx.x * F32_ROWS, dim = p.a.head_dim, ld = f32_ld(dim);
    if (key0 >= g.length)
        return;
    int n = min_of((int)F32_ROWS, g.length - key0), x = threadIdx.x % 16, y = threadIdx.x / 16;
    const float *q = (const float *)p.g.q, *d_o = (const float *)p.g.d_o;
    shared_cursor cursor;
    smem<float> keys = cursor.take<float>(F32_ROWS * ld),
                values = cursor.take<float>(F32_ROWS * ld);
    smem<float> qs = cursor.take<float>(F32_ROWS * ld), os = cursor.take<float>(F32_ROWS * ld);
    smem<float> z = cursor.take<float>(F32_ROWS * F32_ROWS);
    smem<float> ds = cursor.take<float>(F32_ROWS * F32_ROWS);
    f32_load(keys, F32_ROWS, ld, dim, [&](int i) -> const float * {
        int64_t row = g.start + key0 + i;
        return i < n ? (const float *)p.g.k + row * p.a.ldk + slot.kv * dim : nullptr;
    });
    f32_load(values, F32_ROWS, ld, dim, [&](int i) -> const float * {
        int64_t row = g.start + key0 + i;
        return i < n ? (const float *)p.g.v + row * p.a.ldv + slot.kv * dim : nullptr;
    });
    float dk[4][NC] = {}, dv[4][NC] = {};
    int last = queries_seeing(g.position + key0 + n - 1, g.position + g.length, p.a.window).hi;
    for (int h = slot.q; h < slot.q + slot.n; h++)
        for (int t0 = key0; t0 < last - g.position; t0 += F32_ROWS) {
            int rows = min_of((int)F32_ROWS, g.length - t0), lo[4], hi[4];
            __syncthreads();
            f32_load(qs, F32_ROWS, ld, dim, [&](int i) -> const float * {
                return i < rows ? q + (g.start + t0 + i) * p.a.ldq + (int64_t)h * dim : nullptr;
            });
            f32_load(os, F32_ROWS, ld, dim, [&](int i) -> const float * {
                return i < rows ? d_o + (g.start + t0 + i) * p.a.ldo + (int64_t)h * dim : nullptr;
            });
            __syncthreads();
            float s[4][2], dp[4][2];
            f32_scores(s, keys, qs, ld, dim);
            f32_scores(dp, values, os, ld, dim);
            for (int r = 0; r < 4; r++) {
                int i = 4 * y + r, key = g.position + key0 + i;
                key_range seen = queries_seeing(key, g.position + g.length, p.a.window);
                lo[r] = i < n ? max_of(seen.lo - g.position - t0, 0) : 0;
                hi[r] = i < n ? min_of(seen.hi - g.position - t0, rows) : 0;
                for (int c = 0; c < 2; c++) {
                    int j = x + 16 * c, token = g.start + t0 + j;
                    if (j < lo[r] || j >= hi[r])
                        continue;
                    f32_pair w =
                        f32_weight(p, g, s[r][c], dp[r][c], token, h, g.position + t0 + j, key);
                    z[i * F32_ROWS + j] = w.z;
                    ds[i * F32_ROWS + j] = w.ds;
                }
            }
            __syncwarp();
            f32_accumulate(dv, z, F32_ROWS, os, ld, dim, lo, hi);
            f32_accumulate(dk, ds, F32_ROWS, qs, ld, dim, lo, hi);
        }
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < NC; c++) {
            int64_t row = g.start + key0 + 4 * y + r;
            int64_t at = (row * p.g.n_slots + blockIdx.y) * dim + x + 16 * c;
            if (4 * y + r < n && x + 16 * c < dim) {
                ((float *)p.g.dk)[at] = dk[r][c];
                ((float *)p.g.dv)[at] = dv[r][c];
            }
        }
}

// A tile of queries of one head: dQ, over keys.
template <int NC> __global__ void __launch_bounds__(F32_THREADS) f32_queries_kernel(f32_grads p) {
    struct tsr_cuda_segment g = p.a.segs[blockIdx.z];
    int t0 = (int)(gridDim.x - 1 - blockIdx.x) * F32_ROWS, h = blockIdx.y;
    if (t0 >= g.length)
        return;
    int n = min_of((int)F32_ROWS, g.length - t0), kv = kv_of(p.a, h), dim = p.a.head_dim;
    int x = threadIdx.x % 16, y = threadIdx.x / 16, ld = f32_ld(dim), first = g.position;
    const float *k = (const float *)p.g.k, *v = (const float *)p.g.v;
    shared_cursor cursor;
    smem<float> qs = cursor.take<float>(F32_ROWS * ld), os = cursor.take<float>(F32_ROWS * ld);
    smem<float> keys = cursor.take<float>(F32_ROWS * ld),
                values = cursor.take<float>(F32_ROWS * ld);
    smem<float> ds = cursor.take<float>(F32_ROWS * F32_ROWS);
    f32_load(qs, F32_ROWS, ld, dim, [&](int i) -> const float * {
        int64_t row = g.start + t0 + i;
        return i < n ? (const float *)p.g.q + row * p.a.ldq + (int64_t)h * dim : nullptr;
    });
    f32_load(os, F32_ROWS, ld, dim, [&](int i) -> const float * {
        int64_t row = g.start + t0 + i;
        return i < n ? (const float *)p.g.d_o + row * p.a.ldo + (int64_t)h * dim : nullptr;
    });
    float dq[4][NC] = {};
    int from = keys_seen(g.position + t0, first, p.a.window).lo, to = g.position + t0 + n;
    for (int base = from; base < to; base += F32_ROWS) {
        __syncthreads();
        f32_load(keys, F32_ROWS, ld, dim, [&](int j) -> const float * {
            return base + j < to ? key_row(p.a, g, k, p.a.ldk, nullptr, kv, base + j) : nullptr;
        });
        f32_load(values, F32_ROWS, ld, dim, [&](int j) -> const float * {
            return base + j < to ? key_row(p.a, g, v, p.a.ldv, nullptr, kv, base + j) : nullptr;
        });
        __syncthreads();
        float s[4][2], dp[4][2];
        int lo[4], hi[4];
        f32_scores(s, qs, keys, ld, dim);
        f32_scores(dp, os, values, ld, dim);
        for (int r = 0; r < 4; r++) {
            int i = 4 * y + r, pos = g.position + t0 + i;
            key_range seen = keys_seen(pos, first, p.a.window);
            lo[r] = i < n ? max_of(seen.lo - base, 0) : 0;
            hi[r] = i < n ? min_of(seen.hi - base, (int)F32_ROWS) : 0;
            for (int c = 0; c < 2; c++) {
                int j = x + 16 * c;
                if (j >= lo[r] && j < hi[r])
                    ds[i * F32_ROWS + j] =
                        f32_weight(p, g, s[r][c], dp[r][c], g.start + t0 + i, h, pos, base + j).ds;
            }
        }
        __syncwarp();
        f32_accumulate(dq, ds, F32_ROWS, keys, ld, dim, lo, hi);
    }
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < NC; c++) {
            int64_t row = g.start + t0 + 4 * y + r;
            if (4 * y + r < n && x + 16 * c < dim)
                ((float *)p.g.dq)[row * p.a.ldq + (int64_t)h * dim + x + 16 * c] = dq[r][c];
        }
}

int attention_f32_bwd(void *stream, const struct tsr_cuda_attn *a, const attention_grads *g) {
    f32_grads p = {*a, *g};
    size_t ld = (size_t)a->head_dim | 1, floats = 4 * F32_ROWS * ld + 2 * F32_ROWS * F32_ROWS;
    size_t bytes = floats * sizeof(float) + 64;
    unsigned tiles = blocks_for(a->max_length, F32_ROWS);
    dim3 of_keys(tiles, (unsigned)g->n_slots, (unsigned)a->n_segs);
    dim3 of_queries(tiles, (unsigned)a->nq, (unsigned)a->n_segs);
    F32_WITH_COLUMNS(a->head_dim, NC, {
        TSR_TRY(launch_kernel("attention_f32_bwd_keys", f32_keys_kernel<NC>, of_keys, F32_THREADS,
                              bytes, stream, p));
        return launch_kernel("attention_f32_bwd_queries", f32_queries_kernel<NC>, of_queries,
                             F32_THREADS, bytes, stream, p);
    })
}

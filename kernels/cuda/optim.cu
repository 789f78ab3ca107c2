// Sums and updates over gradients and weights: adds, the tree over buffers, sums of squares, AdamW.
// Twin: kernels/cpu/isa/optim.c; all give its bits.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum { ROW_THREADS = 256, CHAIN_THREADS = 128 };

template <class T>
__global__ void __launch_bounds__(256)
    add_kernel(T *out, const T *a, const T *b, int64_t n, bool wide) {
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * chunk<T>::N;
    if (at >= n)
        return;
    chunk<T> x = load_chunk(a + at, n - at, wide), y = load_chunk(b + at, n - at, wide);
    for (int i = 0; i < chunk<T>::N; i++)
        x.v[i] = x.v[i] + y.v[i];
    store_chunk(out + at, n - at, wide, x);
}

enum { TREE_LEAVES = 8 }; // of a subtree that stays in registers

// Leaves k0 to k0 + TREE_LEAVES - 1 of element `at`, those below n_in, joined: neighbours, then
// neighbours of those.
DEVICE float subtree(const float *const *in, int k0, int n_in, int64_t at) {
    float x[TREE_LEAVES];
    UNROLL(TREE_LEAVES)
    for (int k = 0; k < TREE_LEAVES; k++)
        x[k] = k0 + k < n_in ? in[k0 + k][at] : 0.0f;
    UNROLL(3)
    for (int step = 1; step < TREE_LEAVES; step *= 2) {
        UNROLL(TREE_LEAVES)
        for (int k = 0; k + step < TREE_LEAVES; k += 2 * step)
            if (k0 + k + step < n_in) // a lone node rises unchanged
                x[k] = x[k] + x[k + step];
    }
    return x[0];
}

__global__ void __launch_bounds__(256)
    tree_add_kernel(float *out, const float *const *in, int n_in, int64_t n) {
    int64_t at = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= n)
        return;
    if (n_in <= TREE_LEAVES) {
        out[at] = subtree(in, 0, n_in, at);
        return;
    }
    sum_tree tree;
    for (int k = 0; k < n_in; k += TREE_LEAVES)
        tree.leaf((unsigned)k, subtree(in, k, n_in, at));
    out[at] = tree.root();
}

// A row is summed by a half-warp, its virtual vector; lanes are added in the fixed tree.
__global__ void __launch_bounds__(ROW_THREADS)
    row_sumsq_kernel(double *of_row, const float *g, ptrdiff_t ld, int64_t row0, int64_t rows,
                     int64_t cols) {
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 16;
    const float *x = g + (row0 + i) * ld;
    double s = 0.0;
    if (i < rows) {
        UNROLL(8)
        for (int64_t j = threadIdx.x % 16; j < cols; j += 16)
            s = fma((double)x[j], (double)x[j], s);
    }
    s = sum16(s);
    if (i < rows && threadIdx.x % 16 == 0)
        of_row[i] = s;
}

// Rows are added in order: a chain, for which the block only fetches.
__global__ void __launch_bounds__(CHAIN_THREADS)
    row_chain_kernel(double *sums, const double *of_row, const int64_t *bounds, int64_t row0) {
    shared_cursor cursor;
    smem<double> next = cursor.take<double>(CHAIN_THREADS);
    int64_t lo = bounds[blockIdx.x] - row0, hi = bounds[blockIdx.x + 1] - row0;
    double sum = 0.0;
    for (int64_t base = lo; base < hi; base += CHAIN_THREADS) {
        int n = (int)min_of<int64_t>(CHAIN_THREADS, hi - base);
        if ((int)threadIdx.x < n)
            next[threadIdx.x] = of_row[base + threadIdx.x];
        __syncthreads();
        if (threadIdx.x == 0) {
            for (int k = 0; k < n; k++)
                sum = sum + (double)next[k];
        }
        __syncthreads();
    }
    if (threadIdx.x == 0)
        sums[blockIdx.x] = sum;
}

template <class T> struct adamw_args {
    float beta1, beta2, rest1, rest2, eps, scale, decay, step, unbias;
    float *w, *m, *v; // m and v contiguous
    const float *g;
    T *w16; // like w, or NULL
    ptrdiff_t ldw, ldg;
    int64_t rows, cols, per_row; // per_row: chunks
    struct tsr_rounding rounding;
    bool stochastic, wide, wide16; // wide16: 8-byte accesses may go to w16
};

// x rounded to bf16 with the probability of either neighbour given by what is cut off; `draw`
// gives 16 random bits. Infinity and NaN are kept.
DEVICE float round_by_draw(float x, uint32_t draw) {
    uint32_t u = __float_as_uint(x);
    if ((u & 0x7f800000u) == 0x7f800000u)
        return x;
    return __uint_as_float((u + (draw & 0xffffu)) & 0xffff0000u);
}

DEVICE uint4 rounding_draws(const struct tsr_rounding &r, uint64_t counter) {
    return philox(r.key, (uint32_t)counter, (uint32_t)(counter >> 32), (uint32_t)r.update,
                  (uint32_t)(r.update >> 32));
}

// Four neighbours from element e of the tensor on: one counter's draws, or the last of one and the
// first of the next.
DEVICE void round_chunk(chunk<float> &w, const struct tsr_rounding &r, uint64_t e) {
    uint4 draw = rounding_draws(r, e / 4), more = draw;
    if (e % 4 != 0)
        more = rounding_draws(r, e / 4 + 1);
    UNROLL(4)
    for (int k = 0; k < 4; k++) {
        int i = (int)(e % 4) + k;
        w.v[k] = round_by_draw(w.v[k], i < 4 ? word_of(draw, i) : word_of(more, i - 4));
    }
}

// Four values, of which `left` exist, to nearest; `wide`: 8 bytes at once.
template <class T> DEVICE void store_narrow(T *to, int64_t left, bool wide, const chunk<float> &x) {
    if constexpr (sizeof(T) == 2) {
        if (wide && left >= 4) {
            store8(to, uint2{pack2<T>(x.v[0], x.v[1]), pack2<T>(x.v[2], x.v[3])});
            return;
        }
    }
    for (int k = 0; k < 4; k++)
        if (k < left)
            to[k] = from_float<T>(x.v[k]);
}

// With s = grad_scale, t = lr / bias1:
//   m = beta1 m + rest1 g s;  v = beta2 v + rest2 (g s)^2
//   w = w - lr weight_decay w - t m / (sqrt(v) / bias2_sqrt + eps)
template <class T> __global__ void __launch_bounds__(256) adamw_kernel(adamw_args<T> q) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int64_t row = i / q.per_row, col = i % q.per_row * 4, left = q.cols - col;
    if (row >= q.rows)
        return;
    int64_t at = row * q.cols + col;
    chunk<float> w = load_chunk(q.w + row * q.ldw + col, left, q.wide);
    chunk<float> g = load_chunk(q.g + row * q.ldg + col, left, q.wide);
    chunk<float> m = load_chunk(q.m + at, left, q.wide), v = load_chunk(q.v + at, left, q.wide);
    for (int k = 0; k < 4; k++) {
        float gk = g.v[k] * q.scale;
        m.v[k] = fmaf(q.beta1, m.v[k], q.rest1 * gk);
        v.v[k] = fmaf(q.beta2, v.v[k], q.rest2 * (gk * gk));
        float update = m.v[k] / fmaf(sqrtf(v.v[k]), q.unbias, q.eps);
        w.v[k] = fmaf(-q.step, update, fmaf(-q.decay, w.v[k], w.v[k]));
    }
    store_chunk(q.m + at, left, q.wide, m);
    store_chunk(q.v + at, left, q.wide, v);
    store_chunk(q.w + row * q.ldw + col, left, q.wide, w);
    if (q.w16 == nullptr)
        return;
    if (q.stochastic)
        round_chunk(w, q.rounding, (uint64_t)(q.rounding.first + row * q.rounding.row_elems + col));
    store_narrow(q.w16 + row * q.ldw + col, left, q.wide16, w);
}

// w of (rows, cols) with leading dimension ldw.
__global__ void __launch_bounds__(256)
    round_kernel(bf16 *w, ptrdiff_t ldw, const float *master, struct tsr_rounding r, int64_t rows,
                 int64_t cols, int64_t per_row, bool wide, bool wide16) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int64_t row = i / per_row, col = i % per_row * 4, left = cols - col;
    if (row >= rows)
        return;
    chunk<float> x = load_chunk(master + row * cols + col, left, wide);
    round_chunk(x, r, (uint64_t)(r.first + row * r.row_elems + col));
    store_narrow(w + row * ldw + col, left, wide16, x);
}

int tsr_cuda_add(void *stream, enum tsr_dtype dtype, void *out, const void *a, const void *b,
                 size_t n) {
    if (n == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        bool wide = aligned16((T *)out) && aligned16((const T *)a) && aligned16((const T *)b);
        return launch_kernel("add", add_kernel<T>, dim3(blocks_for((int64_t)n, 256 * chunk<T>::N)),
                             256, 0, stream, (T *)out, (const T *)a, (const T *)b, (int64_t)n,
                             wide);
    })
}

int tsr_cuda_tree_add(void *stream, float *out, const float *const *in, int n_in, size_t n) {
    if (n == 0)
        return 0;
    return launch_kernel("tree_add", tree_add_kernel, dim3(blocks_for((int64_t)n, 256)), 256, 0,
                         stream, out, in, n_in, (int64_t)n);
}

int tsr_cuda_sumsq(void *stream, double *sums, const float *g, ptrdiff_t ld, const int64_t *bounds,
                   int n_blocks, int64_t row0, int64_t rows, int64_t cols, double *of_row) {
    if (n_blocks == 0)
        return 0;
    if (rows > 0)
        TSR_TRY(launch_kernel("row_sumsq", row_sumsq_kernel,
                              dim3(blocks_for(rows, ROW_THREADS / 16)), ROW_THREADS, 0, stream,
                              of_row, g, ld, row0, rows, cols));
    return launch_kernel("row_chain", row_chain_kernel, dim3((unsigned)n_blocks), CHAIN_THREADS,
                         CHAIN_THREADS * sizeof(double), stream, sums, of_row, bounds, row0);
}

static bool eight_aligned(const void *p, ptrdiff_t ld, int64_t rows) {
    return (uintptr_t)p % 8 == 0 && (rows == 1 || ld % 4 == 0);
}

int tsr_cuda_round(void *stream, enum tsr_dtype dtype, void *w, ptrdiff_t ldw, const float *master,
                   const struct tsr_rounding *r, int64_t rows, int64_t cols) {
    if (dtype != TSR_DT_BF16)
        return tsr_fail(TSR_EUSAGE, "device: stochastic rounding is for bf16 weights");
    if (rows == 0 || cols == 0)
        return 0;
    if (ldw == cols && r->row_elems == cols) { // one long row
        cols *= rows;
        rows = 1;
    }
    int64_t per_row = (cols + 3) / 4;
    bool wide = aligned16(master) && (rows == 1 || cols % 4 == 0);
    return launch_kernel("round", round_kernel, dim3(blocks_for(rows * per_row, 256)), 256, 0,
                         stream, (bf16 *)w, ldw, master, *r, rows, cols, per_row, wide,
                         eight_aligned(w, ldw, rows));
}

int tsr_cuda_adamw(void *stream, const struct tsr_adamw *p, float *w, ptrdiff_t ldw, float *m,
                   float *v, const float *g, ptrdiff_t ldg, int64_t rows, int64_t cols,
                   enum tsr_dtype dtype, void *w16) {
    const struct tsr_rounding *rounding = p->rounding;
    if (rounding != nullptr && dtype != TSR_DT_BF16)
        return tsr_fail(TSR_EUSAGE, "device: stochastic rounding is for bf16 weights");
    if (rows == 0 || cols == 0)
        return 0;
    if (ldw == cols && ldg == cols && (rounding == nullptr || rounding->row_elems == cols)) {
        cols *= rows;
        ldw = ldg = cols;
        rows = 1;
    }
    TSR_WITH_TYPE(dtype, T, {
        adamw_args<T> q = {};
        q.beta1 = p->beta1;
        q.beta2 = p->beta2;
        q.rest1 = p->rest1;
        q.rest2 = p->rest2;
        q.eps = p->eps;
        q.scale = p->grad_scale;
        q.decay = p->lr * p->weight_decay;
        q.step = p->lr / p->bias1;
        q.unbias = 1.0f / p->bias2_sqrt;
        q.w = w;
        q.m = m;
        q.v = v;
        q.g = g;
        q.w16 = (T *)w16;
        q.ldw = ldw;
        q.ldg = ldg;
        q.rows = rows;
        q.cols = cols;
        q.per_row = (cols + 3) / 4;
        q.stochastic = rounding != nullptr;
        if (q.stochastic)
            q.rounding = *rounding;
        q.wide = aligned16(w, ldw) && aligned16(g, ldg) && aligned16(m, cols) && aligned16(v);
        if (rows == 1)
            q.wide = aligned16(w) && aligned16(g) && aligned16(m) && aligned16(v);
        q.wide16 = sizeof(T) == 2 && eight_aligned(w16, ldw, rows);
        return launch_kernel("adamw", adamw_kernel<T>, dim3(blocks_for(rows * q.per_row, 256)), 256,
                             0, stream, q);
    })
}

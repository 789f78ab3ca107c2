// Rotary positions (Su et al. 2021) in Hugging Face's layout: dimensions d and d + D/2 are a pair,
//   x(d)       <- x(d) cos - x(d + D/2) sin
//   x(d + D/2) <- x(d + D/2) cos + x(d) sin
// and the inverse takes -sin. Twin: kernels/cpu/isa/rotary.c; fp32 gives its bits.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum { HEADS_PER_THREAD = 4 }; // share what is read of the table

template <class T> struct rotary_args {
    T *x; // (N, heads, D), rows ld apart
    ptrdiff_t ld;
    const int32_t *pos;
    const float *cos_sin;     // (max_positions, D/2, 2)
    int n, heads, d, per_row; // per_row: chunks of a half head
    float sign;               // of sin
    bool wide;
};

template <class T> __global__ void __launch_bounds__(128) rotary_kernel(rotary_args<T> q) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int64_t row = i / q.per_row;
    int half = q.d / 2, at = (int)(i % q.per_row) * chunk<T>::N, left = half - at;
    if (row >= q.n)
        return;
    const float *table = q.cos_sin + ((int64_t)q.pos[row] * half + at) * 2;
    float c[chunk<T>::N], s[chunk<T>::N];
    for (int k = 0; k < chunk<T>::N; k++) {
        c[k] = k < left ? table[2 * k] : 0.0f;
        s[k] = k < left ? q.sign * table[2 * k + 1] : 0.0f;
    }
    int h0 = blockIdx.y * HEADS_PER_THREAD, h1 = min_of(h0 + (int)HEADS_PER_THREAD, q.heads);
    for (int h = h0; h < h1; h++) {
        T *lo = q.x + row * q.ld + (int64_t)h * q.d + at, *hi = lo + half;
        chunk<T> a = load_chunk(lo, left, q.wide), b = load_chunk(hi, left, q.wide), x, y;
        for (int k = 0; k < chunk<T>::N; k++) {
            x.v[k] = fmaf(-b.v[k], s[k], a.v[k] * c[k]);
            y.v[k] = fmaf(a.v[k], s[k], b.v[k] * c[k]);
        }
        store_chunk(lo, left, q.wide, x);
        store_chunk(hi, left, q.wide, y);
    }
}

int tsr_cuda_rotary(void *stream, enum tsr_dtype dtype, void *x, ptrdiff_t ld, const int32_t *pos,
                    const float *cos_sin, int n, int heads, int d, bool inverse) {
    TSR_ASSERT(d % 2 == 0);
    if (n == 0 || heads == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        int N = chunk<T>::N, per_row = (d / 2 + N - 1) / N;
        rotary_args<T> q = {(T *)x, ld, pos, cos_sin, n, heads, d, per_row, inverse ? -1.0f : 1.0f,
                            false};
        q.wide = aligned16(q.x, ld) && d / 2 % N == 0;
        dim3 grid(blocks_for((int64_t)n * per_row, 128), blocks_for(heads, HEADS_PER_THREAD));
        return launch_kernel("rotary", rotary_kernel<T>, grid, 128, 0, stream, q);
    })
}

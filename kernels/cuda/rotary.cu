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

// Cosines and sines of N neighbouring pairs.
template <int N> DEVICE void load_angles(float (&c)[N], float (&s)[N], const float *p, int left) {
    bool wide = (uintptr_t)p % 16 == 0;
    UNROLL(N / 2)
    for (int k = 0; k < N; k += 2) {
        chunk<float> two = load_chunk(p + 2 * k, 2 * (left - k), wide);
        c[k] = two.v[0];
        s[k] = two.v[1];
        c[k + 1] = two.v[2];
        s[k + 1] = two.v[3];
    }
}

// Both halves of all heads are asked for before the first one is turned.
template <class T> __global__ void __launch_bounds__(128) rotary_kernel(rotary_args<T> q) {
    constexpr int N = chunk<T>::N, HEADS = HEADS_PER_THREAD;
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    int row = (int)(i / q.per_row), half = q.d / 2;
    int at = (int)(i % q.per_row) * N, left = half - at;
    if (row >= q.n)
        return;
    int h0 = blockIdx.y * HEADS;
    T *x = q.x + row * q.ld + (int64_t)h0 * q.d + at;
    chunk<T> a[HEADS], b[HEADS];
    UNROLL(HEADS)
    for (int h = 0; h < HEADS; h++) {
        int here = h0 + h < q.heads ? left : 0;
        a[h] = load_chunk(x + h * q.d, here, q.wide);
        b[h] = load_chunk(x + h * q.d + half, here, q.wide);
    }
    float c[N], s[N];
    load_angles(c, s, q.cos_sin + ((int64_t)q.pos[row] * half + at) * 2, left);
    UNROLL(HEADS)
    for (int h = 0; h < HEADS; h++) {
        chunk<T> lo, hi;
        UNROLL(N)
        for (int k = 0; k < N; k++) {
            float sine = q.sign * s[k];
            lo.v[k] = fmaf(-b[h].v[k], sine, a[h].v[k] * c[k]);
            hi.v[k] = fmaf(a[h].v[k], sine, b[h].v[k] * c[k]);
        }
        int here = h0 + h < q.heads ? left : 0;
        store_chunk(x + h * q.d, here, q.wide, lo);
        store_chunk(x + h * q.d + half, here, q.wide, hi);
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

// Bias, dropout (Srivastava et al. 2014, scaled at training time) and residual add in one pass,
// and the backward of dropout. Draws are keyed by global position, so they are made again in
// backward instead of being kept. Twin: kernels/cpu/isa/dropout.c; the mask is the same in every
// type, and fp32 gives its bits.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

template <class T> struct dropout_args {
    T *out;            // (N, C) with leading dimension ld, like residual and y
    const T *residual; // or NULL
    const T *bias;     // (C) or NULL
    float p;
    uint32_t threshold;
    struct tsr_rng_key key;
    const struct tsr_cuda_segment *segs;
    ptrdiff_t ld;
    int c, skip; // skip: columns of the first chunk that lie before col0
    int64_t col0;
    bool wide;
};

// A thread has the chunk of global columns [8 k, 8 k + 8) (of fp32 four), which is whole counters.
// from: y (N, C), of type T or fp32.
template <class T, class Y>
__global__ void __launch_bounds__(128) dropout_kernel(dropout_args<T> q, const Y *from) {
    constexpr int N = chunk<T>::N;
    struct tsr_cuda_segment g = q.segs[blockIdx.z];
    int t = blockIdx.x, j = (int)(blockIdx.y * blockDim.x + threadIdx.x) * N - q.skip;
    if (t >= g.length || j >= q.c)
        return;
    int64_t at = (int64_t)(g.start + t) * q.ld + j;
    uint32_t u[N];
    if (q.p > 0.0f) {
        for (int k = 0; k < N / 4; k++) {
            uint4 draw = philox(q.key, (uint32_t)((q.col0 + j) / 4 + k), (uint32_t)(g.position + t),
                                g.sequence_lo, g.sequence_hi);
            for (int i = 0; i < 4; i++)
                u[4 * k + i] = word_of(draw, i);
        }
    }
    chunk<T> y, bias = {}, residual = {};
    if (q.wide) {
        for (int k = 0; k < N; k += chunk<Y>::N) {
            chunk<Y> part = load_chunk(from + at + k, q.c - j - k, true);
            for (int i = 0; i < chunk<Y>::N; i++)
                y.v[k + i] = part.v[i];
        }
        if (q.bias != nullptr)
            bias = load_chunk(q.bias + j, q.c - j, true);
        if (q.residual != nullptr)
            residual = load_chunk(q.residual + at, q.c - j, true);
    } else {
        for (int i = 0; i < N; i++) {
            bool in = j + i >= 0 && j + i < q.c;
            y.v[i] = in ? to_float(from[at + i]) : 0.0f;
            bias.v[i] = in && q.bias != nullptr ? to_float(q.bias[j + i]) : 0.0f;
            residual.v[i] = in && q.residual != nullptr ? to_float(q.residual[at + i]) : 0.0f;
        }
    }
    for (int i = 0; i < N; i++) {
        float v = q.bias != nullptr ? y.v[i] + bias.v[i] : y.v[i];
        if (q.p > 0.0f)
            v = u[i] >= q.threshold ? v / (1.0f - q.p) : 0.0f;
        y.v[i] = q.residual != nullptr ? residual.v[i] + v : v;
    }
    if (q.wide) {
        store_chunk(q.out + at, q.c - j, true, y);
        return;
    }
    for (int i = 0; i < N; i++)
        if (j + i >= 0 && j + i < q.c)
            q.out[at + i] = from_float<T>(y.v[i]);
}

template <class T, class Y>
static int launch_dropout(void *stream, dropout_args<T> q, const Y *y, int n_segs, int max_length) {
    constexpr int N = chunk<T>::N;
    q.threshold = tsr_drop_threshold(q.p);
    q.skip = (int)(q.col0 % N);
    q.wide = q.skip == 0 && aligned16(q.out, q.ld) && aligned16(y, q.ld) &&
             aligned16(q.residual, q.ld) && aligned16(q.bias);
    dim3 grid((unsigned)max_length, blocks_for(q.c + q.skip, 128 * N), (unsigned)n_segs);
    return launch_kernel("dropout", dropout_kernel<T, Y>, grid, 128, 0, stream, q, y);
}

int tsr_cuda_dropout(void *stream, enum tsr_dtype dtype, void *out, const void *residual,
                     const void *y, bool y_f32, const void *bias, struct tsr_dropout d,
                     const struct tsr_cuda_segment *segs, int n_segs, int max_length, ptrdiff_t ld,
                     int c, int64_t col0) {
    if (n_segs == 0 || max_length == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        dropout_args<T> q = {};
        q.out = (T *)out;
        q.residual = (const T *)residual;
        q.bias = (const T *)bias;
        q.p = d.p;
        q.key = d.key;
        q.segs = segs;
        q.ld = ld;
        q.c = c;
        q.col0 = col0;
        if (y_f32)
            return launch_dropout(stream, q, (const float *)y, n_segs, max_length);
        return launch_dropout(stream, q, (const T *)y, n_segs, max_length);
    })
}

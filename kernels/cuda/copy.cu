// Copies between leading dimensions and between types, fills, and initial weights. Twins:
// kernels/cpu/memory.c, kernels/cpu/isa/init.c; initial weights have its bits, rounded once.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

template <class T>
__global__ void __launch_bounds__(256)
    copy_kernel(T *dst, ptrdiff_t ldd, const T *src, ptrdiff_t lds, int64_t rows, int cols,
                int per_row, bool wide) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / per_row;
    int j = (int)(i % per_row) * chunk<T>::N;
    if (row >= rows)
        return;
    if (wide && cols - j >= chunk<T>::N) {
        store16(dst + row * ldd + j, load16(src + row * lds + j));
        return;
    }
    for (int k = j; k < min_of(cols, j + chunk<T>::N); k++)
        dst[row * ldd + k] = src[row * lds + k];
}

template <class T>
__global__ void __launch_bounds__(256) fill_kernel(T *dst, float value, int64_t n) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n)
        dst[i] = from_float<T>(value);
}

// Eight elements a thread: 16 bytes of the narrower type.
template <class T, class S>
__global__ void __launch_bounds__(256)
    convert_kernel(T *dst, ptrdiff_t ldd, const S *src, ptrdiff_t lds, int64_t rows, int64_t cols,
                   int64_t per_row, bool wide) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x, row = i / per_row;
    int64_t col = i % per_row * 8;
    if (row >= rows)
        return;
    float x[8];
    for (int k = 0; k < 8; k += chunk<S>::N) {
        chunk<S> c = load_chunk(src + row * lds + col + k, cols - col - k, wide);
        for (int e = 0; e < chunk<S>::N; e++)
            x[k + e] = c.v[e];
    }
    for (int k = 0; k < 8; k += chunk<T>::N) {
        chunk<T> c;
        for (int e = 0; e < chunk<T>::N; e++)
            c.v[e] = x[k + e];
        store_chunk(dst + row * ldd + col + k, cols - col - k, wide, c);
    }
}

struct init_args {
    struct tsr_rng_key key;
    float std;
    int64_t row0, rows, col0, cols, global_cols;
};

// Element e of the global tensor: the Philox counter e / 4 gives four draws, of which 0 and 1 make
// elements 0 and 1, 2 and 3 the others (Box and Muller 1958): sqrt(-2 log u) cos(2 pi t) and the
// same with sin, u = (draw + 1/2) / 2^32, t = draw / 2^32 cut to 24 bits.
template <class T> __global__ void __launch_bounds__(256) init_kernel(T *w, init_args q) {
    int64_t i = (int64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= q.rows * q.cols)
        return;
    int64_t row = i / q.cols, col = i % q.cols;
    uint64_t e = (uint64_t)((q.row0 + row) * q.global_cols + q.col0 + col);
    uint4 draws = philox(q.key, (uint32_t)(e / 4), (uint32_t)(e / 4 >> 32), 0, 0);
    uint32_t draw_u = e % 4 < 2 ? draws.x : draws.z, draw_t = e % 4 < 2 ? draws.y : draws.w;
    float u = fmaf((float)(draw_u & 0xffff), 0x1p-32f, 0x1p-33f);
    u = fmaf((float)(draw_u >> 16), 0x1p-16f, u);
    float sine, cosine;
    sincos_exact((float)(draw_t >> 8) * 3.7450703e-07f, &sine, &cosine); // 2 pi / 2^24
    float radius = q.std * sqrtf(-2.0f * log_exact(u));
    w[i] = from_float<T>(radius * (e % 2 == 0 ? cosine : sine));
}

int tsr_cuda_copy_2d(void *stream, enum tsr_dtype dtype, void *dst, ptrdiff_t ldd, const void *src,
                     ptrdiff_t lds, int64_t rows, int cols) {
    if (rows == 0 || cols == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        bool wide = aligned16((T *)dst, ldd) && aligned16((const T *)src, lds);
        int per_row = (cols + chunk<T>::N - 1) / chunk<T>::N;
        return launch_kernel("copy_2d", copy_kernel<T>, dim3(blocks_for(rows * per_row, 256)), 256,
                             0, stream, (T *)dst, ldd, (const T *)src, lds, rows, cols, per_row,
                             wide);
    })
}

int tsr_cuda_fill(void *stream, enum tsr_dtype dtype, void *dst, float value, size_t n) {
    if (n == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        return launch_kernel("fill", fill_kernel<T>, dim3(blocks_for((int64_t)n, 256)), 256, 0,
                             stream, (T *)dst, value, (int64_t)n);
    })
}

template <class T>
static int convert_to(void *stream, T *dst, ptrdiff_t ldd, enum tsr_dtype from, const void *src,
                      ptrdiff_t lds, int64_t rows, int64_t cols) {
    TSR_WITH_TYPE(from, S, {
        const S *s = (const S *)src;
        int64_t per_row = (cols + 7) / 8;
        bool wide =
            rows == 1 ? aligned16(dst) && aligned16(s) : aligned16(dst, ldd) && aligned16(s, lds);
        return launch_kernel("convert", convert_kernel<T, S>, dim3(blocks_for(rows * per_row, 256)),
                             256, 0, stream, dst, ldd, s, lds, rows, cols, per_row, wide);
    })
}

int tsr_cuda_convert(void *stream, enum tsr_dtype to, void *dst, ptrdiff_t ldd, enum tsr_dtype from,
                     const void *src, ptrdiff_t lds, int64_t rows, int64_t cols) {
    if (rows == 0 || cols == 0)
        return 0;
    if (ldd == cols && lds == cols) { // one long row
        cols *= rows;
        ldd = lds = cols;
        rows = 1;
    }
    TSR_WITH_TYPE(to, T,
                  { return convert_to<T>(stream, (T *)dst, ldd, from, src, lds, rows, cols); })
}

int tsr_cuda_init_normal(void *stream, enum tsr_dtype dtype, void *w, struct tsr_rng_key key,
                         float std, int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                         int64_t global_cols) {
    if (rows == 0 || cols == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        init_args q = {key, std, row0, rows, col0, cols, global_cols};
        return launch_kernel("init_normal", init_kernel<T>, dim3(blocks_for(rows * cols, 256)), 256,
                             0, stream, (T *)w, q);
    })
}

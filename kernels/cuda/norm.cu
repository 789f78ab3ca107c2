// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019), forward and backward, each
// with the residual add beside it. Twins: kernels/cpu/isa/norm.c, norm_bwd.c; fp32 gives their
// bits.
//
//   y = (x - mean) rstd w + b,  rstd = 1/sqrt(var + eps);  RMSNorm: mean 0, var = mean(x^2)
// With xhat = (x - mean) rstd and e = dy w, averages over the row:
//   LayerNorm  dx = rstd (e - avg(e) - xhat avg(e xhat))
//   RMSNorm    dx = rstd (e - xhat avg(e xhat))
//
// A row belongs to a half-warp, which is the virtual vector: thread i adds the elements i mod 16 in
// order. The row is first brought into shared memory by asynchronous copies, so it is read once
// from memory however often it is walked.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum { COMFORTABLE_SHARED = 64 * 1024 };

template <class T> struct norm_args {
    T *y;                  // (N, C)
    float *mean, *rstd;    // (N); mean NULL: RMSNorm
    T *sum;                // (N, C) = residual + x, or NULL
    const T *residual, *x; // (N, C)
    const T *w, *b;        // (C); b may be NULL
    float eps;
    int n, c, stride; // stride: elements between staged rows
    bool wide;
};

template <class T> struct norm_bwd_args {
    T *dx;                    // (N, C)
    const T *dres;            // (N, C) or NULL
    const T *dy, *x;          // (N, C)
    const T *w;               // (C)
    const float *mean, *rstd; // (N); mean NULL: RMSNorm
    int n, c, stride;
    bool wide;
};

// Row stride in shared memory: 16 elements more than a multiple of 128 bytes, so that the two
// half-warps of a warp read different banks.
template <class T> static int stride_for(int c) {
    int per = 128 / (int)sizeof(T);
    return (c + per - 1) / per * per + 16;
}

// The half-warp brings row src to dst, in whole chunks: zeros beyond it.
template <class T> DEVICE void stage(smem<T> dst, const T *src, int c, bool wide, int lane) {
    if (wide) {
        for (int j = lane * chunk<T>::N; j < c; j += 16 * chunk<T>::N)
            cp_async16(dst + j, src + j, true);
    } else {
        constexpr int N = chunk<T>::N;
        for (int j = lane; j < (c + N - 1) / N * N; j += 16)
            dst[j] = j < c ? src[j] : from_float<T>(0.0f);
    }
}

// dst and sum become residual + x.
template <class T>
DEVICE void stage_sum(smem<T> dst, const norm_args<T> &q, int64_t at, bool here, int lane) {
    for (int j = lane * chunk<T>::N; j < q.c; j += 16 * chunk<T>::N) {
        chunk<T> a = load_chunk(q.residual + at + j, q.c - j, q.wide);
        chunk<T> b = load_chunk(q.x + at + j, q.c - j, q.wide);
        for (int i = 0; i < chunk<T>::N; i++)
            a.v[i] = a.v[i] + b.v[i];
        if (here)
            store_chunk(q.sum + at + j, q.c - j, q.wide, a);
        shared_store16(dst + j, pack(a)); // the row's place is whole chunks
    }
}

// A chunk of a staged row.
template <class T> DEVICE chunk<T> staged(smem<T> row, int j) {
    chunk<T> c;
    unpack(shared_load16(row + j), c);
    return c;
}

template <class T, bool LAYER> __global__ void __launch_bounds__(64) norm_kernel(norm_args<T> q) {
    int lane = threadIdx.x % 16, half = threadIdx.x / 16;
    int row = blockIdx.x * (blockDim.x / 16) + half;
    bool here = row < q.n; // a half-warp without a row repeats the last one
    int64_t at = (int64_t)(here ? row : q.n - 1) * q.c;
    shared_cursor cursor;
    smem<T> x = cursor.take<T>((size_t)q.stride * (blockDim.x / 16)) + half * q.stride;
    if (q.sum != nullptr)
        stage_sum(x, q, at, here, lane);
    else
        stage(x, q.x + at, q.c, q.wide, lane);
    cp_async_commit();
    cp_async_wait<0>();
    __syncwarp();
    float mean = 0.0f, s = 0.0f;
    if (LAYER) {
        UNROLL(8)
        for (int j = lane; j < q.c; j += 16)
            s = s + to_float((T)x[j]);
        mean = sum16(s) / (float)q.c;
        s = 0.0f;
    }
    UNROLL(8)
    for (int j = lane; j < q.c; j += 16) {
        float d = LAYER ? to_float((T)x[j]) - mean : to_float((T)x[j]);
        s = fmaf(d, d, s);
    }
    float rstd = 1.0f / sqrtf(sum16(s) / (float)q.c + q.eps);
    if (!here)
        return;
    if (lane == 0) {
        q.rstd[row] = rstd;
        if (LAYER)
            q.mean[row] = mean;
    }
    for (int j = lane * chunk<T>::N; j < q.c; j += 16 * chunk<T>::N) {
        chunk<T> w = load_chunk(q.w + j, q.c - j, q.wide), xs = staged(x, j), y;
        chunk<T> b = load_chunk(q.b + j, q.b != nullptr ? q.c - j : 0, q.wide);
        for (int i = 0; i < chunk<T>::N; i++) {
            float xhat = (LAYER ? xs.v[i] - mean : xs.v[i]) * rstd;
            y.v[i] = q.b != nullptr ? fmaf(xhat, w.v[i], b.v[i]) : xhat * w.v[i];
        }
        store_chunk(q.y + at + j, q.c - j, q.wide, y);
    }
}

template <class T, bool LAYER>
__global__ void __launch_bounds__(64) norm_bwd_kernel(norm_bwd_args<T> q) {
    int lane = threadIdx.x % 16, half = threadIdx.x / 16, rows = blockDim.x / 16;
    int row = blockIdx.x * rows + half;
    bool here = row < q.n;
    int64_t at = (int64_t)(here ? row : q.n - 1) * q.c;
    shared_cursor cursor;
    smem<T> x = cursor.take<T>((size_t)q.stride * rows) + half * q.stride;
    smem<T> dy = cursor.take<T>((size_t)q.stride * rows) + half * q.stride;
    stage(x, q.x + at, q.c, q.wide, lane);
    stage(dy, q.dy + at, q.c, q.wide, lane);
    cp_async_commit();
    constexpr int N = chunk<T>::N, LINE = 128 / (int)sizeof(T);
    for (int j = lane * LINE; q.dres != nullptr && j < q.c; j += 16 * LINE)
        prefetch_l2(q.dres + at + j); // it is read last
    float mean = LAYER ? q.mean[at / q.c] : 0.0f, rstd = q.rstd[at / q.c];
    cp_async_wait<0>();
    __syncwarp();
    float sum_e = 0.0f, sum_ex = 0.0f;
    UNROLL(8)
    for (int j = lane; j < q.c; j += 16) {
        float e = to_float((T)dy[j]) * to_float(q.w[j]);
        float xhat = (to_float((T)x[j]) - mean) * rstd;
        sum_e = sum_e + e;
        sum_ex = fmaf(e, xhat, sum_ex);
    }
    float avg_e = sum16(sum_e) / (float)q.c, avg_ex = sum16(sum_ex) / (float)q.c;
    if (!LAYER)
        avg_e = 0.0f;
    if (!here)
        return;
    constexpr int AHEAD = 4, STEP = 16 * N; // chunks of dres under way at a time
    UNROLL(1)
    for (int j0 = lane * N; j0 < q.c; j0 += AHEAD * STEP) {
        chunk<T> dres[AHEAD];
        UNROLL(AHEAD)
        for (int k = 0; k < AHEAD; k++) {
            int j = j0 + k * STEP;
            dres[k] = load_chunk(q.dres + at + j, q.dres != nullptr ? q.c - j : 0, q.wide);
        }
        UNROLL(AHEAD)
        for (int k = 0; k < AHEAD; k++) {
            int j = j0 + k * STEP;
            if (j >= q.c)
                break;
            chunk<T> w = load_chunk(q.w + j, q.c - j, q.wide), dx;
            chunk<T> xs = staged(x, j), dys = staged(dy, j);
            for (int i = 0; i < N; i++) {
                float e = dys.v[i] * w.v[i];
                float xhat = (xs.v[i] - mean) * rstd;
                float g = rstd * fmaf(-xhat, avg_ex, e - avg_e);
                dx.v[i] = q.dres != nullptr ? dres[k].v[i] + g : g;
            }
            store_chunk(q.dx + at + j, q.c - j, q.wide, dx);
        }
    }
}

// Threads of a block and its shared memory for `arrays` staged arrays of rows.
template <class T> static int plan_rows(int c, int arrays, int *threads, size_t *bytes) {
    size_t row = (size_t)stride_for<T>(c) * sizeof(T) * (size_t)arrays;
    *threads = 4 * row <= COMFORTABLE_SHARED ? 64 : 32;
    *bytes = row * (size_t)(*threads / 16) + 16 * (size_t)arrays;
    int most = 0;
    TSR_TRY(max_shared_bytes(&most));
    if (*bytes > (size_t)most)
        return tsr_fail(
            TSR_EUSAGE,
            "device: a norm of rows of %d elements of %zu bytes needs %zu bytes of shared "
            "memory, a block of this device has at most %d",
            c, sizeof(T), *bytes, most);
    return 0;
}

template <class T> static int run_norm(void *stream, norm_args<T> q) {
    int threads;
    size_t bytes;
    if (q.n == 0)
        return 0;
    TSR_TRY(plan_rows<T>(q.c, 1, &threads, &bytes));
    q.stride = stride_for<T>(q.c);
    q.wide = q.c % chunk<T>::N == 0 && aligned16(q.x) && aligned16(q.y) && aligned16(q.w) &&
             aligned16(q.b) && aligned16(q.residual) && aligned16(q.sum);
    dim3 grid(blocks_for(q.n, threads / 16));
    if (q.mean != nullptr)
        return launch_kernel("layernorm", norm_kernel<T, true>, grid, threads, bytes, stream, q);
    return launch_kernel("rmsnorm", norm_kernel<T, false>, grid, threads, bytes, stream, q);
}

int tsr_cuda_add_norm(void *stream, enum tsr_dtype dtype, void *y, float *mean, float *rstd,
                      void *sum, const void *residual, const void *x, const void *w, const void *b,
                      float eps, int n, int c) {
    TSR_WITH_TYPE(dtype, T, {
        norm_args<T> q = {(T *)y,
                          mean,
                          rstd,
                          (T *)sum,
                          (const T *)residual,
                          (const T *)x,
                          (const T *)w,
                          (const T *)b,
                          eps,
                          n,
                          c,
                          0,
                          false};
        return run_norm(stream, q);
    })
}

int tsr_cuda_layernorm(void *stream, enum tsr_dtype dtype, void *y, float *mean, float *rstd,
                       const void *x, const void *w, const void *b, float eps, int n, int c) {
    return tsr_cuda_add_norm(stream, dtype, y, mean, rstd, nullptr, nullptr, x, w, b, eps, n, c);
}

int tsr_cuda_rmsnorm(void *stream, enum tsr_dtype dtype, void *y, float *rstd, const void *x,
                     const void *w, float eps, int n, int c) {
    return tsr_cuda_add_norm(stream, dtype, y, nullptr, rstd, nullptr, nullptr, x, w, nullptr, eps,
                             n, c);
}

int tsr_cuda_norm_bwd(void *stream, enum tsr_dtype dtype, void *dx, const void *dres,
                      const void *dy, const void *x, const void *w, const float *mean,
                      const float *rstd, int n, int c) {
    TSR_WITH_TYPE(dtype, T, {
        norm_bwd_args<T> q = {(T *)dx,
                              (const T *)dres,
                              (const T *)dy,
                              (const T *)x,
                              (const T *)w,
                              mean,
                              rstd,
                              n,
                              c,
                              0,
                              false};
        int threads;
        size_t bytes;
        if (n == 0)
            return 0;
        TSR_TRY(plan_rows<T>(c, 2, &threads, &bytes));
        q.stride = stride_for<T>(c);
        q.wide = c % chunk<T>::N == 0 && aligned16(q.dx) && aligned16(q.dres) && aligned16(q.dy) &&
                 aligned16(q.x) && aligned16(q.w);
        dim3 grid(blocks_for(n, threads / 16));
        return mean != nullptr ? launch_kernel("layernorm_bwd", norm_bwd_kernel<T, true>, grid,
                                               threads, bytes, stream, q)
                               : launch_kernel("rmsnorm_bwd", norm_bwd_kernel<T, false>, grid,
                                               threads, bytes, stream, q);
    })
}

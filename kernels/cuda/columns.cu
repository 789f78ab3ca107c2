// Sums over rows: gradients of norm weights and biases, and plain column sums. Twin:
// kernels/cpu/isa/norm_bwd.c; the sums are its chains, so fp32 gives its bits.
//
//   dw(chain,:) += dy xhat,  db(chain,:) += dy,  xhat = (x - mean) rstd
//
// A thread owns one column of one chain and walks the chain's rows in order; neighbouring threads
// own neighbouring columns. Chains are what runs in parallel beside columns.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

template <class T> struct columns_args {
    float *dw, *db;           // (chains, C); db may be NULL
    const T *dy, *x;          // rows C, or ldx, apart; dy NULL: dw += x
    const float *mean, *rstd; // (N); mean NULL: RMSNorm
    const struct tsr_rows *rows;
    int n_rows;
    ptrdiff_t ldx;
    int c;
};

template <class T> __global__ void __launch_bounds__(64) norm_params_kernel(columns_args<T> q) {
    int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= q.c)
        return;
    int64_t at = (int64_t)blockIdx.y * q.c + j;
    float w = q.dw[at], b = q.db != nullptr ? q.db[at] : 0.0f;
    for (int k = 0; k < q.n_rows; k++) {
        struct tsr_rows run = q.rows[k];
        if (run.chain != (int)blockIdx.y)
            continue;
        UNROLL(8)
        for (int i = run.row; i < run.row + run.n; i++) {
            float dy = to_float(q.dy[(int64_t)i * q.c + j]);
            float mean = q.mean != nullptr ? q.mean[i] : 0.0f;
            float xhat = (to_float(q.x[(int64_t)i * q.c + j]) - mean) * q.rstd[i];
            w = fmaf(dy, xhat, w);
            b = b + dy;
        }
    }
    q.dw[at] = w;
    if (q.db != nullptr)
        q.db[at] = b;
}

template <class T> __global__ void __launch_bounds__(64) colsum_kernel(columns_args<T> q) {
    int j = blockIdx.x * blockDim.x + threadIdx.x;
    if (j >= q.c)
        return;
    float s = q.dw[(int64_t)blockIdx.y * q.c + j];
    for (int k = 0; k < q.n_rows; k++) {
        struct tsr_rows run = q.rows[k];
        if (run.chain != (int)blockIdx.y)
            continue;
        UNROLL(8)
        for (int i = run.row; i < run.row + run.n; i++)
            s = s + to_float(q.x[i * q.ldx + j]);
    }
    q.dw[(int64_t)blockIdx.y * q.c + j] = s;
}

int tsr_cuda_norm_bwd_params(void *stream, enum tsr_dtype dtype, float *dw, float *db,
                             const void *dy, const void *x, const float *mean, const float *rstd,
                             const struct tsr_rows *rows, int n_rows, int n_chains, int c) {
    if (n_chains == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        columns_args<T> q = {dw, db, (const T *)dy, (const T *)x, mean, rstd, rows, n_rows, c, c};
        dim3 grid(blocks_for(c, 64), (unsigned)n_chains);
        return launch_kernel("norm_bwd_params", norm_params_kernel<T>, grid, 64, 0, stream, q);
    })
}

int tsr_cuda_colsum(void *stream, enum tsr_dtype dtype, float *acc, const void *x, ptrdiff_t ldx,
                    const struct tsr_rows *rows, int n_rows, int n_chains, int c) {
    if (n_chains == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        columns_args<T> q = {acc,     nullptr, nullptr, (const T *)x, nullptr,
                             nullptr, rows,    n_rows,  ldx,          c};
        dim3 grid(blocks_for(c, 64), (unsigned)n_chains);
        return launch_kernel("colsum", colsum_kernel<T>, grid, 64, 0, stream, q);
    })
}

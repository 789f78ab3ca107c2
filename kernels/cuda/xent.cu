// Cross-entropy over a vocabulary that several ranks share, in three steps around the caller's
// two reductions (max; sums and target logits). The logits' memory becomes e^(l - max) and then
// the gradient: nothing of (tokens x vocabulary) is held twice.
//   loss = log(sum_j e^(l_j - max)) - (l_target - max)
//   dl_j = (e^(l_j - max) / sum - [j = target]) * scale
// Twin: kernels/cpu/isa/xent.c; fp32 gives its bits. A block works on one row.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum { THREADS = 256, HALVES = THREADS / 16, MOST_PIECES = 4096 };

template <class T> struct xent_args {
    T *logits;               // (N, V)
    const float *max;        // (N)
    float *sums;             // (2, N): sums, then target logits
    float *loss;             // (N)
    const float *sum_target; // what `sums` became when all ranks were joined
    const int32_t *targets;  // (N), negative: masked
    const int *bounds;       // (n_pieces + 1)
    int n_pieces;
    float scale;
    bool grad;
    int row0, n, v;
    bool wide;
};

// The target's column here, or -1.
DEVICE int64_t column_of(int32_t target, int row0, int v) {
    int64_t j = (int64_t)target - row0;
    return target >= 0 && j >= 0 && j < v ? j : -1;
}

template <class T>
__global__ void __launch_bounds__(THREADS)
    xent_max_kernel(float *max, const T *logits, int v, bool wide) {
    shared_cursor cursor;
    smem<float> of_half = cursor.take<float>(HALVES);
    const T *x = logits + (int64_t)blockIdx.x * v;
    float most = -INF;
    for (int j = threadIdx.x * chunk<T>::N; j < v; j += THREADS * chunk<T>::N) {
        chunk<T> c = load_chunk(x + j, v - j, wide);
        for (int i = 0; i < chunk<T>::N; i++)
            if (j + i < v)
                most = max_of(most, c.v[i]);
    }
    most = max16(most);
    if (threadIdx.x % 16 == 0)
        of_half[threadIdx.x / 16] = most;
    __syncthreads();
    if (threadIdx.x == 0) {
        for (int i = 1; i < HALVES; i++)
            most = max_of(most, (float)of_half[i]);
        max[blockIdx.x] = most;
    }
}

// A half-warp is the virtual vector of one piece of the vocabulary.
template <class T> __global__ void __launch_bounds__(THREADS) xent_exp_kernel(xent_args<T> q) {
    shared_cursor cursor;
    smem<float> of_piece = cursor.take<float>(q.n_pieces);
    int lane = threadIdx.x % 16;
    int64_t row = blockIdx.x;
    T *x = q.logits + row * q.v;
    float max = q.max[row];
    if (threadIdx.x == 0) {
        int64_t j = column_of(q.targets[row], q.row0, q.v);
        q.sums[q.n + row] = j >= 0 ? to_float(x[j]) - max : 0.0f;
    }
    __syncthreads(); // before the target's logit is overwritten
    for (int p0 = 0; p0 < q.n_pieces; p0 += HALVES) {
        int p = p0 + threadIdx.x / 16;
        int lo = p < q.n_pieces ? q.bounds[p] : 0, hi = p < q.n_pieces ? q.bounds[p + 1] : 0;
        float s = 0.0f;
        UNROLL(4)
        for (int j = lo + lane; j < hi; j += 16) {
            float e = exp_of<T>(to_float(x[j]) - max);
            x[j] = from_float<T>(e);
            s = s + e;
        }
        s = sum16(s);
        if (lane == 0 && p < q.n_pieces)
            of_piece[p] = s;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        sum_tree tree;
        for (int p = 0; p < q.n_pieces; p++)
            tree.leaf((unsigned)p, of_piece[p]);
        q.sums[row] = tree.root();
    }
}

template <class T> __global__ void __launch_bounds__(THREADS) xent_loss_kernel(xent_args<T> q) {
    int64_t row = blockIdx.x;
    int32_t target = q.targets[row];
    float sum = q.sum_target[row];
    if (threadIdx.x == 0)
        q.loss[row] = target < 0 ? 0.0f : log_exact(sum) - q.sum_target[q.n + row];
    if (!q.grad)
        return;
    T *x = q.logits + row * q.v;
    int64_t at = column_of(target, q.row0, q.v);
    float inverse = target < 0 ? 0.0f : 1.0f / sum;
    for (int j = threadIdx.x * chunk<T>::N; j < q.v; j += THREADS * chunk<T>::N) {
        chunk<T> c = {};
        if (target >= 0)
            c = load_chunk(x + j, q.v - j, q.wide);
        for (int i = 0; i < chunk<T>::N; i++) {
            float p = c.v[i] * inverse;
            c.v[i] = (j + i == at ? p - 1.0f : p) * q.scale;
        }
        if (target < 0)
            c = {};
        store_chunk(x + j, q.v - j, q.wide, c);
    }
}

int tsr_cuda_xent_max(void *stream, enum tsr_dtype dtype, float *max, const void *logits, int n,
                      int v) {
    if (n == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        bool wide = aligned16((const T *)logits, v);
        return launch_kernel("xent_max", xent_max_kernel<T>, dim3((unsigned)n), THREADS,
                             HALVES * sizeof(float), stream, max, (const T *)logits, v, wide);
    })
}

int tsr_cuda_xent_exp(void *stream, enum tsr_dtype dtype, void *logits, float *sum_target,
                      const float *max, const int32_t *targets, const int *bounds, int n_pieces,
                      int row0, int n, int v) {
    if (n_pieces > MOST_PIECES)
        return tsr_fail(TSR_EUSAGE, "device: vocabulary in %d pieces, at most %d", n_pieces,
                        (int)MOST_PIECES);
    if (n == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        xent_args<T> q = {};
        q.logits = (T *)logits;
        q.max = max;
        q.sums = sum_target;
        q.targets = targets;
        q.bounds = bounds;
        q.n_pieces = n_pieces;
        q.row0 = row0;
        q.n = n;
        q.v = v;
        size_t bytes = ((size_t)n_pieces * sizeof(float) + 15) / 16 * 16;
        return launch_kernel("xent_exp", xent_exp_kernel<T>, dim3((unsigned)n), THREADS, bytes,
                             stream, q);
    })
}

int tsr_cuda_xent_loss(void *stream, enum tsr_dtype dtype, float *loss, void *logits,
                       const float *sum_target, const int32_t *targets, float scale, bool grad,
                       int row0, int n, int v) {
    if (n == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        xent_args<T> q = {};
        q.logits = (T *)logits;
        q.loss = loss;
        q.sum_target = sum_target;
        q.targets = targets;
        q.scale = scale;
        q.grad = grad;
        q.row0 = row0;
        q.n = n;
        q.v = v;
        q.wide = aligned16(q.logits, v);
        return launch_kernel("xent_loss", xent_loss_kernel<T>, dim3((unsigned)n),
                             grad ? (int)THREADS : 32, 0, stream, q);
    })
}

// Cross-entropy over a vocabulary that several ranks share, in three steps around the caller's
// two reductions (max; sums and target logits). The logits' memory becomes e^(l - max) and then
// the gradient: nothing of (tokens x vocabulary) is held twice.
//   loss = log(sum_j e^(l_j - max)) - (l_target - max)
//   dl_j = (e^(l_j - max) / sum - [j = target]) * scale
// Twin: kernels/cpu/isa/xent.c; fp32 gives its bits. A block works on one row.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum { THREADS = 256, WARPS = THREADS / 32, HALVES = THREADS / 16, MOST_PIECES = 4096 };

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
    UNROLL(8)
    for (int j = threadIdx.x; !wide && j < v; j += THREADS)
        most = max_of(most, to_float(x[j]));
    for (int j = threadIdx.x * chunk<T>::N; wide && j < v; j += THREADS * chunk<T>::N) {
        chunk<T> c = load_chunk(x + j, v - j, true);
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

// x = e^(x - max) on the columns [lo, hi) of a piece; this thread's sum. fp32: a half-warp has the
// piece alone and is its virtual vector.
DEVICE float exp_piece(float *x, float max, int lo, int hi, bool, smem<float>) {
    float s = 0.0f;
    UNROLL(8)
    for (int j = lo + (int)threadIdx.x % 16; j < hi; j += 16) {
        float e = exp_exact(x[j] - max);
        x[j] = e;
        s = s + e;
    }
    return s;
}

// 16-bit elements: the whole block has the piece; a thread sums chunks, THREADS apart, counted from
// the piece's first column. Aligned, it brings them itself, two at a time.
template <class T> DEVICE float exp_chunks(T *x, float max, int lo, int hi) {
    constexpr int N = chunk<T>::N, STEP = THREADS * N;
    float s = 0.0f;
    UNROLL(1)
    for (int j = lo + (int)threadIdx.x * N; j < hi; j += 2 * STEP) {
        chunk<T> c[2] = {load_chunk(x + j, hi - j, true),
                         load_chunk(x + j + STEP, hi - j - STEP, true)};
        UNROLL(2)
        for (int k = 0; k < 2; k++) {
            int left = hi - j - k * STEP;
            UNROLL(N)
            for (int i = 0; i < N; i++) {
                float e = exp_of<T>(c[k].v[i] - max);
                c[k].v[i] = e;
                s = s + (i < left ? e : 0.0f);
            }
            store_chunk(x + j + k * STEP, left, true, c[k]);
        }
    }
    return s;
}

// Unaligned, neighbouring threads take neighbouring elements, and hand them on through `tile`: the
// same sums.
template <class T>
DEVICE float exp_piece(T *x, float max, int lo, int hi, bool wide, smem<float> tile) {
    constexpr int N = chunk<T>::N;
    if (wide)
        return exp_chunks(x, max, lo, hi);
    float s = 0.0f;
    UNROLL(1)
    for (int base = lo; base < hi; base += THREADS * N) {
        T v[N];
        UNROLL(N)
        for (int k = 0; k < N; k++) {
            int j = base + k * THREADS + (int)threadIdx.x;
            v[k] = j < hi ? x[j] : from_float<T>(0.0f);
        }
        UNROLL(N)
        for (int k = 0; k < N; k++) {
            int at = k * THREADS + (int)threadIdx.x, j = base + at;
            float e = j < hi ? exp_of<T>(to_float(v[k]) - max) : 0.0f;
            if (j < hi)
                x[j] = from_float<T>(e);
            tile[at] = e;
        }
        __syncthreads();
        for (int i = 0; i < N; i++)
            s = s + tile[threadIdx.x * N + i];
        __syncthreads(); // before the next elements come
    }
    return s;
}

// The sum over the 32 threads of a warp.
DEVICE float sum32(float x) {
    x = sum16(x);
    return x + shfl_xor(x, 16);
}

// of_piece: of each piece its sum (fp32), or those of the block's warps.
template <class T> __global__ void __launch_bounds__(THREADS) xent_exp_kernel(xent_args<T> q) {
    constexpr bool EXACT = sizeof(T) == 4;
    constexpr int AT_ONCE = EXACT ? HALVES : 1, PARTS = EXACT ? 1 : WARPS;
    shared_cursor cursor;
    smem<float> tile = cursor.take<float>(EXACT ? 0 : THREADS * chunk<T>::N);
    smem<float> of_piece = cursor.take<float>((size_t)q.n_pieces * PARTS);
    int64_t row = blockIdx.x;
    T *x = q.logits + row * q.v;
    float max = q.max[row];
    if (threadIdx.x == 0) {
        int64_t j = column_of(q.targets[row], q.row0, q.v);
        q.sums[q.n + row] = j >= 0 ? to_float(x[j]) - max : 0.0f;
    }
    __syncthreads(); // before the target's logit is overwritten
    for (int p0 = 0; p0 < q.n_pieces; p0 += AT_ONCE) {
        int p = EXACT ? p0 + (int)threadIdx.x / 16 : p0;
        int lo = p < q.n_pieces ? q.bounds[p] : 0, hi = p < q.n_pieces ? q.bounds[p + 1] : 0;
        float s = exp_piece(x, max, lo, hi, q.wide && lo % chunk<T>::N == 0, tile);
        s = EXACT ? sum16(s) : sum32(s);
        if (threadIdx.x % (EXACT ? 16 : 32) == 0 && p < q.n_pieces)
            of_piece[p * PARTS + (EXACT ? 0 : (int)threadIdx.x / 32)] = s;
    }
    __syncthreads();
    if (threadIdx.x == 0) {
        sum_tree tree;
        for (int p = 0; p < q.n_pieces; p++) {
            float s = of_piece[p * PARTS];
            for (int w = 1; w < PARTS; w++)
                s = s + of_piece[p * PARTS + w];
            tree.leaf((unsigned)p, s);
        }
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
    int at = (int)column_of(target, q.row0, q.v);
    float inverse = target < 0 ? 0.0f : 1.0f / sum;
    auto grad = [&](float e, int j) {
        float p = e * inverse;
        return target < 0 ? 0.0f : (j == at ? p - 1.0f : p) * q.scale;
    };
    UNROLL(8)
    for (int j = threadIdx.x; !q.wide && j < q.v; j += THREADS)
        x[j] = from_float<T>(grad(to_float(x[j]), j));
    for (int j = threadIdx.x * chunk<T>::N; q.wide && j < q.v; j += THREADS * chunk<T>::N) {
        chunk<T> c = load_chunk(x + j, target < 0 ? 0 : q.v - j, true);
        for (int i = 0; i < chunk<T>::N; i++)
            c.v[i] = grad(c.v[i], j + i);
        store_chunk(x + j, q.v - j, true, c);
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
        q.wide = aligned16(q.logits, v);
        size_t parts = sizeof(T) == 4 ? 1 : WARPS, tile = sizeof(T) == 4 ? 0 : THREADS * 8;
        size_t bytes = (((size_t)n_pieces * parts + tile) * sizeof(float) + 15) / 16 * 16;
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

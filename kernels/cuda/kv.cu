// Keys and values: storing new rows in the paged cache, and joining the pieces of a KV head's
// gradient. Twin: kernels/cpu/isa/kv.c; fp32 gives its bits.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

template <class T>
__global__ void __launch_bounds__(128)
    store_kernel(struct tsr_cuda_attn a, const T *k, const T *v, bool wide) {
    struct tsr_cuda_segment g = a.segs[blockIdx.y];
    int t = blockIdx.x, width = a.nkv * a.head_dim;
    if (t >= g.length || g.k == nullptr)
        return;
    int64_t p = g.position + t;
    int64_t row = (int64_t)g.blocks[p / g.block_tokens] * g.block_tokens + p % g.block_tokens;
    const T *from_k = k + (g.start + t) * a.ldk, *from_v = v + (g.start + t) * a.ldv;
    T *to_k = (T *)g.k + row * width, *to_v = (T *)g.v + row * width;
    for (int j = threadIdx.x * chunk<T>::N; j < width; j += blockDim.x * chunk<T>::N) {
        store_chunk(to_k + j, width - j, wide, load_chunk(from_k + j, width - j, wide));
        store_chunk(to_v + j, width - j, wide, load_chunk(from_v + j, width - j, wide));
    }
}

// dkv(N, nkv, D) = tree over pieces of the slots' values, + 0 for the absent ones.
template <class To, class T>
__global__ void __launch_bounds__(128) slot_sum_kernel(To *dkv, const T *values, const int *slot_of,
                                                       int n_slots, int n_pieces, int nkv, int d) {
    int64_t token = blockIdx.x;
    for (int i = threadIdx.x; i < nkv * d; i += blockDim.x) {
        int h = i / d, j = i % d;
        sum_tree tree;
        for (int p = 0; p < n_pieces; p++) {
            int slot = slot_of[h * n_pieces + p];
            if (slot >= 0)
                tree.leaf((unsigned)p, to_float(values[(token * n_slots + slot) * d + j]));
        }
        dkv[token * nkv * d + i] = from_float<To>(tree.root() + 0.0f);
    }
}

int tsr_cuda_kv_store(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                      const void *k, const void *v) {
    if (a->n_segs == 0 || a->max_length == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        bool wide = aligned16((const T *)k, a->ldk) && aligned16((const T *)v, a->ldv) &&
                    a->nkv * a->head_dim % chunk<T>::N == 0;
        dim3 grid((unsigned)a->max_length, (unsigned)a->n_segs);
        return launch_kernel("kv_store", store_kernel<T>, grid, 128, 0, stream, *a, (const T *)k,
                             (const T *)v, wide);
    })
}

int tsr_cuda_kv_slot_sum(void *stream, enum tsr_dtype dtype, void *dkv, bool f32,
                         const void *slot_values, const int *slot_of, int n_slots, int n_pieces,
                         int nkv, int n, int d) {
    if (n == 0 || nkv * d == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        const T *values = (const T *)slot_values;
        dim3 grid((unsigned)n);
        if (f32)
            return launch_kernel("kv_slot_sum", slot_sum_kernel<float, T>, grid, 128, 0, stream,
                                 (float *)dkv, values, slot_of, n_slots, n_pieces, nkv, d);
        return launch_kernel("kv_slot_sum", slot_sum_kernel<T, T>, grid, 128, 0, stream, (T *)dkv,
                             values, slot_of, n_slots, n_pieces, nkv, d);
    })
}

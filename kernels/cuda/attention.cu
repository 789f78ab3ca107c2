// Attention's two operations: checks, the dot products that backward starts with, and the choice
// between the fp32 kernels and those on the matrix units.
#include "kernels/cuda/flash_bwd.cuh"

template <class T> struct dots_args {
    float *dots;      // (nq, N)
    const T *d_o, *o; // (N, nq, D), rows ldo apart
    ptrdiff_t ldo;
    int nq, n_tokens, head_dim;
};

// D_i = dO_i . O_i by a virtual vector: a half-warp for each token and head.
template <class T> __global__ void __launch_bounds__(128) dots_kernel(dots_args<T> q) {
    int64_t i = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) / 16;
    int64_t n = (int64_t)q.nq * q.n_tokens;
    int lane = threadIdx.x % 16, token = (int)(i / q.nq), h = (int)(i % q.nq);
    float s = 0.0f;
    if (i < n) {
        int64_t at = token * q.ldo + (int64_t)h * q.head_dim;
        for (int d = lane; d < q.head_dim; d += 16)
            s = fmaf(to_float(q.d_o[at + d]), to_float(q.o[at + d]), s);
    }
    s = sum16(s);
    if (i < n && lane == 0)
        q.dots[(int64_t)h * q.n_tokens + token] = s;
}

int tsr_cuda_check_heads(enum tsr_dtype dtype, int64_t d) {
    bool known = dtype == TSR_DT_F32 ? d > 0 && d <= 256
                                     : d == 64 || d == 80 || d == 96 || d == 128 || d == 256;
    if (known)
        return 0;
    return tsr_fail(
        TSR_ECONFIG,
        "the model's attention heads have size %lld: on a CUDA device expected 64, 80, "
        "96, 128 or 256 in bf16, and in fp32 any up to 256 (the CPU takes any, in fp32)",
        (long long)d);
}

static int check(enum tsr_dtype dtype, const struct tsr_cuda_attn *a) {
    TSR_TRY(tsr_cuda_check_heads(dtype, a->head_dim));
    if (a->n_segs > 65535 || a->nq > 65535)
        return tsr_fail(TSR_EUSAGE,
                        "device: attention over %d sequences and %d heads at once: "
                        "expected at most 65535",
                        a->n_segs, a->nq);
    return 0;
}

int tsr_cuda_attention(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a, void *o,
                       float *lse, const void *q, const void *k, const void *v) {
    TSR_TRY(check(dtype, a));
    if (a->n_segs == 0 || a->max_length == 0 || a->nq == 0)
        return 0;
    struct tsr_cuda_attn all = *a;
    if (all.drop.p > 0.0f || all.scratch == nullptr)
        all.n_few = 0;
    if (dtype == TSR_DT_F32) {
        if (all.n_few > 0)
            TSR_TRY(decode_f32_forward(stream, &all, (float *)o, lse, (const float *)q));
        return all.n_few == all.n_segs
                   ? 0
                   : attention_f32(stream, &all, (float *)o, lse, (const float *)q,
                                   (const float *)k, (const float *)v);
    }
    if (all.n_few > 0)
        TSR_TRY(decode_forward(stream, dtype, &all, o, lse, q));
    return all.n_few == all.n_segs ? 0 : flash_forward(stream, dtype, &all, o, lse, q, k, v);
}

// The dot products, to whole 16 bytes.
static size_t n_dots(const struct tsr_cuda_attn *a) {
    return ((size_t)a->nq * (size_t)a->n_tokens + 3) / 4 * 4;
}

size_t tsr_cuda_attention_bwd_scratch(enum tsr_dtype dtype, const struct tsr_cuda_attn *a) {
    return n_dots(a) + (dtype == TSR_DT_F32 ? 0 : flash_layout_of(a).n_floats);
}

int tsr_cuda_attention_bwd(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                           const struct tsr_kv_slot *slots, int n_slots, void *dq, void *dk,
                           void *dv, const void *d_o, const void *o, const float *lse,
                           const void *q, const void *k, const void *v, float *scratch) {
    TSR_TRY(check(dtype, a));
    if (a->n_segs == 0 || a->max_length == 0 || a->nq == 0 || n_slots == 0)
        return 0;
    attention_grads g = {slots, n_slots, dq, dk, dv,      d_o,
                         lse,   q,       k,  v,  scratch, scratch + n_dots(a)};
    TSR_WITH_TYPE(dtype, T, {
        dots_args<T> p = {scratch, (const T *)d_o, (const T *)o, a->ldo,
                          a->nq,   a->n_tokens,    a->head_dim};
        unsigned blocks = blocks_for((int64_t)a->nq * a->n_tokens, 128 / 16);
        TSR_TRY(launch_kernel("attention_dots", dots_kernel<T>, dim3(blocks), 128, 0, stream, p));
        return sizeof(T) == 4 ? attention_f32_bwd(stream, a, &g)
                              : flash_backward(stream, dtype, a, &g);
    })
}

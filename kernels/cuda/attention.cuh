// What attention's kernels share: who sees which keys, where keys lie, and dropout's mask.
#ifndef TSR_KERNELS_CUDA_ATTENTION_CUH
#define TSR_KERNELS_CUDA_ATTENTION_CUH

#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

struct key_range {
    int lo, hi; // positions [lo, hi)
};

// The first position whose key a segment has.
DEVICE int first_key(const struct tsr_cuda_segment &g) {
    return g.k != nullptr ? 0 : g.position;
}

// Keys that the query at position pos sees.
DEVICE key_range keys_seen(int pos, int first, int window) {
    int lo = window > 0 && pos >= window ? pos - window + 1 : 0; // no overflow for any window
    return {max_of(lo, first), pos + 1};
}

// Queries that see the key at position pos; `end` is the first position after the segment.
DEVICE key_range queries_seeing(int pos, int end, int window) {
    int hi = window > 0 && window < end - pos ? pos + window : end;
    return {pos, hi};
}

// Row of the key (or value) at position p of one head; own rows are ld apart.
template <class T>
DEVICE const T *key_row(const struct tsr_cuda_attn &a, const struct tsr_cuda_segment &g,
                        const T *own, ptrdiff_t ld, const void *cache, int kv, int p) {
    if (cache == nullptr)
        return own + (int64_t)(g.start + p - g.position) * ld + (int64_t)kv * a.head_dim;
    int64_t row = (int64_t)g.blocks[p / g.block_tokens] * g.block_tokens + p % g.block_tokens;
    return (const T *)cache + (row * a.nkv + kv) * a.head_dim;
}

// The local KV head that local query head h reads.
DEVICE int kv_of(const struct tsr_cuda_attn &a, int h) {
    return (a.q0 + h) / a.group - a.kv0;
}

// Four draws of the mask: keys 4 quad .. 4 quad + 3 for one query of one global head. A key is
// kept when its draw is at or above the threshold.
DEVICE uint4 mask_draws(const struct tsr_cuda_attn &a, const struct tsr_cuda_segment &g, int quad,
                        int pos, int head) {
    return philox(a.drop.key, (uint32_t)quad, (uint32_t)pos, g.sequence_lo, (uint32_t)head);
}

DEVICE bool mask_keeps(const struct tsr_cuda_attn &a, const struct tsr_cuda_segment &g, int key,
                       int pos, int head) {
    return word_of(mask_draws(a, g, key / 4, pos, head), key % 4) >= a.drop_threshold;
}

// Whether a segment's queries are few, which decode.cu and decode_f32.cu are for.
DEVICE bool is_few(const struct tsr_cuda_attn &a, const struct tsr_cuda_segment &g) {
    return a.n_few > 0 && g.k != nullptr && g.length <= TSR_CUDA_FEW;
}

// The parts of tsr_cuda_attention and its backward for fp32 and for 16-bit types.
int attention_f32(void *stream, const struct tsr_cuda_attn *a, float *o, float *lse, const float *q,
                  const float *k, const float *v);

struct attention_grads {
    const struct tsr_kv_slot *slots;
    int n_slots;
    void *dq, *dk, *dv;
    const void *d_o;
    const float *lse;
    const void *q, *k, *v;
    const float *dots; // (nq, N): the sum over d of dO O
    float *rest;       // of the scratch, past `dots`
};
int attention_f32_bwd(void *stream, const struct tsr_cuda_attn *a, const attention_grads *g);
int flash_forward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a, void *o,
                  float *lse, const void *q, const void *k, const void *v);
// Segments of few queries: decode.cu, decode_f32.cu.
int decode_forward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a, void *o,
                   float *lse, const void *q);
int decode_f32_forward(void *stream, const struct tsr_cuda_attn *a, float *o, float *lse,
                       const float *q);
int flash_backward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                   const attention_grads *g);

#endif

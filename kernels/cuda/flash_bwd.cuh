// The gradient of a tile of scores, for both kernels of the backward pass. With dropout's mask and
// its factor in Z (1 when off):
//   p = e^(s scale - lse)     z = p Z     dS = p (Z dP - D)     (times scale, later)
#ifndef TSR_KERNELS_CUDA_FLASH_BWD_CUH
#define TSR_KERNELS_CUDA_FLASH_BWD_CUH

#include "kernels/cuda/flash.cuh"

struct flash_grads {
    struct tsr_cuda_attn a;
    attention_grads g;
};

struct score_place {
    int query, key;      // positions
    int head;            // global
    bool seen;           // the query sees the key
    float lse_log2, dot; // of the query
};

// s becomes z and dp becomes dS.
template <bool DROP>
DEVICE void score_gradient(float &s, float &dp, const struct tsr_cuda_attn &a,
                           const struct tsr_cuda_segment &g, const score_place &at) {
    float p = at.seen ? fast_exp2(fmaf(s, a.scale * LOG2_E, -at.lse_log2)) : 0.0f;
    s = p;
    if (DROP) {
        bool keep = at.seen && mask_keeps(a, g, at.key, at.query, at.head);
        float factor = keep ? 1.0f / (1.0f - a.drop.p) : 0.0f;
        s = p * factor;
        dp = dp * factor;
    }
    dp = p * (dp - at.dot);
}

int flash_backward_keys(void *stream, enum tsr_dtype dtype, const flash_grads *p);
int flash_backward_queries(void *stream, enum tsr_dtype dtype, const flash_grads *p);

#endif

// Attention and the matrix product choose among kernels of several files. A test includes those
// that it tests; in the others' place stand these, which give way to the real ones and compute
// nothing: a test that came to one by mistake fails.
#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/gemm.cuh"

#define OTHER __attribute__((weak)) int

OTHER attention_f32(void *, const struct tsr_cuda_attn *, float *, float *, const float *,
                    const float *, const float *) {
    return TSR_EUSAGE;
}
OTHER attention_f32_bwd(void *, const struct tsr_cuda_attn *, const attention_grads *) {
    return TSR_EUSAGE;
}
OTHER flash_forward(void *, enum tsr_dtype, const struct tsr_cuda_attn *, void *, float *,
                    const void *, const void *, const void *) {
    return TSR_EUSAGE;
}
OTHER flash_backward(void *, enum tsr_dtype, const struct tsr_cuda_attn *,
                     const attention_grads *) {
    return TSR_EUSAGE;
}
OTHER decode_forward(void *, enum tsr_dtype, const struct tsr_cuda_attn *, void *, float *,
                     const void *) {
    return TSR_EUSAGE;
}
OTHER decode_f32_forward(void *, const struct tsr_cuda_attn *, float *, float *, const float *) {
    return TSR_EUSAGE;
}

OTHER gemm_f32(void *, const struct gemm_call *) {
    return TSR_EUSAGE;
}
OTHER gemm_bf16(void *, const struct gemm_call *) {
    return TSR_EUSAGE;
}
OTHER gemm_f16(void *, const struct gemm_call *) {
    return TSR_EUSAGE;
}

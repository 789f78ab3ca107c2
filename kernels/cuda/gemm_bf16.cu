// The matrix product for bf16 (gemm_mma.cuh).
#include "kernels/cuda/gemm_mma.cuh"

int gemm_bf16(void *stream, const struct gemm_call *call) {
    return gemm_mma<bf16>(stream, call);
}

// The matrix product for fp16 (gemm_mma.cuh).
#include "kernels/cuda/gemm_mma.cuh"

int gemm_f16(void *stream, const struct gemm_call *call) {
    return gemm_mma<f16>(stream, call);
}

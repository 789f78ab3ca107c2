// One row's softmax on the matrix units, which prompts (flash.cu) and decoding (decode.cu) share:
// both give the same bits for a row. So do their other chains: scores over D from 0 in steps of 16;
// O over blocks of flash_keys keys at multiples of that, in each over its keys in steps of 16; a
// thread's sum over the columns that it holds of a result.
#ifndef TSR_KERNELS_CUDA_FLASH_ROW_CUH
#define TSR_KERNELS_CUDA_FLASH_ROW_CUH

#include "kernels/cuda/attention.cuh"

template <int D> constexpr int flash_keys = D <= 128 ? 64 : 32;

// A row's scores of one block of keys become weights relative to its new maximum `most`: returns
// what scales the weights (and O) of earlier blocks, and in *sum those of this thread's. Exponents
// are differences of the same products, so that a block without a seen key changes nothing: its
// factor is 1 exactly.
template <int N>
DEVICE float flash_weights(float (&s)[N][4], int half, float old, float most, float scale_log2,
                           float *sum) {
    float ref = most == -INF ? 0.0f : most * scale_log2;
    *sum = 0.0f;
    UNROLL(N)
    for (int n = 0; n < N; n++)
        for (int i = 2 * half; i < 2 * half + 2; i++) {
            s[n][i] = fast_exp2(fmaf(s[n][i], scale_log2, -ref));
            *sum = *sum + s[n][i];
        }
    return fast_exp2(old * scale_log2 - ref);
}

#endif

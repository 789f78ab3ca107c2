// The activations' forward formulas (act.cu has them), for kernels that end in one.
#ifndef TSR_KERNELS_CUDA_ACT_CUH
#define TSR_KERNELS_CUDA_ACT_CUH

#include "kernels/cuda/math.cuh"

#define SQRT_HALF     0.70710678f
#define RSQRT_2PI     0.39894228f
#define TWO_SQRT_2_PI 1.5957691f // 2 sqrt(2/pi)
#define CUBIC         0.044715f

DEVICE float two_u(float x) {
    return (x * TWO_SQRT_2_PI) * fmaf(x * x, CUBIC, 1.0f);
}

template <class T> DEVICE float sigmoid(float t) {
    return divide_of<T>(1.0f, 1.0f + exp_of<T>(-t));
}

// fast_divide takes no more than 2^126 below the line, so for 16-bit elements e^-t must not grow
// where sigmoid(t) is as good as zero.
template <class T> DEVICE bool far_below(float t) {
    return sizeof(T) == 2 && t < -60.0f;
}

// Far below: a zero whatever x is; of infinity NaN, as the twin has.
template <class T> DEVICE float x_sigmoid(float x, float t) {
    return far_below<T>(t) ? x * 0.0f : divide_of<T>(x, 1.0f + exp_of<T>(-t));
}

template <class T, enum tsr_act ACT> DEVICE float act_of(float x) {
    if (ACT == TSR_ACT_SILU)
        return x_sigmoid<T>(x, x);
    if (ACT == TSR_ACT_GELU_TANH)
        return x_sigmoid<T>(x, two_u(x));
    float half = x * 0.5f;
    return fmaf(half, erf_exact(x * SQRT_HALF), half);
}

#endif

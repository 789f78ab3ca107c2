// Activations (Hendrycks and Gimpel 2016 for GELU; SiLU is x sigmoid(x)) and gated units
// (Shazeer 2020). Twin: kernels/cpu/isa/act.c; fp32 gives its bits.
//
//   GELU       x Phi(x),            Phi(x) = (1 + erf(x / sqrt 2)) / 2
//              derivative Phi(x) + x phi(x),  phi(x) = e^(-x^2/2) / sqrt(2 pi)
//   GELU tanh  x (1 + tanh u) / 2 = x sigmoid(2u),  2u = 2 sqrt(2/pi) (x + 0.044715 x^3)
//              derivative s + x s (1 - s) (2u)',  s = sigmoid(2u)
//   SiLU       x sigmoid(x),  derivative s + x s (1 - s)
#include "kernels/cuda/act.cuh"
#include "kernels/cuda/launch.h"

template <class T> DEVICE float not_far_below(float t) {
    return far_below<T>(t) ? -60.0f : t;
}

// s + x s (1 - s) slope.
DEVICE float sigmoid_slope(float x, float s, float slope) {
    return fmaf((x * slope) * s, 1.0f - s, s);
}

template <class T, enum tsr_act ACT> DEVICE float derivative(float x) {
    if (ACT == TSR_ACT_SILU) {
        float near = not_far_below<T>(x);
        return sigmoid_slope(near, sigmoid<T>(near), 1.0f);
    }
    if (ACT == TSR_ACT_GELU_TANH) {
        // beyond 16 the derivative is 0 or 1, and s (1 - s) = 0 must not meet an infinite slope
        float near = x > -16.0f ? x : x == x ? -16.0f : x;
        near = near < 16.0f ? near : near == near ? 16.0f : near;
        float slope = fmaf(near * near, 3.0f * CUBIC * TWO_SQRT_2_PI, TWO_SQRT_2_PI);
        return sigmoid_slope(near, sigmoid<T>(not_far_below<T>(two_u(near))), slope);
    }
    float cdf = fmaf(0.5f, erf_exact(x * SQRT_HALF), 0.5f);
    float pdf = exp_of<T>((x * x) * -0.5f) * RSQRT_2PI;
    return fmaf(x, pdf, cdf);
}

template <class T> struct act_args {
    T *out, *out2;        // out2: only when gated and backward
    const T *dy, *x, *up; // up: only when gated
    int64_t n;
    bool wide;
};

// One chunk a thread.
template <class T, enum tsr_act ACT, bool BACKWARD, bool GATED>
__global__ void __launch_bounds__(256) act_kernel(act_args<T> q) {
    int64_t at = ((int64_t)blockIdx.x * blockDim.x + threadIdx.x) * chunk<T>::N;
    int64_t left = q.n - at;
    if (left <= 0)
        return;
    chunk<T> x = load_chunk(q.x + at, left, q.wide), dy = {}, up = {}, out, out2;
    if (BACKWARD)
        dy = load_chunk(q.dy + at, left, q.wide);
    if (GATED)
        up = load_chunk(q.up + at, left, q.wide);
    for (int i = 0; i < chunk<T>::N; i++) {
        if (!BACKWARD) {
            float y = act_of<T, ACT>(x.v[i]);
            out.v[i] = GATED ? y * up.v[i] : y;
        } else {
            if (GATED)
                out2.v[i] = dy.v[i] * act_of<T, ACT>(x.v[i]);
            out.v[i] = (GATED ? dy.v[i] * up.v[i] : dy.v[i]) * derivative<T, ACT>(x.v[i]);
        }
    }
    store_chunk(q.out + at, left, q.wide, out);
    if (BACKWARD && GATED)
        store_chunk(q.out2 + at, left, q.wide, out2);
}

template <class T, enum tsr_act ACT> static int launch_act(void *stream, const act_args<T> &q) {
    dim3 grid(blocks_for(q.n, 256 * chunk<T>::N));
    if (q.dy == nullptr && q.up == nullptr)
        return launch_kernel("act", act_kernel<T, ACT, false, false>, grid, 256, 0, stream, q);
    if (q.dy == nullptr)
        return launch_kernel("gated", act_kernel<T, ACT, false, true>, grid, 256, 0, stream, q);
    if (q.up == nullptr)
        return launch_kernel("act_bwd", act_kernel<T, ACT, true, false>, grid, 256, 0, stream, q);
    return launch_kernel("gated_bwd", act_kernel<T, ACT, true, true>, grid, 256, 0, stream, q);
}

template <class T> static int choose_act(void *stream, enum tsr_act act, act_args<T> q) {
    if (q.n == 0)
        return 0;
    q.wide = aligned16(q.out) && aligned16(q.out2) && aligned16(q.dy) && aligned16(q.x) &&
             aligned16(q.up);
    if (act == TSR_ACT_SILU)
        return launch_act<T, TSR_ACT_SILU>(stream, q);
    if (act == TSR_ACT_GELU_TANH)
        return launch_act<T, TSR_ACT_GELU_TANH>(stream, q);
    return launch_act<T, TSR_ACT_GELU>(stream, q);
}

int tsr_cuda_act(void *stream, enum tsr_dtype dtype, enum tsr_act act, void *y, const void *x,
                 const void *up, size_t n) {
    TSR_WITH_TYPE(dtype, T, {
        act_args<T> q = {(T *)y, nullptr, nullptr, (const T *)x, (const T *)up, (int64_t)n, false};
        return choose_act(stream, act, q);
    })
}

int tsr_cuda_act_bwd(void *stream, enum tsr_dtype dtype, enum tsr_act act, void *dx, void *dup,
                     const void *dy, const void *x, const void *up, size_t n) {
    TSR_WITH_TYPE(dtype, T, {
        act_args<T> q = {(T *)dx,       (T *)dup,   (const T *)dy, (const T *)x,
                         (const T *)up, (int64_t)n, false};
        return choose_act(stream, act, q);
    })
}

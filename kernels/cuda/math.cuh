// Elementary functions, random numbers and fixed-order sums, as kernels/cpu/isa/vmath.h and its
// neighbours have them: the same polynomials on the same fused multiply-adds, so fp32 gives the
// same bits. For 16-bit elements, whose rounding is far coarser, the *_of<T> functions take the
// special function unit's approximations.
#ifndef TSR_KERNELS_CUDA_MATH_CUH
#define TSR_KERNELS_CUDA_MATH_CUH

#include "kernels/cuda/device.cuh"

#define LOG2_E 1.4426950408889634f
#define LN_2   0.69314718f
#define INF    __uint_as_float(0x7f800000u)

DEVICE float power_of_2(int n) { // -126 <= n <= 127
    return __uint_as_float((uint32_t)(n + 127) << 23);
}

// e^x: n = round(x / ln 2), r = x - n ln 2, e^x = 2^n (1 + r + r^2 P(r)).
DEVICE float exp_exact(float x) {
    x = x > -104.0f ? x : x == x ? -104.0f : x;
    x = x < 89.0f ? x : x == x ? 89.0f : x;
    float n = fmaf(x, LOG2_E, 12582912.0f) - 12582912.0f;
    float r = fmaf(-n, 0x1.62e43p-1f, x);
    r = fmaf(-n, -0x1.05c61p-29f, r);
    float p = 0.0013814599f;
    p = fmaf(p, r, 0.008368717f);
    p = fmaf(p, r, 0.04166839f);
    p = fmaf(p, r, 0.16666521f);
    p = fmaf(p, r, 0.49999994f);
    p = fmaf(r * r, p, r);
    int k = x == x ? (int)n : 0, half = k / 2; // halves, so that only the last product rounds
    return (p + 1.0f) * power_of_2(half) * power_of_2(k - half);
}

// Natural logarithm: x = 2^k (1 + f) with 1 + f in [2/3, 4/3), log x = k ln 2 + f - f^2/2 +
// f^3 P(f). Zero gives -inf, a negative number NaN.
DEVICE float log_exact(float x) {
    bool tiny = x < 0x1p-126f;
    uint32_t bits = __float_as_uint(tiny ? x * 0x1p23f : x);
    uint32_t e = (bits - 0x3f2aaaabu) & 0xff800000u;
    float f = __uint_as_float(bits - e) - 1.0f;
    float k = (float)((int32_t)e >> 23) - (tiny ? 23.0f : 0.0f);
    float p = -0.12891684f;
    p = fmaf(p, f, 0.13984437f);
    p = fmaf(p, f, -0.12184261f);
    p = fmaf(p, f, 0.1400587f);
    p = fmaf(p, f, -0.16680488f);
    p = fmaf(p, f, 0.20010406f);
    p = fmaf(p, f, -0.24999797f);
    p = fmaf(p, f, 0.33333215f);
    p = fmaf(p, f, -0.5f);
    float lo = fmaf(k, -0x1.05c61p-29f, (f * f) * p);
    float r = fmaf(k, 0x1.62e43p-1f, f + lo);
    r = x == INF ? INF : r;
    r = x >= 0.0f ? r : __uint_as_float(0x7fc00000u);
    return x == 0.0f ? -INF : r;
}

// erf: x + x P(x^2) up to 1, then 1 - e^-Q(x) where Q = -log erfc, with the sign of x.
DEVICE float erf_exact(float x) {
    float a = fabsf(x), z = a * a;
    float p = 7.853861e-05f;
    p = fmaf(p, z, -0.00080101937f);
    p = fmaf(p, z, 0.0051883277f);
    p = fmaf(p, z, -0.026853813f);
    p = fmaf(p, z, 0.112835854f);
    p = fmaf(p, z, -0.37612626f);
    p = fmaf(p, z, 0.12837917f);
    float t = a > 4.0f ? 4.0f : a;
    float q = -0.00018637897f;
    q = fmaf(q, t, 0.0029476562f);
    q = fmaf(q, t, -0.021838056f);
    q = fmaf(q, t, 0.10310674f);
    q = fmaf(q, t, 0.63814485f);
    q = fmaf(q, t, 1.1270891f);
    q = fmaf(q, t, 0.00034152524f);
    return copysignf(a <= 1.0f ? fmaf(a, p, a) : 1.0f - exp_exact(-q), x);
}

// Both for |x| <= 10000: r = x - k pi/2 with pi/2 in three parts, then polynomials in r^2.
DEVICE void sincos_exact(float x, float *sine, float *cosine) {
    float t = fmaf(x, 0.63661977f, 12582912.0f), k = t - 12582912.0f;
    uint32_t quadrant = __float_as_uint(t);
    float r = fmaf(-k, 0x1.921fb6p+0f, x);
    r = fmaf(-k, -0x1.777a5cp-25f, r);
    r = fmaf(-k, -0x1.ee59dap-50f, r);
    float z = r * r;
    float p = -0.00019514632f;
    p = fmaf(p, z, 0.008332156f);
    p = fmaf(p, z, -0.16666655f);
    float s = fmaf(r * z, p, r);
    float q = 2.4432413e-05f;
    q = fmaf(q, z, -0.001388731f);
    q = fmaf(q, z, 0.041666646f);
    q = fmaf(q, z, -0.5f);
    float c = fmaf(q, z, 1.0f);
    bool odd = quadrant & 1;
    *sine = __uint_as_float(__float_as_uint(odd ? c : s) ^ (quadrant & 2) << 30);
    *cosine = __uint_as_float(__float_as_uint(odd ? s : c) ^ ((quadrant + 1) & 2) << 30);
}

template <class T> DEVICE float exp_of(float x) {
    return fast_exp2(x * LOG2_E);
}
template <> DEVICE float exp_of<float>(float x) {
    return exp_exact(x);
}
template <class T> DEVICE float divide_of(float a, float b) {
    return fast_divide(a, b);
}
template <> DEVICE float divide_of<float>(float a, float b) {
    return a / b;
}

// Philox4x32-10 (core/philox.h).
DEVICE uint4 philox(struct tsr_rng_key key, uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3) {
    for (int round = 0; round < 10; round++) {
        uint32_t hi0 = __umulhi(0xD2511F53u, c0), hi1 = __umulhi(0xCD9E8D57u, c2);
        uint32_t lo0 = 0xD2511F53u * c0, lo1 = 0xCD9E8D57u * c2;
        c0 = hi1 ^ c1 ^ key.k0;
        c2 = hi0 ^ c3 ^ key.k1;
        c1 = lo1;
        c3 = lo0;
        key.k0 += 0x9E3779B9u;
        key.k1 += 0xBB67AE85u;
    }
    return uint4{c0, c1, c2, c3};
}
DEVICE uint32_t word_of(uint4 u, int i) {
    return i == 0 ? u.x : i == 1 ? u.y : i == 2 ? u.z : u.w;
}

// The sum over a virtual vector whose lanes are 16 neighbouring threads: i and i + 8, + 4, + 2,
// + 1.
template <class X> DEVICE X sum16(X x) {
    for (int w = 8; w > 0; w /= 2)
        x = x + shfl_xor(x, w);
    return x;
}
DEVICE float max16(float x) {
    for (int w = 8; w > 0; w /= 2) {
        float y = shfl_xor(x, w);
        x = x > y ? x : y;
    }
    return x;
}

// The one tree (core/pieces.h) over leaves in ascending order, some of which may be absent:
// neighbours meet at the level of the highest bit in which their indices differ.
struct sum_tree {
    int top = 0;
    unsigned index[32];
    float node[32];

    DEVICE void leaf(unsigned i, float x) {
        while (top > 1 && below(index[top - 2] ^ index[top - 1], index[top - 1] ^ i)) {
            top--;
            node[top - 1] = node[top - 1] + node[top];
        }
        index[top] = i;
        node[top++] = x;
    }
    DEVICE float root() const {
        float sum = top > 0 ? node[top - 1] : 0.0f;
        for (int i = top - 2; i >= 0; i--)
            sum = node[i] + sum;
        return sum;
    }

  private:
    // The highest bit of a is lower than that of b.
    static DEVICE bool below(unsigned a, unsigned b) {
        return a < b && a < (a ^ b);
    }
};

#endif

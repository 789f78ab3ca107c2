// exp, log, erf, sin and cos on the virtual vector: argument reduction and minimax
// polynomials (Remez exchange, coefficients rounded to fp32) on explicit fused multiply-adds, so
// that every CPU gives the same bits. Errors against exact values (tests/unit/test_vmath.c):
// exp and log below 1.1 ulp, erf below 1.3, sin and cos below 1.6. tanh appears
// only in GELU, where (1 + tanh u) / 2 = sigmoid(2u).
#ifndef TSR_KERNELS_CPU_ISA_VMATH_H
#define TSR_KERNELS_CPU_ISA_VMATH_H

#include "kernels/cpu/isa/simd.h"

// Added and subtracted again, 1.5 * 2^23 rounds |x| <= 2^22 to the nearest integer.
#define V16_ROUND 12582912.0f

// One Horner step: p x + c.
V16_FN v16 v16_poly(v16 p, v16 x, float c) {
    return v16_fma(p, x, v16_set1(c));
}

// e^x: n = round(x / ln 2), r = x - n ln 2, e^x = 2^n (1 + r + r^2 P(r)). Overflow gives inf,
// underflow passes through denormals to +0, NaN stays NaN (max and min return their second
// argument then).
V16_FN v16 v16_exp(v16 x) {
    x = v16_min(v16_set1(89.0f), v16_max(v16_set1(-104.0f), x));
    v16 round = v16_set1(V16_ROUND);
    v16 n = v16_sub(v16_fma(x, v16_set1(1.4426950408889634f), round), round);
    v16 r = v16_fnma(n, v16_set1(0x1.62e43p-1f), x);
    r = v16_fnma(n, v16_set1(-0x1.05c61p-29f), r);
    v16 p = v16_set1(0.0013814599f);
    p = v16_poly(p, r, 0.008368717f);
    p = v16_poly(p, r, 0.04166839f);
    p = v16_poly(p, r, 0.16666521f);
    p = v16_poly(p, r, 0.49999994f);
    p = v16_fma(v16_mul(r, r), p, r);
    return v16_scale2(v16_add(p, v16_set1(1.0f)), n);
}

// Natural logarithm: x = 2^k (1 + f) with 1 + f in [2/3, 4/3), log x = k ln 2 + f - f^2/2 +
// f^3 P(f). Zero gives -inf, a negative number NaN.
V16_FN v16 v16_log(v16 x) {
    v16 inf = v16_set1(INFINITY), zero = v16_zero();
    v16m tiny = v16_lt(x, v16_set1(0x1p-126f));
    v16i bits = v16_as_i(v16_select(tiny, v16_mul(x, v16_set1(0x1p23f)), x));
    v16i e = v16i_and(v16i_sub(bits, v16i_set1(0x3f2aaaabu)), v16i_set1(0xff800000u));
    v16 f = v16_sub(v16i_as_f(v16i_sub(bits, e)), v16_set1(1.0f));
    v16 k = v16i_to_f(v16i_sra(e, 23));
    k = v16_sub(k, v16_select(tiny, v16_set1(23.0f), zero));
    v16 p = v16_set1(-0.12891684f);
    p = v16_poly(p, f, 0.13984437f);
    p = v16_poly(p, f, -0.12184261f);
    p = v16_poly(p, f, 0.1400587f);
    p = v16_poly(p, f, -0.16680488f);
    p = v16_poly(p, f, 0.20010406f);
    p = v16_poly(p, f, -0.24999797f);
    p = v16_poly(p, f, 0.33333215f);
    p = v16_poly(p, f, -0.5f);
    v16 lo = v16_fma(k, v16_set1(-0x1.05c61p-29f), v16_mul(v16_mul(f, f), p));
    v16 r = v16_fma(k, v16_set1(0x1.62e43p-1f), v16_add(f, lo));
    r = v16_select(v16_eq(x, inf), inf, r);
    r = v16_select(v16_ge(x, zero), r, v16_set1(NAN));
    return v16_select(v16_eq(x, zero), v16_neg(inf), r);
}

// erf: x + x P(x^2) up to 1, then 1 - e^-Q(x) where Q = -log erfc, with the sign of x.
V16_FN v16 v16_erf(v16 x) {
    v16 a = v16_abs(x), z = v16_mul(a, a), one = v16_set1(1.0f);
    v16 p = v16_set1(7.853861e-05f);
    p = v16_poly(p, z, -0.00080101937f);
    p = v16_poly(p, z, 0.0051883277f);
    p = v16_poly(p, z, -0.026853813f);
    p = v16_poly(p, z, 0.112835854f);
    p = v16_poly(p, z, -0.37612626f);
    p = v16_poly(p, z, 0.12837917f);
    v16 small = v16_fma(a, p, a);
    v16 t = v16_min(v16_set1(4.0f), a);
    v16 q = v16_set1(-0.00018637897f);
    q = v16_poly(q, t, 0.0029476562f);
    q = v16_poly(q, t, -0.021838056f);
    q = v16_poly(q, t, 0.10310674f);
    q = v16_poly(q, t, 0.63814485f);
    q = v16_poly(q, t, 1.1270891f);
    q = v16_poly(q, t, 0.00034152524f);
    v16 large = v16_sub(one, v16_exp(v16_neg(q)));
    return v16_copysign(v16_select(v16_le(a, one), small, large), x);
}

// Both for |x| <= 10000: r = x - k pi/2 with pi/2 in three parts, then polynomials in r^2,
// swapped and negated by k mod 4. Infinity gives NaN.
V16_FN void v16_sincos(v16 x, v16 *sin_x, v16 *cos_x) {
    v16 round = v16_set1(V16_ROUND);
    v16 t = v16_fma(x, v16_set1(0.63661977f), round), k = v16_sub(t, round);
    v16i quadrant = v16_as_i(t);
    v16 r = v16_fnma(k, v16_set1(0x1.921fb6p+0f), x);
    r = v16_fnma(k, v16_set1(-0x1.777a5cp-25f), r);
    r = v16_fnma(k, v16_set1(-0x1.ee59dap-50f), r);
    v16 z = v16_mul(r, r);
    v16 p = v16_set1(-0.00019514632f);
    p = v16_poly(p, z, 0.008332156f);
    p = v16_poly(p, z, -0.16666655f);
    v16 s = v16_fma(v16_mul(r, z), p, r);
    v16 q = v16_set1(2.4432413e-05f);
    q = v16_poly(q, z, -0.001388731f);
    q = v16_poly(q, z, 0.041666646f);
    q = v16_poly(q, z, -0.5f);
    v16 c = v16_poly(q, z, 1.0f);
    v16i one = v16i_set1(1), two = v16i_set1(2);
    v16m odd = v16i_eq(v16i_and(quadrant, one), one);
    v16i sin_sign = v16i_sll(v16i_and(quadrant, two), 30);
    v16i cos_sign = v16i_sll(v16i_and(v16i_add(quadrant, one), two), 30);
    *sin_x = v16i_as_f(v16i_xor(v16_as_i(v16_select(odd, c, s)), sin_sign));
    *cos_x = v16i_as_f(v16i_xor(v16_as_i(v16_select(odd, s, c)), cos_sign));
}

// 1 / (1 + e^-x).
V16_FN v16 v16_sigmoid(v16 x) {
    v16 one = v16_set1(1.0f);
    return v16_div(one, v16_add(one, v16_exp(v16_neg(x))));
}

// 1 / sqrt(x), two exact roundings.
V16_FN float v16_rsqrt1(float x) {
    return 1.0f / sqrtf(x);
}

#endif

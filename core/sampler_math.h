// The arithmetic of sampling, for every processor: nothing here is rounded in more than one way
// (no fused multiply-adds, no library functions), and sums are of integers.
//
// Tokens stand in the order of their logits, the largest first, the lowest id first among equals.
// A token's place in it is one 64-bit number, larger for an earlier one.
#ifndef TSR_CORE_SAMPLER_MATH_H
#define TSR_CORE_SAMPLER_MATH_H

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

#ifndef TSR_SAMPLER_FN // a device's compiler has words of its own to put here
#define TSR_SAMPLER_FN static inline
#endif

enum { TSR_WEIGHT_BITS = 40 }; // the largest weight is 2^40; 2^22 of them fit into 64 bits
#define TSR_WEIGHT_ONE ((uint64_t)1 << TSR_WEIGHT_BITS)

TSR_SAMPLER_FN uint64_t tsr_place_of(float logit, uint32_t id) {
    float x = logit + 0.0f; // -0 becomes +0
    uint32_t u;
    memcpy(&u, &x, sizeof u);
    uint32_t key = u >> 31 ? ~u : u | 0x80000000u; // as the numbers are ordered
    return (uint64_t)(x != x ? 0 : key) << 32 | (uint32_t)~id;
}

TSR_SAMPLER_FN int32_t tsr_id_of(uint64_t place) {
    return (int32_t) ~(uint32_t)place;
}

// 1 / temperature, within what fp32 can multiply a difference of logits by.
TSR_SAMPLER_FN float tsr_sampling_scale(double temperature) {
    double x = 1.0 / temperature;
    return (float)(x > 0x1p100 ? 0x1p100 : x < 0x1p-100 ? 0x1p-100 : x);
}

// e^((logit - max) scale) in units of 2^-40, cut off: e^x = 2^n (1 + r + r^2 P(r)) with
// n = round(x / ln 2), r = x - n ln 2, ln 2 in two parts of which the first has 15 bits. P is the
// minimax polynomial of kernels/cpu/isa/vmath.h; the error is a few parts in 10^7.
TSR_SAMPLER_FN uint64_t tsr_weight_of(float logit, float max, float scale) {
    if (!(logit < max))
        return logit == max ? TSR_WEIGHT_ONE : 0;
    float x = (logit - max) * scale;
    if (!(x > -28.5f))
        return 0;
    float n = (x * 1.4426950408889634f + 12582912.0f) - 12582912.0f;
    float r = (x - n * 0x1.62ep-1f) - n * 0x1.0bfbe8p-15f;
    float p = 0.0013814599f;
    p = p * r + 0.008368717f;
    p = p * r + 0.04166839f;
    p = p * r + 0.16666521f;
    p = p * r + 0.49999994f;
    p = (r * r) * p + r;
    uint32_t bits = (uint32_t)((int32_t)n + TSR_WEIGHT_BITS + 127) << 23;
    float unit;
    memcpy(&unit, &bits, sizeof unit);
    uint64_t w = (uint64_t)((p + 1.0f) * unit);
    return w < TSR_WEIGHT_ONE ? w : TSR_WEIGHT_ONE;
}

// The least weight that min_p leaves.
TSR_SAMPLER_FN uint64_t tsr_least_weight(double min_p) {
    double x = min_p * (double)TSR_WEIGHT_ONE;
    uint64_t w = (uint64_t)x;
    w += (double)w < x;
    return w < 1 ? 1 : w < TSR_WEIGHT_ONE ? w : TSR_WEIGHT_ONE;
}

// The least sum of weights, from 1 to `all`, that is at least top_p of it.
TSR_SAMPLER_FN uint64_t tsr_share_of(uint64_t all, double top_p) {
    double x = top_p * (double)all;
    uint64_t w = (uint64_t)x;
    w += (double)w < x;
    return w < 1 ? 1 : w < all ? w : all;
}

// floor(u total) for u in [0, 1) with the 53 bits that two random words have.
TSR_SAMPLER_FN uint64_t tsr_draw_below(uint64_t total, uint32_t r0, uint32_t r1) {
    uint64_t u = ((uint64_t)r0 << 21 ^ r1 >> 11) << 11; // 64 bits, of which the low ones are 0
    uint64_t u0 = (uint32_t)u, u1 = u >> 32, t0 = (uint32_t)total, t1 = total >> 32;
    uint64_t low = u0 * t0 >> 32, mid = u1 * t0 + low, carry = u0 * t1 + (uint32_t)mid;
    return u1 * t1 + (mid >> 32) + (carry >> 32);
}

#endif

// The virtual vector: 16 fp32 lanes, whatever the CPU. One __m512, two __m256 or 16 floats; every
// function here gives the same bits on the three (a NaN stays a NaN, its payload may differ).
//
//   v16   16 floats        v16i  16 u32 (read as signed where a name says so)
//   v16m  16 truth values  v16d  16 doubles, for sums that need them
//
// simd_avx512.h, simd_avx2.h and simd_portable.h define the same names; this file adds what can
// be said once on top of them. A reduction over a row gives lane i the elements i mod 16 in
// order and ends with v16_hsum's fixed tree; a tail is loaded with a fill that changes nothing.
#ifndef TSR_KERNELS_CPU_ISA_SIMD_H
#define TSR_KERNELS_CPU_ISA_SIMD_H

#include <math.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include "kernels/cpu/isa.h"

// Forced inlining of a sanitizer's checks, or of the portable vector's 16 scalars, would take
// minutes to compile.
#if defined(__SANITIZE_ADDRESS__)
#define V16_FN static __attribute__((noinline, unused))
#elif defined(TSR_ISA_AVX512) || defined(TSR_ISA_AVX2)
#define V16_FN static inline __attribute__((always_inline))
#else
#define V16_FN static inline
#endif

#if defined(TSR_ISA_AVX512)
#include "kernels/cpu/isa/simd_avx512.h"
#elif defined(TSR_ISA_AVX2)
#include "kernels/cpu/isa/simd_avx2.h"
#else
#include "kernels/cpu/isa/simd_portable.h"
#endif

// What each of the three defines (n is clamped to [0, 16] by the caller's loop, not here):
//   v16_load v16_loadu v16_store v16_storeu          64-byte aligned, or not
//   v16_load_n(p, n, fill) v16_store_n(p, n, x)      only the first n lanes touch memory
//   v16_set1 v16_zero
//   v16_add sub mul div sqrt                         IEEE, rounded to nearest even
//   v16_fma(a, b, c) = a b + c;  v16_fnma = -(a b) + c   one rounding
//   v16_max(a, b) = a > b ? a : b;  v16_min(a, b) = a < b ? a : b   (b when unordered)
//   v16_abs neg copysign(magnitude, sign)            bit operations, NaN included
//   v16_lt le gt ge eq -> v16m (false when unordered), v16_isnan
//   v16m_first(n): lanes below n;  v16m_and or not;  v16m_any;  v16m_bits (bit i: lane i)
//   v16_select(m, a, b) = m ? a : b;  v16i_select
//   v16_to_i(x): round to nearest even, |x| <= 2^22;  v16i_to_f(signed, |x| < 2^24)
//   v16_as_i v16i_as_f: the bits
//   v16_scale2(x, n) = x 2^n with one rounding; n integral, |n| <= 250, x normal
//   v16i_loadu storeu set1 iota add sub and or xor mul_lo;  v16i_sll srl sra(x, constant)
//   v16i_mul_wide(a, b, &hi, &lo): 32 x 32 -> 64 unsigned
//   v16i_eq gt(signed) geu(unsigned) -> v16m
//   v16_hsum v16_hmax: lanes i and i + 8, then + 4, + 2, + 1
//   v16_transpose(r[16]): 16 x 16;  v16_quad(r[4]), v16i_quad(r[4]): in each group of four lanes
//     the 4 x 4 transposed: r[k] lane 4g + j  <->  r[j] lane 4g + k
//   v16_gather(base, v16i index): base[index] (signed 32-bit)
//   v16d_zero, v16d_of(v16), v16d_add, v16d_fma(a, b, c), v16d_hsum

// The lanes of x below n, else +0.
V16_FN v16 v16_keep_n(v16 x, int n) {
    return v16_select(v16m_first(n), x, v16_zero());
}

// A full vector or a tail: the first n (any n >= 1; 16 or more is a full one) floats at p.
V16_FN v16 v16_load_tail(const float *p, int64_t n, float fill) {
    return n >= 16 ? v16_loadu(p) : v16_load_n(p, (int)n, fill);
}

V16_FN void v16_store_tail(float *p, int64_t n, v16 x) {
    if (n >= 16)
        v16_storeu(p, x);
    else
        v16_store_n(p, (int)n, x);
}

// r[i] = the first n_cols floats of row i at p + i ld, +0 beyond; rows from n_rows on are +0.
V16_FN void v16_load_rows(v16 r[16], const float *p, ptrdiff_t ld, int n_rows, int n_cols) {
    for (int i = 0; i < 16; i++)
        r[i] = i < n_rows ? v16_load_tail(p + i * ld, n_cols, 0.0f) : v16_zero();
}

// Sum of one row of n floats in the virtual vector's order.
V16_FN float v16_sum_row(const float *x, int64_t n) {
    v16 s = v16_zero();
    int64_t j = 0;
    for (; j + 16 <= n; j += 16)
        s = v16_add(s, v16_loadu(x + j));
    if (j < n)
        s = v16_add(s, v16_load_n(x + j, (int)(n - j), 0.0f));
    return v16_hsum(s);
}

// sum of a[j] b[j], each lane one chain of fused multiply-adds.
V16_FN float v16_dot_row(const float *a, const float *b, int64_t n) {
    v16 s = v16_zero();
    int64_t j = 0;
    for (; j + 16 <= n; j += 16)
        s = v16_fma(v16_loadu(a + j), v16_loadu(b + j), s);
    if (j < n)
        s = v16_fma(v16_load_n(a + j, (int)(n - j), 0.0f), v16_load_n(b + j, (int)(n - j), 0.0f),
                    s);
    return v16_hsum(s);
}

#endif

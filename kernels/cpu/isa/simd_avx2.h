// The virtual vector on AVX2 with FMA: two registers. Names are explained in simd.h.
#ifndef TSR_KERNELS_CPU_ISA_SIMD_AVX2_H
#define TSR_KERNELS_CPU_ISA_SIMD_AVX2_H

#include <immintrin.h>

typedef struct {
    __m256 lo, hi;
} v16;
typedef struct {
    __m256i lo, hi;
} v16i;
typedef struct {
    __m256 lo, hi; // all ones or all zeros
} v16m;
typedef struct {
    __m256d q[4];
} v16d;

#define V16_1(type, op, a)       ((type){op((a).lo), op((a).hi)})
#define V16_2(type, op, a, b)    ((type){op((a).lo, (b).lo), op((a).hi, (b).hi)})
#define V16_3(type, op, a, b, c) ((type){op((a).lo, (b).lo, (c).lo), op((a).hi, (b).hi, (c).hi)})
#define V16_CMP(a, b, how)                                                                         \
    ((v16m){_mm256_cmp_ps((a).lo, (b).lo, how), _mm256_cmp_ps((a).hi, (b).hi, how)})

V16_FN v16i v16i_set1(uint32_t x) {
    return (v16i){_mm256_set1_epi32((int)x), _mm256_set1_epi32((int)x)};
}
V16_FN v16i v16i_iota(void) {
    return (v16i){_mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7),
                  _mm256_setr_epi32(8, 9, 10, 11, 12, 13, 14, 15)};
}
V16_FN v16m v16m_of_(__m256i lo, __m256i hi) {
    return (v16m){_mm256_castsi256_ps(lo), _mm256_castsi256_ps(hi)};
}
V16_FN v16m v16m_first(int n) {
    v16i at = v16i_iota();
    __m256i end = _mm256_set1_epi32(n);
    return v16m_of_(_mm256_cmpgt_epi32(end, at.lo), _mm256_cmpgt_epi32(end, at.hi));
}
V16_FN v16m v16m_and(v16m a, v16m b) {
    return V16_2(v16m, _mm256_and_ps, a, b);
}
V16_FN v16m v16m_or(v16m a, v16m b) {
    return V16_2(v16m, _mm256_or_ps, a, b);
}
V16_FN v16m v16m_not(v16m a) {
    __m256 ones = _mm256_castsi256_ps(_mm256_set1_epi32(-1));
    return (v16m){_mm256_xor_ps(a.lo, ones), _mm256_xor_ps(a.hi, ones)};
}
V16_FN unsigned v16m_bits(v16m a) {
    return (unsigned)_mm256_movemask_ps(a.lo) | (unsigned)_mm256_movemask_ps(a.hi) << 8;
}
V16_FN bool v16m_any(v16m a) {
    return v16m_bits(a) != 0;
}

V16_FN v16 v16_load(const float *p) {
    return (v16){_mm256_load_ps(p), _mm256_load_ps(p + 8)};
}
V16_FN v16 v16_loadu(const float *p) {
    return (v16){_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)};
}
V16_FN v16 v16_load_n(const float *p, int n, float fill) {
    v16m m = v16m_first(n);
    __m256 f = _mm256_set1_ps(fill);
    __m256 lo = _mm256_maskload_ps(p, _mm256_castps_si256(m.lo));
    __m256 hi = _mm256_maskload_ps(p + 8, _mm256_castps_si256(m.hi));
    return (v16){_mm256_blendv_ps(f, lo, m.lo), _mm256_blendv_ps(f, hi, m.hi)};
}
V16_FN void v16_store(float *p, v16 x) {
    _mm256_store_ps(p, x.lo);
    _mm256_store_ps(p + 8, x.hi);
}
V16_FN void v16_storeu(float *p, v16 x) {
    _mm256_storeu_ps(p, x.lo);
    _mm256_storeu_ps(p + 8, x.hi);
}
V16_FN void v16_store_n(float *p, int n, v16 x) {
    v16m m = v16m_first(n);
    _mm256_maskstore_ps(p, _mm256_castps_si256(m.lo), x.lo);
    _mm256_maskstore_ps(p + 8, _mm256_castps_si256(m.hi), x.hi);
}
V16_FN v16 v16_set1(float x) {
    return (v16){_mm256_set1_ps(x), _mm256_set1_ps(x)};
}
V16_FN v16 v16_zero(void) {
    return (v16){_mm256_setzero_ps(), _mm256_setzero_ps()};
}

V16_FN v16 v16_add(v16 a, v16 b) {
    return V16_2(v16, _mm256_add_ps, a, b);
}
V16_FN v16 v16_sub(v16 a, v16 b) {
    return V16_2(v16, _mm256_sub_ps, a, b);
}
V16_FN v16 v16_mul(v16 a, v16 b) {
    return V16_2(v16, _mm256_mul_ps, a, b);
}
V16_FN v16 v16_div(v16 a, v16 b) {
    return V16_2(v16, _mm256_div_ps, a, b);
}
V16_FN v16 v16_sqrt(v16 a) {
    return V16_1(v16, _mm256_sqrt_ps, a);
}
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    return V16_3(v16, _mm256_fmadd_ps, a, b, c);
}
V16_FN v16 v16_fnma(v16 a, v16 b, v16 c) {
    return V16_3(v16, _mm256_fnmadd_ps, a, b, c);
}
V16_FN v16 v16_max(v16 a, v16 b) {
    return V16_2(v16, _mm256_max_ps, a, b);
}
V16_FN v16 v16_min(v16 a, v16 b) {
    return V16_2(v16, _mm256_min_ps, a, b);
}
V16_FN v16 v16_abs(v16 a) {
    v16 sign = v16_set1(-0.0f);
    return V16_2(v16, _mm256_andnot_ps, sign, a);
}
V16_FN v16 v16_neg(v16 a) {
    v16 sign = v16_set1(-0.0f);
    return V16_2(v16, _mm256_xor_ps, a, sign);
}
V16_FN v16 v16_copysign(v16 magnitude, v16 sign) {
    v16 bit = v16_set1(-0.0f);
    v16 a = V16_2(v16, _mm256_andnot_ps, bit, magnitude), b = V16_2(v16, _mm256_and_ps, bit, sign);
    return V16_2(v16, _mm256_or_ps, a, b);
}

V16_FN v16m v16_lt(v16 a, v16 b) {
    return V16_CMP(a, b, _CMP_LT_OQ);
}
V16_FN v16m v16_le(v16 a, v16 b) {
    return V16_CMP(a, b, _CMP_LE_OQ);
}
V16_FN v16m v16_gt(v16 a, v16 b) {
    return V16_CMP(a, b, _CMP_GT_OQ);
}
V16_FN v16m v16_ge(v16 a, v16 b) {
    return V16_CMP(a, b, _CMP_GE_OQ);
}
V16_FN v16m v16_eq(v16 a, v16 b) {
    return V16_CMP(a, b, _CMP_EQ_OQ);
}
V16_FN v16m v16_isnan(v16 a) {
    return V16_CMP(a, a, _CMP_UNORD_Q);
}
V16_FN v16 v16_select(v16m m, v16 a, v16 b) {
    return V16_3(v16, _mm256_blendv_ps, b, a, m);
}

V16_FN v16i v16_to_i(v16 x) {
    return V16_1(v16i, _mm256_cvtps_epi32, x);
}
V16_FN v16 v16i_to_f(v16i x) {
    return V16_1(v16, _mm256_cvtepi32_ps, x);
}
V16_FN v16i v16_as_i(v16 x) {
    return V16_1(v16i, _mm256_castps_si256, x);
}
V16_FN v16 v16i_as_f(v16i x) {
    return V16_1(v16, _mm256_castsi256_ps, x);
}
V16_FN v16i v16i_select(v16m m, v16i a, v16i b) {
    return v16_as_i(v16_select(m, v16i_as_f(a), v16i_as_f(b)));
}

V16_FN v16i v16i_loadu(const void *p) {
    const __m256i *q = p;
    return (v16i){_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
V16_FN void v16i_storeu(void *p, v16i x) {
    __m256i *q = p;
    _mm256_storeu_si256(q, x.lo);
    _mm256_storeu_si256(q + 1, x.hi);
}
V16_FN v16i v16i_add(v16i a, v16i b) {
    return V16_2(v16i, _mm256_add_epi32, a, b);
}
V16_FN v16i v16i_sub(v16i a, v16i b) {
    return V16_2(v16i, _mm256_sub_epi32, a, b);
}
V16_FN v16i v16i_and(v16i a, v16i b) {
    return V16_2(v16i, _mm256_and_si256, a, b);
}
V16_FN v16i v16i_or(v16i a, v16i b) {
    return V16_2(v16i, _mm256_or_si256, a, b);
}
V16_FN v16i v16i_xor(v16i a, v16i b) {
    return V16_2(v16i, _mm256_xor_si256, a, b);
}
V16_FN v16i v16i_mul_lo(v16i a, v16i b) {
    return V16_2(v16i, _mm256_mullo_epi32, a, b);
}
V16_FN v16i v16i_sll(v16i x, int n) {
    return (v16i){_mm256_slli_epi32(x.lo, n), _mm256_slli_epi32(x.hi, n)};
}
V16_FN v16i v16i_srl(v16i x, int n) {
    return (v16i){_mm256_srli_epi32(x.lo, n), _mm256_srli_epi32(x.hi, n)};
}
V16_FN v16i v16i_sra(v16i x, int n) {
    return (v16i){_mm256_srai_epi32(x.lo, n), _mm256_srai_epi32(x.hi, n)};
}
V16_FN void v16i_mul_wide8_(__m256i a, __m256i b, __m256i *hi, __m256i *lo) {
    __m256i even = _mm256_mul_epu32(a, b);
    __m256i odd = _mm256_mul_epu32(_mm256_srli_epi64(a, 32), _mm256_srli_epi64(b, 32));
    *lo = _mm256_blend_epi32(even, _mm256_slli_epi64(odd, 32), 0xAA);
    *hi = _mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xAA);
}
V16_FN void v16i_mul_wide(v16i a, v16i b, v16i *hi, v16i *lo) {
    v16i_mul_wide8_(a.lo, b.lo, &hi->lo, &lo->lo);
    v16i_mul_wide8_(a.hi, b.hi, &hi->hi, &lo->hi);
}
V16_FN v16m v16i_eq(v16i a, v16i b) {
    return v16m_of_(_mm256_cmpeq_epi32(a.lo, b.lo), _mm256_cmpeq_epi32(a.hi, b.hi));
}
V16_FN v16m v16i_gt(v16i a, v16i b) {
    return v16m_of_(_mm256_cmpgt_epi32(a.lo, b.lo), _mm256_cmpgt_epi32(a.hi, b.hi));
}
V16_FN v16m v16i_geu(v16i a, v16i b) {
    v16i m = V16_2(v16i, _mm256_max_epu32, a, b);
    return v16i_eq(m, a);
}

// 2^n goes in as two factors, the first exact: one rounding, and no exponent out of range.
V16_FN v16 v16_scale2(v16 x, v16 n) {
    v16i k = V16_1(v16i, _mm256_cvtps_epi32, n), half = v16i_sra(k, 1);
    v16i bias = v16i_set1(127);
    v16 a = v16i_as_f(v16i_sll(v16i_add(half, bias), 23));
    v16 b = v16i_as_f(v16i_sll(v16i_add(v16i_sub(k, half), bias), 23));
    return v16_mul(v16_mul(x, a), b);
}

V16_FN float v16_hsum(v16 x) {
    __m256 a = _mm256_add_ps(x.lo, x.hi);
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
V16_FN float v16_hmax(v16 x) {
    __m256 a = _mm256_max_ps(x.lo, x.hi);
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}

V16_FN void v16_quad8_(__m256 *r0, __m256 *r1, __m256 *r2, __m256 *r3) {
    __m256d a = _mm256_castps_pd(_mm256_unpacklo_ps(*r0, *r1));
    __m256d b = _mm256_castps_pd(_mm256_unpackhi_ps(*r0, *r1));
    __m256d c = _mm256_castps_pd(_mm256_unpacklo_ps(*r2, *r3));
    __m256d d = _mm256_castps_pd(_mm256_unpackhi_ps(*r2, *r3));
    *r0 = _mm256_castpd_ps(_mm256_unpacklo_pd(a, c));
    *r1 = _mm256_castpd_ps(_mm256_unpackhi_pd(a, c));
    *r2 = _mm256_castpd_ps(_mm256_unpacklo_pd(b, d));
    *r3 = _mm256_castpd_ps(_mm256_unpackhi_pd(b, d));
}
V16_FN void v16_quad(v16 r[4]) {
    v16_quad8_(&r[0].lo, &r[1].lo, &r[2].lo, &r[3].lo);
    v16_quad8_(&r[0].hi, &r[1].hi, &r[2].hi, &r[3].hi);
}
V16_FN void v16i_quad(v16i r[4]) {
    v16 t[4] = {v16i_as_f(r[0]), v16i_as_f(r[1]), v16i_as_f(r[2]), v16i_as_f(r[3])};
    v16_quad(t);
    for (int i = 0; i < 4; i++)
        r[i] = v16_as_i(t[i]);
}
// 4 x 4 inside each 128-bit lane, then the 4 x 4 of the lanes.
V16_FN void v16_transpose(v16 r[16]) {
    for (int i = 0; i < 16; i += 4)
        v16_quad(r + i);
    for (int i = 0; i < 4; i++) {
        v16 a = r[i], b = r[i + 4], c = r[i + 8], d = r[i + 12];
        r[i] = (v16){_mm256_permute2f128_ps(a.lo, b.lo, 0x20),
                     _mm256_permute2f128_ps(c.lo, d.lo, 0x20)};
        r[i + 4] = (v16){_mm256_permute2f128_ps(a.lo, b.lo, 0x31),
                         _mm256_permute2f128_ps(c.lo, d.lo, 0x31)};
        r[i + 8] = (v16){_mm256_permute2f128_ps(a.hi, b.hi, 0x20),
                         _mm256_permute2f128_ps(c.hi, d.hi, 0x20)};
        r[i + 12] = (v16){_mm256_permute2f128_ps(a.hi, b.hi, 0x31),
                          _mm256_permute2f128_ps(c.hi, d.hi, 0x31)};
    }
}
V16_FN v16 v16_gather(const float *base, v16i index) {
    return (v16){_mm256_i32gather_ps(base, index.lo, 4), _mm256_i32gather_ps(base, index.hi, 4)};
}

V16_FN v16d v16d_zero(void) {
    __m256d z = _mm256_setzero_pd();
    return (v16d){{z, z, z, z}};
}
V16_FN v16d v16d_of(v16 x) {
    return (v16d){{_mm256_cvtps_pd(_mm256_castps256_ps128(x.lo)),
                   _mm256_cvtps_pd(_mm256_extractf128_ps(x.lo, 1)),
                   _mm256_cvtps_pd(_mm256_castps256_ps128(x.hi)),
                   _mm256_cvtps_pd(_mm256_extractf128_ps(x.hi, 1))}};
}
V16_FN v16d v16d_add(v16d a, v16d b) {
    for (int i = 0; i < 4; i++)
        a.q[i] = _mm256_add_pd(a.q[i], b.q[i]);
    return a;
}
V16_FN v16d v16d_fma(v16d a, v16d b, v16d c) {
    for (int i = 0; i < 4; i++)
        c.q[i] = _mm256_fmadd_pd(a.q[i], b.q[i], c.q[i]);
    return c;
}
V16_FN double v16d_hsum(v16d x) {
    __m256d a = _mm256_add_pd(_mm256_add_pd(x.q[0], x.q[2]), _mm256_add_pd(x.q[1], x.q[3]));
    __m128d b = _mm_add_pd(_mm256_castpd256_pd128(a), _mm256_extractf128_pd(a, 1));
    return _mm_cvtsd_f64(_mm_add_sd(b, _mm_unpackhi_pd(b, b)));
}

#endif

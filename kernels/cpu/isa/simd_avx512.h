// The virtual vector on AVX-512 (F, BW, DQ, VL): one register. Names are explained in simd.h.
#ifndef TSR_KERNELS_CPU_ISA_SIMD_AVX512_H
#define TSR_KERNELS_CPU_ISA_SIMD_AVX512_H

#include <immintrin.h>

typedef __m512 v16;
typedef __m512i v16i;
typedef __mmask16 v16m;
typedef struct {
    __m512d lo, hi;
} v16d;

V16_FN v16m v16m_first(int n) {
    return (v16m)((1u << n) - 1u);
}
V16_FN v16m v16m_and(v16m a, v16m b) {
    return (v16m)(a & b);
}
V16_FN v16m v16m_or(v16m a, v16m b) {
    return (v16m)(a | b);
}
V16_FN v16m v16m_not(v16m a) {
    return (v16m)~a;
}
V16_FN bool v16m_any(v16m a) {
    return a != 0;
}
V16_FN unsigned v16m_bits(v16m a) {
    return a;
}

V16_FN v16 v16_load(const float *p) {
    return _mm512_load_ps(p);
}
V16_FN v16 v16_loadu(const float *p) {
    return _mm512_loadu_ps(p);
}
V16_FN v16 v16_load_n(const float *p, int n, float fill) {
    return _mm512_mask_loadu_ps(_mm512_set1_ps(fill), v16m_first(n), p);
}
V16_FN void v16_store(float *p, v16 x) {
    _mm512_store_ps(p, x);
}
V16_FN void v16_storeu(float *p, v16 x) {
    _mm512_storeu_ps(p, x);
}
V16_FN void v16_store_n(float *p, int n, v16 x) {
    _mm512_mask_storeu_ps(p, v16m_first(n), x);
}
V16_FN v16 v16_set1(float x) {
    return _mm512_set1_ps(x);
}
V16_FN v16 v16_zero(void) {
    return _mm512_setzero_ps();
}

V16_FN v16 v16_add(v16 a, v16 b) {
    return _mm512_add_ps(a, b);
}
V16_FN v16 v16_sub(v16 a, v16 b) {
    return _mm512_sub_ps(a, b);
}
V16_FN v16 v16_mul(v16 a, v16 b) {
    return _mm512_mul_ps(a, b);
}
V16_FN v16 v16_div(v16 a, v16 b) {
    return _mm512_div_ps(a, b);
}
V16_FN v16 v16_sqrt(v16 a) {
    return _mm512_sqrt_ps(a);
}
V16_FN v16 v16_fma(v16 a, v16 b, v16 c) {
    return _mm512_fmadd_ps(a, b, c);
}
V16_FN v16 v16_fnma(v16 a, v16 b, v16 c) {
    return _mm512_fnmadd_ps(a, b, c);
}
V16_FN v16 v16_max(v16 a, v16 b) {
    return _mm512_max_ps(a, b);
}
V16_FN v16 v16_min(v16 a, v16 b) {
    return _mm512_min_ps(a, b);
}
V16_FN v16 v16_abs(v16 a) {
    return _mm512_abs_ps(a);
}
V16_FN v16 v16_neg(v16 a) {
    return _mm512_xor_ps(a, _mm512_set1_ps(-0.0f));
}
V16_FN v16 v16_copysign(v16 magnitude, v16 sign) {
    v16 bit = _mm512_set1_ps(-0.0f);
    return _mm512_or_ps(_mm512_andnot_ps(bit, magnitude), _mm512_and_ps(bit, sign));
}

V16_FN v16m v16_lt(v16 a, v16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LT_OQ);
}
V16_FN v16m v16_le(v16 a, v16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_LE_OQ);
}
V16_FN v16m v16_gt(v16 a, v16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GT_OQ);
}
V16_FN v16m v16_ge(v16 a, v16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_GE_OQ);
}
V16_FN v16m v16_eq(v16 a, v16 b) {
    return _mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ);
}
V16_FN v16m v16_isnan(v16 a) {
    return _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q);
}
V16_FN v16 v16_select(v16m m, v16 a, v16 b) {
    return _mm512_mask_blend_ps(m, b, a);
}
V16_FN v16i v16i_select(v16m m, v16i a, v16i b) {
    return _mm512_mask_blend_epi32(m, b, a);
}

V16_FN v16i v16_to_i(v16 x) {
    return _mm512_cvtps_epi32(x);
}
V16_FN v16 v16i_to_f(v16i x) {
    return _mm512_cvtepi32_ps(x);
}
V16_FN v16i v16_as_i(v16 x) {
    return _mm512_castps_si512(x);
}
V16_FN v16 v16i_as_f(v16i x) {
    return _mm512_castsi512_ps(x);
}
V16_FN v16 v16_scale2(v16 x, v16 n) {
    return _mm512_scalef_ps(x, n);
}

V16_FN v16i v16i_loadu(const void *p) {
    return _mm512_loadu_si512(p);
}
V16_FN void v16i_storeu(void *p, v16i x) {
    _mm512_storeu_si512(p, x);
}
V16_FN v16i v16i_set1(uint32_t x) {
    return _mm512_set1_epi32((int)x);
}
V16_FN v16i v16i_iota(void) {
    return _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
}
V16_FN v16i v16i_add(v16i a, v16i b) {
    return _mm512_add_epi32(a, b);
}
V16_FN v16i v16i_sub(v16i a, v16i b) {
    return _mm512_sub_epi32(a, b);
}
V16_FN v16i v16i_and(v16i a, v16i b) {
    return _mm512_and_si512(a, b);
}
V16_FN v16i v16i_or(v16i a, v16i b) {
    return _mm512_or_si512(a, b);
}
V16_FN v16i v16i_xor(v16i a, v16i b) {
    return _mm512_xor_si512(a, b);
}
V16_FN v16i v16i_mul_lo(v16i a, v16i b) {
    return _mm512_mullo_epi32(a, b);
}
#define v16i_sll(x, n) _mm512_slli_epi32(x, n)
#define v16i_srl(x, n) _mm512_srli_epi32(x, n)
#define v16i_sra(x, n) _mm512_srai_epi32(x, n)
V16_FN void v16i_mul_wide(v16i a, v16i b, v16i *hi, v16i *lo) {
    v16i even = _mm512_mul_epu32(a, b);
    v16i odd = _mm512_mul_epu32(_mm512_srli_epi64(a, 32), _mm512_srli_epi64(b, 32));
    *lo = _mm512_mask_blend_epi32(0xAAAA, even, _mm512_slli_epi64(odd, 32));
    *hi = _mm512_mask_blend_epi32(0xAAAA, _mm512_srli_epi64(even, 32), odd);
}
V16_FN v16m v16i_eq(v16i a, v16i b) {
    return _mm512_cmpeq_epi32_mask(a, b);
}
V16_FN v16m v16i_gt(v16i a, v16i b) {
    return _mm512_cmpgt_epi32_mask(a, b);
}
V16_FN v16m v16i_geu(v16i a, v16i b) {
    return _mm512_cmpge_epu32_mask(a, b);
}

V16_FN float v16_hsum(v16 x) {
    __m256 a = _mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_add_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_add_ss(b, _mm_shuffle_ps(b, b, 1)));
}
V16_FN float v16_hmax(v16 x) {
    __m256 a = _mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps(x, 1));
    __m128 b = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
    b = _mm_max_ps(b, _mm_movehl_ps(b, b));
    return _mm_cvtss_f32(_mm_max_ss(b, _mm_shuffle_ps(b, b, 1)));
}

V16_FN void v16i_quad(v16i r[4]) {
    v16i a = _mm512_unpacklo_epi32(r[0], r[1]), b = _mm512_unpackhi_epi32(r[0], r[1]);
    v16i c = _mm512_unpacklo_epi32(r[2], r[3]), d = _mm512_unpackhi_epi32(r[2], r[3]);
    r[0] = _mm512_unpacklo_epi64(a, c);
    r[1] = _mm512_unpackhi_epi64(a, c);
    r[2] = _mm512_unpacklo_epi64(b, d);
    r[3] = _mm512_unpackhi_epi64(b, d);
}
V16_FN void v16_quad(v16 r[4]) {
    v16i t[4] = {v16_as_i(r[0]), v16_as_i(r[1]), v16_as_i(r[2]), v16_as_i(r[3])};
    v16i_quad(t);
    for (int i = 0; i < 4; i++)
        r[i] = v16i_as_f(t[i]);
}
// 4 x 4 inside each 128-bit lane, then the 4 x 4 of the lanes.
V16_FN void v16_transpose(v16 r[16]) {
    for (int i = 0; i < 16; i += 4)
        v16_quad(r + i);
    for (int i = 0; i < 4; i++) {
        v16 a = _mm512_shuffle_f32x4(r[i], r[i + 4], 0x44);
        v16 b = _mm512_shuffle_f32x4(r[i], r[i + 4], 0xEE);
        v16 c = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0x44);
        v16 d = _mm512_shuffle_f32x4(r[i + 8], r[i + 12], 0xEE);
        r[i] = _mm512_shuffle_f32x4(a, c, 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(a, c, 0xDD);
        r[i + 8] = _mm512_shuffle_f32x4(b, d, 0x88);
        r[i + 12] = _mm512_shuffle_f32x4(b, d, 0xDD);
    }
}
V16_FN v16 v16_gather(const float *base, v16i index) {
    return _mm512_i32gather_ps(index, base, 4);
}

V16_FN v16d v16d_zero(void) {
    return (v16d){_mm512_setzero_pd(), _mm512_setzero_pd()};
}
V16_FN v16d v16d_of(v16 x) {
    return (v16d){_mm512_cvtps_pd(_mm512_castps512_ps256(x)),
                  _mm512_cvtps_pd(_mm512_extractf32x8_ps(x, 1))};
}
V16_FN v16d v16d_add(v16d a, v16d b) {
    return (v16d){_mm512_add_pd(a.lo, b.lo), _mm512_add_pd(a.hi, b.hi)};
}
V16_FN v16d v16d_fma(v16d a, v16d b, v16d c) {
    return (v16d){_mm512_fmadd_pd(a.lo, b.lo, c.lo), _mm512_fmadd_pd(a.hi, b.hi, c.hi)};
}
V16_FN double v16d_hsum(v16d x) {
    __m512d a = _mm512_add_pd(x.lo, x.hi);
    __m256d b = _mm256_add_pd(_mm512_castpd512_pd256(a), _mm512_extractf64x4_pd(a, 1));
    __m128d c = _mm_add_pd(_mm256_castpd256_pd128(b), _mm256_extractf128_pd(b, 1));
    return _mm_cvtsd_f64(_mm_add_sd(c, _mm_unpackhi_pd(c, c)));
}

#endif

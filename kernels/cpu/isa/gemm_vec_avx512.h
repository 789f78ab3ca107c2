// AVX-512: 12 x 32 in 24 of the 32 registers.
#ifndef TSR_KERNELS_CPU_ISA_GEMM_VEC_AVX512_H
#define TSR_KERNELS_CPU_ISA_GEMM_VEC_AVX512_H

#include <immintrin.h>

typedef __m512 vec;

enum { VW = 16, MR = 12 };
#define EACH_ROW_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12)

VEC_FN vec vec_zero(void) {
    return _mm512_setzero_ps();
}
VEC_FN vec vec_set1(float x) {
    return _mm512_set1_ps(x);
}
VEC_FN vec vec_add(vec a, vec b) {
    return _mm512_add_ps(a, b);
}
VEC_FN vec vec_fma(vec a, vec b, vec c) {
    return _mm512_fmadd_ps(a, b, c);
}
VEC_FN vec vec_load(const float *p) {
    return _mm512_loadu_ps(p);
}
VEC_FN void vec_store(float *p, vec x) {
    _mm512_storeu_ps(p, x);
}
VEC_FN vec vec_load_n(const float *p, int n) {
    return _mm512_maskz_loadu_ps((__mmask16)((1u << n) - 1u), p);
}
VEC_FN void vec_store_n(float *p, int n, vec x) {
    _mm512_mask_storeu_ps(p, (__mmask16)((1u << n) - 1u), x);
}
VEC_FN void vec_store_mr(float *p, vec x) {
    _mm256_storeu_ps(p, _mm512_castps512_ps256(x));
    _mm_storeu_ps(p + 8, _mm512_extractf32x4_ps(x, 2));
}

// 4 x 4 blocks inside the 128-bit lanes, then the lanes as a 4 x 4 matrix.
VEC_FN void vec_transpose(vec r[VW]) {
    vec t[VW];
#pragma GCC unroll 4
    for (int i = 0; i < 16; i += 4) {
        vec ab = _mm512_unpacklo_ps(r[i], r[i + 1]), cd = _mm512_unpacklo_ps(r[i + 2], r[i + 3]);
        vec ef = _mm512_unpackhi_ps(r[i], r[i + 1]), gh = _mm512_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm512_shuffle_ps(ab, cd, 0x44);
        t[i + 1] = _mm512_shuffle_ps(ab, cd, 0xee);
        t[i + 2] = _mm512_shuffle_ps(ef, gh, 0x44);
        t[i + 3] = _mm512_shuffle_ps(ef, gh, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        vec a = _mm512_shuffle_f32x4(t[i], t[i + 4], 0x88);
        vec b = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0x88);
        vec c = _mm512_shuffle_f32x4(t[i], t[i + 4], 0xdd);
        vec d = _mm512_shuffle_f32x4(t[i + 8], t[i + 12], 0xdd);
        r[i] = _mm512_shuffle_f32x4(a, b, 0x88);
        r[i + 4] = _mm512_shuffle_f32x4(c, d, 0x88);
        r[i + 8] = _mm512_shuffle_f32x4(a, b, 0xdd);
        r[i + 12] = _mm512_shuffle_f32x4(c, d, 0xdd);
    }
}

#endif

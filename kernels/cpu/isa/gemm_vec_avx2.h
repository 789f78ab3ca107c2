// AVX2 with FMA: 6 x 16 in 12 of the 16 registers.
#ifndef TSR_KERNELS_CPU_ISA_GEMM_VEC_AVX2_H
#define TSR_KERNELS_CPU_ISA_GEMM_VEC_AVX2_H

#include <immintrin.h>

typedef __m256 vec;

enum { VW = 8, MR = 6 };
#define EACH_ROW_COUNT(X) X(1) X(2) X(3) X(4) X(5) X(6)

VEC_FN vec vec_zero(void) {
    return _mm256_setzero_ps();
}
VEC_FN vec vec_set1(float x) {
    return _mm256_set1_ps(x);
}
VEC_FN vec vec_add(vec a, vec b) {
    return _mm256_add_ps(a, b);
}
VEC_FN vec vec_fma(vec a, vec b, vec c) {
    return _mm256_fmadd_ps(a, b, c);
}
VEC_FN vec vec_load(const float *p) {
    return _mm256_loadu_ps(p);
}
VEC_FN void vec_store(float *p, vec x) {
    _mm256_storeu_ps(p, x);
}
VEC_FN __m256i vec_first(int n) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VEC_FN vec vec_load_n(const float *p, int n) {
    return _mm256_maskload_ps(p, vec_first(n));
}
VEC_FN void vec_store_n(float *p, int n, vec x) {
    _mm256_maskstore_ps(p, vec_first(n), x);
}
VEC_FN void vec_store_mr(float *p, vec x) {
    _mm_storeu_ps(p, _mm256_castps256_ps128(x));
    _mm_storel_pi((__m64 *)(p + 4), _mm256_extractf128_ps(x, 1));
}

// 4 x 4 blocks inside the 128-bit halves, then the halves as a 2 x 2 matrix.
VEC_FN void vec_transpose(vec r[VW]) {
    vec t[VW];
#pragma GCC unroll 2
    for (int i = 0; i < 8; i += 4) {
        vec ab = _mm256_unpacklo_ps(r[i], r[i + 1]), cd = _mm256_unpacklo_ps(r[i + 2], r[i + 3]);
        vec ef = _mm256_unpackhi_ps(r[i], r[i + 1]), gh = _mm256_unpackhi_ps(r[i + 2], r[i + 3]);
        t[i] = _mm256_shuffle_ps(ab, cd, 0x44);
        t[i + 1] = _mm256_shuffle_ps(ab, cd, 0xee);
        t[i + 2] = _mm256_shuffle_ps(ef, gh, 0x44);
        t[i + 3] = _mm256_shuffle_ps(ef, gh, 0xee);
    }
#pragma GCC unroll 4
    for (int i = 0; i < 4; i++) {
        r[i] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(t[i], t[i + 4], 0x31);
    }
}

#endif

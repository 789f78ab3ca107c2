// Registers and tile sizes of the matrix product, one instruction set at a time.
//
// Unlike simd.h's virtual vector, `vec` is a native register of VW floats: an element of a product
// is one chain in k order, so its bits don't depend on how wide the vectors across n are.
//   MR x NR   the tile of C that stays in registers; NR = 2 VW
#ifndef TSR_KERNELS_CPU_ISA_GEMM_VEC_H
#define TSR_KERNELS_CPU_ISA_GEMM_VEC_H

#include <math.h>
#include <stddef.h>
#include <string.h>
#include "kernels/cpu/isa.h"

// As V16_FN of simd.h.
#if (defined(TSR_ISA_AVX512) || defined(TSR_ISA_AVX2)) && !defined(__SANITIZE_ADDRESS__)
#define VEC_FN static inline __attribute__((always_inline))
#else
#define VEC_FN static inline
#endif

#if defined(TSR_ISA_AVX512)
#include "kernels/cpu/isa/gemm_vec_avx512.h"
#elif defined(TSR_ISA_AVX2)
#include "kernels/cpu/isa/gemm_vec_avx2.h"
#else
#include "kernels/cpu/isa/gemm_vec_portable.h"
#endif

// What each of the three defines:
//   vec_zero vec_set1 vec_add  vec_load vec_store (any alignment)
//   vec_load_n(p, n) vec_store_n(p, n, x)   the first n lanes touch memory, n in [0, VW]
//   vec_fma(a, b, c) = a b + c, one rounding
//   vec_transpose(r[VW]): VW x VW in place
//   vec_store_mr(p, x): the first MR lanes (MR <= VW)

enum { NV = 2, NR = NV * VW, TILE = MR * NR, LINE = 16 /* floats of a cache line */ };

#endif

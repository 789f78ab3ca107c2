// Sources in kernels/cpu/isa/ are compiled three times, with TSR_ISA being avx512, avx2 or
// portable; TSR_FN(name) gives each its own symbol. isa/table.c gathers one backend's functions
// into its const struct tsr_ops. The three give the same bits: simd.h has the same 16-lane
// virtual vector for each.
#ifndef TSR_KERNELS_CPU_ISA_H
#define TSR_KERNELS_CPU_ISA_H

#include "kernels/cpu/pool.h"
#include "kernels/ops.h"

#define TSR_PASTE_(a, b) a##_##b
#define TSR_PASTE(a, b)  TSR_PASTE_(a, b)
#define TSR_FN(name)     TSR_PASTE(name, TSR_ISA)

extern const struct tsr_ops tsr_ops_avx512, tsr_ops_avx2, tsr_ops_portable;

#endif

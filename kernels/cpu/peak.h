// The loop that measures a CPU's peak of fused multiply-adds, one per instruction set.
#ifndef TSR_KERNELS_CPU_PEAK_H
#define TSR_KERNELS_CPU_PEAK_H

#include <stdint.h>

// Runs n rounds of independent multiply-adds; returns the floating-point operations done.
double tsr_fma_loop_avx512(int64_t n);
double tsr_fma_loop_avx2(int64_t n);
double tsr_fma_loop_portable(int64_t n);

#endif

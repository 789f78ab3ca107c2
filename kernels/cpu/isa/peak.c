// The fastest loop of fused multiply-adds that one thread can run: the yardstick of all speeds.
#include "kernels/cpu/isa/gemm_vec.h"
#include "kernels/cpu/peak.h"

// The tile's own mix of registers, without its loads: MR x NR independent chains.
double TSR_FN(tsr_fma_loop)(int64_t n) {
    float start[TILE]; // all different, or equal chains would be merged
    for (int i = 0; i < TILE; i++)
        start[i] = (float)i;
    vec acc[MR][NV], x = vec_set1(0.999f), y = vec_set1(1e-3f);
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++)
            acc[i][v] = vec_load(start + i * NR + v * VW);
    }
    for (int64_t p = 0; p < n; p++) {
#pragma GCC unroll 16
        for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
            for (int v = 0; v < NV; v++)
                acc[i][v] = vec_fma(acc[i][v], x, y);
        }
    }
    vec sum = vec_zero(); // the chains must be seen to be used
#pragma GCC unroll 16
    for (int i = 0; i < MR; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++)
            sum = vec_add(sum, acc[i][v]);
    }
    vec_store(start, sum);
    float total = 0;
    for (int i = 0; i < VW; i++)
        total += start[i];
    volatile float sink = total;
    (void)sink;
    return 2.0 * TILE * (double)n;
}

// The virtual vector on AVX-512. The whole file is compiled for it, so main asks the CPU first.
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")
#define TSR_ISA avx512
#include "tests/unit/vmath_cases.h"

int main(void) {
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") ||
        !__builtin_cpu_supports("avx512dq") || !__builtin_cpu_supports("avx512vl")) {
        printf("skipped: this CPU has no avx512\n");
        return 0;
    }
    return run_vmath_tests();
}

// The virtual vector on AVX2. The whole file is compiled for it, so main asks the CPU first.
#pragma GCC target("avx2,fma")
#define TSR_ISA avx2
#include "tests/unit/vmath_cases.h"

int main(void) {
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma")) {
        printf("skipped: this CPU has no avx2\n");
        return 0;
    }
    return run_vmath_tests();
}

// The virtual vector in plain C.
#define TSR_ISA portable
#include "tests/unit/vmath_cases.h"

int main(void) {
    return run_vmath_tests();
}

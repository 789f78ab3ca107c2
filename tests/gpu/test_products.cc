// Matrix products on a device, whose tiles can't be called one by one as in
// tests/simt/test_gemm*.cc, and which adds 16 products of 16-bit numbers in an order of its own.
// fp32: the CPU's bits. 16 bits: near the CPU's fp32 product of the same numbers. Both: the same
// bits whatever tile, place, neighbours and alignment.
#include "tests/simt/gemm_case.h"

// 16 bits: sums of up to some hundred products below 1 are below 16, and differ by their order in
// the fifth digit; then each is rounded to T, and `pre` once more before the activation.
template <class T> static void test_random(void **) {
    for (int r = 0; r < 200; r++) {
        gemm_case<T> p = random_case<T>(r % 3 == 0 ? 16 : 300, 300, 70,
                                        r % 2   ? ANY_LINES
                                        : r % 4 ? OF_TERMS
                                                : OF_OTHERS);
        p.run(r % 4 < 2 ? 1 : 132);
        assert_int_equal(cpu.ops->gemm(&cpu, &p.cpu_g), 0);
        expect_same(p.c, 3.0f, 1.0f);
        expect_same(p.pre, 3.0f, 1.0f);
        for (size_t i = 0; i < p.c32.n; i++) {
            float x = p.c32.dev[i], y = p.c32.cpu[i];
            if (!(std::fabs(x - y) <= 1e-4f) && !(x != x && y != y))
                fail_msg("element %zu of %zu: found %.9g, the CPU has %.9g", i, p.c32.n, x, y);
        }
        simt::free_all();
    }
}

template <class T> static void test_invariance(void **) {
    for (bool aligned : {true, false}) {
        gemm_case<T> whole(300, 520, TSR_GEMM_STORE, 2, aligned, true);
        whole.segment(500, 0, OF_TERMS, OF_TERMS);
        whole.segment(130, 1, OF_TERMS, OF_TERMS);
        whole.run(1);
        for (int i0 : {0, 1, 177, 299})
            for (int j0 : {0, 5, 131, 519})
                for (int n_sms : {1, 8, 132}) {
                    int m = 300 - i0 < 20 ? 1 : j0 % 2 ? 20 : 14, n = 520 - j0 < 40 ? 1 : 40;
                    gemm_case<T> part(m, n, TSR_GEMM_STORE, 2, true, true);
                    for (struct tsr_gemm_seg s : whole.segs) {
                        s.a = (const T *)s.a + i0 * s.a_i;
                        s.b = (const T *)s.b + j0 * s.b_j;
                        part.segs.push_back(s);
                    }
                    part.run(n_sms);
                    for (int i = 0; i < m; i++)
                        assert_memory_equal(part.c32.dev + i * part.dev.ldc,
                                            whole.c32.dev + (i0 + i) * whole.dev.ldc + j0,
                                            (size_t)n * sizeof(float));
                }
        simt::free_all();
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPES(test_random), TEST_TYPES(test_invariance)};
    return cmocka_run_group_tests(tests, open_cpu, close_cpu);
}

// Conversions between fp32 and the half-width types of weight files.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <float.h>
#include <math.h>
#include <string.h>
#include "core/safetensors.h"

static uint32_t bits(float f) {
    uint32_t u;
    memcpy(&u, &f, 4);
    return u;
}

static float from_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, 4);
    return f;
}

// The value of a half by its definition (IEEE 754-2008, table 3.5), NaN aside.
static double half_by_definition(unsigned h) {
    int e = h >> 10 & 31, m = h & 1023;
    double v = e == 31 ? INFINITY : e == 0 ? ldexp(m, -24) : ldexp(1024 + m, e - 25);
    return h & 0x8000 ? -v : v;
}

static void test_halves_by_definition(void **state) {
    (void)state;
    for (unsigned h = 0; h < 65536; h++) {
        float f = tsr_f16_to_f32((uint16_t)h);
        if ((h & 0x7fff) > 0x7c00) {
            assert_true(isnan(f));
            assert_true((tsr_f32_to_f16(f) & 0x7e00) == 0x7e00);
            assert_int_equal(tsr_f32_to_f16(f) & 0x8000, h & 0x8000);
            continue;
        }
        assert_true(bits(f) == bits((float)half_by_definition(h)));
        assert_int_equal(tsr_f32_to_f16(f), h);
    }
}

// The nearest half by search, ties to the even one; 65536 stands for infinity.
static unsigned nearest_half(double x) {
    unsigned lo = 0, hi = 0x7c00;
    while (hi - lo > 1) {
        unsigned mid = (lo + hi) / 2;
        if (half_by_definition(mid) <= x)
            lo = mid;
        else
            hi = mid;
    }
    double below = half_by_definition(lo), above = hi == 0x7c00 ? 65536 : half_by_definition(hi);
    if (x - below != above - x)
        return x - below < above - x ? lo : hi;
    return lo % 2 == 0 ? lo : hi;
}

static void test_rounding_to_half(void **state) {
    (void)state;
    static const float edges[] = {65504,    65519.996f,   65520,           1e6f,
                                  0x1p-24f, 0x1p-25f,     0x1.000002p-25f, 3 * 0x1p-25f,
                                  0x1p-14f, 0x1.ffcp-15f, 0x1.ffep-15f,    0x1.fffffep-15f,
                                  0x1p-26f, FLT_MAX};
    for (size_t i = 0; i < sizeof edges / sizeof *edges; i++) {
        assert_int_equal(tsr_f32_to_f16(edges[i]), nearest_half(edges[i]));
        assert_int_equal(tsr_f32_to_f16(-edges[i]), 0x8000 | nearest_half(edges[i]));
    }
    uint32_t u = 1;
    for (int i = 0; i < 200000; i++) {
        u = u * 1664525 + 1013904223;
        // exponents around those of halves
        float f = from_bits((u & 0x007fffff) | (100 + (u >> 23) % 46) << 23);
        assert_int_equal(tsr_f32_to_f16(f), nearest_half(f));
    }
    assert_int_equal(tsr_f32_to_f16(INFINITY), 0x7c00);
}

static void test_bfloat16(void **state) {
    (void)state;
    for (uint32_t h = 0; h < 65536; h++) {
        float f = tsr_bf16_to_f32((uint16_t)h);
        assert_true(bits(f) == h << 16);
        if (isnan(f))
            assert_int_equal(tsr_f32_to_bf16(f), h | 0x40);
        else
            assert_int_equal(tsr_f32_to_bf16(f), h);
        if ((h & 0x7f80) == 0x7f80)
            continue;
        // halfway to the next goes to the even one, a little less or more to the nearer
        assert_int_equal(tsr_f32_to_bf16(from_bits(h << 16 | 0x8000)), h + (h & 1));
        assert_int_equal(tsr_f32_to_bf16(from_bits(h << 16 | 0x7fff)), h);
        assert_int_equal(tsr_f32_to_bf16(from_bits(h << 16 | 0x8001)), h + 1);
    }
    assert_true(isnan(tsr_bf16_to_f32(tsr_f32_to_bf16(from_bits(0x7f800001))))); // not infinity
    assert_true(isnan(tsr_bf16_to_f32(tsr_f32_to_bf16(from_bits(0xffffffff)))));
}

static void test_runs(void **state) {
    (void)state;
    const float in[5] = {1.0f, -2.5f, 3.14159265f, 1e-7f, 70000.0f};
    for (int t = TSR_DT_F32; t <= TSR_DT_BF16; t++) {
        float out[6] = {[5] = 77};
        unsigned char stored[24];
        memset(stored, 0xa5, sizeof stored);
        tsr_dtype_from_f32((enum tsr_dtype)t, stored, in, 5);
        for (size_t i = 5 * tsr_dtype_size((enum tsr_dtype)t); i < sizeof stored; i++)
            assert_int_equal(stored[i], 0xa5);
        tsr_dtype_to_f32((enum tsr_dtype)t, out, stored, 5);
        for (int i = 0; i < 5; i++)
            assert_true(out[i] == (t == TSR_DT_F32   ? in[i]
                                   : t == TSR_DT_F16 ? tsr_f16_to_f32(tsr_f32_to_f16(in[i]))
                                                     : tsr_bf16_to_f32(tsr_f32_to_bf16(in[i]))));
        assert_true(out[5] == 77);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_halves_by_definition),
        cmocka_unit_test(test_rounding_to_half),
        cmocka_unit_test(test_bfloat16),
        cmocka_unit_test(test_runs),
    };
    return cmocka_run_group_tests_name("dtype", tests, NULL, NULL);
}

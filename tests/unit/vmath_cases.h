// The virtual vector and its mathematics for the TSR_ISA of the including file. The three files
// compare with the same committed hashes, so the three instruction sets give the same bits.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include "kernels/cpu/isa/philox16.h"
#include "kernels/cpu/isa/vmath.h"

typedef v16 unary(v16 x);

static v16 do_exp(v16 x) {
    return v16_exp(x);
}
static v16 do_log(v16 x) {
    return v16_log(x);
}
static v16 do_erf(v16 x) {
    return v16_erf(x);
}
static v16 do_sigmoid(v16 x) {
    return v16_sigmoid(x);
}
static v16 do_sin(v16 x) {
    v16 s, c;
    v16_sincos(x, &s, &c);
    return s;
}
static v16 do_cos(v16 x) {
    v16 s, c;
    v16_sincos(x, &s, &c);
    return c;
}
static double sigmoid(double x) {
    return 1 / (1 + exp(-x));
}

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// The distance between two floats around |x|.
static double ulp_of(double x) {
    int e;
    frexp(fabs(x), &e);
    return ldexp(1.0, e - 24 < -149 ? -149 : e - 24);
}

struct sweep {
    const char *name;
    unary *f;
    double (*exact)(double);
    float low, high; // magnitudes; negative arguments are swept too when both_signs
    bool both_signs;
    double max_ulp;
    uint32_t hash;
};

// About 200,000 floats evenly spaced in bit patterns, so small ones as much as large ones.
static uint32_t run_sweep(const struct sweep *s, float sign) {
    uint32_t lo = bits_of(s->low), hi = bits_of(s->high), step = (hi - lo) / 200000 + 1, hash = 0;
    float x[16], y[16];
    for (uint32_t at = lo; at <= hi - 15 * step; at += 16 * step) {
        for (uint32_t i = 0; i < 16; i++)
            x[i] = sign * float_of(at + i * step);
        v16_storeu(y, s->f(v16_loadu(x)));
        for (int i = 0; i < 16; i++) {
            double want = s->exact((double)x[i]);
            double error = fabs((double)y[i] - want) / ulp_of(want);
            if (!(error <= s->max_ulp))
                fail_msg("%s(%a) = %a, expected %a: %.3f ulp", s->name, (double)x[i], (double)y[i],
                         want, error);
            hash = (hash ^ bits_of(y[i])) * 16777619u;
        }
    }
    return hash;
}

static void test_accuracy(void **state) {
    (void)state;
    static const struct sweep sweeps[] = {
        {"exp", do_exp, exp, 0x1p-149f, 87.3f, true, 1.1, 0x6be00ea2},
        {"exp", do_exp, exp, 0.05f, 88.7f, true, 1.1, 0xff901353}, // and into denormals
        {"log", do_log, log, 0x1p-149f, 0x1.fffffep127f, false, 1.1, 0x97dcaa01},
        {"log", do_log, log, 0.5f, 2.0f, false, 1.1, 0xab37df7a},
        {"erf", do_erf, erf, 0x1p-120f, 12.0f, true, 1.3, 0x699d16f0},
        {"erf", do_erf, erf, 0.25f, 4.0f, true, 1.3, 0x9b79203c},
        {"sigmoid", do_sigmoid, sigmoid, 0x1p-60f, 87.0f, true, 2.6, 0x85f850f7},
        {"sin", do_sin, sin, 0x1p-120f, 8.0f, true, 1.6, 0x66e6ef3c},
        {"sin", do_sin, sin, 0.5f, 10000.0f, true, 1.6, 0xdd69e0de},
        {"cos", do_cos, cos, 0x1p-120f, 8.0f, true, 1.6, 0x7802b780},
        {"cos", do_cos, cos, 0.5f, 10000.0f, true, 1.6, 0x2c192978},
    };
    for (size_t i = 0; i < sizeof sweeps / sizeof *sweeps; i++) {
        const struct sweep *s = &sweeps[i];
        uint32_t hash = run_sweep(s, 1.0f);
        if (s->both_signs)
            hash ^= run_sweep(s, -1.0f) * 31u;
        if (hash != s->hash)
            fail_msg("%s, sweep %zu: bits hash to 0x%08x, expected 0x%08x", s->name, i, hash,
                     s->hash);
    }
}

static float at(unary *f, float x) {
    float y[16];
    v16_storeu(y, f(v16_set1(x)));
    return y[7];
}

static void test_special_values(void **state) {
    (void)state;
    unary *all[] = {do_exp, do_log, do_erf, do_sigmoid, do_sin, do_cos};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        assert_true(isnan(at(all[i], NAN)));
    assert_int_equal(bits_of(at(do_exp, -INFINITY)), 0); // +0
    assert_int_equal(bits_of(at(do_exp, -3e38f)), 0);
    assert_int_equal(bits_of(at(do_exp, -103.98f)), 0);
    assert_int_equal(bits_of(at(do_exp, -103.9f)), 1); // the smallest denormal
    assert_true(at(do_exp, INFINITY) == INFINITY && at(do_exp, 3e38f) == INFINITY);
    assert_true(at(do_exp, 88.73f) == INFINITY && at(do_exp, 88.72f) < INFINITY);
    assert_true(at(do_exp, 0.0f) == 1.0f && at(do_exp, -0.0f) == 1.0f);
    assert_true(at(do_log, 0.0f) == -INFINITY && at(do_log, -0.0f) == -INFINITY);
    assert_true(at(do_log, INFINITY) == INFINITY && isnan(at(do_log, -1.0f)));
    assert_true(isnan(at(do_log, -INFINITY)) && isnan(at(do_log, -1e-45f)));
    assert_int_equal(bits_of(at(do_log, 1.0f)), 0);
    assert_true(at(do_erf, INFINITY) == 1.0f && at(do_erf, -INFINITY) == -1.0f);
    assert_int_equal(bits_of(at(do_erf, -0.0f)), 0x80000000u);
    assert_true(at(do_cos, 0.0f) == 1.0f && isnan(at(do_sin, INFINITY)));
    assert_true(at(do_sigmoid, INFINITY) == 1.0f && at(do_sigmoid, -INFINITY) == 0.0f);
    assert_true(v16_rsqrt1(4.0f) == 0.5f && v16_rsqrt1(0.0f) == INFINITY);
}

// Every lane count loads and stores exactly its lanes; the page beyond is never touched by value.
static void test_tails(void **state) {
    (void)state;
    for (int n = 0; n <= 16; n++) {
        float *x = malloc((size_t)(n + 1) * sizeof *x), out[18], lanes[16];
        assert_non_null(x);
        for (int i = 0; i <= n; i++)
            x[i] = (float)(i + 1);
        for (int i = 0; i < 18; i++)
            out[i] = -1.0f;
        v16_storeu(lanes, v16_load_n(x + 1, n, 7.0f)); // to the very end of the allocation
        v16_store_n(out + 1, n, v16_loadu(lanes));
        for (int i = 0; i < 16; i++) {
            assert_true(lanes[i] == (i < n ? (float)(i + 2) : 7.0f));
            assert_true(out[i + 1] == (i < n ? (float)(i + 2) : -1.0f));
        }
        assert_true(out[0] == -1.0f && out[17] == -1.0f);
        assert_int_equal(v16m_bits(v16m_first(n)), (1u << n) - 1u);
        free(x);
    }
}

static void test_shuffles(void **state) {
    (void)state;
    float m[256], t[256];
    v16 r[16];
    for (int i = 0; i < 256; i++)
        m[i] = (float)i;
    v16_load_rows(r, m, 16, 16, 16);
    v16_transpose(r);
    for (int i = 0; i < 16; i++)
        v16_storeu(t + 16 * i, r[i]);
    for (int i = 0; i < 256; i++)
        assert_true(t[i] == m[i % 16 * 16 + i / 16]);
    v16_load_rows(r, m, 16, 5, 3);
    for (int i = 0; i < 16; i++)
        v16_storeu(t + 16 * i, r[i]);
    for (int i = 0; i < 256; i++)
        assert_true(t[i] == (i / 16 < 5 && i % 16 < 3 ? m[i] : 0.0f));
    v16_load_rows(r, m, 16, 4, 16);
    v16_quad(r);
    for (int k = 0; k < 4; k++)
        v16_storeu(t + 16 * k, r[k]);
    for (int k = 0; k < 4; k++)
        for (int i = 0; i < 16; i++)
            assert_true(t[16 * k + i] == m[16 * (i % 4) + i / 4 * 4 + k]);
    v16_storeu(t, v16_gather(m + 100, v16i_sub(v16i_set1(3), v16i_iota()))); // downwards
    for (int i = 0; i < 16; i++)
        assert_true(t[i] == (float)(103 - i));
}

// The order of a sum is part of the contract: it shows in the last bits.
static void test_sums(void **state) {
    (void)state;
    float x[100], y[100], lane[16] = {0}, dot[16] = {0};
    double wide[16] = {0};
    uint32_t s = 1;
    for (int i = 0; i < 100; i++) {
        s = s * 1664525u + 1013904223u;
        x[i] = (float)(int32_t)s * 1e-3f;
        y[i] = (float)(int32_t)(s * 69069u) * 1e-3f;
        lane[i % 16] += x[i];
        dot[i % 16] = fmaf(x[i], y[i], dot[i % 16]);
    }
    for (int i = 0; i < 16; i++)
        wide[i] = fma((double)x[i], (double)x[i], 0.25);
    for (int w = 8; w > 0; w /= 2)
        for (int i = 0; i < w; i++) {
            lane[i] += lane[i + w];
            dot[i] += dot[i + w];
            wide[i] += wide[i + w];
        }
    v16d quarter = v16d_add(v16d_of(v16_set1(0.125f)), v16d_of(v16_set1(0.125f)));
    v16d v = v16d_of(v16_loadu(x));
    assert_true(v16_sum_row(x, 100) == lane[0]);
    assert_true(v16_dot_row(x, y, 100) == dot[0]);
    assert_true(v16d_hsum(v16d_fma(v, v, v16d_add(quarter, v16d_zero()))) == wide[0]);
    assert_true(v16_hmax(v16_loadu(x)) >= x[3] && v16_sum_row(x, 0) == 0.0f);
}

static void test_integers(void **state) {
    (void)state;
    uint32_t s = 7, a[16], b[16], hi[16], lo[16];
    for (int i = 0; i < 16; i++) {
        s = s * 1664525u + 1013904223u;
        a[i] = i == 3 ? ~0u : s;
        s = s * 1664525u + 1013904223u;
        b[i] = i == 3 ? ~0u : i == 5 ? a[i] : s;
    }
    v16i h, l, va = v16i_loadu(a), vb = v16i_loadu(b);
    v16i_mul_wide(va, vb, &h, &l);
    v16i_storeu(hi, h);
    v16i_storeu(lo, l);
    unsigned geu = v16m_bits(v16i_geu(va, vb)), gt = v16m_bits(v16i_gt(va, vb));
    for (int i = 0; i < 16; i++) {
        uint64_t p = (uint64_t)a[i] * b[i];
        assert_int_equal(hi[i], p >> 32);
        assert_int_equal(lo[i], (uint32_t)p);
        assert_int_equal(geu >> i & 1, a[i] >= b[i]);
        assert_int_equal(gt >> i & 1, (int32_t)a[i] > (int32_t)b[i]);
    }
    static const float halves[16] = {0.5f,       1.5f,        2.5f,   -0.5f, -1.5f, -2.5f,
                                     4194303.5f, 7.49f,       -7.51f, 0.0f,  -0.0f, 1e-30f,
                                     3.0f,       -4194303.5f, 100.5f, 99.5f};
    static const int32_t rounded[16] = {0,  2, 2, 0, -2, -2,       4194304, 7,
                                        -8, 0, 0, 0, 3,  -4194304, 100,     100};
    int32_t got[16];
    v16i_storeu(got, v16_to_i(v16_loadu(halves)));
    assert_memory_equal(got, rounded, sizeof got);
}

static void test_draws(void **state) {
    (void)state;
    struct tsr_rng_key key = {0x12345678u, 0x9abcdef0u};
    uint32_t u[64];
    v16i r[4];
    v16_draws(key, 0xfffffffau, 5, 6, 7, r); // counters wrap round
    for (int k = 0; k < 4; k++)
        v16i_storeu(u + 16 * k, r[k]);
    for (uint32_t i = 0; i < 64; i++)
        assert_int_equal(u[i], tsr_philox(key, 0xfffffffau + i / 4, 5, 6, 7).v[i % 4]);
}

static int run_vmath_tests(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_accuracy), cmocka_unit_test(test_special_values),
        cmocka_unit_test(test_tails),    cmocka_unit_test(test_shuffles),
        cmocka_unit_test(test_sums),     cmocka_unit_test(test_integers),
        cmocka_unit_test(test_draws),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

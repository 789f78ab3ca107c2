// For tests of operations: every instruction set that this CPU has, buffers between guard bands,
// and one call that runs a case on all of them with 1, 2 and 3 threads and wants equal bits.
#ifndef TSR_TESTS_UNIT_OPS_UTIL_H
#define TSR_TESTS_UNIT_OPS_UTIL_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "kernels/ops.h"

enum { BAND = 32, MAX_BUFS = 256, MAX_THREADS = 3 };

// Buffers of floats, each with a band of a telltale value before and after. They start off a
// 64-byte border by 0 to 3 floats in turn, and full of NaN: what isn't written shows.
struct test_buf {
    uint32_t *base;
    size_t n, shift;
};
static struct test_buf test_bufs[MAX_BUFS];
static int n_test_bufs;

static inline uint32_t band_value(size_t i) {
    return 0xdeadbe00u + (uint32_t)(i % 251);
}

static inline float *buf_new(size_t n) {
    assert_true(n_test_bufs < MAX_BUFS);
    struct test_buf *b = &test_bufs[n_test_bufs];
    *b = (struct test_buf){.n = n, .shift = BAND + (size_t)(n_test_bufs % 4)};
    n_test_bufs++;
    size_t total = b->shift + n + BAND;
    b->base = aligned_alloc(64, (total * 4 + 63) / 64 * 64);
    assert_non_null(b->base);
    for (size_t i = 0; i < total; i++)
        b->base[i] = i >= b->shift && i < b->shift + n ? 0x7fc00000u : band_value(i);
    return (float *)(b->base + b->shift);
}

// Checks the bands of all buffers made since `from` and frees them.
static inline void bufs_end(int from) {
    while (n_test_bufs > from) {
        struct test_buf *b = &test_bufs[--n_test_bufs];
        for (size_t i = 0; i < b->shift + b->n + BAND; i++)
            if (i < b->shift || i >= b->shift + b->n)
                assert_int_equal(b->base[i], band_value(i));
        free(b->base);
    }
}

static inline float *buf_copy(const float *from, size_t n) {
    float *to = buf_new(n);
    memcpy(to, from, n * sizeof *to);
    return to;
}

// A simple generator of test data; nothing depends on its quality.
static inline uint32_t test_u32(uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(*state >> 33) ^ (uint32_t)(*state >> 13);
}

static inline float *buf_random(size_t n, uint64_t seed, float low, float high) {
    float *x = buf_new(n);
    for (size_t i = 0; i < n; i++)
        x[i] = low + (high - low) * ((float)(test_u32(&seed) >> 8) * 0x1p-24f);
    return x;
}

// What a case puts out, to be compared between runs and with a reference.
struct sink {
    float *v;
    size_t n, cap;
};

static inline void emit(struct sink *s, const float *x, size_t n) {
    if (n == 0)
        return;
    if (s->n + n > s->cap) {
        s->cap = 2 * (s->n + n) + 64;
        s->v = realloc(s->v, s->cap * sizeof *s->v);
        assert_non_null(s->v);
    }
    memcpy(s->v + s->n, x, n * sizeof *x);
    s->n += n;
}

static const char *const test_isas[] = {"portable", "avx2", "avx512"};
enum { N_TEST_ISAS = 3 };
static struct tsr_ctx test_ctx[N_TEST_ISAS][MAX_THREADS];
static bool test_has[N_TEST_ISAS];

static inline int open_isas(void **state) {
    (void)state;
    for (int i = 0; i < N_TEST_ISAS; i++) {
        test_has[i] = true;
        for (int t = 0; t < MAX_THREADS && test_has[i]; t++)
            if (tsr_cpu_open(&test_ctx[i][t], test_isas[i], t + 1) != 0) {
                assert_int_equal(t, 0);
                printf("skipped: %s\n", tsr_error_text());
                test_has[i] = false;
            }
    }
    return test_has[0] ? 0 : -1;
}

static inline int close_isas(void **state) {
    (void)state;
    for (int i = 0; i < N_TEST_ISAS; i++)
        for (int t = 0; t < MAX_THREADS && test_has[i]; t++)
            test_ctx[i][t].ops->close(&test_ctx[i][t]);
    return 0;
}

typedef void op_case(struct tsr_ctx *ctx, const void *arg, struct sink *out);

// Runs the case everywhere, checks guard bands, and returns what it put out, the same bits each
// time. The caller frees .v.
static inline struct sink run_everywhere(op_case *fn, const void *arg) {
    struct sink first = {0};
    for (int i = 0; i < N_TEST_ISAS; i++)
        for (int t = 0; t < MAX_THREADS && test_has[i]; t++) {
            struct sink out = {0};
            int from = n_test_bufs;
            fn(&test_ctx[i][t], arg, &out);
            bufs_end(from);
            if (i == 0 && t == 0) {
                first = out;
                continue;
            }
            assert_int_equal(out.n, first.n);
            for (size_t k = 0; k < out.n; k++)
                if (memcmp(&out.v[k], &first.v[k], sizeof(float)) != 0)
                    fail_msg("%s, %d threads, value %zu: %a, portable with one thread %a",
                             test_isas[i], t + 1, k, (double)out.v[k], (double)first.v[k]);
            free(out.v);
        }
    return first;
}

// |x - want| <= tolerance, with both numbers in the message.
static inline void near(double x, double want, double tolerance, const char *what, size_t at) {
    if (!(fabs(x - want) <= tolerance))
        fail_msg("%s[%zu]: %.9g, expected %.9g +- %.3g", what, at, x, want, tolerance);
}

#endif

// The thread pool: every part once, results seen by the caller, quick jobs one after another,
// sleeping workers woken, scratch that grows. And the CPU backend's opening and memory.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/error.h"
#include "kernels/cpu/pool.h"
#include "kernels/ops.h"

enum { MAX_PARTS = 1000, MAX_THREADS = 5 };

struct job {
    _Atomic int runs[MAX_PARTS];
    _Atomic int by_thread[MAX_THREADS];
    int plain[MAX_PARTS]; // not atomic: the end of a run must publish it
    int value;
    int n_threads;
};

static void nap_ms(int ms) {
    struct timespec t = {ms / 1000, ms % 1000 * 1000000L};
    nanosleep(&t, NULL);
}

static void count_part(void *arg, int part, int thread) {
    struct job *j = arg;
    atomic_fetch_add(&j->runs[part], 1);
    TSR_ASSERT(thread >= 0 && thread < j->n_threads);
    atomic_fetch_add(&j->by_thread[thread], 1);
    j->plain[part] = j->value + part;
}

static void test_every_part_once(void **state) {
    (void)state;
    static const int counts[] = {0, 1, 2, 3, 7, 64, MAX_PARTS};
    struct job *j = calloc(1, sizeof *j);
    assert_non_null(j);
    for (int threads = 1; threads <= MAX_THREADS; threads++) {
        struct tsr_pool *p = tsr_pool_open(threads, NULL);
        assert_non_null(p);
        assert_int_equal(tsr_pool_threads(p), threads);
        for (int r = 0; r < 200; r++) {
            int n = counts[r % 7];
            memset(j, 0, sizeof *j);
            j->value = r;
            j->n_threads = threads;
            tsr_pool_run(p, n, count_part, j);
            for (int i = 0; i < MAX_PARTS; i++) {
                assert_int_equal(j->runs[i], i < n);
                assert_int_equal(j->plain[i], i < n ? r + i : 0);
            }
        }
        tsr_pool_close(p);
    }
    free(j);
}

struct meeting {
    _Atomic int arrived, met;
};

static void meet(void *arg, int part, int thread) {
    (void)part;
    (void)thread;
    struct meeting *m = arg;
    atomic_fetch_add(&m->arrived, 1);
    for (int ms = 0; atomic_load(&m->arrived) < 2 && ms < 5000; ms++)
        nap_ms(1);
    if (atomic_load(&m->arrived) == 2)
        atomic_fetch_add(&m->met, 1);
}

// Two parts that wait for each other need two threads, also after the second fell asleep.
static void test_workers_take_part(void **state) {
    (void)state;
    struct tsr_pool *p = tsr_pool_open(2, NULL);
    assert_non_null(p);
    for (int pause_ms = 0; pause_ms <= 60; pause_ms += 20) {
        struct meeting m = {0};
        nap_ms(pause_ms);
        tsr_pool_run(p, 2, meet, &m);
        assert_int_equal(m.met, 2); // the first of one thread alone would have gone unmet
    }
    tsr_pool_close(p);
}

static void slow_last(void *arg, int part, int thread) {
    (void)thread;
    int *out = arg;
    if (part == 0)
        nap_ms(30);
    out[part] = part + 1;
}

// The caller has nothing left to do, sleeps, and is woken by the part that takes long.
static void test_caller_waits(void **state) {
    (void)state;
    struct tsr_pool *p = tsr_pool_open(3, NULL);
    assert_non_null(p);
    for (int r = 0; r < 5; r++) {
        int out[3] = {0};
        tsr_pool_run(p, 3, slow_last, out);
        for (int i = 0; i < 3; i++)
            assert_int_equal(out[i], i + 1);
    }
    tsr_pool_close(p);
}

static void test_scratch(void **state) {
    (void)state;
    int table = 0;
    struct tsr_pool *p = tsr_pool_open(2, &table);
    assert_non_null(p);
    assert_ptr_equal(tsr_pool_isa(p), &table);
    for (unsigned long n = 1; n < 8ul << 20; n *= 7) {
        char *mine[3] = {tsr_pool_scratch(p, 0, n), tsr_pool_scratch(p, 1, n),
                         tsr_pool_shared(p, n)};
        for (int i = 0; i < 3; i++) {
            assert_non_null(mine[i]);
            assert_int_equal((uintptr_t)mine[i] % 64, 0);
            memset(mine[i], i, n);
        }
        for (int i = 0; i < 3; i++)
            assert_true(mine[i][0] == i && mine[i][n - 1] == i);
        assert_ptr_equal(tsr_pool_scratch(p, 0, n / 2), mine[0]);
        assert_int_equal(mine[0][n - 1], 0);
    }
    assert_null(tsr_pool_shared(p, 1ul << 62));
    assert_non_null(tsr_pool_shared(p, 100)); // a refusal leaves the pool usable
    tsr_pool_close(p);
    tsr_pool_close(NULL);
}

static void test_open(void **state) {
    (void)state;
    struct tsr_ctx ctx;
    assert_int_equal(tsr_cpu_open(&ctx, "sse9", 1), TSR_EUSAGE);
    assert_non_null(strstr(tsr_error_text(), "sse9"));
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 0), TSR_EUSAGE);
    assert_int_equal(tsr_cpu_open(&ctx, "portable", 2), 0);
    assert_string_equal(ctx.ops->describe(&ctx), "portable");
    assert_int_equal(ctx.dtype, TSR_DT_F32);
    assert_true(ctx.ops->measure_peak(&ctx, TSR_PEAK_QUICK) > 0);
    ctx.ops->close(&ctx);
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 1), 0);
    assert_true(ctx.ops->measure_peak(&ctx, TSR_PEAK_QUICK) > 0);
    ctx.ops->close(&ctx);
}

static void test_memory(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 4096, 100001, (2u << 20) - 1, 5u << 20};
    struct tsr_ctx ctx;
    void *p, *q;
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 2), 0);
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
        size_t n = sizes[s];
        assert_int_equal(ctx.ops->alloc(&ctx, n, &p), 0);
        assert_int_equal(ctx.ops->alloc(&ctx, n, &q), 0);
        assert_int_equal((uintptr_t)p % 64, 0);
        char *x = p, *y = q;
        for (size_t i = 0; i < n; i++)
            assert_int_equal(x[i], 0);
        for (size_t i = 0; i < n; i++)
            x[i] = (char)(i * 31 + i / 977);
        assert_int_equal(ctx.ops->copy(&ctx, q, p, n), 0);
        assert_memory_equal(x, y, n);
        if (n > 2) { // only what was asked for
            assert_int_equal(ctx.ops->zero(&ctx, y + 1, n - 2), 0);
            assert_true(y[0] == x[0] && y[n - 1] == x[n - 1]);
            for (size_t i = 1; i + 1 < n; i++)
                assert_int_equal(y[i], 0);
        }
        ctx.ops->free(&ctx, p, n);
        ctx.ops->free(&ctx, q, n);
    }
    assert_int_equal(ctx.ops->alloc(&ctx, SIZE_MAX / 2, &p), TSR_ENOMEM);
    assert_int_equal(ctx.ops->alloc(&ctx, (size_t)1 << 60, &p), TSR_ENOMEM);
    ctx.ops->free(&ctx, NULL, 10);
    assert_int_equal(ctx.ops->sync(&ctx), 0);
    ctx.ops->close(&ctx);
}

// Moves past the cache: any alignment of either side, any length around the sizes that matter.
static void test_moves(void **state) {
    (void)state;
    enum { MOST = (3 << 20) + 200, EDGE = 80 };
    struct tsr_ctx ctx;
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 2), 0);
    char *from = malloc(MOST + EDGE), *to = malloc(MOST + EDGE);
    for (size_t i = 0; i < MOST + EDGE; i++)
        from[i] = (char)(i * 31 + i / 977);
    static const size_t sizes[] = {0, 1, 63, 65535, 65536, 65537, 65599, 1 << 20, MOST - 1, MOST};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (size_t shift = 0; shift < 66; shift += 13) {
            const size_t n = sizes[s], at = 70 - shift;
            memset(to, 0x55, MOST + EDGE);
            int rc = s % 2 ? ctx.ops->to_host(&ctx, to + at, from + shift, n)
                           : ctx.ops->to_device(&ctx, to + at, from + shift, n);
            assert_int_equal(rc, 0);
            assert_true(n == 0 || memcmp(to + at, from + shift, n) == 0);
            for (size_t i = 0; i < at; i++)
                assert_int_equal(to[i], 0x55);
            for (size_t i = at + n; i < at + n + 10 && i < MOST + EDGE; i++)
                assert_int_equal(to[i], 0x55);
        }
    free(from);
    free(to);
    ctx.ops->close(&ctx);
}

static void test_copy_2d(void **state) {
    (void)state;
    enum { ROWS = 700, COLS = 611, LDD = 620, LDS = 613 };
    struct tsr_ctx ctx;
    float *src = malloc(sizeof(float) * ROWS * LDS), *dst = malloc(sizeof(float) * ROWS * LDD);
    assert_true(src != NULL && dst != NULL);
    for (int i = 0; i < ROWS * LDS; i++)
        src[i] = (float)i;
    for (int i = 0; i < ROWS * LDD; i++)
        dst[i] = -1.0f;
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 2), 0);
    assert_int_equal(ctx.ops->copy_2d(&ctx, dst, LDD, src, LDS, ROWS, COLS), 0);
    assert_int_equal(ctx.ops->copy_2d(&ctx, dst, LDD, src, LDS, 0, COLS), 0);
    assert_int_equal(ctx.ops->copy_2d(&ctx, dst, LDD, src, LDS, ROWS, 0), 0);
    ctx.ops->close(&ctx);
    for (int i = 0; i < ROWS; i++) {
        for (int j = 0; j < LDD; j++)
            assert_true(dst[i * LDD + j] == (j < COLS ? src[i * LDS + j] : -1.0f));
    }
    free(src);
    free(dst);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_every_part_once),
        cmocka_unit_test(test_workers_take_part),
        cmocka_unit_test(test_caller_waits),
        cmocka_unit_test(test_scratch),
        cmocka_unit_test(test_open),
        cmocka_unit_test(test_memory),
        cmocka_unit_test(test_moves),
        cmocka_unit_test(test_copy_2d),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

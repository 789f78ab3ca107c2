// Products that are large enough for threads, several sweeps and k-blocks: every instruction set
// and thread count gives the same bits, sampled elements equal the definition, and an element
// doesn't depend on the matrix around it.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/pieces.h"
#include "kernels/ops.h"

enum { MAX_PIECES = 8, SAMPLES = 40 };

static uint64_t seed = 7;

static uint32_t rnd(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static float *fresh(size_t n) {
    float *x = aligned_alloc(64, (n * sizeof(float) + 63) / 64 * 64);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((int)(rnd() % 20001) - 10000) * 1.37e-4f;
    return x;
}

struct shape {
    int m, n, k, pieces;
    bool a_rows, b_rows; // whether A's rows (i) and B's rows (p) lie contiguous in memory
    enum tsr_gemm_mode mode;
    bool portable; // quick enough for plain C
};

static const struct shape shapes[] = {
    {100, 300, 130, 1, true, false, TSR_GEMM_STORE, true},
    {70, 130, 200, 5, true, true, TSR_GEMM_STORE, true},
    {3, 1111, 300, 8, true, false, TSR_GEMM_STORE, true},
    {4, 500, 900, 3, true, false, TSR_GEMM_ADD, true},
    {5, 700, 901, 8, true, false, TSR_GEMM_STORE, false},
    {2100, 65, 40, 2, false, true, TSR_GEMM_CHAIN, false},  // two ranges of rows
    {1370, 650, 800, 8, true, true, TSR_GEMM_STORE, false}, // and of k, and of columns
    {700, 97, 1700, 7, true, false, TSR_GEMM_ADD, false},
    {333, 200, 2600, 1, false, true, TSR_GEMM_CHAIN, false},
    {40, 2000, 1000, 8, true, false, TSR_GEMM_STORE, false},
    {14, 33, 50000, 6, false, false, TSR_GEMM_STORE, false},
};

struct problem {
    struct tsr_gemm g;
    struct tsr_gemm_seg segs[MAX_PIECES];
    float *a, *b, *start;
};

static void make(struct problem *p, const struct shape *s) {
    size_t m = (size_t)s->m, n = (size_t)s->n, k = (size_t)s->k;
    int pieces = s->mode == TSR_GEMM_CHAIN ? 1 : s->pieces;
    *p = (struct problem){.a = fresh(m * k), .b = fresh(k * n), .start = fresh(m * n)};
    for (int v = 0; v < pieces; v++) {
        struct tsr_range r = tsr_piece(s->k, v, pieces);
        struct tsr_gemm_seg *seg = &p->segs[v];
        *seg = (struct tsr_gemm_seg){.k = (int)tsr_range_len(r), .piece = v};
        seg->a_i = s->a_rows ? s->k : 1;
        seg->a_p = s->a_rows ? 1 : s->m;
        seg->b_p = s->b_rows ? s->n : 1;
        seg->b_j = s->b_rows ? 1 : s->k;
        seg->a = p->a + r.lo * seg->a_p;
        seg->b = p->b + r.lo * seg->b_p;
    }
    p->g = (struct tsr_gemm){.m = s->m,
                             .n = s->n,
                             .n_pieces = pieces,
                             .n_segs = pieces,
                             .segs = p->segs,
                             .mode = s->mode,
                             .ldc = s->n};
}

static void clear(struct problem *p) {
    free(p->a);
    free(p->b);
    free(p->start);
}

// One element by the definition.
static float element(const struct problem *p, int i, int j) {
    const struct tsr_gemm *g = &p->g;
    float old = p->start[i * g->ldc + j], node[MAX_PIECES];
    int top = 0;
    for (int v = 0; v < g->n_pieces; v++) {
        const struct tsr_gemm_seg *s = &p->segs[v];
        const float *a = s->a, *b = s->b;
        float acc = g->mode == TSR_GEMM_CHAIN ? old : 0.0f;
        for (int t = 0; t < s->k; t++)
            acc = fmaf(a[i * s->a_i + t * s->a_p], b[t * s->b_p + j * s->b_j], acc);
        for (int c = tsr_tree_carries(v); c > 0; c--)
            acc = node[--top] + acc;
        node[top++] = acc;
    }
    for (; top > 1; top--)
        node[top - 2] += node[top - 1];
    return g->mode == TSR_GEMM_ADD ? old + node[0] : node[0];
}

static void check_samples(const struct problem *p, const float *c) {
    for (int r = 0; r < SAMPLES; r++) {
        int i = (int)(rnd() % (uint32_t)p->g.m), j = (int)(rnd() % (uint32_t)p->g.n);
        if (r == 0)
            i = p->g.m - 1, j = p->g.n - 1;
        float want = element(p, i, j), found = c[i * p->g.ldc + j];
        if (memcmp(&want, &found, sizeof want) != 0)
            fail_msg("m %d n %d: element (%d, %d) is %a, expected %a", p->g.m, p->g.n, i, j,
                     (double)found, (double)want);
    }
}

static void test_backends_agree(void **state) {
    (void)state;
    static const char *const isas[] = {"avx512", "avx2", "portable"};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct problem p;
        make(&p, &shapes[s]);
        size_t n = (size_t)p.g.m * (size_t)p.g.n;
        float *first = NULL;
        for (int run = 0; run < 9; run++) {
            struct tsr_ctx ctx;
            int isa = run / 3, threads = run % 3 + 1;
            if ((isa == 2 && !shapes[s].portable) || tsr_cpu_open(&ctx, isas[isa], threads) != 0)
                continue;
            float *c = malloc(n * sizeof *c);
            assert_non_null(c);
            memcpy(c, p.start, n * sizeof *c);
            p.g.c = c;
            assert_int_equal(ctx.ops->gemm(&ctx, &p.g), 0);
            ctx.ops->close(&ctx);
            if (first == NULL) {
                check_samples(&p, first = c);
                continue;
            }
            if (memcmp(c, first, n * sizeof *c) != 0)
                fail_msg("shape %zu: %s with %d threads differs", s, isas[isa], threads);
            free(c);
        }
        free(first);
        clear(&p);
    }
}

// Rows [i, i + count) and columns [j, j + n) of a product alone equal their part of the whole.
static void check_part(struct tsr_ctx *ctx, const struct problem *whole, const float *c, int i,
                       int count, int j, int n) {
    struct tsr_gemm g = whole->g;
    struct tsr_gemm_seg segs[MAX_PIECES];
    float *part = fresh((size_t)count * (size_t)n);
    for (int v = 0; v < g.n_segs; v++) {
        segs[v] = g.segs[v];
        segs[v].a = (const float *)segs[v].a + i * segs[v].a_i;
        segs[v].b = (const float *)segs[v].b + j * segs[v].b_j;
    }
    g.segs = segs;
    g.m = count;
    g.n = n;
    g.c = part;
    g.ldc = n;
    assert_int_equal(ctx->ops->gemm(ctx, &g), 0);
    for (int r = 0; r < count; r++)
        assert_memory_equal(part + r * n, c + (i + r) * whole->g.ldc + j,
                            (size_t)n * sizeof(float));
    free(part);
}

static void test_position_invariance(void **state) {
    (void)state;
    struct shape s = {90, 210, 850, 8, true, false, TSR_GEMM_STORE, false};
    struct tsr_ctx ctx;
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 2), 0);
    for (int form = 0; form < 4; form++) {
        struct problem p;
        s.a_rows = form % 2 == 0;
        s.b_rows = form / 2 == 1;
        make(&p, &s);
        float *c = fresh((size_t)s.m * (size_t)s.n);
        p.g.c = c;
        assert_int_equal(ctx.ops->gemm(&ctx, &p.g), 0);
        check_samples(&p, c);
        for (int r = 0; r < 40; r++) {
            int count = 1 + (int)(rnd() % 20), n = 1 + (int)(rnd() % 50);
            int i = (int)(rnd() % (uint32_t)(s.m - count + 1));
            int j = (int)(rnd() % (uint32_t)(s.n - n + 1));
            check_part(&ctx, &p, c, i, count, j, n);
        }
        free(c);
        clear(&p);
    }
    ctx.ops->close(&ctx);
}

// The sum that continues from call to call is the sum in one call.
static void test_chain_continues(void **state) {
    (void)state;
    struct shape s = {50, 80, 1000, 1, false, true, TSR_GEMM_CHAIN, false};
    struct tsr_ctx ctx;
    struct problem p;
    assert_int_equal(tsr_cpu_open(&ctx, NULL, 2), 0);
    make(&p, &s);
    size_t n = (size_t)s.m * (size_t)s.n;
    float *once = fresh(n), *steps = fresh(n);
    memcpy(once, p.start, n * sizeof *once);
    memcpy(steps, p.start, n * sizeof *steps);
    p.g.c = once;
    assert_int_equal(ctx.ops->gemm(&ctx, &p.g), 0);
    p.g.c = steps;
    for (int at = 0, k = 1; at < s.k; at += k, k = 2 * k + 1) {
        p.segs[0].a = p.a + at * p.segs[0].a_p;
        p.segs[0].b = p.b + at * p.segs[0].b_p;
        p.segs[0].k = k < s.k - at ? k : s.k - at;
        assert_int_equal(ctx.ops->gemm(&ctx, &p.g), 0);
    }
    assert_memory_equal(once, steps, n * sizeof *once);
    free(once);
    free(steps);
    clear(&p);
    ctx.ops->close(&ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_backends_agree),
        cmocka_unit_test(test_position_invariance),
        cmocka_unit_test(test_chain_continues),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

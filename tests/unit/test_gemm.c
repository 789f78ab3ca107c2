// The matrix product against a loop of fmaf and the tree, for equality of bits: any shape, any
// cut into segments and pieces, every mode and epilogue, every instruction set and thread count.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include "core/error.h"
#include "core/pieces.h"
#include "kernels/ops.h"

enum { MAX_SEGS = 12, PAGE = 4096, N_CTX = 8 };

static struct tsr_ctx ctxs[N_CTX]; // those that this CPU can run
static int n_ctx;
static uint64_t seed = 1;

static uint32_t rnd(void) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(seed >> 33);
}

static int between(int lo, int hi) {
    return lo + (int)(rnd() % (uint32_t)(hi - lo + 1));
}

static float value(void) {
    return (float)((int)(rnd() % 20001) - 10000) * 1.37e-4f;
}

// n floats that end where an unreadable page begins: reading or writing past them is a crash.
struct fenced {
    char *map;
    size_t size;
    float *p;
};

static struct fenced fence(size_t n) {
    struct fenced f;
    size_t bytes = n * sizeof(float), pages = (bytes + PAGE - 1) / PAGE * PAGE;
    f.size = pages + 2 * PAGE;
    f.map = mmap(NULL, f.size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    assert_true(f.map != MAP_FAILED);
    mprotect(f.map, PAGE, PROT_NONE);
    mprotect(f.map + PAGE + pages, PAGE, PROT_NONE);
    f.p = (float *)(void *)(f.map + PAGE + pages - bytes);
    for (size_t i = 0; i < n; i++)
        f.p[i] = value();
    return f;
}

static void unfence(struct fenced f) {
    munmap(f.map, f.size);
}

struct product {
    struct tsr_gemm g;
    struct tsr_gemm_seg segs[MAX_SEGS];
    struct fenced a[MAX_SEGS], b[MAX_SEGS], c, pre, bias, residual;
    size_t n_c, n_r;
};

// Operands of one segment, in any of the four combinations of strides, with room between rows.
static void add_segment(struct product *p, int k, int piece) {
    int s = p->g.n_segs++, pad_a = between(0, 3), pad_b = between(0, 3), m = p->g.m, n = p->g.n;
    struct tsr_gemm_seg *g = &p->segs[s];
    *g = (struct tsr_gemm_seg){.k = k, .piece = piece, .a_i = 1, .a_p = 1, .b_p = 1, .b_j = 1};
    size_t n_a, n_b;
    if (between(0, 1)) {
        g->a_i = k + pad_a;
        n_a = (size_t)((m - 1) * g->a_i + k);
    } else {
        g->a_p = m + pad_a;
        n_a = k > 0 ? (size_t)((k - 1) * g->a_p + m) : 0;
    }
    if (between(0, 1)) {
        g->b_j = k + pad_b;
        n_b = (size_t)((n - 1) * g->b_j + k);
    } else {
        g->b_p = n + pad_b;
        n_b = k > 0 ? (size_t)((k - 1) * g->b_p + n) : 0;
    }
    p->a[s] = fence(n_a);
    p->b[s] = fence(n_b);
    g->a = p->a[s].p;
    g->b = p->b[s].p;
}

static struct product *new_product(int m, int n, enum tsr_gemm_mode mode, int n_pieces) {
    struct product *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->g = (struct tsr_gemm){.m = m, .n = n, .n_pieces = n_pieces, .segs = p->segs, .mode = mode};
    p->g.ldc = n + between(0, 5);
    p->g.ldr = n + between(0, 5);
    p->n_c = (size_t)((m - 1) * p->g.ldc + n);
    p->n_r = (size_t)((m - 1) * p->g.ldr + n);
    p->c = fence(p->n_c);
    p->pre = fence(p->n_c);
    p->bias = fence((size_t)n);
    p->residual = fence(p->n_r);
    p->g.c = p->c.p;
    return p;
}

static void free_product(struct product *p) {
    for (int s = 0; s < p->g.n_segs; s++) {
        unfence(p->a[s]);
        unfence(p->b[s]);
    }
    unfence(p->c);
    unfence(p->pre);
    unfence(p->bias);
    unfence(p->residual);
    free(p);
}

// The definition, element by element.
static float chain(const struct tsr_gemm *g, int piece, int i, int j, float acc) {
    for (int s = 0; s < g->n_segs; s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        const float *a = seg->a, *b = seg->b;
        for (int p = 0; p < seg->k && seg->piece == piece; p++)
            acc = fmaf(a[i * seg->a_i + p * seg->a_p], b[p * seg->b_p + j * seg->b_j], acc);
    }
    return acc;
}

static float tree(const struct tsr_gemm *g, int i, int j) {
    float level[64] = {0};
    int n = g->n_pieces;
    for (int v = 0; v < n; v++)
        level[v] = chain(g, v, i, j, 0.0f);
    for (; n > 1; n = (n + 1) / 2) {
        for (int v = 0; v < n / 2; v++)
            level[v] = level[2 * v] + level[2 * v + 1];
        if (n % 2 == 1)
            level[n / 2] = level[n - 1];
    }
    return level[0];
}

static void reference(const struct tsr_gemm *g, float *c, float *pre) {
    struct tsr_ctx *portable = &ctxs[0];
    const float *bias = g->bias, *residual = g->residual;
    for (int i = 0; i < g->m; i++) {
        for (int j = 0; j < g->n; j++) {
            float *out = &c[i * g->ldc + j], old = *out, y;
            if (g->mode == TSR_GEMM_CHAIN)
                y = chain(g, 0, i, j, old);
            else
                y = tree(g, i, j);
            if (g->mode == TSR_GEMM_ADD)
                y = old + y;
            if (bias != NULL)
                y += bias[j];
            if (g->pre != NULL)
                pre[i * g->ldc + j] = y;
            if (g->has_act) {
                float x = y;
                assert_int_equal(portable->ops->act(portable, g->act, &y, &x, 1), 0);
            }
            if (residual != NULL)
                y = (g->residual == g->c ? old : residual[i * g->ldr + j]) + y;
            *out = y;
        }
    }
}

// Equal bits, or NaN both: the sign and payload of a NaN are the CPU's business.
static void assert_same(const float *found, const float *want, size_t n, const char *what) {
    for (size_t i = 0; i < n; i++) {
        if (memcmp(&found[i], &want[i], sizeof(float)) != 0 && !(isnan(found[i]) && isnan(want[i])))
            fail_msg("%s: element %zu is %a, expected %a", what, i, (double)found[i],
                     (double)want[i]);
    }
}

// Runs the product on every backend from the same start and compares all of C's memory, the
// columns between its rows included.
static void check(struct product *p) {
    size_t bytes = p->n_c * sizeof(float);
    float *start = malloc(bytes), *want = malloc(bytes), *pre = malloc(bytes);
    assert_true(start != NULL && want != NULL && pre != NULL);
    memcpy(start, p->c.p, bytes);
    memcpy(want, p->c.p, bytes);
    memcpy(pre, p->pre.p, bytes);
    reference(&p->g, want, pre);
    for (int t = 0; t < n_ctx; t++) {
        char what[160];
        snprintf(what, sizeof what, "%s, context %d: m %d n %d pieces %d segments %d mode %d",
                 ctxs[t].ops->describe(&ctxs[t]), t, p->g.m, p->g.n, p->g.n_pieces, p->g.n_segs,
                 p->g.mode);
        memcpy(p->c.p, start, bytes);
        assert_int_equal(ctxs[t].ops->gemm(&ctxs[t], &p->g), 0);
        assert_same(p->c.p, want, p->n_c, what);
        assert_same(p->pre.p, pre, p->n_c, what);
    }
    free(start);
    free(want);
    free(pre);
}

static void random_epilogue(struct product *p) {
    if (between(0, 1))
        p->g.bias = p->bias.p;
    if (between(0, 1))
        p->g.pre = p->pre.p;
    if (between(0, 1)) {
        p->g.has_act = true;
        p->g.act = (enum tsr_act)between(0, 2);
    }
    if (between(0, 1))
        p->g.residual = p->residual.p;
    if (between(0, 3) == 0) {
        p->g.residual = p->g.c;
        p->g.ldr = p->g.ldc;
    }
}

static struct product *random_product(int m, int n, int max_k) {
    enum tsr_gemm_mode mode = (enum tsr_gemm_mode)between(0, 2);
    int n_pieces = mode == TSR_GEMM_CHAIN ? 1 : between(1, 9), piece = 0;
    struct product *p = new_product(m, n, mode, n_pieces);
    for (int s = between(0, MAX_SEGS); s > 0; s--) {
        int k = between(0, 3) == 0 ? 0 : between(1, max_k);
        piece = between(piece, piece + 2 < n_pieces ? piece + 2 : n_pieces - 1);
        add_segment(p, k, piece);
    }
    if (mode == TSR_GEMM_STORE)
        random_epilogue(p);
    return p;
}

static void test_random(void **state) {
    (void)state;
    for (int r = 0; r < 200; r++) {
        struct product *p = random_product(between(1, 40), between(1, 70), 20);
        check(p);
        free_product(p);
    }
}

static void test_tile_edges(void **state) {
    (void)state;
    static const int sizes[] = {1, 3, 4, 5, 6, 7, 8, 11, 12, 13, 15, 16, 17, 24, 31, 32, 33, 100};
    enum { N = sizeof sizes / sizeof *sizes };
    for (int r = 0; r < 2 * N; r++) {
        struct product *p = random_product(sizes[r % N], sizes[rnd() % N], 9);
        check(p);
        free_product(p);
        p = random_product(sizes[rnd() % N], sizes[r % N], 17);
        check(p);
        free_product(p);
    }
}

static void test_nothing(void **state) {
    (void)state;
    for (int t = 0; t < n_ctx; t++) {
        struct tsr_gemm none = {.m = 0, .n = 5}, narrow = {.m = 5, .n = 0};
        assert_int_equal(ctxs[t].ops->gemm(&ctxs[t], &none), 0);
        assert_int_equal(ctxs[t].ops->gemm(&ctxs[t], &narrow), 0);
    }
    for (int m = 1; m <= 9; m += 4) { // sums of no terms are +0, then the epilogue
        for (int pieces = 0; pieces <= 3; pieces++) {
            struct product *p = new_product(m, 37, TSR_GEMM_STORE, pieces);
            check(p);
            p->g.bias = p->bias.p;
            p->g.residual = p->residual.p;
            check(p);
            free_product(p);
        }
        struct product *p = new_product(m, 37, TSR_GEMM_CHAIN, 1);
        check(p);
        free_product(p);
    }
}

// Terms that vanish leave -0 in a chain; an empty piece beside it is +0 and is added.
static void test_signed_zero(void **state) {
    (void)state;
    for (int pieces = 1; pieces <= 3; pieces++) {
        struct product *p = new_product(2, 3, TSR_GEMM_STORE, pieces);
        add_segment(p, 1, 0);
        for (int i = 0; i < 2; i++)
            p->a[0].p[i * p->segs[0].a_i] = -1e-30f;
        for (int j = 0; j < 3; j++)
            p->b[0].p[j * p->segs[0].b_j] = 1e-30f;
        check(p);
        assert_int_equal(signbit(p->c.p[0]) != 0, pieces == 1);
        free_product(p);
    }
}

static void test_not_finite(void **state) {
    (void)state;
    for (int r = 0; r < 24; r++) {
        struct product *p = random_product(between(1, 30), between(1, 50), 8);
        for (int s = 0; s < p->g.n_segs; s++) {
            const struct tsr_gemm_seg *seg = &p->segs[s];
            if (seg->k > 0)
                p->a[s].p[(seg->k - 1) * seg->a_p] = r % 3 == 0 ? NAN : INFINITY;
            if (seg->k > 0 && r % 2 == 0)
                p->b[s].p[0] = r % 3 == 1 ? 0.0f : -INFINITY;
        }
        check(p);
        free_product(p);
    }
}

// Sums long enough for several k-blocks and ranges of them, whose borders fall inside pieces.
static void test_long_sums(void **state) {
    (void)state;
    static const struct {
        int m, n, k, pieces;
        enum tsr_gemm_mode mode;
    } cases[] = {
        {5, 3, 2000, 1, TSR_GEMM_STORE},  {6, 40, 2309, 3, TSR_GEMM_STORE},
        {5, 2, 9001, 8, TSR_GEMM_ADD},    {13, 5, 3333, 1, TSR_GEMM_CHAIN},
        {5, 1, 25000, 5, TSR_GEMM_STORE}, {2, 3, 3100, 7, TSR_GEMM_STORE},
    };
    for (size_t c = 0; c < sizeof cases / sizeof *cases; c++) {
        int V = cases[c].pieces;
        struct product *p = new_product(cases[c].m, cases[c].n, cases[c].mode, V);
        for (int v = 0; v < V; v++)
            add_segment(p, (int)tsr_range_len(tsr_piece(cases[c].k, v, V)), v);
        if (cases[c].mode == TSR_GEMM_STORE)
            random_epilogue(p);
        check(p);
        free_product(p);
    }
}

int main(void) {
    // Portable is the first, the others where the CPU has them; with 1, 2 and 3 threads.
    static const char *const isas[] = {"portable", "avx2", "avx512"};
    for (int i = 0; i < 3; i++) {
        for (int threads = 1; threads <= 3; threads++) {
            if ((i > 0 || threads != 2) && tsr_cpu_open(&ctxs[n_ctx], isas[i], threads) == 0)
                n_ctx++;
            if (n_ctx == N_CTX)
                break;
        }
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_random),     cmocka_unit_test(test_tile_edges),
        cmocka_unit_test(test_nothing),    cmocka_unit_test(test_signed_zero),
        cmocka_unit_test(test_not_finite), cmocka_unit_test(test_long_sums),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    for (int t = 0; t < n_ctx; t++)
        ctxs[t].ops->close(&ctxs[t]);
    return failed;
}

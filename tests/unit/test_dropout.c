// Bias, dropout and residual in one pass, and its backward: masks are those of plain Philox, so
// everything is compared for equality.
#include "core/philox.h"
#include "tests/unit/ops_util.h"

struct drop_case {
    int n_segs, c;
    ptrdiff_t ld;
    int64_t col0;
    size_t rows; // of the arrays
    bool bias, residual;
    struct tsr_dropout d;
    const struct tsr_segment *segs;
    const float *y, *b, *res;
};

static void run_drop(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct drop_case *q = arg;
    size_t all = q->rows * (size_t)q->ld;
    const float *res = q->residual ? q->res : NULL, *b = q->bias ? q->b : NULL;
    float *x = buf_new(all), *dx = buf_new(all);
    memset(x, 0, all * sizeof *x);
    memset(dx, 0, all * sizeof *dx);
    assert_int_equal(ctx->ops->bias_dropout_add(ctx, x, res, q->y, false, b, &q->d, q->segs,
                                                q->n_segs, q->ld, q->c, q->col0),
                     0);
    assert_int_equal(
        ctx->ops->dropout_bwd(ctx, dx, q->y, &q->d, q->segs, q->n_segs, q->ld, q->c, q->col0), 0);
    emit(out, x, all);
    emit(out, dx, all);
    float *same = buf_copy(q->y, all); // out may be y; dx may be dy
    ctx->ops->bias_dropout_add(ctx, same, res, same, false, b, &q->d, q->segs, q->n_segs, q->ld,
                               q->c, q->col0);
    float *dsame = buf_copy(q->y, all);
    ctx->ops->dropout_bwd(ctx, dsame, dsame, &q->d, q->segs, q->n_segs, q->ld, q->c, q->col0);
    float *on_res = buf_copy(q->res, all); // out may be residual
    ctx->ops->bias_dropout_add(ctx, on_res, on_res, q->y, false, b, &q->d, q->segs, q->n_segs,
                               q->ld, q->c, q->col0);
    for (int s = 0; s < q->n_segs; s++)
        for (int t = 0; t < q->segs[s].length; t++) {
            ptrdiff_t row = (q->segs[s].start + t) * q->ld;
            assert_memory_equal(same + row, x + row, (size_t)q->c * sizeof *x);
            assert_memory_equal(dsame + row, dx + row, (size_t)q->c * sizeof *x);
            if (q->residual)
                assert_memory_equal(on_res + row, x + row, (size_t)q->c * sizeof *x);
        }
}

static bool kept(const struct drop_case *q, const struct tsr_segment *g, int t, int j) {
    if (q->d.p == 0.0f)
        return true;
    uint64_t col = (uint64_t)(q->col0 + j);
    struct tsr_u32x4 u = tsr_philox(q->d.key, (uint32_t)(col / 4), (uint32_t)(g->position + t),
                                    (uint32_t)g->sequence, (uint32_t)(g->sequence >> 32));
    return u.v[col % 4] >= tsr_drop_threshold((double)q->d.p);
}

// Returns how many elements were kept.
static int64_t check_drop(const struct drop_case *q) {
    struct sink out = run_everywhere(run_drop, q);
    size_t all = q->rows * (size_t)q->ld;
    float *x = calloc(2 * all + 1, sizeof *x), *dx = x + all;
    int64_t n_kept = 0;
    assert_non_null(x);
    for (int s = 0; s < q->n_segs; s++)
        for (int t = 0; t < q->segs[s].length; t++)
            for (int j = 0; j < q->c; j++) {
                ptrdiff_t k = (q->segs[s].start + t) * q->ld + j;
                bool keep = kept(q, &q->segs[s], t, j);
                float v = q->bias ? q->y[k] + q->b[j] : q->y[k];
                v = keep ? v / (1.0f - q->d.p) : 0.0f;
                x[k] = q->residual ? q->res[k] + v : v;
                dx[k] = keep ? q->y[k] / (1.0f - q->d.p) : 0.0f;
                n_kept += keep;
            }
    for (size_t k = 0; k < 2 * all; k++)
        if (out.v[k] != x[k])
            fail_msg("value %zu: %a, expected %a", k, (double)out.v[k], (double)x[k]);
    free(x);
    free(out.v);
    return n_kept;
}

static struct drop_case new_case(int c, ptrdiff_t ld, int64_t col0, float p, size_t rows) {
    size_t all = rows * (size_t)ld;
    return (struct drop_case){.c = c,
                              .ld = ld,
                              .col0 = col0,
                              .rows = rows,
                              .d = {p, {0x1234567u, 0x89abcdefu}},
                              .y = buf_random(all, 1, -1, 1),
                              .b = buf_random((size_t)c, 2, -1, 1),
                              .res = buf_random(all, 3, -1, 1)};
}

static void test_values(void **state) {
    (void)state;
    static const struct tsr_segment segs[] = {{0, 3, 0, 5, NULL},
                                              {4, 2, 1000, 0x100000002u, NULL},
                                              {6, 0, 0, 1, NULL},
                                              {6, 4, 7, 9, NULL}};
    static const int widths[] = {1, 3, 16, 61, 64, 255, 256, 257, 300, 600};
    static const float ps[] = {0.0f, 0.1f, 0.5f, 0.999f};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
        for (int k = 0; k < 16; k++) {
            int c = widths[s];
            struct drop_case q = new_case(c, c + (k % 3 == 0 ? 5 : 0), k % 5 * 33, ps[k % 4], 10);
            q.segs = segs;
            q.n_segs = 4;
            q.bias = k / 4 % 2 == 0;
            q.residual = k / 8 % 2 == 0;
            check_drop(&q);
            bufs_end(0);
        }
    struct drop_case none = new_case(8, 8, 0, 0.5f, 1); // no segment, and no rows
    check_drop(&none);
    bufs_end(0);
}

// Enough rows for every thread; the share of kept elements is p's, within 5 standard deviations.
static void test_share(void **state) {
    (void)state;
    static const struct tsr_segment segs[] = {{0, 100, 3, 1, NULL}, {100, 60, 0, 2, NULL}};
    struct drop_case q = new_case(333, 333, 4, 0.3f, 160);
    q.segs = segs;
    q.n_segs = 2;
    q.bias = q.residual = true;
    double n = 160.0 * 333, share = (double)check_drop(&q) / n;
    near(share, 0.7, 5 * sqrt(0.3 * 0.7 / n), "share kept", 0);
    bufs_end(0);
}

// A slice of columns, and a row alone, drop what the whole drops.
static void test_region(void **state) {
    (void)state;
    enum { C = 200, CUT = 77 };
    struct tsr_segment whole = {0, 12, 30, 4, NULL}, row = {0, 1, 35, 4, NULL};
    struct drop_case q = new_case(C, C, 0, 0.4f, 12);
    q.segs = &whole;
    q.n_segs = 1;
    struct sink all = run_everywhere(run_drop, &q);
    struct drop_case part = q;
    part.segs = &row;
    part.rows = 1;
    part.c = C - CUT;
    part.col0 = CUT;
    part.y += 5 * C + CUT;
    part.ld = C - CUT;
    struct sink alone = run_everywhere(run_drop, &part);
    assert_memory_equal(alone.v, all.v + 5 * C + CUT, (C - CUT) * sizeof(float));
    free(all.v);
    free(alone.v);
    bufs_end(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_share),
        cmocka_unit_test(test_region),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

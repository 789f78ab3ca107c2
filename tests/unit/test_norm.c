// LayerNorm and RMSNorm in both directions, and column sums, against double precision.
#include "tests/unit/ops_util.h"

struct norm_case {
    int n, c;
    bool rms, bias, dres;
    const float *x, *w, *b, *dy, *res;
};

static const float eps = 1e-5f;

static void run_norm(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct norm_case *q = arg;
    size_t all = (size_t)q->n * (size_t)q->c, n = (size_t)q->n;
    float *y = buf_new(all), *mean = buf_new(n), *rstd = buf_new(n), *dx = buf_new(all);
    if (q->rms)
        assert_int_equal(ctx->ops->rmsnorm(ctx, y, rstd, q->x, q->w, eps, q->n, q->c), 0);
    else
        assert_int_equal(ctx->ops->layernorm(ctx, y, mean, rstd, q->x, q->w, q->bias ? q->b : NULL,
                                             eps, q->n, q->c),
                         0);
    assert_int_equal(ctx->ops->norm_bwd(ctx, dx, q->dres ? q->res : NULL, q->dy, q->x, q->w,
                                        q->rms ? NULL : mean, rstd, q->n, q->c),
                     0);
    emit(out, y, all);
    emit(out, rstd, n);
    emit(out, dx, all);
    if (q->dres) { // dx may be dres itself
        float *same = buf_copy(q->res, all);
        ctx->ops->norm_bwd(ctx, same, same, q->dy, q->x, q->w, q->rms ? NULL : mean, rstd, q->n,
                           q->c);
        assert_memory_equal(same, dx, all * sizeof *dx);
    }
}

// One row in double: y, and the weighted sum L = sum y dy, whose gradient is what backward gives.
static double norm_row(const struct norm_case *q, const double *x, const float *dy, double *y,
                       double *rstd) {
    double mean = 0, square = 0, loss = 0;
    for (int j = 0; j < q->c && !q->rms; j++)
        mean += x[j] / q->c;
    for (int j = 0; j < q->c; j++)
        square += (x[j] - mean) * (x[j] - mean) / q->c;
    *rstd = 1 / sqrt(square + (double)eps);
    for (int j = 0; j < q->c; j++) {
        y[j] = (x[j] - mean) * *rstd * (double)q->w[j];
        y[j] += q->bias && !q->rms ? (double)q->b[j] : 0;
        loss += y[j] * (double)dy[j];
    }
    return loss;
}

// Rounding: y is off by a few ulp of its terms, the mean by an ulp of the largest |x| (at most 4
// here, and a row's deviation is about 1.7, so everything is of order 1): 2e-6 holds for any c in
// these cases. A gradient adds two averages of c terms of order 1: 4e-6. A central difference in
// double with h = 1e-4 is good to h^2 times a third derivative of order 1: 1e-7.
static void check_norm(const struct norm_case *q) {
    struct sink out = run_everywhere(run_norm, q);
    size_t all = (size_t)q->n * (size_t)q->c;
    double *x = malloc(2 * (size_t)q->c * sizeof *x), *y = x + q->c, rstd;
    assert_non_null(x);
    assert_int_equal(out.n, 2 * all + (size_t)q->n);
    for (int i = 0; i < q->n; i++) {
        size_t row = (size_t)i * (size_t)q->c;
        for (int j = 0; j < q->c; j++)
            x[j] = (double)q->x[row + (size_t)j];
        norm_row(q, x, q->dy + row, y, &rstd);
        near((double)out.v[all + (size_t)i], rstd, 2e-6 * rstd, "rstd", (size_t)i);
        for (int j = 0; j < q->c; j++)
            near((double)out.v[row + (size_t)j], y[j], 2e-6 * fmax(1, rstd), "y", row + (size_t)j);
        for (int j = 0; j<q->c; j += q->c> 64 ? 37 : 1) {
            double at = x[j], h = 1e-4, r;
            x[j] = at + h;
            double up = norm_row(q, x, q->dy + row, y, &r);
            x[j] = at - h;
            double want = (up - norm_row(q, x, q->dy + row, y, &r)) / (2 * h);
            x[j] = at;
            size_t k = row + (size_t)j;
            want += q->dres ? (double)q->res[k] : 0;
            near((double)out.v[all + (size_t)q->n + k], want, 4e-6 * fmax(1, rstd), "dx", k);
        }
    }
    free(x);
    free(out.v);
}

static void test_norms(void **state) {
    (void)state;
    static const int shapes[][2] = {{0, 5},  {3, 2},  {3, 15},  {2, 16},
                                    {4, 17}, {5, 48}, {3, 100}, {67, 1000}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int flags = 0; flags < 6; flags++) {
            struct norm_case q = {.n = shapes[s][0], .c = shapes[s][1]};
            size_t all = (size_t)q.n * (size_t)q.c, c = (size_t)q.c;
            if (all > 5000 && flags % 2 == 0)
                continue;
            q.rms = flags >= 4;
            q.bias = flags < 2;
            q.dres = flags % 2 == 1;
            q.x = buf_random(all, s + 1, -2, 4);
            q.w = buf_random(c, s + 2, 0.5f, 1.5f);
            q.b = buf_random(c, s + 3, -1, 1);
            q.dy = buf_random(all, s + 4, -1, 1);
            q.res = buf_random(all, s + 5, -1, 1);
            check_norm(&q);
            bufs_end(0);
        }
}

// A row alone gives the bits that it has inside a batch.
static void test_position(void **state) {
    (void)state;
    enum { N = 40, C = 530 };
    for (int rms = 0; rms < 2; rms++) {
        struct norm_case q = {.n = N, .c = C, .rms = rms == 1, .bias = true, .dres = true};
        q.x = buf_random(N * C, 1, -2, 4);
        q.w = buf_random(C, 2, 0.5f, 1.5f);
        q.b = buf_random(C, 3, -1, 1);
        q.dy = buf_random(N * C, 4, -1, 1);
        q.res = buf_random(N * C, 5, -1, 1);
        struct sink all = run_everywhere(run_norm, &q);
        struct norm_case one = q;
        one.n = 1;
        one.x += 29 * C;
        one.dy += 29 * C;
        one.res += 29 * C;
        struct sink alone = run_everywhere(run_norm, &one);
        assert_memory_equal(alone.v, all.v + 29 * C, C * sizeof(float));
        assert_memory_equal(alone.v + C + 1, all.v + N * C + N + 29 * C, C * sizeof(float));
        free(all.v);
        free(alone.v);
        bufs_end(0);
    }
}

struct chain_case {
    int n, c, n_chains, n_rows;
    bool rms, db, colsum;
    ptrdiff_t ldx;
    const struct tsr_rows *rows;
    const float *x, *dy, *mean, *rstd, *start;
};

static void run_chains(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct chain_case *q = arg;
    size_t size = (size_t)q->n_chains * (size_t)q->c;
    float *dw = buf_copy(q->start, size), *db = buf_copy(q->start, size);
    int rc = q->colsum ? ctx->ops->colsum(ctx, dw, q->x, q->ldx, q->rows, q->n_rows, q->c)
                       : ctx->ops->norm_bwd_params(ctx, dw, q->db ? db : NULL, q->dy, q->x,
                                                   q->rms ? NULL : q->mean, q->rstd, q->rows,
                                                   q->n_rows, q->c);
    assert_int_equal(rc, 0);
    emit(out, dw, size);
    emit(out, db, size);
}

// The promise is one chain in row order from what stood there, so a plain loop gives the bits.
static void check_chains(const struct chain_case *q) {
    struct sink out = run_everywhere(run_chains, q);
    size_t size = (size_t)q->n_chains * (size_t)q->c;
    float *dw = buf_copy(q->start, size), *db = buf_copy(q->start, size);
    for (int r = 0; r < q->n_rows; r++)
        for (int i = q->rows[r].row; i < q->rows[r].row + q->rows[r].n; i++)
            for (int j = 0; j < q->c; j++) {
                size_t to = (size_t)q->rows[r].chain * (size_t)q->c + (size_t)j;
                float x = q->x[i * q->ldx + j];
                if (q->colsum) {
                    dw[to] += x;
                    continue;
                }
                float dy = q->dy[(ptrdiff_t)i * q->c + j];
                float mean = q->rms ? 0.0f : q->mean[i];
                dw[to] = fmaf(dy, (x - mean) * q->rstd[i], dw[to]);
                if (q->db)
                    db[to] += dy;
            }
    assert_memory_equal(out.v, dw, size * sizeof *dw);
    assert_memory_equal(out.v + size, db, size * sizeof *db);
    free(out.v);
}

static void test_chains(void **state) {
    (void)state;
    static const struct tsr_rows rows[] = {{0, 3, 0},   {3, 9, 1},  {12, 0, 2}, {12, 8, 0},
                                           {20, 17, 2}, {37, 1, 1}, {40, 24, 0}};
    static const int widths[] = {1, 16, 45, 64, 130, 1500};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
        for (int flags = 0; flags < 4; flags++) {
            int c = widths[s], ld = flags == 3 ? c + 7 : c;
            struct chain_case q = {.n = 64, .c = c, .n_chains = 3, .n_rows = 7, .rows = rows};
            q.rms = flags == 1;
            q.db = flags == 0;
            q.colsum = flags == 3;
            q.ldx = ld;
            q.x = buf_random(64 * (size_t)ld, s + 1, -2, 4);
            q.dy = buf_random(64 * (size_t)c, s + 2, -1, 1);
            q.mean = buf_random(64, s + 3, -1, 1);
            q.rstd = buf_random(64, s + 4, 0.5f, 2);
            q.start = buf_random(3 * (size_t)c, s + 5, -1, 1);
            check_chains(&q);
            q.n_rows = 0;
            check_chains(&q);
            bufs_end(0);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_norms),
        cmocka_unit_test(test_position),
        cmocka_unit_test(test_chains),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

// Initial weights: normal, and a pure function of the element.
#include "core/philox.h"
#include "tests/unit/ops_util.h"

struct region {
    int64_t row0, rows, col0, cols, global_cols;
    float std;
};

static const struct tsr_rng_key key = {0xdeadbeefu, 42};

static void run_init(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct region *q = arg;
    size_t n = (size_t)(q->rows * q->cols);
    float *w = buf_new(n);
    assert_int_equal(ctx->ops->init_normal(ctx, w, key, q->std, q->row0, q->rows, q->col0, q->cols,
                                           q->global_cols),
                     0);
    emit(out, w, n);
}

// Box and Muller in double. An angle of up to 2 pi rounds by 3e-7, a radius of up to 6.8 by 1e-6.
static double exact_normal(uint64_t e) {
    struct tsr_u32x4 d = tsr_philox(key, (uint32_t)(e / 4), (uint32_t)(e / 4 >> 32), 0, 0);
    unsigned pair = e % 4 / 2 * 2;
    double u = ((double)d.v[pair] + 0.5) * 0x1p-32, t = (double)(d.v[pair + 1] >> 8) * 0x1p-24;
    double radius = sqrt(-2 * log(u));
    return e % 2 ? radius * sin(2 * M_PI * t) : radius * cos(2 * M_PI * t);
}

static void check_region(const struct region *q) {
    struct sink out = run_everywhere(run_init, q);
    for (int64_t r = 0; r < q->rows; r++)
        for (int64_t c = 0; c < q->cols; c++) {
            uint64_t e = (uint64_t)((q->row0 + r) * q->global_cols + q->col0 + c);
            near((double)out.v[r * q->cols + c], exact_normal(e) * (double)q->std,
                 3e-6 * (double)q->std, "normal", (size_t)(r * q->cols + c));
        }
    free(out.v);
}

// Also where 4 element numbers pass 2^32 and 2^34 (the counter's second word).
static void test_values(void **state) {
    (void)state;
    static const struct region regions[] = {
        {0, 1, 0, 1, 1, 1.0f},
        {0, 5, 0, 70, 70, 0.02f},
        {3, 4, 5, 1, 17, 1.0f},
        {2, 3, 7, 130, 150, 1.0f},
        {0, 40, 0, 801, 801, 1.0f},
        {((int64_t)1 << 34) / 100 - 2, 5, 0, 100, 100, 1.0f},
        {((int64_t)1 << 34) / 77 - 2, 5, 3, 71, 77, 1.0f},
        {((int64_t)1 << 40) / 64, 2, 1, 63, 64, 1.0f},
        {580421912, 4, 0, 1, 1, 1.0f}, // the third of these draws is 0, whose log must be finite
        {4, 0, 0, 9, 9, 1.0f},
        {4, 9, 3, 0, 9, 1.0f},
    };
    for (size_t i = 0; i < sizeof regions / sizeof *regions; i++)
        check_region(&regions[i]);
}

// Any cut of the tensor holds the same elements.
static void test_regions(void **state) {
    (void)state;
    enum { R = 23, C = 117 };
    struct region whole = {0, R, 0, C, C, 0.5f};
    struct sink all = run_everywhere(run_init, &whole);
    static const int cuts[][4] = {{0, 11, 0, C},  {11, 12, 0, C}, {0, R, 0, 58},
                                  {0, R, 58, 59}, {7, 3, 99, 5},  {22, 1, 116, 1}};
    for (size_t k = 0; k < sizeof cuts / sizeof *cuts; k++) {
        struct region q = {cuts[k][0], cuts[k][1], cuts[k][2], cuts[k][3], C, 0.5f};
        struct sink part = run_everywhere(run_init, &q);
        for (int64_t r = 0; r < q.rows; r++)
            assert_memory_equal(part.v + r * q.cols, all.v + (q.row0 + r) * C + q.col0,
                                (size_t)q.cols * sizeof(float));
        free(part.v);
    }
    free(all.v);
}

// Moments of n standard normals, within 5 of their standard deviations; neighbours uncorrelated.
static void test_moments(void **state) {
    (void)state;
    enum { N = 400000 };
    struct region q = {0, 1, 0, N, N, 1.0f};
    struct tsr_ctx *ctx = &test_ctx[N_TEST_ISAS - 1][1];
    if (!test_has[N_TEST_ISAS - 1])
        ctx = &test_ctx[0][1];
    struct sink out = {0};
    run_init(ctx, &q, &out);
    bufs_end(0);
    double m[5] = {0}, lag[4] = {0}, n = N;
    int beyond = 0;
    for (int i = 0; i < N; i++) {
        double x = (double)out.v[i], p = 1;
        for (int k = 1; k <= 4; k++)
            m[k] += (p *= x) / n;
        for (int k = 0; k < 4 && i > k; k++)
            lag[k] += x * (double)out.v[i - k - 1] / n;
        beyond += fabs(x) > 3;
    }
    near(m[1], 0, 5 / sqrt(n), "mean", 0);
    near(m[2], 1, 5 * sqrt(2 / n), "variance", 0);
    near(m[3], 0, 5 * sqrt(15 / n), "third moment", 0);
    near(m[4], 3, 5 * sqrt(96 / n), "fourth moment", 0);
    near(beyond / n, 0.0026998, 5 * sqrt(0.0027 / n), "beyond 3", 0);
    for (size_t k = 0; k < 4; k++)
        near(lag[k], 0, 5 / sqrt(n), "correlation at lag", k + 1);
    free(out.v);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_regions),
        cmocka_unit_test(test_moments),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

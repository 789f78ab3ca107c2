// Activations and gated units in both directions, against double precision.
#include "tests/unit/ops_util.h"

static const enum tsr_act acts[] = {TSR_ACT_GELU, TSR_ACT_GELU_TANH, TSR_ACT_SILU};
enum { N_ACTS = 3 };

static double exact_act(enum tsr_act act, double x) {
    if (act == TSR_ACT_SILU)
        return x / (1 + exp(-x));
    if (act == TSR_ACT_GELU_TANH)
        return 0.5 * x * (1 + tanh(sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    return 0.5 * x * (1 + erf(x / sqrt(2)));
}

static double exact_slope(enum tsr_act act, double x) {
    double h = 1e-4;
    return (exact_act(act, x + h) - exact_act(act, x - h)) / (2 * h);
}

struct act_case {
    enum tsr_act act;
    size_t n;
    const float *x, *dy, *up;
};

static void run_act(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct act_case *q = arg;
    float *y = buf_new(q->n), *dx = buf_new(q->n), *gated = buf_new(q->n);
    float *dgate = buf_new(q->n), *dup = buf_new(q->n);
    assert_int_equal(ctx->ops->act(ctx, q->act, y, q->x, q->n), 0);
    assert_int_equal(ctx->ops->act_bwd(ctx, q->act, dx, q->dy, q->x, q->n), 0);
    assert_int_equal(ctx->ops->gated(ctx, q->act, gated, q->x, q->up, q->n), 0);
    assert_int_equal(ctx->ops->gated_bwd(ctx, q->act, dgate, dup, q->dy, q->x, q->up, q->n), 0);
    float *const all[] = {y, dx, gated, dgate, dup};
    for (int i = 0; i < 5; i++)
        emit(out, all[i], q->n);
    float *in_place = buf_copy(q->dy, q->n); // dx may be dy
    ctx->ops->act_bwd(ctx, q->act, in_place, in_place, q->x, q->n);
    assert_memory_equal(in_place, dx, q->n * sizeof *dx);
    float *gate = buf_copy(q->x, q->n), *up = buf_copy(q->up, q->n);
    ctx->ops->gated_bwd(ctx, q->act, gate, up, q->dy, gate, up, q->n); // dgate gate, dup up
    assert_memory_equal(gate, dgate, q->n * sizeof *gate);
    assert_memory_equal(up, dup, q->n * sizeof *up);
}

// Each value is a few roundings of terms no larger than |x| + 1, times |dy|, |up| <= 2: 4e-7 of
// that. The slope's central difference is good to 1e-8.
static void check_act(const struct act_case *q) {
    struct sink out = run_everywhere(run_act, q);
    assert_int_equal(out.n, 5 * q->n);
    for (size_t i = 0; i < q->n; i++) {
        double x = (double)q->x[i], dy = (double)q->dy[i], up = (double)q->up[i];
        double y = exact_act(q->act, x), slope = exact_slope(q->act, x);
        double tolerance = 4e-7 * (fabs(x) + 1);
        near((double)out.v[i], y, tolerance, "act", i);
        near((double)out.v[q->n + i], dy * slope, 2 * tolerance, "act_bwd", i);
        near((double)out.v[2 * q->n + i], y * up, 2 * tolerance, "gated", i);
        near((double)out.v[3 * q->n + i], dy * up * slope, 4 * tolerance, "dgate", i);
        near((double)out.v[4 * q->n + i], dy * y, 2 * tolerance, "dup", i);
    }
    free(out.v);
}

static void test_values(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 15, 16, 17, 63, 200, 20001};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int a = 0; a < N_ACTS; a++) {
            size_t n = sizes[s];
            struct act_case q = {acts[a], n, buf_random(n, s + 1, -9, 9),
                                 buf_random(n, s + 2, -2, 2), buf_random(n, s + 3, -2, 2)};
            check_act(&q);
            bufs_end(0);
        }
}

// Far out the functions are x or 0 and the slopes 1 or 0; nothing overflows into NaN.
static void test_far(void **state) {
    (void)state;
    float x[] = {100, 1e10f, 1e20f, 3e38f, -100, -1e10f, -1e20f, -3e38f, 0, -0.0f, 1e-40f, -1e-40f};
    enum { N = sizeof x / sizeof *x };
    float ones[N];
    for (int i = 0; i < N; i++)
        ones[i] = 1;
    for (int a = 0; a < N_ACTS; a++) {
        struct act_case q = {acts[a], N, x, ones, ones};
        struct sink out = run_everywhere(run_act, &q);
        for (int i = 0; i < 8; i++) {
            assert_true(out.v[i] == (x[i] > 0 ? x[i] : 0));
            assert_true(out.v[N + i] == (x[i] > 0 ? 1 : 0));
        }
        for (int i = 8; i < N; i++)
            assert_true(fabsf(out.v[i]) <= fabsf(x[i]) && out.v[N + i] == 0.5f);
        free(out.v);
        float bad[] = {NAN};
        struct act_case nan_case = {acts[a], 1, bad, ones, ones};
        float y[1];
        test_ctx[0][0].ops->act(&test_ctx[0][0], nan_case.act, y, nan_case.x, 1);
        assert_true(isnan(y[0]));
    }
}

// The value of an element doesn't depend on where it stands.
static void test_position(void **state) {
    (void)state;
    enum { N = 15000 };
    float *x = buf_random(N, 9, -6, 6), *up = buf_random(N, 8, -2, 2);
    for (int a = 0; a < N_ACTS; a++) {
        struct act_case q = {acts[a], N, x, up, up};
        struct sink all = run_everywhere(run_act, &q);
        struct act_case one = {acts[a], 3, x + 12345, up + 12345, up + 12345};
        struct sink alone = run_everywhere(run_act, &one);
        for (int i = 0; i < 5; i++)
            assert_memory_equal(alone.v + 3 * i, all.v + N * i + 12345, 3 * sizeof(float));
        free(all.v);
        free(alone.v);
    }
    bufs_end(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_far),
        cmocka_unit_test(test_position),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

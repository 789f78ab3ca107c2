// Vocabulary-parallel cross-entropy: loss and gradient against double precision and finite
// differences, and the same bits however the vocabulary is cut over ranks.
#include "tests/unit/ops_util.h"

enum { MAX_PIECES = 16 };

struct xent_case {
    int n, v, n_pieces; // of the whole vocabulary
    int ranks;          // who own n_pieces / ranks consecutive pieces each
    float scale;
    const float *logits;
    const int32_t *targets;
};

static int bound(const struct xent_case *q, int p) {
    return (int)((int64_t)q->v * p / q->n_pieces);
}

// The columns [lo, hi) of the logits, contiguous.
static float *columns(const struct xent_case *q, int lo, int hi) {
    float *x = buf_new((size_t)q->n * (size_t)(hi - lo));
    for (int i = 0; i < q->n; i++)
        memcpy(x + (ptrdiff_t)i * (hi - lo), q->logits + (ptrdiff_t)i * q->v + lo,
               (size_t)(hi - lo) * sizeof *x);
    return x;
}

// What the caller's reduction does: level by level over ranks.
static void join(float **part, int ranks, size_t n) {
    for (int width = 1; width < ranks; width *= 2)
        for (int r = 0; r + width < ranks; r += 2 * width)
            for (size_t i = 0; i < n; i++)
                part[r][i] = part[r][i] + part[r + width][i];
}

static void run_xent(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct xent_case *q = arg;
    size_t n = (size_t)q->n;
    int per = q->n_pieces / q->ranks;
    float *part[MAX_PIECES], *sums[MAX_PIECES], *max = buf_new(n), *local = buf_new(n);
    for (size_t i = 0; i < n; i++)
        max[i] = -INFINITY;
    for (int r = 0; r < q->ranks; r++) {
        int lo = bound(q, r * per), hi = bound(q, (r + 1) * per);
        part[r] = columns(q, lo, hi);
        sums[r] = buf_new(2 * n);
        assert_int_equal(ctx->ops->xent_max(ctx, local, part[r], q->n, hi - lo), 0);
        for (size_t i = 0; i < n; i++)
            max[i] = fmaxf(max[i], local[i]);
    }
    for (int r = 0; r < q->ranks; r++) {
        int lo = bound(q, r * per), hi = bound(q, (r + 1) * per), bounds[MAX_PIECES + 1];
        for (int p = 0; p <= per; p++)
            bounds[p] = bound(q, r * per + p) - lo;
        assert_int_equal(ctx->ops->xent_exp(ctx, part[r], sums[r], max, q->targets, bounds, per, lo,
                                            q->n, hi - lo),
                         0);
    }
    join(sums, q->ranks, 2 * n);
    float *loss = buf_new(n), *grad = buf_new(n * (size_t)q->v);
    for (int r = 0; r < q->ranks; r++) {
        int lo = bound(q, r * per), hi = bound(q, (r + 1) * per);
        float *kept = buf_copy(part[r], n * (size_t)(hi - lo));
        assert_int_equal(ctx->ops->xent_loss(ctx, loss, kept, sums[0], q->targets, q->scale, false,
                                             lo, q->n, hi - lo),
                         0);
        assert_memory_equal(kept, part[r], n * (size_t)(hi - lo) * sizeof *kept);
        assert_int_equal(ctx->ops->xent_loss(ctx, loss, part[r], sums[0], q->targets, q->scale,
                                             true, lo, q->n, hi - lo),
                         0);
        for (int i = 0; i < q->n; i++)
            memcpy(grad + (ptrdiff_t)i * q->v + lo, part[r] + (ptrdiff_t)i * (hi - lo),
                   (size_t)(hi - lo) * sizeof *grad);
    }
    emit(out, loss, n);
    emit(out, grad, n * (size_t)q->v);
}

static double exact_loss(const float *logits, int v, int target, int moved, double h) {
    double max = -INFINITY, sum = 0;
    for (int j = 0; j < v; j++)
        max = fmax(max, (double)logits[j]);
    for (int j = 0; j < v; j++)
        sum += exp((double)logits[j] - max + (j == moved ? h : 0));
    return log(sum) + max - (double)logits[target] - (target == moved ? h : 0);
}

// The sum of v positive terms in 16 lanes is off by at most v / 16 + 4 roundings, in fact by their
// square root; the loss is log(sum) - (l - max), each of magnitude up to 30: 30 * 2^-24 each and
// the sum's relative error. A gradient is at most `scale` and carries the same relative errors.
static void check_xent(const struct xent_case *q) {
    struct sink out = run_everywhere(run_xent, q);
    double sum_error = (4 + sqrt((double)q->v / 16)) * 0x1p-24 + 2e-7;
    for (int i = 0; i < q->n; i++) {
        const float *x = q->logits + (ptrdiff_t)i * q->v;
        const float *grad = out.v + q->n + (ptrdiff_t)i * q->v;
        if (q->targets[i] < 0) { // masked
            assert_true(out.v[i] == 0);
            for (int j = 0; j < q->v; j++)
                assert_true(grad[j] == 0);
            continue;
        }
        near((double)out.v[i], exact_loss(x, q->v, q->targets[i], -1, 0), sum_error + 4e-6, "loss",
             (size_t)i);
        int step = q->v > 300 ? q->v / 40 : 1;
        for (int j = q->targets[i] % step; j < q->v; j += step) {
            double h = 1e-5, want = exact_loss(x, q->v, q->targets[i], j, h);
            want = (want - exact_loss(x, q->v, q->targets[i], j, -h)) / (2 * h);
            near((double)grad[j], want * (double)q->scale, (double)q->scale * (sum_error + 4e-6),
                 "gradient", (size_t)(i * q->v + j));
        }
    }
    free(out.v);
}

static struct xent_case new_case(int n, int v, int n_pieces, float range) {
    int32_t *targets = (int32_t *)buf_new((size_t)n);
    uint64_t seed = 5;
    for (int i = 0; i < n; i++)
        targets[i] = i % 5 == 3 ? -100 : (int32_t)(test_u32(&seed) % (uint32_t)v);
    return (struct xent_case){
        n, v, n_pieces, 1, 0.125f, buf_random((size_t)n * (size_t)v, 6, -range, range), targets};
}

static void test_values(void **state) {
    (void)state;
    static const int shapes[][3] = {{0, 7, 1},  {3, 1, 1},    {4, 5, 8},    {6, 16, 2},
                                    {5, 65, 3}, {7, 130, 12}, {9, 1000, 8}, {40, 5021, 8}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct xent_case q = new_case(shapes[s][0], shapes[s][1], shapes[s][2], s % 2 ? 3 : 15);
        check_xent(&q);
        bufs_end(0);
    }
}

// Pieces on 1, 2, 4 or 8 ranks (some with no columns at all): the same loss and gradient.
static void test_ranks(void **state) {
    (void)state;
    static const int widths[] = {3, 77, 900};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++) {
        struct xent_case q = new_case(7, widths[s], 8, 4);
        struct sink one = run_everywhere(run_xent, &q);
        for (q.ranks = 2; q.ranks <= 8; q.ranks *= 2) {
            struct sink many = run_everywhere(run_xent, &q);
            assert_int_equal(many.n, one.n);
            assert_memory_equal(many.v, one.v, one.n * sizeof(float));
            free(many.v);
        }
        free(one.v);
        bufs_end(0);
    }
}

// A row alone is the row in the batch; no columns give max -inf and sums +0.
static void test_position(void **state) {
    (void)state;
    struct xent_case q = new_case(30, 1111, 8, 5), row = q;
    struct sink all = run_everywhere(run_xent, &q);
    row.n = 1;
    row.logits += 17 * 1111;
    row.targets += 17;
    struct sink alone = run_everywhere(run_xent, &row);
    assert_true(alone.v[0] == all.v[17]);
    assert_memory_equal(alone.v + 1, all.v + 30 + 17 * 1111, 1111 * sizeof(float));
    free(all.v);
    free(alone.v);
    bufs_end(0);
    struct tsr_ctx *ctx = &test_ctx[0][0];
    float max[2] = {1, 1}, sums[4] = {1, 1, 1, 1}, finite[2] = {0, 0};
    int32_t targets[2] = {3, -1};
    int bounds[] = {0, 0, 0};
    ctx->ops->xent_max(ctx, max, NULL, 2, 0);
    assert_true(max[0] == -INFINITY && max[1] == -INFINITY);
    ctx->ops->xent_exp(ctx, NULL, sums, finite, targets, bounds, 2, 10, 2, 0);
    for (int i = 0; i < 4; i++)
        assert_true(sums[i] == 0);
}

// A NaN or an infinite logit makes the loss not finite, so that the step is seen to be broken.
static void test_not_finite(void **state) {
    (void)state;
    static const float bad[] = {NAN, INFINITY};
    for (int b = 0; b < 2; b++)
        for (int at = 0; at < 100; at += 33) {
            struct xent_case q = new_case(1, 100, 4, 2);
            ((float *)q.logits)[at] = bad[b];
            struct tsr_ctx *ctx = &test_ctx[0][0];
            float max[1], sums[2], loss[1], *x = buf_copy(q.logits, 100);
            int bounds[] = {0, 25, 50, 75, 100};
            ctx->ops->xent_max(ctx, max, x, 1, 100);
            ctx->ops->xent_exp(ctx, x, sums, max, q.targets, bounds, 4, 0, 1, 100);
            ctx->ops->xent_loss(ctx, loss, x, sums, q.targets, 1, true, 0, 1, 100);
            assert_false(isfinite(loss[0]));
            bufs_end(0);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_ranks),
        cmocka_unit_test(test_position),
        cmocka_unit_test(test_not_finite),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

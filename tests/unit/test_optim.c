// Adds, the tree over buffers, sums of squares and AdamW.
#include "core/pieces.h"
#include "tests/unit/ops_util.h"

enum { MAX_IN = 13 };

struct add_case {
    size_t n;
    int n_in;
    const float *in[MAX_IN];
};

static void run_adds(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct add_case *q = arg;
    float *sum = buf_new(q->n), *tree = buf_new(q->n);
    assert_int_equal(ctx->ops->add(ctx, sum, q->in[0], q->in[1], q->n), 0);
    emit(out, sum, q->n);
    assert_int_equal(ctx->ops->add_f32(ctx, sum, sum, q->in[1], q->n), 0); // out is a
    emit(out, sum, q->n);
    assert_int_equal(ctx->ops->tree_add(ctx, tree, q->in, q->n_in, q->n), 0);
    emit(out, tree, q->n);
    const float *in[MAX_IN];
    memcpy(in, q->in, sizeof in);
    int last = q->n_in - 1;
    float *same = buf_copy(q->in[last], q->n); // out is one of them
    in[last] = same;
    ctx->ops->tree_add(ctx, same, in, q->n_in, q->n);
    assert_memory_equal(same, tree, q->n * sizeof *same);
}

// Level by level, in place; a lone last one rises.
static float naive_tree(float *leaf, int n) {
    for (; n > 1; n = (n + 1) / 2)
        for (int i = 0; i < (n + 1) / 2; i++)
            leaf[i] = 2 * i + 1 < n ? leaf[2 * i] + leaf[2 * i + 1] : leaf[2 * i];
    return leaf[0];
}

static void test_adds(void **state) {
    (void)state;
    static const size_t sizes[] = {0, 1, 16, 77, 30001};
    for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++)
        for (int n_in = 1; n_in <= MAX_IN; n_in++) {
            struct add_case q = {sizes[s], n_in, {NULL}};
            for (int k = 0; k < MAX_IN; k++)
                q.in[k] = buf_random(q.n, (uint64_t)k + 1, -1, 1);
            struct sink out = run_everywhere(run_adds, &q);
            for (size_t i = 0; i < q.n; i++) {
                float leaf[MAX_IN], sum = q.in[0][i] + q.in[1][i];
                for (int k = 0; k < n_in; k++)
                    leaf[k] = q.in[k][i];
                assert_true(out.v[i] == sum && out.v[q.n + i] == sum + q.in[1][i]);
                assert_true(out.v[2 * q.n + i] == naive_tree(leaf, n_in));
            }
            free(out.v);
            bufs_end(0);
            if (q.n > 1000)
                n_in += 3;
        }
}

struct sumsq_case {
    const float *g;
    ptrdiff_t ld;
    const int64_t *bounds;
    int n_blocks;
    int64_t cols;
};

static void run_sumsq(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct sumsq_case *q = arg;
    float *where = buf_new(2 * (size_t)q->n_blocks + 1); // doubles between guard bands
    double sums[8];
    assert_true(q->n_blocks <= 8);
    assert_int_equal(ctx->ops->sumsq(ctx, sums, q->g, q->ld, q->bounds, q->n_blocks, q->cols), 0);
    memcpy(where, sums, (size_t)q->n_blocks * sizeof *sums);
    emit(out, where, 2 * (size_t)q->n_blocks);
}

static double row_of_squares(const float *g, int64_t cols) {
    double lane[16] = {0};
    for (int64_t j = 0; j < cols; j++)
        lane[j % 16] = fma((double)g[j], (double)g[j], lane[j % 16]);
    for (int w = 8; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            lane[i] += lane[i + w];
    return lane[0];
}

// Column j goes to lane j mod 16; lanes in the fixed tree; row after row: equality.
static void test_sumsq(void **state) {
    (void)state;
    static const int64_t bounds[] = {0, 3, 3, 4, 11, 40};
    static const int64_t widths[] = {1, 15, 16, 100, 1000};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++)
        for (int wide = 0; wide < 2; wide++) {
            int64_t cols = widths[s];
            ptrdiff_t ld = cols + (wide ? 9 : 0);
            struct sumsq_case q = {buf_random((size_t)(40 * ld), 1, -1e4f, 1e4f), ld, bounds, 5,
                                   cols};
            struct sink out = run_everywhere(run_sumsq, &q);
            for (int b = 0; b < 5; b++) {
                double sum = 0.0, got;
                for (int64_t i = bounds[b]; i < bounds[b + 1]; i++)
                    sum += row_of_squares(q.g + i * ld, cols);
                memcpy(&got, out.v + 2 * b, sizeof got);
                if (got != sum)
                    fail_msg("block %d: %a, expected %a", b, got, sum);
            }
            free(out.v);
            bufs_end(0);
        }
    struct sumsq_case none = {NULL, 4, bounds, 0, 4};
    struct sink out = run_everywhere(run_sumsq, &none);
    assert_int_equal(out.n, 0);
    free(out.v);
}

struct adamw_case {
    struct tsr_adamw p;
    int64_t rows, cols;
    ptrdiff_t ldw, ldg;
    const float *w, *m, *v, *g;
};

static void run_adamw(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct adamw_case *q = arg;
    size_t n = (size_t)(q->rows * q->cols), nw = (size_t)(q->rows * q->ldw);
    float *w = buf_copy(q->w, nw), *m = buf_copy(q->m, n), *v = buf_copy(q->v, n);
    assert_int_equal(
        ctx->ops->adamw(ctx, &q->p, w, q->ldw, m, v, q->g, q->ldg, q->rows, q->cols, NULL), 0);
    emit(out, w, nw);
    emit(out, m, n);
    emit(out, v, n);
}

// torch.optim.AdamW in double: relative to the terms, a handful of roundings each.
static void check_adamw(const struct adamw_case *q) {
    struct sink out = run_everywhere(run_adamw, q);
    const struct tsr_adamw *p = &q->p;
    const float *gm = out.v + q->rows * q->ldw, *gv = gm + q->rows * q->cols;
    const double b1 = 0.9, b2 = 0.999, lr = (double)p->lr; // as the user wrote them
    for (int64_t i = 0; i < q->rows; i++)
        for (int64_t j = 0; j < q->ldw; j++) {
            int64_t k = i * q->cols + j;
            double w = (double)q->w[i * q->ldw + j];
            if (j >= q->cols) { // between the rows nothing is touched
                assert_true(out.v[i * q->ldw + j] == q->w[i * q->ldw + j]);
                continue;
            }
            double g = (double)q->g[i * q->ldg + j] * (double)p->grad_scale;
            double m0 = (double)q->m[k], v0 = (double)q->v[k];
            double m = b1 * m0 + (1 - b1) * g, v = b2 * v0 + (1 - b2) * g * g;
            double update = m / (double)p->bias1;
            update = lr * update / (sqrt(v) / (double)p->bias2_sqrt + (double)p->eps);
            near((double)gm[k], m, 3e-7 * (fabs(m0) + fabs(g)), "m", (size_t)k);
            near((double)gv[k], v, 4e-7 * (v0 + g * g), "v", (size_t)k);
            double size = fabs(update) * (1 + (fabs(m0) + fabs(g)) / fmax(fabs(m), 1e-30));
            near((double)out.v[i * q->ldw + j], w * (1 - lr * (double)p->weight_decay) - update,
                 2e-7 * fabs(w) + 1e-6 * size, "w", (size_t)k);
        }
    free(out.v);
}

static void test_adamw(void **state) {
    (void)state;
    static const int64_t shapes[][2] = {{0, 5}, {1, 1}, {3, 16}, {5, 33}, {40, 700}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++)
        for (int first = 0; first < 2; first++)
            for (int gap = 0; gap < 8; gap += 7) {
                struct adamw_case q = {.rows = shapes[s][0], .cols = shapes[s][1]};
                int t = first ? 1 : 50;
                q.ldw = q.cols + gap;
                q.ldg = q.cols + gap / 2;
                q.p = (struct tsr_adamw){.lr = 1e-3f,
                                         .beta1 = 0.9f,
                                         .beta2 = 0.999f,
                                         .rest1 = (float)(1 - 0.9),
                                         .rest2 = (float)(1 - 0.999),
                                         .eps = 1e-8f,
                                         .weight_decay = 0.1f,
                                         .bias1 = (float)(1 - pow(0.9, t)),
                                         .bias2_sqrt = (float)sqrt(1 - pow(0.999, t)),
                                         .grad_scale = 0.7f};
                size_t n = (size_t)(q.rows * q.cols);
                q.w = buf_random((size_t)(q.rows * q.ldw), 1, -1, 1);
                q.g = buf_random((size_t)(q.rows * q.ldg), 2, -1e-2f, 1e-2f);
                q.m = buf_random(n, 3, first ? 0 : -1e-2f, first ? 0 : 1e-2f);
                q.v = buf_random(n, 4, 0, first ? 0 : 1e-4f);
                check_adamw(&q);
                bufs_end(0);
            }
}

// No gradient, no decay: the weight stays, and 0 / (0 + eps) is no trouble. Rows of a slice get
// the bits that they get in the whole.
static void test_adamw_invariance(void **state) {
    (void)state;
    float w[3] = {1, -2, 0}, m[3] = {0}, v[3] = {0}, g[3] = {0};
    struct tsr_adamw p = {0.1f, 0.9f, 0.95f, 1e-8f, 0, 0.1f, 0.05f, 0.1f, 0.2f, 1, NULL};
    struct tsr_ctx *ctx = &test_ctx[0][0];
    assert_int_equal(ctx->ops->adamw(ctx, &p, w, 3, m, v, g, 3, 1, 3, NULL), 0);
    assert_true(w[0] == 1 && w[1] == -2 && w[2] == 0 && m[0] == 0 && v[2] == 0);
    struct adamw_case q = {{1e-2f, 0.9f, 0.95f, 1e-8f, 0.1f, 0.1f, 0.05f, 0.5f, 0.6f, 1, NULL},
                           30,
                           90,
                           90,
                           90,
                           buf_random(2700, 1, -1, 1),
                           buf_random(2700, 2, -1, 1),
                           buf_random(2700, 3, 0, 1),
                           buf_random(2700, 4, -1, 1)};
    struct sink all = run_everywhere(run_adamw, &q);
    struct adamw_case part = q;
    part.rows = 4;
    part.w += 11 * 90;
    part.m += 11 * 90;
    part.v += 11 * 90;
    part.g += 11 * 90;
    struct sink alone = run_everywhere(run_adamw, &part);
    for (int k = 0; k < 3; k++)
        assert_memory_equal(alone.v + k * 360, all.v + k * 2700 + 990, 360 * sizeof(float));
    free(all.v);
    free(alone.v);
    bufs_end(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_adds),
        cmocka_unit_test(test_sumsq),
        cmocka_unit_test(test_adamw),
        cmocka_unit_test(test_adamw_invariance),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

// Rotary positions against the rotation in double, and as the orthogonal map that it is.
#include "tests/unit/ops_util.h"

enum { MAX_POS = 50 };

struct rotary_case {
    int n, heads, d;
    ptrdiff_t ld;
    const float *x, *cos_sin;
    const int32_t *pos;
};

static size_t size_of(const struct rotary_case *q) {
    return (size_t)q->n * (size_t)q->ld;
}

static void run_rotary(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct rotary_case *q = arg;
    float *there = buf_copy(q->x, size_of(q)), *back = buf_copy(q->x, size_of(q));
    assert_int_equal(
        ctx->ops->rotary(ctx, there, q->ld, q->pos, q->cos_sin, q->n, q->heads, q->d, false), 0);
    assert_int_equal(
        ctx->ops->rotary(ctx, back, q->ld, q->pos, q->cos_sin, q->n, q->heads, q->d, true), 0);
    emit(out, there, size_of(q));
    emit(out, back, size_of(q));
}

static struct rotary_case new_case(int n, int heads, int d, ptrdiff_t ld) {
    struct rotary_case q = {.n = n, .heads = heads, .d = d, .ld = ld};
    float *table = buf_new((size_t)(MAX_POS * d));
    for (int p = 0; p < MAX_POS; p++)
        for (int k = 0; k < d / 2; k++) {
            double angle = p * pow(10000.0, -2.0 * k / d);
            table[(p * (d / 2) + k) * 2] = (float)cos(angle);
            table[(p * (d / 2) + k) * 2 + 1] = (float)sin(angle);
        }
    int32_t *pos = (int32_t *)buf_new((size_t)n);
    for (int i = 0; i < n; i++)
        pos[i] = (i * 7 + 3) % MAX_POS;
    q.x = buf_random(size_of(&q), 1, -1, 1);
    q.cos_sin = table;
    q.pos = pos;
    return q;
}

// Two products and a sum of numbers up to 1: three roundings, 2e-7. The complex product with
// e^(i angle) is the formula's source.
static void check_rotary(const struct rotary_case *q) {
    struct sink out = run_everywhere(run_rotary, q);
    for (int i = 0; i < q->n; i++)
        for (int c = 0; c < q->ld; c++) {
            size_t at = (size_t)(i * q->ld + c);
            int k = c % q->d, half = q->d / 2;
            if (c >= q->heads * q->d) { // beyond the heads nothing is touched
                assert_true(out.v[at] == q->x[at]);
                continue;
            }
            double sign = k < half ? -1 : 1;
            double other = (double)q->x[k < half ? at + (size_t)half : at - (size_t)half];
            const float *cs = q->cos_sin + (q->pos[i] * half + k % half) * 2;
            double keep = (double)q->x[at] * (double)cs[0], turn = other * (double)cs[1];
            near((double)out.v[at], keep + sign * turn, 2e-7, "rotated", at);
            near((double)out.v[size_of(q) + at], keep - sign * turn, 2e-7, "inverse", at);
        }
    free(out.v);
}

static void test_values(void **state) {
    (void)state;
    static const int shapes[][4] = {{1, 1, 2, 2},    {3, 2, 6, 12},   {5, 3, 16, 50},
                                    {4, 2, 32, 64},  {2, 1, 34, 34},  {7, 5, 64, 330},
                                    {0, 2, 64, 128}, {60, 9, 64, 600}};
    for (size_t s = 0; s < sizeof shapes / sizeof *shapes; s++) {
        struct rotary_case q = new_case(shapes[s][0], shapes[s][1], shapes[s][2], shapes[s][3]);
        check_rotary(&q);
        bufs_end(0);
    }
}

// The inverse undoes the rotation, and <R x, y> = <x, R' y>: it is the backward.
static void test_adjoint(void **state) {
    (void)state;
    struct rotary_case q = new_case(9, 3, 20, 60), r = q;
    struct sink out = run_everywhere(run_rotary, &q);
    r.x = out.v;
    struct sink again = run_everywhere(run_rotary, &r);
    for (size_t k = 0; k < size_of(&q); k++)
        near((double)again.v[size_of(&q) + k], (double)q.x[k], 4e-7, "round trip", k);
    r.x = buf_random(size_of(&q), 77, -1, 1);
    struct sink y = run_everywhere(run_rotary, &r);
    double left = 0, right = 0;
    for (size_t k = 0; k < size_of(&q); k++) {
        left += (double)out.v[k] * (double)r.x[k];
        right += (double)q.x[k] * (double)y.v[size_of(&q) + k];
    }
    near(left, right, 1e-5, "adjoint", 0);
    free(out.v);
    free(again.v);
    free(y.v);
    bufs_end(0);
}

// A row's result depends on its position in the sequence, not in the batch.
static void test_position(void **state) {
    (void)state;
    struct rotary_case q = new_case(60, 9, 64, 9 * 64), one = q;
    struct sink all = run_everywhere(run_rotary, &q);
    one.n = 1;
    one.x += 41 * q.ld;
    one.pos += 41;
    struct sink alone = run_everywhere(run_rotary, &one);
    assert_memory_equal(alone.v, all.v + 41 * q.ld, (size_t)q.ld * sizeof(float));
    free(all.v);
    free(alone.v);
    bufs_end(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_adjoint),
        cmocka_unit_test(test_position),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

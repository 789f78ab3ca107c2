// Embeddings in both directions, against plain loops: order is part of the contract, so equality.
#include "tests/unit/ops_util.h"

struct embed_case {
    int n, c, row0, n_table, n_rows, n_chains;
    const int32_t *ids, *pos;
    const struct tsr_rows *rows;
    const float *table, *dx, *start;
};

static void run_embed(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct embed_case *q = arg;
    size_t all = (size_t)q->n * (size_t)q->c, size = (size_t)q->n_table * (size_t)q->c;
    float *x = buf_new(all), *dtable = buf_copy(q->start, size);
    assert_int_equal(ctx->ops->embedding(ctx, x, q->ids, q->table, q->row0, q->n_table, q->n, q->c),
                     0);
    emit(out, x, all);
    assert_int_equal(ctx->ops->position(ctx, x, q->pos, q->table, q->n, q->c), 0);
    emit(out, x, all);
    assert_int_equal(ctx->ops->embedding_bwd(ctx, dtable, q->ids, q->dx, q->rows, q->n_rows,
                                             q->n_chains, q->row0, q->n_table, q->c),
                     0);
    emit(out, dtable, size);
}

// Level by level, in place; a lone last one rises.
static float naive_tree(float *leaf, int n) {
    for (; n > 1; n = (n + 1) / 2)
        for (int i = 0; i < (n + 1) / 2; i++)
            leaf[i] = 2 * i + 1 < n ? leaf[2 * i] + leaf[2 * i + 1] : leaf[2 * i];
    return leaf[0];
}

static bool is_here(const struct embed_case *q, int id) {
    return id >= q->row0 && id < q->row0 + q->n_table;
}

static float naive_bwd(const struct embed_case *q, int row, int j) {
    float leaf[64] = {0}, old = q->start[row * q->c + j];
    if (q->n_chains == 1)
        leaf[0] = old;
    for (int r = 0; r < q->n_rows; r++)
        for (int i = q->rows[r].row; i < q->rows[r].row + q->rows[r].n; i++)
            if (q->ids[i] - q->row0 == row)
                leaf[q->rows[r].chain] += q->dx[i * q->c + j];
    return q->n_chains == 1 ? leaf[0] : old + naive_tree(leaf, q->n_chains);
}

static void check_embed(const struct embed_case *q) {
    struct sink out = run_everywhere(run_embed, q);
    size_t all = (size_t)q->n * (size_t)q->c;
    for (int i = 0; i < q->n; i++)
        for (int j = 0; j < q->c; j++) {
            size_t k = (size_t)(i * q->c + j);
            float x =
                is_here(q, q->ids[i]) ? q->table[(q->ids[i] - q->row0) * q->c + j] + 0.0f : 0.0f;
            assert_memory_equal(&out.v[k], &x, sizeof x); // -0 comes out as +0
            x += q->table[q->pos[i] * q->c + j];
            assert_true(out.v[all + k] == x);
        }
    for (int row = 0; row < q->n_table; row++)
        for (int j = 0; j < q->c; j++) {
            float want = naive_bwd(q, row, j), got = out.v[2 * all + (size_t)(row * q->c + j)];
            if (got != want)
                fail_msg("dtable(%d, %d): %a, expected %a", row, j, (double)got, (double)want);
        }
    free(out.v);
}

static struct embed_case new_case(int n, int c, int n_table, int row0) {
    struct embed_case q = {.n = n, .c = c, .row0 = row0, .n_table = n_table};
    int32_t *ids = (int32_t *)buf_new((size_t)n), *pos = (int32_t *)buf_new((size_t)n);
    uint64_t seed = 3;
    for (int i = 0; i < n; i++) { // a third of the ids lie before or after the rows held here
        ids[i] = row0 - n_table / 4 + (int)(test_u32(&seed) % (uint32_t)(n_table * 3 / 2 + 1));
        pos[i] = (int)(test_u32(&seed) % (uint32_t)n_table);
    }
    float *table = buf_random((size_t)(n_table * c), 1, -1, 1);
    table[0] = -0.0f;
    q.ids = ids;
    q.pos = pos;
    q.table = table;
    q.dx = buf_random((size_t)(n * c), 2, -1, 1);
    q.start = buf_random((size_t)(n_table * c), 4, -1, 1);
    return q;
}

static void test_values(void **state) {
    (void)state;
    static const int widths[] = {1, 15, 16, 50, 64, 200};
    for (size_t s = 0; s < sizeof widths / sizeof *widths; s++) {
        struct embed_case q = new_case(90, widths[s], 23, 7);
        struct tsr_rows one[] = {{0, 40, 0}, {50, 40, 0}};
        q.rows = one;
        q.n_rows = 2;
        q.n_chains = 1;
        check_embed(&q);
        static const int counts[] = {2, 3, 7, 8, 12};
        for (size_t k = 0; k < sizeof counts / sizeof *counts; k++) {
            struct tsr_rows rows[30];
            for (int r = 0; r < 30; r++) // chains take turns, as pieces of several sequences do
                rows[r] = (struct tsr_rows){3 * r, r % 4 == 1 ? 0 : 3, r % counts[k]};
            q.rows = rows;
            q.n_rows = 30;
            q.n_chains = counts[k];
            check_embed(&q);
        }
        q.n_rows = 0;
        check_embed(&q);
        bufs_end(0);
    }
}

// A long run with few table rows: long chains, every thread busy.
static void test_long(void **state) {
    (void)state;
    struct embed_case q = new_case(700, 300, 5, 0);
    struct tsr_rows rows[] = {{0, 300, 0}, {300, 300, 2}, {600, 100, 0}};
    q.rows = rows;
    q.n_rows = 3;
    q.n_chains = 3;
    check_embed(&q);
    bufs_end(0);
}

// <dx, embedding(W)> = <embedding_bwd(dx), W>: backward is the transpose.
static void test_adjoint(void **state) {
    (void)state;
    struct embed_case q = new_case(60, 33, 20, 0);
    struct tsr_rows rows[] = {{0, 60, 0}};
    memset((void *)q.start, 0, 20 * 33 * sizeof(float));
    q.rows = rows;
    q.n_rows = q.n_chains = 1;
    struct sink out = run_everywhere(run_embed, &q);
    double forward = 0, backward = 0;
    for (int k = 0; k < 60 * 33; k++)
        forward += (double)out.v[k] * (double)q.dx[k];
    for (int k = 0; k < 20 * 33; k++)
        backward += (double)out.v[2 * 60 * 33 + k] * (double)q.table[k];
    near(backward, forward, 1e-5 * (1 + fabs(forward)), "adjoint", 0);
    free(out.v);
    bufs_end(0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_values),
        cmocka_unit_test(test_long),
        cmocka_unit_test(test_adjoint),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

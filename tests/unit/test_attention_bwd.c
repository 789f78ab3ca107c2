// Block-wise attention, backward: against a naive model that is itself checked by finite
// differences, and equal in every bit wherever docs say so.
#include "tests/unit/attention_ref.h"

enum { MAX_SLOTS = 8 };

struct bwd_shape {
    struct shape s;
    int n_slots;
    struct tsr_kv_slot slots[MAX_SLOTS];
};

static const struct bwd_shape shapes[] = {
    {{.nq = 1, .nkv = 1, .group = 1, .head_dim = 64, .n_segs = 1, .length = {1}},
     1,
     {{0, 1, 0, 0}}},
    {{.nq = 4, .nkv = 4, .group = 1, .head_dim = 10, .n_segs = 4, .length = {15, 16, 17, 1}},
     4,
     {{0, 1, 0, 0}, {1, 1, 1, 1}, {2, 1, 2, 2}, {3, 1, 3, 3}}},
    {{.nq = 5, .nkv = 1, .group = 5, .head_dim = 24, .n_segs = 3, .length = {63, 64, 65}},
     3,
     {{0, 2, 0, 0}, {2, 2, 0, 1}, {4, 1, 0, 2}}},
    {{.nq = 9, .nkv = 3, .group = 3, .head_dim = 64, .n_segs = 1, .length = {127}},
     4,
     {{0, 2, 0, 0}, {2, 1, 0, 1}, {3, 3, 1, 1}, {6, 3, 2, 2}}},
    {{.nq = 2, .nkv = 1, .group = 2, .head_dim = 80, .n_segs = 1, .length = {200}},
     1,
     {{0, 2, 0, 0}}},
    {{.nq = 1, .nkv = 1, .group = 1, .head_dim = 128, .n_segs = 2, .length = {66, 3}},
     2,
     {{0, 1, 0, 0}, {1, 0, 0, 1}}},
    {{.nq = 1, .nkv = 1, .group = 1, .head_dim = 256, .n_segs = 1, .length = {18}},
     1,
     {{0, 1, 0, 0}}},
    {{.nq = 3, .nkv = 1, .group = 3, .head_dim = 16, .window = 1, .n_segs = 1, .length = {70}},
     1,
     {{0, 3, 0, 0}}},
    {{.nq = 2,
      .nkv = 2,
      .group = 1,
      .head_dim = 24,
      .window = 20,
      .n_segs = 2,
      .length = {150, 30}},
     2,
     {{0, 1, 0, 0}, {1, 1, 1, 0}}},
    {{.nq = 1, .nkv = 1, .group = 1, .head_dim = 16, .window = 100, .n_segs = 1, .length = {200}},
     1,
     {{0, 1, 0, 0}}},
    {{.nq = 4,
      .nkv = 2,
      .group = 2,
      .head_dim = 16,
      .drop = 0.25f,
      .n_segs = 3,
      .length = {66, 1, 33}},
     3,
     {{0, 1, 0, 0}, {1, 1, 0, 1}, {2, 2, 1, 1}}},
    {{.nq = 1,
      .nkv = 1,
      .group = 1,
      .head_dim = 16,
      .drop = 0.9f,
      .window = 9,
      .n_segs = 2,
      .length = {80, 21},
      .position = {0, 61}},
     1,
     {{0, 1, 0, 0}}},
    {{.nq = 2,
      .nkv = 1,
      .group = 2,
      .head_dim = 32,
      .n_segs = 3,
      .length = {0, 100, 29},
      .position = {5, 37, 64}},
     2,
     {{0, 1, 0, 0}, {1, 1, 0, 1}}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

struct grads {
    struct array dq, dk, dv;
};

static struct grads grads_new(const struct problem *p, int n_slots) {
    size_t rows = (size_t)p->a.n_tokens;
    struct grads g = {.dq = array_new(rows * (size_t)p->a.ldq)};
    g.dk = array_new(rows * (size_t)n_slots * (size_t)p->a.head_dim);
    g.dv = array_new(g.dk.n);
    return g;
}

static void grads_free(struct grads *g) {
    array_free(&g->dq);
    array_free(&g->dk);
    array_free(&g->dv);
}

static void assert_same_grads(const struct grads *a, const struct grads *b) {
    assert_same(&a->dq, &b->dq);
    assert_same(&a->dk, &b->dk);
    assert_same(&a->dv, &b->dv);
}

static void backward(struct tsr_ctx *ctx, const struct problem *p, const struct tsr_kv_slot *slots,
                     int n_slots, struct grads *g) {
    assert_int_equal(ctx->ops->attention_bwd(ctx, &p->a, slots, n_slots, g->dq.p, g->dk.p, g->dv.p,
                                             p->d_o.p, p->o.p, p->lse.p, p->q.p, p->k.p, p->v.p),
                     0);
}

// Forward and backward on one instruction set; *p and *g are new. False: this CPU lacks it.
static bool run(const char *isa, int threads, const struct bwd_shape *s, struct problem **p,
                struct grads *g) {
    struct tsr_ctx ctx;
    if (!open_isa(&ctx, isa, threads))
        return false;
    *p = problem_new(&s->s);
    *g = grads_new(*p, s->n_slots);
    forward(&ctx, *p);
    backward(&ctx, *p, s->slots, s->n_slots, g);
    ctx.ops->close(&ctx);
    return true;
}

// A tensor's elements have rounding errors of about eps times a chain's length' root times the
// largest terms; with values in [-1, 1) that is a share of the largest element. Where dP - D
// cancels, the rounding of these two, of about eps |dO| |v| < eps D / 3, is left.
static void assert_near(const char *name, const double *want, const float *got, ptrdiff_t ld,
                        int rows, int cols, double tol) {
    double most = 0;
    for (int i = 0; i < rows * cols; i++)
        most = fmax(most, fabs(want[i]));
    for (int i = 0; i < rows; i++) {
        for (int c = 0; c < cols; c++) {
            double x = (double)got[i * ld + c], y = want[i * cols + c];
            if (!(fabs(x - y) <= tol * most + 0x1p-24 * cols))
                fail_msg("%s(%d, %d) of %d x %d: %.9g, expected %.9g", name, i, c, rows, cols, x,
                         y);
        }
    }
}

static void check_segment(const struct bwd_shape *s, const struct problem *p,
                          const struct tsr_segment *seg, const struct grads *g) {
    int dim = p->a.head_dim, length = seg->length;
    size_t n = (size_t)(length * dim);
    double *dq = malloc(n * sizeof *dq), *dk = malloc(n * sizeof *dk), *dv = malloc(n * sizeof *dv);
    assert_true(dq != NULL && dk != NULL && dv != NULL);
    double tol = 0x1p-24 * (16 + 4 * sqrt(dim) + 4 * sqrt(length)) / (1 - (double)s->s.drop);
    for (int i = 0; i < s->n_slots; i++) {
        memset(dk, 0, n * sizeof *dk);
        memset(dv, 0, n * sizeof *dv);
        for (int h = s->slots[i].q; h < s->slots[i].q + s->slots[i].n; h++) {
            struct naive head = {&p->a, seg, h, p->q.p, p->k.p, p->v.p};
            memset(dq, 0, n * sizeof *dq);
            naive_backward(&head, p->d_o.p, dq, dk, dv);
            assert_near("dq", dq, g->dq.p + seg->start * p->a.ldq + h * dim, p->a.ldq, length, dim,
                        tol);
        }
        ptrdiff_t ld = (ptrdiff_t)s->n_slots * dim, at = seg->start * ld + i * dim;
        assert_near("dk", dk, g->dk.p + at, ld, length, dim, tol);
        assert_near("dv", dv, g->dv.p + at, ld, length, dim, tol);
    }
    free(dq);
    free(dk);
    free(dv);
}

// Rows without a segment and padding columns are still guards.
static void check_untouched(const struct bwd_shape *s, const struct problem *p,
                            const struct grads *g) {
    size_t ldq = (size_t)p->a.ldq, ldk = (size_t)(s->n_slots * p->a.head_dim);
    for (size_t t = 0; t < (size_t)p->a.n_tokens; t++) {
        bool used = false;
        for (int i = 0; i < p->a.n_segs; i++)
            used |= (int)t >= p->segs[i].start && (int)t < p->segs[i].start + p->segs[i].length;
        for (size_t c = used ? ldq - PAD : 0; c < ldq; c++)
            assert_true(is_guard(g->dq.p[t * ldq + c]));
        for (size_t c = 0; c < ldk; c++) {
            assert_int_equal(is_guard(g->dk.p[t * ldk + c]), !used);
            assert_int_equal(is_guard(g->dv.p[t * ldk + c]), !used);
        }
    }
}

static void agrees_with_the_naive_model(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        struct problem *p;
        struct grads g;
        assert_true(run(NULL, 1 + i % 2, &shapes[i], &p, &g));
        for (int s = 0; s < p->a.n_segs; s++)
            check_segment(&shapes[i], p, &p->segs[s], &g);
        check_untouched(&shapes[i], p, &g);
        grads_free(&g);
        problem_free(p);
    }
}

static void naive_model_agrees_with_finite_differences(void **state) {
    (void)state;
    struct shape s = {.nq = 1,
                      .nkv = 1,
                      .group = 1,
                      .head_dim = 6,
                      .window = 7,
                      .drop = 0.3f,
                      .n_segs = 1,
                      .length = {11}};
    struct problem *p = problem_new(&s);
    struct naive n = {&p->a, &p->segs[0], 0, p->q.p, p->k.p, p->v.p};
    double grad[3][66] = {{0}};
    naive_backward(&n, p->d_o.p, grad[0], grad[1], grad[2]);
    struct array *x[] = {&p->q, &p->k, &p->v};
    for (int which = 0; which < 3; which++) {
        for (int i = 0; i < 66; i++) {
            float *at = x[which]->p + (1 + i / 6) * (6 + PAD) + i % 6, was = *at;
            *at = was + 0x1p-10f; // exact: was is a multiple of 2^-23
            double up = naive_loss(&n, p->d_o.p);
            *at = was - 0x1p-10f;
            double slope = (up - naive_loss(&n, p->d_o.p)) * 0x1p9;
            *at = was;
            assert_true(fabs(slope - grad[which][i]) <= 2e-6); // error of order 2^-20
        }
    }
    problem_free(p);
}

static void is_equal_on_every_isa_and_thread_count(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        struct problem *plain, *p;
        struct grads expected, g;
        assert_true(run(isas[0], 1 + i % 3, &shapes[i], &plain, &expected));
        for (int isa = 1; isa < 3; isa++) {
            if (!run(isas[isa], 1 + (isa + i) % 3, &shapes[i], &p, &g))
                continue;
            assert_same_grads(&expected, &g);
            grads_free(&g);
            problem_free(p);
        }
        grads_free(&expected);
        problem_free(plain);
    }
}

// One long head on several threads goes by blocks; on one thread all at once.
static void threads_do_not_matter(void **state) {
    (void)state;
    struct bwd_shape s = {{.nq = 2,
                           .nkv = 1,
                           .group = 2,
                           .head_dim = 32,
                           .n_segs = 2,
                           .length = {500, 40},
                           .position = {30, 0}},
                          1,
                          {{0, 2, 0, 0}}};
    for (int window = 0; window <= 150; window += 75) {
        struct problem *p[3];
        struct grads g[3];
        s.s.window = window;
        for (int i = 0; i < 3; i++) {
            assert_true(run(NULL, i + 1, &s, &p[i], &g[i]));
            assert_same_grads(&g[0], &g[i]);
        }
        for (int i = 0; i < 3; i++) {
            problem_free(p[i]);
            grads_free(&g[i]);
        }
    }
}

// Segments one by one, and slots dealt to two ranks that hold different heads.
static void neighbours_do_not_matter(void **state) {
    (void)state;
    struct bwd_shape s = {{.nq = 9,
                           .nkv = 3,
                           .group = 3,
                           .head_dim = 24,
                           .drop = 0.1f,
                           .n_segs = 3,
                           .length = {70, 5, 129}},
                          4,
                          {{0, 3, 0, 0}, {3, 1, 1, 0}, {4, 2, 1, 1}, {6, 3, 2, 1}}};
    const struct tsr_kv_slot second[] = {{0, 2, 0, 0}, {2, 3, 1, 0}}; // from query head 4 on
    struct problem *p;
    struct grads whole;
    struct tsr_ctx ctx;
    assert_true(run(NULL, 2, &s, &p, &whole));
    assert_true(open_isa(&ctx, NULL, 2));
    int dim = s.s.head_dim;
    struct grads g = grads_new(p, 2), all = grads_new(p, 4);
    for (int i = 0; i < 3; i++) {
        for (int share = 0; share < 2; share++) {
            struct problem part = *p;
            part.a.segs = &p->segs[i];
            part.a.n_segs = 1;
            part.a.q0 = share * 4;
            part.a.nq = share == 0 ? 4 : 5;
            part.a.kv0 = share;
            part.a.nkv = 2;
            part.q.p += part.a.q0 * dim;
            part.o.p += part.a.q0 * dim;
            part.d_o.p += part.a.q0 * dim;
            part.lse.p += part.a.q0 * p->a.n_tokens;
            part.k.p += share * dim;
            part.v.p += share * dim;
            struct grads view = {{NULL, all.dq.p + part.a.q0 * dim, 0}, g.dk, g.dv};
            backward(&ctx, &part, share == 0 ? s.slots : second, 2, &view);
            for (int t = p->segs[i].start; t < p->segs[i].start + p->segs[i].length; t++) {
                size_t bytes = (size_t)(2 * dim) * sizeof(float);
                memcpy(all.dk.p + (t * 4 + share * 2) * dim, g.dk.p + t * 2 * dim, bytes);
                memcpy(all.dv.p + (t * 4 + share * 2) * dim, g.dv.p + t * 2 * dim, bytes);
            }
        }
    }
    assert_same_grads(&whole, &all);
    ctx.ops->close(&ctx);
    problem_free(p);
    grads_free(&whole);
    grads_free(&g);
    grads_free(&all);
}

// Query i that doesn't see key j may hold anything without touching dk(j) and dv(j), and key j
// without touching dq(i).
static void masked_nan_does_not_leak(void **state) {
    (void)state;
    enum { T = 130, W = 33, D = 24 };
    struct bwd_shape s = {
        {.nq = 2, .nkv = 1, .group = 2, .head_dim = D, .window = W, .n_segs = 1, .length = {T}},
        1,
        {{0, 2, 0, 0}}};
    struct problem *p;
    struct grads clean;
    struct tsr_ctx ctx;
    assert_true(run(NULL, 1, &s, &p, &clean));
    assert_true(open_isa(&ctx, NULL, 1));
    for (int bad = 0; bad < T; bad += 43) {
        struct problem *n = problem_new(&s.s);
        struct grads g = grads_new(p, 1);
        for (int d = 0; d < 2 * D; d++) // only query `bad` of both heads
            n->d_o.p[(1 + bad) * p->a.ldo + d] = d % 2 == 0 ? NAN : INFINITY;
        forward(&ctx, n);
        backward(&ctx, n, s.slots, 1, &g);
        for (int t = 0; t < T; t++) {
            ptrdiff_t q = (1 + t) * p->a.ldq, k = (1 + t) * D;
            bool seen = t <= bad && t > bad - W;
            assert_int_equal(memcmp(g.dq.p + q, clean.dq.p + q, 2 * D * sizeof(float)) == 0,
                             t != bad);
            assert_int_equal(memcmp(g.dk.p + k, clean.dk.p + k, D * sizeof(float)) == 0, !seen);
            assert_int_equal(memcmp(g.dv.p + k, clean.dv.p + k, D * sizeof(float)) == 0, !seen);
        }
        for (int d = 0; d < D; d++)
            n->k.p[(1 + bad) * p->a.ldk + d] = n->v.p[(1 + bad) * p->a.ldv + d] = NAN;
        backward(&ctx, n, s.slots, 1, &g);
        for (int t = 0; t < T; t++) {
            ptrdiff_t q = (1 + t) * p->a.ldq;
            bool sees = t >= bad && t < bad + W;
            assert_int_equal(memcmp(g.dq.p + q, clean.dq.p + q, 2 * D * sizeof(float)) == 0, !sees);
        }
        problem_free(n);
        grads_free(&g);
    }
    ctx.ops->close(&ctx);
    problem_free(p);
    grads_free(&clean);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_naive_model),
        cmocka_unit_test(naive_model_agrees_with_finite_differences),
        cmocka_unit_test(is_equal_on_every_isa_and_thread_count),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(neighbours_do_not_matter),
        cmocka_unit_test(masked_nan_does_not_leak),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

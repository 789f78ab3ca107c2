// Block-wise attention, forward: against a naive model, and equal in every bit wherever docs say
// so (instruction set, threads, neighbours, how a sequence is cut, where its keys are kept).
#include "tests/unit/attention_ref.h"

static const struct shape shapes[] = {
    {.nq = 1, .nkv = 1, .group = 1, .head_dim = 64, .n_segs = 1, .length = {1}},
    {.nq = 4, .nkv = 4, .group = 1, .head_dim = 10, .n_segs = 4, .length = {15, 16, 17, 1}},
    {.nq = 5, .nkv = 1, .group = 5, .head_dim = 24, .n_segs = 3, .length = {63, 64, 65}},
    {.nq = 9, .nkv = 3, .group = 3, .head_dim = 64, .n_segs = 2, .length = {127, 40}},
    {.nq = 2, .nkv = 1, .group = 2, .head_dim = 80, .n_segs = 1, .length = {200}},
    {.nq = 2, .nkv = 2, .group = 1, .head_dim = 128, .n_segs = 2, .length = {66, 3}},
    {.nq = 1, .nkv = 1, .group = 1, .head_dim = 256, .n_segs = 1, .length = {18}},
    {.nq = 2, .nkv = 1, .group = 2, .head_dim = 2, .n_segs = 1, .length = {70}},
    {.nq = 3, .nkv = 1, .group = 3, .head_dim = 16, .window = 1, .n_segs = 1, .length = {70}},
    {.nq = 2, .nkv = 2, .group = 1, .head_dim = 24, .window = 20, .n_segs = 2, .length = {150, 30}},
    {.nq = 2, .nkv = 1, .group = 2, .head_dim = 16, .window = 100, .n_segs = 1, .length = {200}},
    {.nq = 4,
     .nkv = 2,
     .group = 2,
     .head_dim = 16,
     .drop = 0.25f,
     .n_segs = 3,
     .length = {66, 1, 33}},
    {.nq = 1,
     .nkv = 1,
     .group = 1,
     .head_dim = 16,
     .drop = 0.9f,
     .window = 9,
     .n_segs = 2,
     .length = {80, 21},
     .position = {0, 61}},
    {.nq = 2,
     .nkv = 1,
     .group = 2,
     .head_dim = 32,
     .n_segs = 3,
     .length = {0, 100, 29},
     .position = {5, 37, 64}},
};
enum { N_SHAPES = sizeof shapes / sizeof *shapes };

// Rounding moves a score by about eps sqrt(D) scale |q| |k| < eps D^(1/2) sqrt(D) / 3, a weight by
// that plus e^x's ulp, and sums over T weights (values up to 1 / (1 - p)) add eps sqrt(T).
static double tolerance(const struct shape *s, int length) {
    double eps = 0x1p-24;
    return eps * (4 + s->head_dim / 3.0 + 2 * sqrt(length)) / (1 - (double)s->drop);
}

static void check_head(const struct shape *s, const struct problem *p, const struct naive *n) {
    double *w = malloc((size_t)n->seg->length * sizeof *w + 1);
    assert_non_null(w);
    double tol = tolerance(s, n->seg->length);
    for (int i = 0; i < n->seg->length; i++) {
        int token = n->seg->start + i;
        double lse = naive_row(n, i, w), got = (double)p->lse.p[n->h * p->a.n_tokens + token];
        assert_true(fabs(got - lse) <= tol * (1 + fabs(lse)));
        for (int d = 0; d < p->a.head_dim; d++) {
            double want = 0;
            for (int j = 0; j <= i; j++)
                want += w[j] * naive_factor(n, i, j) * (double)naive_v(n, j)[d];
            got = (double)p->o.p[token * p->a.ldo + n->h * p->a.head_dim + d];
            if (!(fabs(got - want) <= tol))
                fail_msg("D %d head %d query %d column %d: %.9g, expected %.9g (tolerance %g)",
                         p->a.head_dim, n->h, i, d, got, want, tol);
        }
    }
    free(w);
}

// Rows and columns that are no one's output are still guards.
static void check_untouched(const struct problem *p) {
    size_t ld = (size_t)p->a.ldo, cols = ld - PAD;
    for (int t = 0; t < p->a.n_tokens; t++) {
        bool used = false;
        for (int s = 0; s < p->a.n_segs; s++)
            used |= t >= p->segs[s].start && t < p->segs[s].start + p->segs[s].length;
        for (size_t c = used ? cols : 0; c < ld; c++)
            assert_true(is_guard(p->o.p[(size_t)t * ld + c]));
        for (int h = 0; h < p->a.nq; h++)
            assert_int_equal(is_guard(p->lse.p[h * p->a.n_tokens + t]), !used);
    }
}

static void agrees_with_the_naive_model(void **state) {
    (void)state;
    struct tsr_ctx ctx;
    assert_true(open_isa(&ctx, NULL, 2));
    for (int i = 0; i < N_SHAPES; i++) {
        struct problem *p = problem_new(&shapes[i]);
        forward(&ctx, p);
        for (int s = 0; s < p->a.n_segs; s++) {
            for (int h = 0; h < p->a.nq; h++)
                check_head(&shapes[i], p,
                           &(struct naive){&p->a, &p->segs[s], h, p->q.p, p->k.p, p->v.p});
        }
        check_untouched(p);
        problem_free(p);
    }
    ctx.ops->close(&ctx);
}

static void is_equal_on_every_isa_and_thread_count(void **state) {
    (void)state;
    for (int i = 0; i < N_SHAPES; i++) {
        struct problem *p[3] = {NULL};
        for (int isa = 0; isa < 3; isa++) {
            struct tsr_ctx ctx;
            if (!open_isa(&ctx, isas[isa], 1 + (isa + i) % 3))
                continue;
            p[isa] = problem_new(&shapes[i]);
            forward(&ctx, p[isa]);
            ctx.ops->close(&ctx);
            assert_same(&p[0]->o, &p[isa]->o);
            assert_same(&p[0]->lse, &p[isa]->lse);
        }
        for (int isa = 0; isa < 3; isa++) {
            if (p[isa] != NULL)
                problem_free(p[isa]);
        }
    }
}

static void threads_do_not_matter(void **state) {
    (void)state;
    struct shape s = {
        .nq = 3, .nkv = 1, .group = 3, .head_dim = 32, .n_segs = 2, .length = {300, 75}};
    struct problem *p[3];
    for (int i = 0; i < 3; i++) {
        struct tsr_ctx ctx;
        assert_true(open_isa(&ctx, NULL, i + 1));
        p[i] = problem_new(&s);
        forward(&ctx, p[i]);
        ctx.ops->close(&ctx);
        assert_same(&p[0]->o, &p[i]->o);
    }
    for (int i = 0; i < 3; i++)
        problem_free(p[i]);
}

// Runs a problem of one sequence in pieces [cuts[i], cuts[i + 1]), all at once or one after the
// other, with keys in a paged cache whose blocks are out of order and whose other rows are NaN.
static void run_from_cache(struct tsr_ctx *ctx, struct problem *p, int block_tokens,
                           const int *cuts, int n_cuts, bool together) {
    int length = p->segs[0].length, start = p->segs[0].start, width = p->a.nkv * p->a.head_dim;
    int n_blocks = (length + block_tokens - 1) / block_tokens;
    int32_t *blocks = malloc((size_t)n_blocks * sizeof *blocks);
    struct array k = array_new((size_t)((n_blocks + 1) * block_tokens * width));
    struct array v = array_new(k.n);
    assert_non_null(blocks);
    for (int b = 0; b < n_blocks; b++)
        blocks[b] = n_blocks - b; // block 0 is nobody's
    for (int t = 0; t < length; t++) {
        ptrdiff_t row = (ptrdiff_t)blocks[t / block_tokens] * block_tokens + t % block_tokens;
        memcpy(k.p + row * width, p->k.p + (start + t) * p->a.ldk, (size_t)width * sizeof(float));
        memcpy(v.p + row * width, p->v.p + (start + t) * p->a.ldv, (size_t)width * sizeof(float));
    }
    struct tsr_kv_cache cache = {k.p, v.p, blocks, block_tokens, n_blocks};
    struct tsr_segment segs[8];
    assert_true(n_cuts <= 8);
    struct tsr_attn a = p->a;
    a.segs = segs;
    a.n_segs = together ? n_cuts : 1;
    for (int i = 0; i < n_cuts; i++) {
        int end = i + 1 < n_cuts ? cuts[i + 1] : length;
        segs[together ? i : 0] = (struct tsr_segment){.start = start + cuts[i],
                                                      .length = end - cuts[i],
                                                      .position = cuts[i],
                                                      .sequence = p->segs[0].sequence,
                                                      .cache = &cache};
        if (!together || i == n_cuts - 1)
            assert_int_equal(ctx->ops->attention(ctx, &a, p->o.p, p->lse.p, p->q.p, NULL, NULL), 0);
    }
    array_free(&k);
    array_free(&v);
    free(blocks);
}

static void decode_and_chunks_equal_prefill(void **state) {
    (void)state;
    static const struct shape all[] = {
        {.nq = 27, .nkv = 1, .group = 27, .head_dim = 8, .n_segs = 1, .length = {131}},
        {.nq = 6, .nkv = 2, .group = 3, .head_dim = 24, .n_segs = 1, .length = {150}},
        {.nq = 2, .nkv = 2, .group = 1, .head_dim = 64, .n_segs = 1, .length = {131}},
        {.nq = 2, .nkv = 1, .group = 2, .head_dim = 16, .window = 37, .n_segs = 1, .length = {140}},
    };
    static const int cuts[] = {0, 1, 2, 17, 64, 65, 129, 130};
    static const int sizes[] = {1, 16, 64, 7};
    struct tsr_ctx ctx;
    assert_true(open_isa(&ctx, NULL, 2));
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) {
        struct problem *whole = problem_new(&all[i]);
        forward(&ctx, whole);
        for (int size = 0; size < 4; size++) {
            struct problem *p = problem_new(&all[i]);
            run_from_cache(&ctx, p, sizes[size], cuts, 8, size % 2 == 0);
            assert_same(&whole->o, &p->o);
            assert_same(&whole->lse, &p->lse);
            problem_free(p);
        }
        problem_free(whole);
    }
    ctx.ops->close(&ctx);
}

// The same segments one by one, and the heads in two shares that cut a group in two.
static void neighbours_do_not_matter(void **state) {
    (void)state;
    struct shape s = {.nq = 9,
                      .nkv = 3,
                      .group = 3,
                      .head_dim = 24,
                      .drop = 0.1f,
                      .n_segs = 3,
                      .length = {70, 5, 129}};
    struct tsr_ctx ctx;
    assert_true(open_isa(&ctx, NULL, 2));
    struct problem *whole = problem_new(&s), *p = problem_new(&s);
    forward(&ctx, whole);
    for (int i = 0; i < s.n_segs; i++) {
        for (int share = 0; share < 2; share++) {
            struct tsr_attn a = p->a;
            a.segs = &p->segs[i];
            a.n_segs = 1;
            a.q0 = share == 0 ? 0 : 4; // query head 4 reads KV head 1
            a.nq = share == 0 ? 4 : 5;
            a.kv0 = share == 0 ? 0 : 1;
            a.nkv = 2;
            ptrdiff_t q = (ptrdiff_t)a.q0 * a.head_dim, kv = (ptrdiff_t)a.kv0 * a.head_dim;
            assert_int_equal(ctx.ops->attention(&ctx, &a, p->o.p + q,
                                                p->lse.p + (ptrdiff_t)a.q0 * a.n_tokens, p->q.p + q,
                                                p->k.p + kv, p->v.p + kv),
                             0);
        }
    }
    assert_same(&whole->o, &p->o);
    assert_same(&whole->lse, &p->lse);
    problem_free(whole);
    problem_free(p);
    ctx.ops->close(&ctx);
}

// Keys and values that a query doesn't see may be anything.
static void masked_nan_does_not_leak(void **state) {
    (void)state;
    static const float poison[] = {NAN, INFINITY, -INFINITY};
    struct shape s = {
        .nq = 2, .nkv = 1, .group = 2, .head_dim = 24, .window = 33, .n_segs = 1, .length = {130}};
    struct tsr_ctx ctx;
    assert_true(open_isa(&ctx, NULL, 1));
    struct problem *clean = problem_new(&s);
    forward(&ctx, clean);
    for (int bad = 0; bad < 130; bad += 43) {
        struct problem *p = problem_new(&s);
        int token = p->segs[0].start + bad;
        for (int d = 0; d < s.head_dim; d++) {
            p->k.p[token * p->a.ldk + d] = poison[bad % 3];
            p->v.p[token * p->a.ldv + d] = poison[d % 3];
        }
        forward(&ctx, p);
        for (int i = 0; i < 130; i++) {
            ptrdiff_t at = (p->segs[0].start + i) * p->a.ldo;
            size_t bytes = (size_t)(2 * s.head_dim) * sizeof(float);
            bool sees = i >= bad && i < bad + 33;
            assert_int_equal(memcmp(p->o.p + at, clean->o.p + at, bytes) == 0, !sees);
            for (int d = 0; sees && d < 2 * s.head_dim; d += 3) // a NaN value makes NaN
                assert_true(isnan(p->o.p[at + d]));
        }
        problem_free(p);
    }
    problem_free(clean);
    ctx.ops->close(&ctx);
}

// Scores of hundreds: e^s alone would overflow; the largest key takes all.
static void large_scores_stay_finite(void **state) {
    (void)state;
    struct shape s = {.nq = 1, .nkv = 1, .group = 1, .head_dim = 16, .n_segs = 1, .length = {100}};
    struct tsr_ctx ctx;
    assert_true(open_isa(&ctx, NULL, 1));
    struct problem *p = problem_new(&s);
    double w[100];
    for (int i = 0; i < 100; i++) {
        for (int d = 0; d < 16; d++)
            p->q.p[(1 + i) * p->a.ldq + d] *= 1000.0f;
    }
    forward(&ctx, p);
    for (int i = 0; i < 100; i++) {
        struct naive n = {&p->a, &p->segs[0], 0, p->q.p, p->k.p, p->v.p};
        double lse = naive_row(&n, i, w); // scores of up to 2000: half an ulp is 6e-5
        assert_true(fabs((double)p->lse.p[1 + i] - lse) <= 2e-6 * fabs(lse) + 1e-3);
        double want = 0;
        for (int j = 0; j <= i; j++)
            want += w[j] * (double)naive_v(&n, j)[3];
        assert_true(fabs((double)p->o.p[(1 + i) * p->a.ldo + 3] - want) <= 2e-3);
    }
    problem_free(p);
    ctx.ops->close(&ctx);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(agrees_with_the_naive_model),
        cmocka_unit_test(is_equal_on_every_isa_and_thread_count),
        cmocka_unit_test(threads_do_not_matter),
        cmocka_unit_test(decode_and_chunks_equal_prefill),
        cmocka_unit_test(neighbours_do_not_matter),
        cmocka_unit_test(masked_nan_does_not_leak),
        cmocka_unit_test(large_scores_stay_finite),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// What the attention tests share: a naive model in double precision, arrays with guard bands, and
// cases to run on every instruction set.
#ifndef TSR_TESTS_ATTENTION_REF_H
#define TSR_TESTS_ATTENTION_REF_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "kernels/ops.h"

enum { MAX_SEGS = 6, GUARD = 32, PAD = 5 };

#define GUARD_BITS 0x7fc0deadu // a NaN: what is read from a guard band shows in the result

static const char *const isas[] = {"portable", "avx2", "avx512"}; // the first runs anywhere

// n floats between two guard bands.
struct array {
    float *mem, *p;
    size_t n;
};

static inline float guard_value(void) {
    uint32_t bits = GUARD_BITS;
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

static inline struct array array_new(size_t n) {
    struct array a = {.mem = malloc((n + 2 * GUARD) * sizeof(float)), .n = n};
    assert_non_null(a.mem);
    for (size_t i = 0; i < n + 2 * GUARD; i++)
        a.mem[i] = guard_value();
    a.p = a.mem + GUARD;
    return a;
}

static inline bool is_guard(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits == GUARD_BITS;
}

static inline void array_free(struct array *a) {
    for (size_t i = 0; i < GUARD; i++) {
        assert_true(is_guard(a->mem[i]));
        assert_true(is_guard(a->p[a->n + i]));
    }
    free(a->mem);
}

static inline void assert_same(const struct array *a, const struct array *b) {
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < a->n; i++) {
        if (memcmp(a->p + i, b->p + i, sizeof(float)) != 0)
            fail_msg("element %zu of %zu: %a and %a", i, a->n, (double)a->p[i], (double)b->p[i]);
    }
}

// Uniform in [-1, 1), a function of (stream, i).
static inline float uniform(uint32_t stream, uint32_t i) {
    struct tsr_u32x4 r = tsr_philox((struct tsr_rng_key){stream, 7}, i, 0, 0, 0);
    return (float)(r.v[0] >> 8) * 0x1p-23f - 1.0f;
}

struct shape {
    int nq, nkv, group, head_dim, window;
    float drop;
    int n_segs;
    int length[MAX_SEGS], position[MAX_SEGS];
};

struct problem {
    struct tsr_attn a;
    struct tsr_segment segs[MAX_SEGS];
    struct array q, k, v, o, lse, d_o;
};

// A rows x (heads, D) array whose rows are PAD floats apart; unused floats stay guards.
static inline struct array fill_rows(struct tsr_attn *a, int heads, uint32_t stream) {
    size_t cols = (size_t)heads * (size_t)a->head_dim, ld = cols + PAD;
    struct array x = array_new((size_t)a->n_tokens * ld);
    for (int s = 0; s < a->n_segs; s++) {
        for (int t = a->segs[s].start; t < a->segs[s].start + a->segs[s].length; t++)
            for (size_t c = 0; c < cols; c++)
                x.p[(size_t)t * ld + c] = uniform(stream, (uint32_t)((size_t)t * cols + c));
    }
    return x;
}

// Segments lie in the rows with one unused row before each.
static inline struct problem *problem_new(const struct shape *s) {
    struct problem *p = calloc(1, sizeof *p);
    assert_non_null(p);
    p->a = (struct tsr_attn){.nq = s->nq,
                             .nkv = s->nkv,
                             .group = s->group,
                             .head_dim = s->head_dim,
                             .scale = 1.0f / sqrtf((float)s->head_dim),
                             .window = s->window,
                             .n_segs = s->n_segs,
                             .segs = p->segs};
    p->a.drop = (struct tsr_dropout){s->drop, {11, 22}};
    for (int i = 0; i < s->n_segs; i++) {
        p->segs[i] = (struct tsr_segment){.start = p->a.n_tokens + 1,
                                          .length = s->length[i],
                                          .position = s->position[i],
                                          .sequence = 1000 + (uint64_t)i};
        p->a.n_tokens += s->length[i] + 1;
    }
    p->a.ldq = p->a.ldo = (ptrdiff_t)s->nq * s->head_dim + PAD;
    p->a.ldk = p->a.ldv = (ptrdiff_t)s->nkv * s->head_dim + PAD;
    p->q = fill_rows(&p->a, s->nq, 1);
    p->k = fill_rows(&p->a, s->nkv, 2);
    p->v = fill_rows(&p->a, s->nkv, 3);
    p->d_o = fill_rows(&p->a, s->nq, 4);
    p->o = array_new((size_t)(p->a.n_tokens * p->a.ldo));
    p->lse = array_new((size_t)(p->a.n_tokens * p->a.nq));
    return p;
}

static inline void problem_free(struct problem *p) {
    struct array *all[] = {&p->q, &p->k, &p->v, &p->d_o, &p->o, &p->lse};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        array_free(all[i]);
    free(p);
}

// Opens the CPU backend; false when this machine can't run that instruction set.
static inline bool open_isa(struct tsr_ctx *ctx, const char *isa, int n_threads) {
    return tsr_cpu_open(ctx, isa, n_threads) == 0;
}

static inline void forward(struct tsr_ctx *ctx, struct problem *p) {
    assert_int_equal(ctx->ops->attention(ctx, &p->a, p->o.p, p->lse.p, p->q.p, p->k.p, p->v.p), 0);
}

// The naive model works on one query head of one segment: all matrices whole, in double.
struct naive {
    const struct tsr_attn *a;
    const struct tsr_segment *seg;
    int h; // local query head
    const float *q, *k, *v;
};

static inline int naive_kv(const struct naive *n) {
    return (n->a->q0 + n->h) / n->a->group - n->a->kv0;
}
static inline const float *naive_q(const struct naive *n, int i) {
    return n->q + (n->seg->start + i) * n->a->ldq + n->h * n->a->head_dim;
}
static inline const float *naive_k(const struct naive *n, int j) {
    return n->k + (n->seg->start + j) * n->a->ldk + naive_kv(n) * n->a->head_dim;
}
static inline const float *naive_v(const struct naive *n, int j) {
    return n->v + (n->seg->start + j) * n->a->ldv + naive_kv(n) * n->a->head_dim;
}

static inline double dot(const float *x, const float *y, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++)
        sum += (double)x[i] * (double)y[i];
    return sum;
}

// p[j] = softmax of query i's scores, 0 where masked; returns log-sum-exp.
static inline double naive_row(const struct naive *n, int i, double *p) {
    double most = -INFINITY, sum = 0;
    int first = n->a->window > 0 && i - n->a->window + 1 > 0 ? i - n->a->window + 1 : 0;
    for (int j = first; j <= i; j++) {
        p[j] = dot(naive_q(n, i), naive_k(n, j), n->a->head_dim) * (double)n->a->scale;
        most = fmax(most, p[j]);
    }
    for (int j = first; j <= i; j++)
        sum += exp(p[j] - most);
    for (int j = 0; j < n->seg->length; j++)
        p[j] = j >= first && j <= i ? exp(p[j] - most) / sum : 0;
    return most + log(sum);
}

// Dropout's factor of query i and key j (both counted in the segment): 0 or 1 / (1 - p).
static inline double naive_factor(const struct naive *n, int i, int j) {
    const struct tsr_dropout *d = &n->a->drop;
    if (d->p == 0)
        return 1;
    uint32_t key = (uint32_t)(n->seg->position + j), query = (uint32_t)(n->seg->position + i);
    struct tsr_u32x4 r =
        tsr_philox(d->key, key / 4, query, (uint32_t)n->seg->sequence, (uint32_t)(n->a->q0 + n->h));
    return r.v[key % 4] >= tsr_drop_threshold(d->p) ? 1 / (1 - (double)d->p) : 0;
}

// Adds one head's gradients, (length, D) each, to dq, dk, dv.
static inline void naive_backward(const struct naive *n, const float *d_o, double *dq, double *dk,
                                  double *dv) {
    int dim = n->a->head_dim, length = n->seg->length;
    double *w = malloc((size_t)length * sizeof *w), *dp = malloc((size_t)length * sizeof *dp);
    assert_non_null(w);
    assert_non_null(dp);
    for (int i = 0; i < length; i++) {
        const float *g = d_o + (n->seg->start + i) * n->a->ldo + n->h * dim;
        double sum = 0;
        naive_row(n, i, w);
        for (int j = 0; j <= i; j++) {
            dp[j] = w[j] > 0 ? naive_factor(n, i, j) * dot(g, naive_v(n, j), dim) : 0;
            sum += w[j] * dp[j];
        }
        for (int j = 0; j <= i; j++) {
            double ds = w[j] * (dp[j] - sum) * (double)n->a->scale;
            double z = w[j] * naive_factor(n, i, j);
            for (int d = 0; d < dim; d++) {
                dq[i * dim + d] += ds * (double)naive_k(n, j)[d];
                dk[j * dim + d] += ds * (double)naive_q(n, i)[d];
                dv[j * dim + d] += z * (double)g[d];
            }
        }
    }
    free(w);
    free(dp);
}

// sum of dO . O of one head of one segment.
static inline double naive_loss(const struct naive *n, const float *d_o) {
    double w[64], loss = 0;
    for (int i = 0; i < n->seg->length; i++) {
        naive_row(n, i, w);
        for (int j = 0; j <= i; j++)
            loss += w[j] * naive_factor(n, i, j) *
                    dot(d_o + (n->seg->start + i) * n->a->ldo, naive_v(n, j), n->a->head_dim);
    }
    return loss;
}

#endif

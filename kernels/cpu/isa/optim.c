// Sums and updates over gradients and weights: adds, the tree over buffers, sums of squares, AdamW.
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/tree.h"

struct add_job {
    struct tsr_split split;
    float *out;
    const float *a, *b;
    int64_t n;
};

struct tree_job {
    struct tsr_split split;
    float *out;
    const float *const *in; // (n_in) buffers of n
    int n_in;
    int64_t n;
};

struct sumsq_job {
    struct tsr_split split; // of blocks
    double *sums;
    const float *g;
    ptrdiff_t ld;
    const int64_t *bounds;
    int64_t cols;
};

struct adamw_job {
    struct tsr_split split; // of elements, counted through the rows
    const struct tsr_adamw *p;
    float *w, *m, *v; // m and v contiguous
    ptrdiff_t ldw;
    const float *g;
    ptrdiff_t ldg;
    int64_t rows, cols;
};

static void add_part(void *arg, int part, int thread) {
    (void)thread;
    const struct add_job *q = arg;
    struct tsr_range r = tsr_split_span(q->split, part, q->n);
    for (int64_t i = r.lo; i < r.hi; i += 16) {
        int64_t n = r.hi - i;
        v16 a = v16_load_tail(q->a + i, n, 0.0f), b = v16_load_tail(q->b + i, n, 0.0f);
        v16_store_tail(q->out + i, n, v16_add(a, b));
    }
}

int TSR_FN(tsr_add_f32)(struct tsr_ctx *ctx, float *out, const float *a, const float *b, size_t n) {
    struct add_job q = {tsr_split_elems(ctx, n, 1), out, a, b, (int64_t)n};
    tsr_pool_run(ctx->stream, q.split.n_parts, add_part, &q);
    return 0;
}

int TSR_FN(tsr_add)(struct tsr_ctx *ctx, tsr_elem *out, const tsr_elem *a, const tsr_elem *b,
                    size_t n) {
    return TSR_FN(tsr_add_f32)(ctx, out, a, b, n);
}

static void tree_part(void *arg, int part, int thread) {
    (void)thread;
    const struct tree_job *q = arg;
    struct tsr_range r = tsr_split_span(q->split, part, q->n);
    for (int64_t i = r.lo; i < r.hi; i += 16) {
        struct v16_tree tree;
        tree.top = 0;
        for (int k = 0; k < q->n_in; k++)
            v16_tree_leaf(&tree, (unsigned)k, v16_load_tail(q->in[k] + i, r.hi - i, 0.0f));
        v16_store_tail(q->out + i, r.hi - i, v16_tree_root(&tree));
    }
}

int TSR_FN(tsr_tree_add)(struct tsr_ctx *ctx, float *out, const float *const *in, int n_in,
                         size_t n) {
    struct tree_job q = {tsr_split_elems(ctx, n, n_in + 1), out, in, n_in, (int64_t)n};
    tsr_pool_run(ctx->stream, q.split.n_parts, tree_part, &q);
    return 0;
}

// Column j of a row goes to lane j mod 16, so the sum doesn't depend on the leading dimension; rows
// have lanes of their own, because a device sums many at a time.
static void sumsq_part(void *arg, int part, int thread) {
    (void)thread;
    const struct sumsq_job *q = arg;
    struct tsr_range blocks = tsr_split_part(q->split, part);
    for (int64_t b = blocks.lo; b < blocks.hi; b++) {
        double sum = 0.0;
        for (int64_t i = q->bounds[b]; i < q->bounds[b + 1]; i++) {
            v16d s = v16d_zero();
            for (int64_t j = 0; j < q->cols; j += 16) {
                v16d x = v16d_of(v16_load_tail(q->g + i * q->ld + j, q->cols - j, 0.0f));
                s = v16d_fma(x, x, s);
            }
            sum = sum + v16d_hsum(s);
        }
        q->sums[b] = sum;
    }
}

int TSR_FN(tsr_sumsq)(struct tsr_ctx *ctx, double *sums, const float *g, ptrdiff_t ld,
                      const int64_t *bounds, int n_blocks, int64_t cols) {
    int64_t rows = n_blocks > 0 ? (bounds[n_blocks] - bounds[0]) / n_blocks + 1 : 0;
    struct sumsq_job q = {tsr_split_of(ctx, n_blocks, rows * cols), sums, g, ld, bounds, cols};
    tsr_pool_run(ctx->stream, q.split.n_parts, sumsq_part, &q);
    return 0;
}

// n elements. With s = grad_scale, t = lr / bias1:
//   m = beta1 m + rest1 g s;  v = beta2 v + rest2 (g s)^2
//   w = w - lr weight_decay w - t m / (sqrt(v) / bias2_sqrt + eps)
static void adamw_span(const struct tsr_adamw *p, float *w, float *m, float *v, const float *g,
                       int64_t n) {
    v16 beta1 = v16_set1(p->beta1), beta2 = v16_set1(p->beta2), eps = v16_set1(p->eps);
    v16 rest1 = v16_set1(p->rest1), rest2 = v16_set1(p->rest2);
    v16 scale = v16_set1(p->grad_scale), decay = v16_set1(p->lr * p->weight_decay);
    v16 step = v16_set1(p->lr / p->bias1), unbias = v16_set1(1.0f / p->bias2_sqrt);
    for (int64_t i = 0; i < n; i += 16) {
        int64_t left = n - i;
        v16 gi = v16_mul(v16_load_tail(g + i, left, 0.0f), scale);
        v16 wi = v16_load_tail(w + i, left, 0.0f);
        v16 mi = v16_fma(beta1, v16_load_tail(m + i, left, 0.0f), v16_mul(rest1, gi));
        v16 vi = v16_fma(beta2, v16_load_tail(v + i, left, 0.0f), v16_mul(rest2, v16_mul(gi, gi)));
        v16 update = v16_div(mi, v16_fma(v16_sqrt(vi), unbias, eps));
        wi = v16_fnma(step, update, v16_fnma(decay, wi, wi));
        v16_store_tail(m + i, left, mi);
        v16_store_tail(v + i, left, vi);
        v16_store_tail(w + i, left, wi);
    }
}

static void adamw_part(void *arg, int part, int thread) {
    (void)thread;
    const struct adamw_job *q = arg;
    struct tsr_range r = tsr_split_span(q->split, part, q->rows * q->cols);
    for (int64_t at = r.lo; at < r.hi;) {
        int64_t row = at / q->cols, col = at % q->cols;
        int64_t n = q->cols - col < r.hi - at ? q->cols - col : r.hi - at;
        adamw_span(q->p, q->w + row * q->ldw + col, q->m + at, q->v + at, q->g + row * q->ldg + col,
                   n);
        at += n;
    }
}

int TSR_FN(tsr_adamw)(struct tsr_ctx *ctx, const struct tsr_adamw *p, float *w, ptrdiff_t ldw,
                      float *m, float *v, const float *g, ptrdiff_t ldg, int64_t rows, int64_t cols,
                      tsr_elem *copy) {
    // In fp32 the weight is the master, and nothing is rounded.
    TSR_ASSERT((copy == NULL && p->rounding == NULL) || tsr_pool_is_dry(ctx->stream));
    struct adamw_job q = {.p = p, .w = w, .m = m, .v = v, .ldw = ldw, .g = g, .ldg = ldg};
    bool one_row = ldw == cols && ldg == cols; // nothing between the rows
    q.rows = one_row ? 1 : rows;
    q.cols = one_row ? rows * cols : cols;
    q.split = tsr_split_elems(ctx, (size_t)(rows * cols), 4);
    tsr_pool_run(ctx->stream, q.split.n_parts, adamw_part, &q);
    return 0;
}

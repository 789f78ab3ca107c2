// LayerNorm (Ba et al. 2016) and RMSNorm (Zhang and Sennrich 2019), forward. Sums over a row are
// virtual-vector sums; the variance takes a second pass over the row, which is in the cache.
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/vmath.h"

struct norm_job {
    struct tsr_split split;
    float *y;           // (N, C)
    float *mean, *rstd; // (N); mean NULL: RMSNorm
    const float *x;     // (N, C)
    const float *w, *b; // (C); b may be NULL
    float eps;
    int c;
};

// sum of (x - mean)^2 over a row.
static float sum_squares(const float *x, float mean, int c) {
    v16 s = v16_zero(), m = v16_set1(mean);
    int j = 0;
    for (; j + 16 <= c; j += 16) {
        v16 d = v16_sub(v16_loadu(x + j), m);
        s = v16_fma(d, d, s);
    }
    if (j < c) {
        v16 d = v16_keep_n(v16_sub(v16_load_n(x + j, c - j, 0.0f), m), c - j);
        s = v16_fma(d, d, s);
    }
    return v16_hsum(s);
}

// y = ((x - mean) * rstd) * w + b; without b or mean that step is left out.
static void normalise(const struct norm_job *q, float *y, const float *x, float mean, float rstd) {
    v16 m = v16_set1(mean), r = v16_set1(rstd);
    for (int j = 0; j < q->c; j += 16) {
        int n = q->c - j;
        v16 xj = v16_load_tail(x + j, n, 0.0f), wj = v16_load_tail(q->w + j, n, 0.0f);
        v16 xhat = v16_mul(q->mean != NULL ? v16_sub(xj, m) : xj, r);
        v16 yj =
            q->b != NULL ? v16_fma(xhat, wj, v16_load_tail(q->b + j, n, 0.0f)) : v16_mul(xhat, wj);
        v16_store_tail(y + j, n, yj);
    }
}

static void norm_part(void *arg, int part, int thread) {
    (void)thread;
    const struct norm_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++) {
        const float *x = q->x + i * q->c;
        float mean = 0.0f;
        if (q->mean != NULL)
            mean = q->mean[i] = v16_sum_row(x, q->c) / (float)q->c;
        float square = q->mean != NULL ? sum_squares(x, mean, q->c) : v16_dot_row(x, x, q->c);
        q->rstd[i] = v16_rsqrt1(square / (float)q->c + q->eps);
        normalise(q, q->y + i * q->c, x, mean, q->rstd[i]);
    }
}

int TSR_FN(tsr_layernorm)(struct tsr_ctx *ctx, tsr_elem *y, float *mean, float *rstd,
                          const tsr_elem *x, const tsr_elem *w, const tsr_elem *b, float eps, int n,
                          int c) {
    struct norm_job q = {tsr_split_of(ctx, n, c), y, mean, rstd, x, w, b, eps, c};
    tsr_pool_run(ctx->stream, q.split.n_parts, norm_part, &q);
    return 0;
}

int TSR_FN(tsr_rmsnorm)(struct tsr_ctx *ctx, tsr_elem *y, float *rstd, const tsr_elem *x,
                        const tsr_elem *w, float eps, int n, int c) {
    struct norm_job q = {tsr_split_of(ctx, n, c), y, NULL, rstd, x, w, NULL, eps, c};
    tsr_pool_run(ctx->stream, q.split.n_parts, norm_part, &q);
    return 0;
}

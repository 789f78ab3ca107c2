// Backward of LayerNorm and RMSNorm, and sums over rows.
//
// With xhat = (x - mean) rstd and e = dy w, averages over the row:
//   LayerNorm  dx = rstd (e - avg(e) - xhat avg(e xhat))
//   RMSNorm    dx = rstd (e - xhat avg(e xhat)),  xhat = x rstd
//   dw += dy xhat,  db += dy
// Sums over rows are chains in row order per column, so threads split columns. Rows go in groups:
// an accumulator is loaded and stored once per group, and each row is a stream of its own.
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/vmath.h"

enum { GROUP = 8 };

struct bwd_job {
    struct tsr_split split;
    float *dx;                // (N, C)
    const float *dres;        // (N, C) or NULL
    const float *dy, *x;      // (N, C)
    const float *w;           // (C)
    const float *mean, *rstd; // (N); mean NULL: RMSNorm
    int c;
};

struct params_job {
    struct tsr_split split; // of columns, in runs of TSR_RUN
    float *dw, *db;         // (chains, C)
    const float *dy, *x;    // (N, C)
    const float *mean, *rstd;
    const struct tsr_rows *rows;
    int n_rows;
    ptrdiff_t ldx;
    int c;
};

static void bwd_row(const struct bwd_job *q, int64_t i) {
    const float *dy = q->dy + i * q->c, *x = q->x + i * q->c;
    v16 mean = v16_set1(q->mean != NULL ? q->mean[i] : 0.0f), rstd = v16_set1(q->rstd[i]);
    v16 sum_e = v16_zero(), sum_ex = v16_zero();
    for (int j = 0; j < q->c; j += 16) {
        int n = q->c - j; // beyond the row dy is +0, so e is a zero that adds nothing
        v16 e = v16_mul(v16_load_tail(dy + j, n, 0.0f), v16_load_tail(q->w + j, n, 0.0f));
        v16 xhat = v16_mul(v16_sub(v16_load_tail(x + j, n, 0.0f), mean), rstd);
        if (n < 16)
            xhat = v16_keep_n(xhat, n); // 0 * inf must not reach the sum
        sum_e = v16_add(sum_e, e);
        sum_ex = v16_fma(e, xhat, sum_ex);
    }
    v16 avg_e = v16_set1(q->mean != NULL ? v16_hsum(sum_e) / (float)q->c : 0.0f);
    v16 avg_ex = v16_set1(v16_hsum(sum_ex) / (float)q->c);
    for (int j = 0; j < q->c; j += 16) {
        int n = q->c - j;
        v16 e = v16_mul(v16_load_tail(dy + j, n, 0.0f), v16_load_tail(q->w + j, n, 0.0f));
        v16 xhat = v16_mul(v16_sub(v16_load_tail(x + j, n, 0.0f), mean), rstd);
        v16 g = v16_mul(rstd, v16_fnma(xhat, avg_ex, v16_sub(e, avg_e)));
        if (q->dres != NULL)
            g = v16_add(v16_load_tail(q->dres + i * q->c + j, n, 0.0f), g);
        v16_store_tail(q->dx + i * q->c + j, n, g);
    }
}

static void bwd_part(void *arg, int part, int thread) {
    (void)thread;
    const struct bwd_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++)
        bwd_row(q, i);
}

int TSR_FN(tsr_norm_bwd)(struct tsr_ctx *ctx, tsr_elem *dx, const tsr_elem *dres,
                         const tsr_elem *dy, const tsr_elem *x, const tsr_elem *w,
                         const float *mean, const float *rstd, int n, int c) {
    struct bwd_job q = {tsr_split_of(ctx, n, c), dx, dres, dy, x, w, mean, rstd, c};
    tsr_pool_run(ctx->stream, q.split.n_parts, bwd_part, &q);
    return 0;
}

// Rows [row, row + n), n <= GROUP, of columns [j, j + 16) onto one chain.
static void params_group(const struct params_job *q, int64_t row, int n, int chain, int j) {
    int cols = q->c - j;
    float *dw = q->dw + (ptrdiff_t)chain * q->c + j;
    v16 w = v16_load_tail(dw, cols, 0.0f), b = v16_zero();
    float *db = q->db != NULL ? q->db + (ptrdiff_t)chain * q->c + j : NULL;
    if (db != NULL)
        b = v16_load_tail(db, cols, 0.0f);
    for (int i = 0; i < n; i++) {
        int64_t at = (row + i) * q->c + j;
        v16 dy = v16_load_tail(q->dy + at, cols, 0.0f);
        v16 mean = v16_set1(q->mean != NULL ? q->mean[row + i] : 0.0f);
        v16 xhat = v16_mul(v16_sub(v16_load_tail(q->x + at, cols, 0.0f), mean),
                           v16_set1(q->rstd[row + i]));
        w = v16_fma(dy, xhat, w);
        b = v16_add(b, dy);
    }
    v16_store_tail(dw, cols, w);
    if (db != NULL)
        v16_store_tail(db, cols, b);
}

static void colsum_group(const struct params_job *q, int64_t row, int n, int chain, int j) {
    int cols = q->c - j;
    float *acc = q->dw + (ptrdiff_t)chain * q->c + j;
    v16 s = v16_load_tail(acc, cols, 0.0f);
    for (int i = 0; i < n; i++)
        s = v16_add(s, v16_load_tail(q->x + (row + i) * q->ldx + j, cols, 0.0f));
    v16_store_tail(acc, cols, s);
}

// Walks the runs in order for the part's columns. dy NULL: plain column sums of x.
static void params_part(void *arg, int part, int thread) {
    (void)thread;
    const struct params_job *q = arg;
    struct tsr_range cols = tsr_split_span(q->split, part, q->c);
    for (int k = 0; k < q->n_rows; k++) {
        const struct tsr_rows run = q->rows[k];
        for (int i = 0; i < run.n; i += GROUP) {
            int n = run.n - i < GROUP ? run.n - i : GROUP;
            for (int j = (int)cols.lo; j < cols.hi; j += 16) {
                if (q->dy != NULL)
                    params_group(q, (int64_t)run.row + i, n, run.chain, j);
                else
                    colsum_group(q, (int64_t)run.row + i, n, run.chain, j);
            }
        }
    }
}

// Columns are split in runs of TSR_RUN; the work of a column is the number of rows.
static int run_params(struct tsr_ctx *ctx, struct params_job *q) {
    int64_t rows = 0;
    for (int k = 0; k < q->n_rows; k++)
        rows += q->rows[k].n;
    q->split = tsr_split_elems(ctx, (size_t)q->c, (int)(rows < 1 << 20 ? rows : 1 << 20));
    tsr_pool_run(ctx->stream, q->split.n_parts, params_part, q);
    return 0;
}

int TSR_FN(tsr_norm_bwd_params)(struct tsr_ctx *ctx, float *dw, float *db, const tsr_elem *dy,
                                const tsr_elem *x, const float *mean, const float *rstd,
                                const struct tsr_rows *rows, int n_rows, int c) {
    struct params_job q = {.dw = dw,
                           .db = db,
                           .dy = dy,
                           .x = x,
                           .mean = mean,
                           .rstd = rstd,
                           .rows = rows,
                           .n_rows = n_rows,
                           .c = c};
    return run_params(ctx, &q);
}

int TSR_FN(tsr_colsum)(struct tsr_ctx *ctx, float *acc, const tsr_elem *x, ptrdiff_t ldx,
                       const struct tsr_rows *rows, int n_rows, int c) {
    struct params_job q = {.dw = acc, .x = x, .rows = rows, .n_rows = n_rows, .ldx = ldx, .c = c};
    return run_params(ctx, &q);
}

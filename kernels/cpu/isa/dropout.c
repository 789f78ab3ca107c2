// Bias, dropout (Srivastava et al. 2014, scaled at training time) and residual add in one pass,
// and the backward of dropout. Draws are keyed by global position, so they are made again in
// backward instead of being kept.
#include "kernels/cpu/isa/philox16.h"
#include "kernels/cpu/isa/split.h"

enum { CHUNK = 256 }; // columns whose draws are made at a time

struct drop_job {
    struct tsr_split split;
    float *out;            // (N, C) with leading dimension ld, like residual and y
    const float *residual; // or NULL
    const float *y;
    const float *bias; // (C) or NULL
    const struct tsr_dropout *d;
    const struct tsr_segment *segs;
    int n_segs;
    ptrdiff_t ld;
    int c;
    int64_t col0;
};

// One row's place in the stream of draws.
struct place {
    uint32_t position, sequence_lo, sequence_hi;
};

// The draws of global columns [col, col + n), n <= CHUNK, and on to the end of the last vector.
// Returns where the first one stands.
static const uint32_t *draw(uint32_t buf[CHUNK + 64], struct tsr_rng_key key, struct place at,
                            int64_t col, int n) {
    int skip = (int)(col % 4);
    for (int j = 0; j < skip + (n + 15) / 16 * 16; j += 64) {
        v16i r[4];
        v16_draws(key, (uint32_t)((col + j) / 4), at.position, at.sequence_lo, at.sequence_hi, r);
        for (int k = 0; k < 4; k++)
            v16i_storeu(buf + j + 16 * k, r[k]);
    }
    return buf + skip;
}

// Columns [0, n) of one run: out = residual + drop(y + bias). u NULL: nothing is dropped.
static void run_of_row(float *out, const float *residual, const float *y, const float *bias,
                       const uint32_t *u, float p, int n) {
    v16i threshold = v16i_set1(tsr_drop_threshold((double)p));
    v16 keep = v16_set1(1.0f - p), zero = v16_zero();
    for (int j = 0; j < n; j += 16) {
        v16 v = v16_load_tail(y + j, n - j, 0.0f);
        if (bias != NULL)
            v = v16_add(v, v16_load_tail(bias + j, n - j, 0.0f));
        if (u != NULL)
            v = v16_select(v16i_geu(v16i_loadu(u + j), threshold), v16_div(v, keep), zero);
        if (residual != NULL)
            v = v16_add(v16_load_tail(residual + j, n - j, 0.0f), v);
        v16_store_tail(out + j, n - j, v);
    }
}

static void one_row(const struct drop_job *q, int64_t row, struct place at) {
    float *out = q->out + row * q->ld;
    const float *y = q->y + row * q->ld;
    const float *residual = q->residual != NULL ? q->residual + row * q->ld : NULL;
    if (!(q->d->p > 0.0f)) {
        run_of_row(out, residual, y, q->bias, NULL, 0.0f, q->c);
        return;
    }
    uint32_t buf[CHUNK + 64];
    for (int j = 0; j < q->c; j += CHUNK) {
        int n = q->c - j < CHUNK ? q->c - j : CHUNK;
        const uint32_t *u = draw(buf, q->d->key, at, q->col0 + j, n);
        run_of_row(out + j, residual != NULL ? residual + j : NULL, y + j,
                   q->bias != NULL ? q->bias + j : NULL, u, q->d->p, n);
    }
}

// Items are the rows of the segments, counted through.
static void drop_part(void *arg, int part, int thread) {
    (void)thread;
    const struct drop_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    int64_t before = 0; // rows of earlier segments
    for (int s = 0; s < q->n_segs && before < rows.hi; s++) {
        const struct tsr_segment *g = &q->segs[s];
        int64_t lo = rows.lo > before ? rows.lo - before : 0;
        int64_t hi = rows.hi - before < g->length ? rows.hi - before : g->length;
        for (int64_t t = lo; t < hi; t++) {
            struct place at = {(uint32_t)(g->position + t), (uint32_t)g->sequence,
                               (uint32_t)(g->sequence >> 32)};
            one_row(q, g->start + t, at);
        }
        before += g->length;
    }
}

static int run_drop(struct tsr_ctx *ctx, struct drop_job *q) {
    int64_t rows = 0;
    for (int s = 0; s < q->n_segs; s++)
        rows += q->segs[s].length;
    q->split = tsr_split_of(ctx, rows, (int64_t)q->c * (q->d->p > 0.0f ? 4 : 1));
    tsr_pool_run(ctx->stream, q->split.n_parts, drop_part, q);
    return 0;
}

int TSR_FN(tsr_bias_dropout_add)(struct tsr_ctx *ctx, tsr_elem *out, const tsr_elem *residual,
                                 const void *y, bool y_f32, const tsr_elem *bias,
                                 const struct tsr_dropout *d, const struct tsr_segment *segs,
                                 int n_segs, ptrdiff_t ld, int c, int64_t col0) {
    (void)y_f32; // as everything here
    struct drop_job q = {.out = out,
                         .residual = residual,
                         .y = y,
                         .bias = bias,
                         .d = d,
                         .segs = segs,
                         .n_segs = n_segs,
                         .ld = ld,
                         .c = c,
                         .col0 = col0};
    return run_drop(ctx, &q);
}

int TSR_FN(tsr_dropout_bwd)(struct tsr_ctx *ctx, tsr_elem *dx, const tsr_elem *dy,
                            const struct tsr_dropout *d, const struct tsr_segment *segs, int n_segs,
                            ptrdiff_t ld, int c, int64_t col0) {
    struct drop_job q = {
        .out = dx, .y = dy, .d = d, .segs = segs, .n_segs = n_segs, .ld = ld, .c = c, .col0 = col0};
    return run_drop(ctx, &q);
}

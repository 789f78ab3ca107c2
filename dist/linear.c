#include "dist/linear.h"

#include "core/error.h"

enum { TSR_MAX_SEGS = 3 * 256 };

static const tsr_elem *weights_of(const struct tsr_param *p) {
    return p ? p->w : NULL;
}

int tsr_column_linear(struct tsr_net *net, tsr_elem *y, const tsr_elem *x, int n,
                      const struct tsr_param *w, const struct tsr_param *bias) {
    int k = (int)w->cols;
    struct tsr_gemm_seg seg = {.a = x, .a_i = k, .a_p = 1, .b = w->w, .b_p = 1, .b_j = k, .k = k};
    struct tsr_gemm g = {.m = n,
                         .n = (int)w->rows,
                         .n_pieces = 1,
                         .n_segs = 1,
                         .segs = &seg,
                         .c = y,
                         .ldc = w->rows,
                         .bias = weights_of(bias)};
    return net->ctx->ops->gemm(net->ctx, &g);
}

int tsr_row_linear(struct tsr_net *net, void *y, bool f32, const tsr_elem *x, int n,
                   const struct tsr_param *w, struct tsr_cut cut, const struct tsr_param *bias,
                   const tsr_elem *residual) {
    struct tsr_gemm_seg segs[TSR_MAX_SEGS];
    int64_t ld = w->cols;
    TSR_ASSERT(net->Vl <= TSR_MAX_SEGS);
    for (int v = 0; v < net->Vl; v++) {
        int lo = cut.bound[v] * cut.unit, hi = cut.bound[v + 1] * cut.unit;
        segs[v] = (struct tsr_gemm_seg){.a = tsr_at(net->ctx, x, lo),
                                        .a_i = ld,
                                        .a_p = 1,
                                        .b = tsr_at(net->ctx, w->w, lo),
                                        .b_p = 1,
                                        .b_j = ld,
                                        .k = hi - lo,
                                        .piece = v};
    }
    struct tsr_gemm g = {.m = n,
                         .n = (int)w->rows,
                         .n_pieces = net->Vl,
                         .n_segs = net->Vl,
                         .segs = segs,
                         .c = y,
                         .ldc = w->rows,
                         .c_f32 = f32,
                         .bias = weights_of(bias),
                         .residual = residual,
                         .ldr = w->rows};
    return net->ctx->ops->gemm(net->ctx, &g);
}

int tsr_row_linear_dx(struct tsr_net *net, tsr_elem *dx, const tsr_elem *dy, int n,
                      const struct tsr_param *w) {
    struct tsr_gemm_seg seg = {
        .a = dy, .a_i = w->rows, .a_p = 1, .b = w->w, .b_p = w->cols, .b_j = 1, .k = (int)w->rows};
    struct tsr_gemm g = {.m = n,
                         .n = (int)w->cols,
                         .n_pieces = 1,
                         .n_segs = 1,
                         .segs = &seg,
                         .c = dx,
                         .ldc = w->cols};
    return net->ctx->ops->gemm(net->ctx, &g);
}

int tsr_column_linear_dx(struct tsr_net *net, void *dx, bool f32, int n,
                         const struct tsr_dx_source *sources, int n_sources) {
    struct tsr_gemm_seg segs[TSR_MAX_SEGS];
    int n_segs = 0, c = (int)sources[0].w->cols;
    TSR_ASSERT(net->Vl * n_sources <= TSR_MAX_SEGS);
    for (int v = 0; v < net->Vl; v++)
        for (int s = 0; s < n_sources; s++) {
            const struct tsr_dx_source *src = &sources[s];
            int lo = src->cut.bound[v] * src->cut.unit, hi = src->cut.bound[v + 1] * src->cut.unit;
            segs[n_segs++] =
                (struct tsr_gemm_seg){.a = tsr_at(net->ctx, src->dy, lo),
                                      .a_i = src->w->rows,
                                      .a_p = 1,
                                      .b = tsr_at(net->ctx, src->w->w, (int64_t)lo * c),
                                      .b_p = c,
                                      .b_j = 1,
                                      .k = hi - lo,
                                      .piece = v};
        }
    struct tsr_gemm g = {.m = n,
                         .n = c,
                         .n_pieces = net->Vl,
                         .n_segs = n_segs,
                         .segs = segs,
                         .c = dx,
                         .ldc = c,
                         .c_f32 = f32};
    return net->ctx->ops->gemm(net->ctx, &g);
}

int tsr_linear_dw(struct tsr_net *net, const struct tsr_batch *b, const struct tsr_param *w,
                  const tsr_elem *dy, const tsr_elem *x) {
    int per_piece = b->n / b->n_pieces, run = per_piece;
    // A product of 16-bit elements takes its terms in groups from where a segment begins: one for
    // each sequence, so that groups are the same in every micro-batch.
    if (net->ctx->dtype != TSR_DT_F32 && b->seq_len < run)
        run = b->seq_len;
    int n_segs = b->n / run;
    TSR_ASSERT(n_segs <= b->n_seqs && n_segs * run == b->n);
    for (int i = 0; i < n_segs; i++) {
        int64_t row = (int64_t)i * run;
        b->products[i] = (struct tsr_gemm_seg){.a = tsr_at(net->ctx, dy, row * w->rows),
                                               .a_i = 1,
                                               .a_p = w->rows,
                                               .b = tsr_at(net->ctx, x, row * w->cols),
                                               .b_p = w->cols,
                                               .b_j = 1,
                                               .k = run,
                                               .piece = (int)(row / per_piece)};
    }
    struct tsr_gemm g = {.m = (int)w->rows,
                         .n = (int)w->cols,
                         .n_pieces = b->n_pieces,
                         .n_segs = n_segs,
                         .segs = b->products,
                         .mode = b->fresh ? TSR_GEMM_STORE : TSR_GEMM_CHAIN,
                         .c = tsr_net_grad(net, w, tsr_grad_level(b)),
                         .ldc = w->cols,
                         .c_f32 = true};
    return net->ctx->ops->gemm(net->ctx, &g);
}

int tsr_column_bias_grad(struct tsr_net *net, const struct tsr_batch *b,
                         const struct tsr_param *bias, const tsr_elem *dy) {
    if (!bias)
        return 0;
    return net->ctx->ops->colsum(net->ctx, bias->acc, dy, bias->rows, b->replica_rows,
                                 b->n_replica_rows, (int)bias->rows);
}

int tsr_row_bias_grad(struct tsr_net *net, const struct tsr_batch *b, const struct tsr_param *bias,
                      const tsr_elem *dy) {
    if (!bias)
        return 0;
    return net->ctx->ops->colsum(net->ctx, bias->acc, dy, bias->rows, b->token_rows,
                                 b->n_token_rows, (int)bias->rows);
}

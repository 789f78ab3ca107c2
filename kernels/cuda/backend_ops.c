// The table of operations: the host's arrays go to the device, kernels are launched.
#include <stdlib.h>
#include "kernels/cuda/backend_private.h"
#include "kernels/cuda/gemm_lt.h"

#define STREAM(ctx) (tsr_cuda_of(ctx)->stream)

static int upload_rows(struct tsr_ctx *ctx, const struct tsr_rows *rows, int n_rows,
                       const struct tsr_rows **dev, int *n_chains, int *n_tokens) {
    const void *where = NULL;
    *n_chains = *n_tokens = 0;
    for (int i = 0; i < n_rows; i++) {
        *n_chains = rows[i].chain + 1 > *n_chains ? rows[i].chain + 1 : *n_chains;
        *n_tokens = rows[i].row + rows[i].n > *n_tokens ? rows[i].row + rows[i].n : *n_tokens;
    }
    TSR_TRY(tsr_cuda_upload(tsr_cuda_of(ctx), rows, (size_t)n_rows * sizeof *rows, &where));
    *dev = where;
    return 0;
}

static int copy_2d(struct tsr_ctx *ctx, tsr_elem *dst, ptrdiff_t ldd, const tsr_elem *src,
                   ptrdiff_t lds, int rows, int cols) {
    return tsr_cuda_copy_2d(STREAM(ctx), ctx->dtype, dst, ldd, src, lds, rows, cols);
}

static int convert(struct tsr_ctx *ctx, enum tsr_dtype to, void *dst, ptrdiff_t ldd,
                   enum tsr_dtype from, const void *src, ptrdiff_t lds, int64_t rows,
                   int64_t cols) {
    return tsr_cuda_convert(STREAM(ctx), to, dst, ldd, from, src, lds, rows, cols);
}

static int gemm(struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    const void *segs = NULL;
    if (c->lt != NULL) {
        int rc = tsr_cuda_lt_gemm(c->lt, c->stream, ctx->dtype, g);
        if (rc <= 0) // 1: not one for the library
            return rc;
    }
    TSR_TRY(tsr_cuda_upload(c, g->segs, (size_t)g->n_segs * sizeof *g->segs, &segs));
    return tsr_cuda_gemm(c->stream, ctx->dtype, g, segs, c->n_sms);
}

static int embedding(struct tsr_ctx *ctx, tsr_elem *x, const int32_t *ids, const tsr_elem *wte,
                     int row0, int n_rows, int n, int c) {
    return tsr_cuda_embedding(STREAM(ctx), ctx->dtype, x, ids, wte, row0, n_rows, n, c);
}

static int embedding_bwd(struct tsr_ctx *ctx, float *dtable, const int32_t *ids, const tsr_elem *dx,
                         const struct tsr_rows *rows, int n_rows, int n_chains, int row0,
                         int n_table, int c) {
    const struct tsr_rows *dev = NULL;
    void *links = NULL;
    int chains, n;
    TSR_TRY(upload_rows(ctx, rows, n_rows, &dev, &chains, &n));
    TSR_TRY(tsr_cuda_scratch(tsr_cuda_of(ctx), 2 * (size_t)n * sizeof(int), &links));
    return tsr_cuda_embedding_bwd(STREAM(ctx), ctx->dtype, dtable, ids, dx, dev, n_rows, n_chains,
                                  row0, n_table, n, c, links);
}

static int position(struct tsr_ctx *ctx, tsr_elem *x, const int32_t *pos, const tsr_elem *wpe,
                    int n, int c) {
    return tsr_cuda_position(STREAM(ctx), ctx->dtype, x, pos, wpe, n, c);
}

static int layernorm(struct tsr_ctx *ctx, tsr_elem *y, float *mean, float *rstd, const tsr_elem *x,
                     const tsr_elem *w, const tsr_elem *b, float eps, int n, int c) {
    return tsr_cuda_layernorm(STREAM(ctx), ctx->dtype, y, mean, rstd, x, w, b, eps, n, c);
}

static int rmsnorm(struct tsr_ctx *ctx, tsr_elem *y, float *rstd, const tsr_elem *x,
                   const tsr_elem *w, float eps, int n, int c) {
    return tsr_cuda_rmsnorm(STREAM(ctx), ctx->dtype, y, rstd, x, w, eps, n, c);
}

static int norm_bwd(struct tsr_ctx *ctx, tsr_elem *dx, const tsr_elem *dres, const tsr_elem *dy,
                    const tsr_elem *x, const tsr_elem *w, const float *mean, const float *rstd,
                    int n, int c) {
    return tsr_cuda_norm_bwd(STREAM(ctx), ctx->dtype, dx, dres, dy, x, w, mean, rstd, n, c);
}

static int norm_bwd_params(struct tsr_ctx *ctx, float *dw, float *db, const tsr_elem *dy,
                           const tsr_elem *x, const float *mean, const float *rstd,
                           const struct tsr_rows *rows, int n_rows, int c) {
    const struct tsr_rows *dev = NULL;
    int n_chains, n;
    TSR_TRY(upload_rows(ctx, rows, n_rows, &dev, &n_chains, &n));
    return tsr_cuda_norm_bwd_params(STREAM(ctx), ctx->dtype, dw, db, dy, x, mean, rstd, dev, n_rows,
                                    n_chains, c);
}

static int colsum(struct tsr_ctx *ctx, float *acc, const tsr_elem *x, ptrdiff_t ldx,
                  const struct tsr_rows *rows, int n_rows, int c) {
    const struct tsr_rows *dev = NULL;
    int n_chains, n;
    TSR_TRY(upload_rows(ctx, rows, n_rows, &dev, &n_chains, &n));
    return tsr_cuda_colsum(STREAM(ctx), ctx->dtype, acc, x, ldx, dev, n_rows, n_chains, c);
}

static int rotary(struct tsr_ctx *ctx, tsr_elem *x, ptrdiff_t ld, const int32_t *pos,
                  const float *cos_sin, int n, int heads, int d, bool inverse) {
    return tsr_cuda_rotary(STREAM(ctx), ctx->dtype, x, ld, pos, cos_sin, n, heads, d, inverse);
}

static int kv_store(struct tsr_ctx *ctx, const struct tsr_attn *a, const tsr_elem *k,
                    const tsr_elem *v) {
    struct tsr_cuda_attn dev;
    TSR_TRY(tsr_cuda_attn_of(tsr_cuda_of(ctx), a, &dev));
    return tsr_cuda_kv_store(STREAM(ctx), ctx->dtype, &dev, k, v);
}

static int attention(struct tsr_ctx *ctx, const struct tsr_attn *a, tsr_elem *o, float *lse,
                     const tsr_elem *q, const tsr_elem *k, const tsr_elem *v) {
    struct tsr_cuda_attn dev;
    TSR_TRY(tsr_cuda_attn_of(tsr_cuda_of(ctx), a, &dev));
    dev.scratch_bytes = tsr_cuda_attention_scratch(ctx->dtype, &dev);
    if (dev.scratch_bytes > 0)
        TSR_TRY(tsr_cuda_scratch(tsr_cuda_of(ctx), dev.scratch_bytes, &dev.scratch));
    return tsr_cuda_attention(STREAM(ctx), ctx->dtype, &dev, o, lse, q, k, v);
}

static int attention_bwd(struct tsr_ctx *ctx, const struct tsr_attn *a,
                         const struct tsr_kv_slot *slots, int n_slots, tsr_elem *dq, tsr_elem *dk,
                         tsr_elem *dv, const tsr_elem *d_o, const tsr_elem *o, const float *lse,
                         const tsr_elem *q, const tsr_elem *k, const tsr_elem *v) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    struct tsr_cuda_attn dev;
    const void *slots_dev = NULL;
    void *scratch = NULL;
    TSR_TRY(tsr_cuda_attn_of(c, a, &dev));
    TSR_TRY(tsr_cuda_upload(c, slots, (size_t)n_slots * sizeof *slots, &slots_dev));
    size_t n_floats = tsr_cuda_attention_bwd_scratch(ctx->dtype, &dev);
    TSR_TRY(tsr_cuda_scratch(c, n_floats * sizeof(float), &scratch));
    return tsr_cuda_attention_bwd(c->stream, ctx->dtype, &dev, slots_dev, n_slots, dq, dk, dv, d_o,
                                  o, lse, q, k, v, scratch);
}

static int kv_slot_sum(struct tsr_ctx *ctx, void *dkv, bool f32, const tsr_elem *slot_values,
                       const struct tsr_kv_slot *slots, int n_slots, int n_pieces, int nkv, int n,
                       int d) {
    int n_places = nkv * n_pieces;
    const void *dev = NULL;
    if (n_places == 0)
        return 0;
    int *slot_of = malloc((size_t)n_places * sizeof *slot_of);
    if (slot_of == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for %d pieces of heads", n_places);
    for (int i = 0; i < n_places; i++)
        slot_of[i] = -1;
    for (int s = 0; s < n_slots; s++) {
        TSR_ASSERT(slots[s].kv >= 0 && slots[s].kv < nkv && slots[s].piece >= 0 &&
                   slots[s].piece < n_pieces);
        slot_of[slots[s].kv * n_pieces + slots[s].piece] = s;
    }
    int rc = tsr_cuda_upload(tsr_cuda_of(ctx), slot_of, (size_t)n_places * sizeof *slot_of, &dev);
    free(slot_of);
    TSR_TRY(rc);
    return tsr_cuda_kv_slot_sum(STREAM(ctx), ctx->dtype, dkv, f32, slot_values, dev, n_slots,
                                n_pieces, nkv, n, d);
}

static int act(struct tsr_ctx *ctx, enum tsr_act f, tsr_elem *y, const tsr_elem *x, size_t n) {
    return tsr_cuda_act(STREAM(ctx), ctx->dtype, f, y, x, NULL, n);
}

static int act_bwd(struct tsr_ctx *ctx, enum tsr_act f, tsr_elem *dx, const tsr_elem *dy,
                   const tsr_elem *x, size_t n) {
    return tsr_cuda_act_bwd(STREAM(ctx), ctx->dtype, f, dx, NULL, dy, x, NULL, n);
}

static int gated(struct tsr_ctx *ctx, enum tsr_act f, tsr_elem *y, const tsr_elem *gate,
                 const tsr_elem *up, size_t n) {
    return tsr_cuda_act(STREAM(ctx), ctx->dtype, f, y, gate, up, n);
}

static int gated_bwd(struct tsr_ctx *ctx, enum tsr_act f, tsr_elem *dgate, tsr_elem *dup,
                     const tsr_elem *dy, const tsr_elem *gate, const tsr_elem *up, size_t n) {
    return tsr_cuda_act_bwd(STREAM(ctx), ctx->dtype, f, dgate, dup, dy, gate, up, n);
}

static int bias_dropout_add(struct tsr_ctx *ctx, tsr_elem *out, const tsr_elem *residual,
                            const void *y, bool y_f32, const tsr_elem *bias,
                            const struct tsr_dropout *d, const struct tsr_segment *segs, int n_segs,
                            ptrdiff_t ld, int c, int64_t col0) {
    const struct tsr_cuda_segment *dev = NULL;
    int max_length;
    TSR_TRY(tsr_cuda_segments(tsr_cuda_of(ctx), segs, n_segs, &dev, &max_length));
    return tsr_cuda_dropout(STREAM(ctx), ctx->dtype, out, residual, y, y_f32, bias, *d, dev, n_segs,
                            max_length, ld, c, col0);
}

static int dropout_bwd(struct tsr_ctx *ctx, tsr_elem *dx, const tsr_elem *dy,
                       const struct tsr_dropout *d, const struct tsr_segment *segs, int n_segs,
                       ptrdiff_t ld, int c, int64_t col0) {
    return bias_dropout_add(ctx, dx, NULL, dy, false, NULL, d, segs, n_segs, ld, c, col0);
}

static int add(struct tsr_ctx *ctx, tsr_elem *out, const tsr_elem *a, const tsr_elem *b, size_t n) {
    return tsr_cuda_add(STREAM(ctx), ctx->dtype, out, a, b, n);
}

static int add_f32(struct tsr_ctx *ctx, float *out, const float *a, const float *b, size_t n) {
    return tsr_cuda_add(STREAM(ctx), TSR_DT_F32, out, a, b, n);
}

static int tree_add(struct tsr_ctx *ctx, float *out, const float *const *in, int n_in, size_t n) {
    const void *dev = NULL;
    TSR_TRY(tsr_cuda_upload(tsr_cuda_of(ctx), (const void *)in, (size_t)n_in * sizeof *in, &dev));
    return tsr_cuda_tree_add(STREAM(ctx), out, (const float *const *)dev, n_in, n);
}

static int xent_max(struct tsr_ctx *ctx, float *max, const tsr_elem *logits, int n, int v) {
    return tsr_cuda_xent_max(STREAM(ctx), ctx->dtype, max, logits, n, v);
}

static int xent_exp(struct tsr_ctx *ctx, tsr_elem *logits, float *sum_target, const float *max,
                    const int32_t *targets, const int *bounds, int n_pieces, int row0, int n,
                    int v) {
    const void *dev = NULL;
    size_t n_bytes = ((size_t)n_pieces + 1) * sizeof *bounds;
    TSR_TRY(tsr_cuda_upload(tsr_cuda_of(ctx), bounds, n_bytes, &dev));
    return tsr_cuda_xent_exp(STREAM(ctx), ctx->dtype, logits, sum_target, max, targets, dev,
                             n_pieces, row0, n, v);
}

static int xent_loss(struct tsr_ctx *ctx, float *loss, tsr_elem *logits, const float *sum_target,
                     const int32_t *targets, float scale, bool grad, int row0, int n, int v) {
    return tsr_cuda_xent_loss(STREAM(ctx), ctx->dtype, loss, logits, sum_target, targets, scale,
                              grad, row0, n, v);
}

static int sample(struct tsr_ctx *ctx, int32_t *next, const float *logits,
                  const struct tsr_sampling *s, const uint64_t *index, int rows, int64_t v) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    const void *s_dev = NULL, *index_dev = NULL;
    TSR_TRY(tsr_cuda_upload_live(c, s, (size_t)rows * sizeof *s, &s_dev));
    TSR_TRY(tsr_cuda_upload_live(c, index, (size_t)rows * sizeof *index, &index_dev));
    return tsr_cuda_sample(c->stream, next, logits, s_dev, index_dev, rows, v);
}

static int sumsq(struct tsr_ctx *ctx, double *sums, const float *g, ptrdiff_t ld,
                 const int64_t *bounds, int n_blocks, int64_t cols) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    const void *dev = NULL;
    void *of_row = NULL;
    if (n_blocks == 0)
        return 0;
    int64_t rows = bounds[n_blocks] - bounds[0];
    TSR_TRY(tsr_cuda_upload(c, bounds, ((size_t)n_blocks + 1) * sizeof *bounds, &dev));
    TSR_TRY(tsr_cuda_scratch(c, (size_t)rows * sizeof(double), &of_row));
    return tsr_cuda_sumsq(c->stream, sums, g, ld, dev, n_blocks, bounds[0], rows, cols, of_row);
}

static int adamw(struct tsr_ctx *ctx, const struct tsr_adamw *p, float *w, ptrdiff_t ldw, float *m,
                 float *v, const float *g, ptrdiff_t ldg, int64_t rows, int64_t cols,
                 tsr_elem *copy) {
    return tsr_cuda_adamw(STREAM(ctx), p, w, ldw, m, v, g, ldg, rows, cols, ctx->dtype, copy);
}

static int check_heads(const struct tsr_ctx *ctx, int64_t head_dim) {
    return tsr_cuda_check_heads(ctx->dtype, head_dim);
}

static int round_by_draws(struct tsr_ctx *ctx, tsr_elem *w, ptrdiff_t ldw, const float *master,
                          const struct tsr_rounding *r, int64_t rows, int64_t cols) {
    return tsr_cuda_round(STREAM(ctx), ctx->dtype, w, ldw, master, r, rows, cols);
}

static int init_normal(struct tsr_ctx *ctx, tsr_elem *w, struct tsr_rng_key key, float std,
                       int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                       int64_t global_cols) {
    return tsr_cuda_init_normal(STREAM(ctx), ctx->dtype, w, key, std, row0, rows, col0, cols,
                                global_cols);
}

const struct tsr_ops tsr_cuda_ops = {
    .name = "cuda",
    .close = tsr_cuda_close,
    .describe = tsr_cuda_describe,
    .allocated = tsr_cuda_allocated,
    .alloc = tsr_cuda_alloc,
    .free = tsr_cuda_free,
    .zero = tsr_cuda_zero,
    .to_device = tsr_cuda_to_device,
    .to_host = tsr_cuda_to_host,
    .copy = tsr_cuda_copy,
    .sync = tsr_cuda_sync,
    .pin = tsr_cuda_pin,
    .unpin = tsr_cuda_unpin,
    .record = tsr_cuda_record,
    .recorded = tsr_cuda_recorded,
    .replay = tsr_cuda_replay,
    .graph_free = tsr_cuda_graph_free,
    .measure_peak = tsr_cuda_measure_peak,
    .memory = tsr_cuda_memory,
    .scratch = tsr_cuda_scratch_bytes,
    .copy_2d = copy_2d,
    .convert = convert,
    .gemm = gemm,
    .embedding = embedding,
    .embedding_bwd = embedding_bwd,
    .position = position,
    .layernorm = layernorm,
    .rmsnorm = rmsnorm,
    .norm_bwd = norm_bwd,
    .norm_bwd_params = norm_bwd_params,
    .colsum = colsum,
    .rotary = rotary,
    .kv_store = kv_store,
    .attention = attention,
    .attention_bwd = attention_bwd,
    .kv_slot_sum = kv_slot_sum,
    .act = act,
    .act_bwd = act_bwd,
    .gated = gated,
    .gated_bwd = gated_bwd,
    .bias_dropout_add = bias_dropout_add,
    .dropout_bwd = dropout_bwd,
    .add = add,
    .add_f32 = add_f32,
    .tree_add = tree_add,
    .xent_max = xent_max,
    .xent_exp = xent_exp,
    .xent_loss = xent_loss,
    .sample = sample,
    .sumsq = sumsq,
    .adamw = adamw,
    .check_heads = check_heads,
    .round = round_by_draws,
    .init_normal = init_normal,
};

// A block's forward, and its backward as the mirror, line for line.
#include "dist/block.h"

#include <math.h>
#include "core/error.h"
#include "dist/linear.h"
#include "dist/tp.h"

#define P(kind) (net->layer[layer][TSR_T_##kind])

static struct tsr_dropout dropout_of(const struct tsr_net *net, float p,
                                     enum tsr_rng_purpose purpose, int layer, bool training) {
    return (struct tsr_dropout){.p = training ? p : 0.0f,
                                .key = tsr_rng_key(net->opt.seed, purpose, (uint32_t)layer, 0)};
}

// What attention scores are multiplied by: 1/sqrt(D), and what GPT-2's options make of it.
static float score_scale(const struct tsr_model *m, int layer) {
    double scale = m->scores_unscaled ? 1.0 : 1.0 / sqrt((double)m->head_dim);
    return (float)(m->scores_by_layer ? scale / (layer + 1) : scale);
}

// Attention's arguments for this shard and batch.
static struct tsr_attn attention_of(const struct tsr_net *net, const struct tsr_batch *b, int layer,
                                    bool training) {
    const struct tsr_model *m = net->m;
    int D = (int)m->head_dim, nq = (int)tsr_range_len(net->q), nkv = (int)tsr_range_len(net->kv);
    return (struct tsr_attn){.q0 = (int)net->q.lo,
                             .nq = nq,
                             .kv0 = (int)net->kv.lo,
                             .nkv = nkv,
                             .group = (int)(m->n_heads / m->n_kv_heads),
                             .head_dim = D,
                             .scale = score_scale(m, layer),
                             .drop = dropout_of(net, net->opt.dropout.attention,
                                                TSR_RNG_DROP_ATTENTION, layer, training),
                             .n_segs = b->n_segs,
                             .segs = b->segs,
                             .n_tokens = b->n,
                             .ldq = nq * D,
                             .ldk = nkv * D,
                             .ldv = nkv * D,
                             .ldo = nq * D};
}

int tsr_norm(struct tsr_net *net, tsr_elem *y, float *mean, float *rstd, const tsr_elem *x,
             const struct tsr_param *w, const struct tsr_param *b, int n) {
    const struct tsr_ops *ops = net->ctx->ops;
    int c = (int)net->m->hidden;
    float eps = (float)net->m->norm_eps;
    if (net->m->rms_norm)
        return ops->rmsnorm(net->ctx, y, rstd, x, w->w, eps, n, c);
    return ops->layernorm(net->ctx, y, mean, rstd, x, w->w, b ? b->w : NULL, eps, n, c);
}

int tsr_norm_backward(struct tsr_net *net, const struct tsr_batch *b, tsr_elem *dx,
                      const tsr_elem *dres, const tsr_elem *dy, const tsr_elem *x,
                      const float *mean, const float *rstd, const struct tsr_param *w,
                      const struct tsr_param *bias) {
    const struct tsr_ops *ops = net->ctx->ops;
    int c = (int)net->m->hidden;
    const float *mu = net->m->rms_norm ? NULL : mean;
    TSR_TRY(ops->norm_bwd_params(net->ctx, w->acc, bias ? bias->acc : NULL, dy, x, mu, rstd,
                                 b->token_rows, b->n_token_rows, c));
    return ops->norm_bwd(net->ctx, dx, dres, dy, x, w->w, mu, rstd, b->n_local, c);
}

static int rotate(struct tsr_net *net, const struct tsr_batch *b, tsr_elem *q, tsr_elem *k,
                  bool inverse) {
    if (!net->rope)
        return 0;
    int D = (int)net->m->head_dim, nq = (int)tsr_range_len(net->q),
        nkv = (int)tsr_range_len(net->kv);
    const struct tsr_ops *ops = net->ctx->ops;
    TSR_TRY(ops->rotary(net->ctx, q, nq * D, b->device.pos, net->rope, b->n, nq, D, inverse));
    return ops->rotary(net->ctx, k, nkv * D, b->device.pos, net->rope, b->n, nkv, D, inverse);
}

// out (Nl, C) = residual + dropout(in w^T + bias), summed over ranks by the tree. Without ranks and
// dropout everything happens in the product's epilogue: the same operations in the same order.
static int row_parallel(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                        tsr_elem *out, const tsr_elem *residual, const tsr_elem *in,
                        const struct tsr_param *weight, const struct tsr_param *bias,
                        struct tsr_cut cut, struct tsr_dropout drop) {
    if (net->mesh.tp == 1 && drop.p == 0.0f)
        return tsr_row_linear(net, out, false, in, b->n, weight, cut, bias, residual);
    int c = (int)net->m->hidden, n = tsr_tp_parts(net, b);
    struct tsr_request r[TSR_TP_PARTS];
    for (int i = 0; i < n; i++) {
        struct tsr_range rows = tsr_tp_part(net, b, i, n);
        TSR_TRY(tsr_row_linear(net, w->sum + rows.lo * c, true,
                               tsr_at(net->ctx, in, rows.lo * weight->cols),
                               (int)tsr_range_len(rows), weight, cut, NULL, NULL));
        TSR_TRY(tsr_tp_sum_begin(net, b, rows, w->sum, w->staged, &r[i]));
    }
    for (int i = 0; i < n; i++)
        TSR_TRY(tsr_tp_sum_end(net, b, w->sum, NULL, &r[i]));
    return net->ctx->ops->bias_dropout_add(net->ctx, out, residual, w->sum, true,
                                           bias ? bias->w : NULL, &drop, b->local_segs,
                                           b->n_local_segs, c, c, 0);
}

// out (Nl, C) = residual + attention(in), in and residual (Nl, C).
static int attention_forward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                             struct tsr_acts *a, struct tsr_work *w, bool training,
                             const tsr_elem *in, const tsr_elem *residual, tsr_elem *out) {
    const struct tsr_ops *ops = net->ctx->ops;
    const tsr_elem *h;
    TSR_TRY(tsr_tp_rows(net, b, in, w->whole1, w->staged, &h));
    TSR_TRY(tsr_column_linear(net, a->q, h, b->n, P(Q_W), P(Q_B)));
    TSR_TRY(tsr_column_linear(net, a->k, h, b->n, P(K_W), P(K_B)));
    TSR_TRY(tsr_column_linear(net, a->v, h, b->n, P(V_W), P(V_B)));
    TSR_TRY(rotate(net, b, a->q, a->k, false));
    struct tsr_attn attn = attention_of(net, b, layer, training);
    TSR_TRY(ops->kv_store(net->ctx, &attn, a->k, a->v));
    TSR_TRY(ops->attention(net->ctx, &attn, a->o, a->lse, a->q, a->k, a->v));
    struct tsr_dropout drop =
        dropout_of(net, net->opt.dropout.residual, TSR_RNG_DROP_ATTN_OUT, layer, training);
    struct tsr_cut heads = {net->q_bound, (int)net->m->head_dim};
    return row_parallel(net, b, w, out, residual, a->o, P(O_W), P(O_B), heads, drop);
}

// a->a (N, F) = dropout(act(up)) or dropout(act(gate) * up).
static int activate(struct tsr_net *net, int layer, const struct tsr_batch *b, struct tsr_acts *a,
                    bool training) {
    const struct tsr_ops *ops = net->ctx->ops;
    int f = (int)tsr_range_len(net->f);
    size_t n = (size_t)b->n * (size_t)f;
    if (net->m->gated)
        TSR_TRY(ops->gated(net->ctx, net->m->act, a->a, a->gate, a->up, n));
    else
        TSR_TRY(ops->act(net->ctx, net->m->act, a->a, a->up, n));
    struct tsr_dropout drop =
        dropout_of(net, net->opt.dropout.ffn, TSR_RNG_DROP_FFN, layer, training);
    if (drop.p == 0.0f)
        return 0;
    return ops->bias_dropout_add(net->ctx, a->a, NULL, a->a, false, NULL, &drop, b->whole_segs,
                                 b->n_seqs, f, f, net->f.lo);
}

// out (Nl, C) = residual + ffn(in).
static int ffn_forward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                       struct tsr_acts *a, struct tsr_work *w, bool training, const tsr_elem *in,
                       const tsr_elem *residual, tsr_elem *out) {
    const tsr_elem *h;
    TSR_TRY(tsr_tp_rows(net, b, in, w->whole1, w->staged, &h));
    if (net->m->gated)
        TSR_TRY(tsr_column_linear(net, a->gate, h, b->n, P(GATE_W), P(GATE_B)));
    TSR_TRY(tsr_column_linear(net, a->up, h, b->n, P(UP_W), P(UP_B)));
    TSR_TRY(activate(net, layer, b, a, training));
    struct tsr_dropout drop =
        dropout_of(net, net->opt.dropout.residual, TSR_RNG_DROP_FFN_OUT, layer, training);
    struct tsr_cut columns = {net->f_bound, 1};
    return row_parallel(net, b, w, out, residual, a->a, P(DOWN_W), P(DOWN_B), columns, drop);
}

int tsr_block_forward(struct tsr_net *net, int layer, const struct tsr_batch *b, struct tsr_acts *a,
                      struct tsr_work *w, bool training, tsr_elem *y) {
    int n = b->n_local;
    if (net->m->post_norm) {
        TSR_TRY(attention_forward(net, layer, b, a, w, training, a->x, a->x, a->mid));
        TSR_TRY(tsr_norm(net, a->h1, a->mean1, a->rstd1, a->mid, P(NORM1_W), P(NORM1_B), n));
        TSR_TRY(ffn_forward(net, layer, b, a, w, training, a->h1, a->h1, a->h2));
        return tsr_norm(net, y, a->mean2, a->rstd2, a->h2, P(NORM2_W), P(NORM2_B), n);
    }
    TSR_TRY(tsr_norm(net, a->h1, a->mean1, a->rstd1, a->x, P(NORM1_W), P(NORM1_B), n));
    TSR_TRY(attention_forward(net, layer, b, a, w, training, a->h1, a->x, a->mid));
    TSR_TRY(tsr_norm(net, a->h2, a->mean2, a->rstd2, a->mid, P(NORM2_W), P(NORM2_B), n));
    return ffn_forward(net, layer, b, a, w, training, a->h2, a->mid, y);
}

// The head of both backwards: *dy (N, C) is d through dropout, in full rows; the bias is summed.
static int row_parallel_backward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                                 const tsr_elem *d, struct tsr_dropout drop,
                                 const struct tsr_param *bias, const tsr_elem **dy) {
    int c = (int)net->m->hidden;
    if (drop.p != 0.0f) {
        TSR_TRY(net->ctx->ops->dropout_bwd(net->ctx, w->dy, d, &drop, b->local_segs,
                                           b->n_local_segs, c, c, 0));
        d = w->dy;
    }
    TSR_TRY(tsr_row_bias_grad(net, b, bias, d));
    return tsr_tp_rows(net, b, d, w->whole2, w->staged, dy);
}

// The gradients of column-parallel products h w^T: of what they read, w->part (Nl, C), summed over
// ranks by the tree, and meanwhile of the weights and biases. `rows`: the gather of `in`, under
// way.
static int column_parallel_backward(struct tsr_net *net, const struct tsr_batch *b,
                                    struct tsr_work *w, const tsr_elem *in,
                                    struct tsr_request *rows, const struct tsr_dx_source *sources,
                                    struct tsr_param *const *biases, int n) {
    bool joined = net->mesh.tp > 1;
    const tsr_elem *h;
    struct tsr_request sum;
    TSR_TRY(tsr_column_linear_dx(net, joined ? (void *)w->sum : w->part, joined, b->n, sources, n));
    TSR_TRY(tsr_tp_rows_end(net, b, in, w->whole1, w->staged, rows, &h));
    TSR_TRY(tsr_tp_sum_begin(net, b, (struct tsr_range){0, b->n}, w->sum, w->staged, &sum));
    for (int i = 0; i < n; i++) {
        TSR_TRY(tsr_linear_dw(net, b, sources[i].w, sources[i].dy, h));
        TSR_TRY(tsr_column_bias_grad(net, b, biases[i], sources[i].dy));
    }
    return tsr_tp_sum_end(net, b, w->sum, w->part, &sum);
}

// w->part (Nl, C) = gradient of `in` of ffn_forward, given d (Nl, C) of its sum.
static int ffn_backward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                        struct tsr_acts *a, struct tsr_work *w, const tsr_elem *in,
                        const tsr_elem *d) {
    const struct tsr_ops *ops = net->ctx->ops;
    int f = (int)tsr_range_len(net->f);
    size_t n = (size_t)b->n * (size_t)f;
    struct tsr_dropout out_drop =
        dropout_of(net, net->opt.dropout.residual, TSR_RNG_DROP_FFN_OUT, layer, true);
    struct tsr_dropout drop = dropout_of(net, net->opt.dropout.ffn, TSR_RNG_DROP_FFN, layer, true);
    const tsr_elem *dy;
    struct tsr_request rows;
    TSR_TRY(row_parallel_backward(net, b, w, d, out_drop, P(DOWN_B), &dy));
    TSR_TRY(tsr_tp_rows_begin(net, b, in, w->staged, &rows));
    TSR_TRY(tsr_row_linear_dx(net, w->da, dy, b->n, P(DOWN_W)));
    TSR_TRY(tsr_linear_dw(net, b, P(DOWN_W), dy, a->a));
    if (drop.p != 0.0f)
        TSR_TRY(ops->dropout_bwd(net->ctx, w->da, w->da, &drop, b->whole_segs, b->n_seqs, f, f,
                                 net->f.lo));
    struct tsr_cut columns = {net->f_bound, 1};
    if (!net->m->gated) {
        TSR_TRY(ops->act_bwd(net->ctx, net->m->act, w->da, w->da, a->up, n));
        struct tsr_dx_source up = {w->da, P(UP_W), columns};
        return column_parallel_backward(net, b, w, in, &rows, &up, &P(UP_B), 1);
    }
    // What was saved is used up: its place holds the gradient.
    TSR_TRY(ops->gated_bwd(net->ctx, net->m->act, a->gate, a->up, w->da, a->gate, a->up, n));
    struct tsr_dx_source src[2] = {{a->gate, P(GATE_W), columns}, {a->up, P(UP_W), columns}};
    struct tsr_param *biases[2] = {P(GATE_B), P(UP_B)};
    return column_parallel_backward(net, b, w, in, &rows, src, biases, 2);
}

// Moves the shared heads of one side between dkv (N, nkv, D), of type `dtype`, and its half
// (N, n_shared, D) of w->shared.
static int move_shared(struct tsr_net *net, const struct tsr_batch *b, float *half, char *dkv,
                       enum tsr_dtype dtype, bool to_half) {
    const struct tsr_ops *ops = net->ctx->ops;
    int64_t D = net->m->head_dim, nkv = tsr_range_len(net->kv), ns = net->n_shared_kv;
    for (int i = 0; i < ns; i++) {
        int64_t local = net->shared_kv[i] - net->kv.lo;
        if (local < 0 || local >= nkv)
            continue;
        char *mine = dkv + local * D * (int64_t)tsr_dtype_size(dtype);
        if (to_half)
            TSR_TRY(ops->convert(net->ctx, TSR_DT_F32, half + i * D, ns * D, dtype, mine, nkv * D,
                                 b->n, D));
        else
            TSR_TRY(ops->convert(net->ctx, dtype, mine, nkv * D, TSR_DT_F32, half + i * D, ns * D,
                                 b->n, D));
    }
    return 0;
}

// dkv = tree over the slots held here. When other ranks have slots of some of the heads, `half`
// gets those in fp32.
static int join_slots(struct tsr_net *net, const struct tsr_batch *b, const struct tsr_work *w,
                      tsr_elem *dkv, const tsr_elem *slots, float *half) {
    const struct tsr_ops *ops = net->ctx->ops;
    int D = (int)net->m->head_dim, nkv = (int)tsr_range_len(net->kv), ld = nkv * D;
    enum tsr_dtype dtype = net->ctx->dtype;
    if (slots == dkv) // one slot each
        return half ? move_shared(net, b, half, dkv, dtype, true) : 0;
    void *sum = w->wide_kv ? w->wide_kv : dkv;
    TSR_TRY(ops->kv_slot_sum(net->ctx, sum, w->wide_kv != NULL, slots, net->slots, net->n_slots,
                             net->Vl, nkv, b->n, D));
    if (half)
        TSR_TRY(move_shared(net, b, half, sum, w->wide_kv ? TSR_DT_F32 : dtype, true));
    return sum == dkv ? 0 : ops->convert(net->ctx, dtype, dkv, ld, TSR_DT_F32, sum, ld, b->n, ld);
}

// w->dk and w->dv (N, nkv, D) from the slots: of KV heads that several ranks need, the tree over
// ranks, on each of them.
static int join_kv(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w) {
    const struct tsr_ops *ops = net->ctx->ops;
    bool shared = net->n_shared_kv > 0;
    size_t n = (size_t)b->n * (size_t)(net->n_shared_kv * net->m->head_dim);
    float *half[2] = {w->shared, shared ? w->shared + n : NULL};
    if (shared)
        TSR_TRY(ops->zero(net->ctx, w->shared, 2 * n * sizeof(float)));
    TSR_TRY(join_slots(net, b, w, w->dk, w->slot_k, half[0]));
    TSR_TRY(join_slots(net, b, w, w->dv, w->slot_v, half[1]));
    if (!shared)
        return 0;
    TSR_TRY(net->comm->ops->all_reduce(net->ctx, net->comm, &net->tp, w->shared, 2 * n, NULL));
    TSR_TRY(move_shared(net, b, half[0], w->dk, net->ctx->dtype, false));
    return move_shared(net, b, half[1], w->dv, net->ctx->dtype, false);
}

// dq, dk, dv of the heads held here, joined over the pieces that share a KV head.
static int attention_core_backward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                                   struct tsr_acts *a, struct tsr_work *w) {
    const struct tsr_ops *ops = net->ctx->ops;
    struct tsr_attn attn = attention_of(net, b, layer, true);
    TSR_TRY(ops->attention_bwd(net->ctx, &attn, net->slots, net->n_slots, w->dq, w->slot_k,
                               w->slot_v, w->part, a->o, a->lse, a->q, a->k, a->v));
    TSR_TRY(join_kv(net, b, w));
    return rotate(net, b, w->dq, w->dk, true);
}

// w->part (Nl, C) = gradient of `in` of attention_forward, given d (Nl, C) of its sum.
static int attention_backward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                              struct tsr_acts *a, struct tsr_work *w, const tsr_elem *in,
                              const tsr_elem *d) {
    struct tsr_dropout drop =
        dropout_of(net, net->opt.dropout.residual, TSR_RNG_DROP_ATTN_OUT, layer, true);
    const tsr_elem *dy;
    struct tsr_request rows;
    TSR_TRY(row_parallel_backward(net, b, w, d, drop, P(O_B), &dy));
    TSR_TRY(tsr_tp_rows_begin(net, b, in, w->staged, &rows));
    TSR_TRY(tsr_linear_dw(net, b, P(O_W), dy, a->o));
    TSR_TRY(tsr_row_linear_dx(net, w->part, dy, b->n, P(O_W))); // d of o: (N, nq D)
    TSR_TRY(attention_core_backward(net, layer, b, a, w));
    int D = (int)net->m->head_dim;
    struct tsr_dx_source src[3] = {{w->dq, P(Q_W), {net->q_bound, D}},
                                   {w->dk, P(K_W), {net->kv_first, D}},
                                   {w->dv, P(V_W), {net->kv_first, D}}};
    struct tsr_param *biases[3] = {P(Q_B), P(K_B), P(V_B)};
    return column_parallel_backward(net, b, w, in, &rows, src, biases, 3);
}

// Fills what the mode didn't keep: the same operations give the same bits.
static int recompute(struct tsr_net *net, int layer, const struct tsr_batch *b, struct tsr_acts *a,
                     struct tsr_work *w, enum tsr_recompute mode) {
    if (mode == TSR_RECOMPUTE_FULL)
        return tsr_block_forward(net, layer, b, a, w, true, w->dmid);
    int n = b->n_local;
    const tsr_elem *x1 = net->m->post_norm ? a->mid : a->x;
    TSR_TRY(tsr_norm(net, a->h1, a->mean1, a->rstd1, x1, P(NORM1_W), P(NORM1_B), n));
    if (!net->m->post_norm)
        TSR_TRY(tsr_norm(net, a->h2, a->mean2, a->rstd2, a->mid, P(NORM2_W), P(NORM2_B), n));
    return mode == TSR_RECOMPUTE_SELECTIVE ? activate(net, layer, b, a, true) : 0;
}

int tsr_block_backward(struct tsr_net *net, int layer, const struct tsr_batch *b,
                       struct tsr_acts *a, struct tsr_work *w, enum tsr_recompute mode,
                       tsr_elem *dx) {
    const struct tsr_ops *ops = net->ctx->ops;
    size_t n = (size_t)b->n_local * (size_t)net->m->hidden;
    TSR_TRY(recompute(net, layer, b, a, w, mode));
    if (net->m->post_norm) {
        TSR_TRY(tsr_norm_backward(net, b, w->dmid, NULL, dx, a->h2, a->mean2, a->rstd2, P(NORM2_W),
                                  P(NORM2_B)));
        TSR_TRY(ffn_backward(net, layer, b, a, w, a->h1, w->dmid));
        TSR_TRY(ops->add(net->ctx, w->dmid, w->dmid, w->part, n));
        TSR_TRY(tsr_norm_backward(net, b, dx, NULL, w->dmid, a->mid, a->mean1, a->rstd1, P(NORM1_W),
                                  P(NORM1_B)));
        TSR_TRY(attention_backward(net, layer, b, a, w, a->x, dx));
        return ops->add(net->ctx, dx, dx, w->part, n);
    }
    TSR_TRY(ffn_backward(net, layer, b, a, w, a->h2, dx));
    TSR_TRY(tsr_norm_backward(net, b, dx, dx, w->part, a->mid, a->mean2, a->rstd2, P(NORM2_W),
                              P(NORM2_B)));
    TSR_TRY(attention_backward(net, layer, b, a, w, a->h1, dx));
    return tsr_norm_backward(net, b, dx, dx, w->part, a->x, a->mean1, a->rstd1, P(NORM1_W),
                             P(NORM1_B));
}

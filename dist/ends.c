#include "dist/ends.h"

#include "core/error.h"
#include "dist/linear.h"
#include "dist/tp.h"

static struct tsr_dropout embed_dropout(const struct tsr_net *net, bool training) {
    return (struct tsr_dropout){.p = training ? net->opt.dropout.embedding : 0.0f,
                                .key = tsr_rng_key(net->opt.seed, TSR_RNG_DROP_EMBEDDING, 0, 0)};
}

int tsr_embed_forward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                      bool training, tsr_elem *x) {
    const struct tsr_ops *ops = net->ctx->ops;
    int c = (int)net->m->hidden, v = (int)tsr_range_len(net->vocab);
    struct tsr_dropout drop = embed_dropout(net, training);
    TSR_TRY(ops->embedding(net->ctx, w->part, b->device.ids, net->tok_embed->w, (int)net->vocab.lo,
                           v, b->n, c));
    // One rank has the row, the others +0: exact in any type, but sums between ranks are fp32.
    if (net->mesh.tp > 1 && w->sum != w->part)
        TSR_TRY(
            ops->convert(net->ctx, TSR_DT_F32, w->sum, c, net->ctx->dtype, w->part, c, b->n, c));
    TSR_TRY(tsr_tp_sum(net, b, w->sum, w->part, w->staged));
    if (net->pos_embed)
        TSR_TRY(ops->position(net->ctx, w->part, b->device.pos_local, net->pos_embed->w, b->n_local,
                              c));
    return ops->bias_dropout_add(net->ctx, x, NULL, w->part, false, NULL, &drop, b->local_segs,
                                 b->n_local_segs, c, c, 0);
}

// A table's gradient buffer starts from zero when a virtual replica begins.
static int table_grad(struct tsr_net *net, const struct tsr_batch *b, const struct tsr_param *p,
                      float **g) {
    *g = tsr_net_grad(net, p, tsr_grad_level(b));
    if (!b->fresh)
        return 0;
    return net->ctx->ops->zero(net->ctx, *g, (size_t)(p->rows * p->cols) * sizeof(float));
}

int tsr_embed_backward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                       tsr_elem *dx) {
    const struct tsr_ops *ops = net->ctx->ops;
    int c = (int)net->m->hidden;
    struct tsr_dropout drop = embed_dropout(net, true);
    float *g;
    if (drop.p != 0.0f)
        TSR_TRY(ops->dropout_bwd(net->ctx, dx, dx, &drop, b->local_segs, b->n_local_segs, c, c, 0));
    const tsr_elem *whole;
    TSR_TRY(tsr_tp_rows(net, b, dx, w->whole1, w->staged, &whole));
    if (net->pos_embed && net->pos_embed->sum == TSR_GRAD_TABLE) {
        // From whole rows on every rank: documents of one sequence repeat positions, so a chain
        // may run over tokens of several ranks.
        TSR_TRY(table_grad(net, b, net->pos_embed, &g));
        TSR_TRY(ops->embedding_bwd(net->ctx, g, b->device.pos, whole, b->piece_rows,
                                   b->n_piece_rows, b->n_pieces, 0, (int)net->pos_embed->rows, c));
    }
    TSR_TRY(table_grad(net, b, net->tok_embed, &g));
    return ops->embedding_bwd(net->ctx, g, b->device.ids, whole, b->piece_rows, b->n_piece_rows,
                              b->n_pieces, (int)net->vocab.lo, (int)tsr_range_len(net->vocab), c);
}

// A whole micro-batch only when its virtual replicas must be joined by the tree inside one product;
// otherwise the chain of a weight gradient continues from stretch to stretch.
int tsr_head_rows(const struct tsr_batch *b, int at) {
    enum { MOST = 1024 }; // a multiple of the groups of any product
    int left = b->n - at, T = b->seq_len, n = MOST;
    if (b->n_pieces > 1 || b->n <= MOST)
        return left;
    if (T <= MOST)
        n = MOST / T * T;
    else if (T - at % T < MOST)
        n = T - at % T;
    return n < left ? n : left;
}

int tsr_head_logits(struct tsr_net *net, tsr_elem *logits, const tsr_elem *h, int n) {
    return tsr_column_linear(net, logits, h, n, net->head, NULL);
}

// Losses of rows [0, n) of h (n, C), and when training their gradients in place of the logits.
static int loss_rows(struct tsr_net *net, struct tsr_ends *e, const tsr_elem *h,
                     const int32_t *targets, int n, float *loss, bool grad, float scale) {
    const struct tsr_ops *ops = net->ctx->ops;
    const struct tsr_comm_ops *comm = net->comm->ops;
    int v = (int)tsr_range_len(net->vocab), row0 = (int)net->vocab.lo;
    TSR_TRY(tsr_head_logits(net, e->logits, h, n));
    TSR_TRY(ops->xent_max(net->ctx, e->max, e->logits, n, v));
    TSR_TRY(comm->all_reduce_max(net->ctx, net->comm, &net->tp, e->max, (size_t)n));
    TSR_TRY(ops->xent_exp(net->ctx, e->logits, e->sum_target, e->max, targets, net->vocab_bound,
                          net->Vl, row0, n, v));
    TSR_TRY(comm->all_reduce(net->ctx, net->comm, &net->tp, e->sum_target, 2 * (size_t)n, NULL));
    return ops->xent_loss(net->ctx, loss, e->logits, e->sum_target, targets, scale, grad, row0, n,
                          v);
}

// dh rows [0, n) = dlogits w by vocabulary pieces, and dw from the same rows.
static int head_backward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_ends *e,
                         const tsr_elem *h, int n, bool fresh, void *dh, bool f32) {
    struct tsr_dx_source src = {e->logits, net->head, {net->vocab_bound, 1}};
    TSR_TRY(tsr_column_linear_dx(net, dh, f32, n, &src, 1));
    struct tsr_batch rows = *b; // the same replica, a stretch of its tokens
    rows.n = n;
    rows.fresh = fresh;
    return tsr_linear_dw(net, &rows, net->head, e->logits, h);
}

int tsr_head_forward(struct tsr_net *net, const struct tsr_batch *b, struct tsr_work *w,
                     struct tsr_ends *e, const tsr_elem *y, float *mean, float *rstd, tsr_elem *dh,
                     float scale) {
    const struct tsr_ops *ops = net->ctx->ops;
    int64_t c = net->m->hidden;
    const tsr_elem *h = y;
    bool joined = net->mesh.tp > 1;
    if (net->final_w) {
        TSR_TRY(tsr_norm(net, e->h, mean, rstd, y, net->final_w, net->final_b, b->n_local));
        h = e->h;
    }
    TSR_TRY(tsr_tp_rows(net, b, h, w->whole1, w->staged, &h));
    for (int at = 0, n; at < b->n; at += n) {
        n = tsr_head_rows(b, at);
        const tsr_elem *rows = tsr_at(net->ctx, h, at * c);
        TSR_TRY(
            loss_rows(net, e, rows, b->device.targets + at, n, e->loss + at, dh != NULL, scale));
        if (dh)
            TSR_TRY(head_backward(net, b, e, rows, n, b->fresh && at == 0,
                                  joined ? (void *)(w->sum + at * c) : tsr_at(net->ctx, dh, at * c),
                                  joined));
    }
    TSR_TRY(ops->to_host(net->ctx, b->loss, e->loss, (size_t)b->n * sizeof(float)));
    return dh ? tsr_tp_sum(net, b, w->sum, dh, w->staged) : 0;
}

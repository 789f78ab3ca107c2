#include "dist/grads.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/zero.h"

int tsr_grads_levels(int n_leaves) {
    int levels = 1;
    for (int i = 0; i < n_leaves; i++)
        if (tsr_tree_open(i) + 1 > levels)
            levels = tsr_tree_open(i) + 1;
    return levels;
}

static bool in_slab(const struct tsr_param *p) {
    return p->sum == TSR_GRAD_MATRIX || p->sum == TSR_GRAD_TABLE;
}

// Adds the newest nodes of the stack together, as many times as the leaf has carries; after the
// last leaf, until one is left.
static int merge(struct tsr_net *net, const struct tsr_param *p, int leaf, bool last) {
    int top = tsr_tree_open(leaf);
    for (int adds = last ? top : tsr_tree_carries(leaf); adds > 0; adds--, top--) {
        float *older = tsr_net_grad(net, p, top - 1), *newer = tsr_net_grad(net, p, top);
        TSR_TRY(net->ctx->ops->add_f32(net->ctx, older, older, newer, (size_t)(p->rows * p->cols)));
    }
    return 0;
}

int tsr_grads_begin(struct tsr_net *net) {
    TSR_TRY(net->ctx->ops->zero(net->ctx, net->accumulators, net->accumulators_bytes));
    return tsr_zero_begin(net, TSR_ZERO_GRADIENTS);
}

// out = tree over `n_in` consecutive vectors of `n`.
static int tree_of(struct tsr_net *net, float *out, float *in, int n_in, int64_t stride,
                   int64_t n) {
    const float *leaves[256];
    TSR_ASSERT(n_in <= 256);
    for (int i = 0; i < n_in; i++)
        leaves[i] = in + i * stride;
    return net->ctx->ops->tree_add(net->ctx, out, leaves, n_in, (size_t)n);
}

// TOKEN: over the token pieces held here, into the first chain of each replica; under sequence
// parallelism the tree over token pieces goes on over ranks.
static int join_tokens(struct tsr_net *net, struct tsr_param *p, int64_t *stride) {
    int chains = tsr_net_token_chains(net);
    *stride = (int64_t)chains * p->rows;
    for (int w = 0; w < net->Wl; w++) {
        float *acc = p->acc + w * *stride;
        TSR_TRY(tree_of(net, acc, acc, chains, p->rows, p->rows));
    }
    if (!net->opt.sequence_parallel || net->mesh.tp == 1)
        return 0;
    for (int w = 1; w < net->Wl; w++) // replica w's sum moves to row w
        TSR_TRY(net->ctx->ops->copy(net->ctx, p->acc + (int64_t)w * p->rows, p->acc + w * *stride,
                                    (size_t)p->rows * sizeof(float)));
    *stride = p->rows;
    return net->comm->ops->all_reduce(net->ctx, net->comm, &net->tp, p->acc,
                                      (size_t)(net->Wl * p->rows), NULL);
}

// Vectors: then the tree over this rank's replicas, into level 0.
static int join_vector(struct tsr_net *net, struct tsr_param *p) {
    int64_t stride = p->rows;
    if (p->sum == TSR_GRAD_TOKEN)
        TSR_TRY(join_tokens(net, p, &stride));
    return tree_of(net, tsr_net_grad(net, p, 0), p->acc, net->Wl, stride, p->rows);
}

int tsr_grads_done(struct tsr_net *net, struct tsr_param *p, const struct tsr_batch *b, bool last) {
    if (!p || p->sum == TSR_GRAD_NONE)
        return 0;
    if (in_slab(p) && b->complete)
        TSR_TRY(merge(net, p, b->leaf, last));
    if (!last)
        return 0;
    if (!in_slab(p))
        TSR_TRY(join_vector(net, p));
    return tsr_zero_ready(net, p);
}

// The other end's gradient of these elements is added to this end's.
static int exchange_run(struct tsr_net *net, float *mine, size_t n) {
    const struct tsr_comm_ops *ops = net->comm->ops;
    struct tsr_request send = {0}, recv = {0};
    int other = 1 - net->embed.rank;
    size_t n_bytes = n * sizeof(float);
    float *theirs = net->bucket[0];
    TSR_TRY(ops->recv(net->ctx, net->comm, &net->embed, theirs, n_bytes, other, 0, &recv));
    TSR_TRY(ops->send(net->ctx, net->comm, &net->embed, mine, n_bytes, other, 0, &send));
    TSR_TRY(ops->wait(net->ctx, net->comm, &recv));
    TSR_TRY(ops->wait(net->ctx, net->comm, &send));
    return net->ctx->ops->add_f32(net->ctx, mine, mine, theirs, n);
}

static int exchange_tied(struct tsr_net *net, struct tsr_param *p) {
    float *g = tsr_net_grad(net, p, 0);
    for (int i = 0; i < p->n_slices; i++) {
        float *mine = g + p->slices[i].lo * p->cols;
        size_t n = (size_t)(tsr_range_len(p->slices[i]) * p->cols);
        for (size_t at = 0; at < n; at += net->bucket_elems) {
            size_t run = n - at < net->bucket_elems ? n - at : net->bucket_elems;
            TSR_TRY(exchange_run(net, mine + at, run));
        }
    }
    return 0;
}

static int join_tied(struct tsr_net *net) {
    if (!net->m->tied)
        return 0;
    if (net->mesh.pp > 1) {
        if (net->embed.size == 1)
            return 0;
        return exchange_tied(net, net->tok_embed ? net->tok_embed : net->head);
    }
    for (int i = 0; i < net->tok_embed->n_slices; i++) {
        struct tsr_range r = net->tok_embed->slices[i];
        int64_t at = r.lo * net->tok_embed->cols;
        float *in = tsr_net_grad(net, net->tok_embed, 0) + at;
        float *out = tsr_net_grad(net, net->head, 0) + at;
        TSR_TRY(net->ctx->ops->add_f32(net->ctx, in, in, out,
                                       (size_t)(tsr_range_len(r) * net->tok_embed->cols)));
    }
    return 0;
}

int tsr_grads_finish(struct tsr_net *net) {
    TSR_TRY(tsr_zero_end(net));
    return join_tied(net);
}

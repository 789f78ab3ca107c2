#include "dist/zero.h"

#include <stdlib.h>
#include "core/error.h"

enum { BUCKET = 1 << 20 }; // elements per rank and exchange

int tsr_zero_open(struct tsr_net *net) {
    bool tied_apart = net->m->tied && net->mesh.pp > 1;
    size_t n_sums = (size_t)net->n_sums * sizeof *net->host_sums;
    net->host_sums = calloc(1, n_sums + 1);
    if (!net->host_sums)
        return tsr_fail(TSR_ENOMEM, "no memory for the sums of a step");
    TSR_TRY(net->ctx->ops->pin(net->ctx, net->host_sums, n_sums));
    if (net->mesh.dp == 1 && !tied_apart)
        return 0;
    net->bucket_elems = BUCKET;
    size_t n_bytes = (size_t)net->mesh.dp * BUCKET * sizeof(float);
    void *p = NULL;
    TSR_TRY(net->ctx->ops->alloc(net->ctx, n_bytes, &p));
    net->bucket[0] = p;
    TSR_TRY(net->ctx->ops->alloc(net->ctx, n_bytes, &p));
    net->bucket[1] = p;
    return 0;
}

void tsr_zero_close(struct tsr_net *net) {
    size_t n_bytes = (size_t)net->mesh.dp * net->bucket_elems * sizeof(float);
    for (int i = 0; i < 2; i++)
        net->ctx->ops->free(net->ctx, net->bucket[i], n_bytes);
    if (net->host_sums)
        net->ctx->ops->unpin(net->ctx, net->host_sums, (size_t)net->n_sums * sizeof(double));
    free(net->host_sums);
}

// Walks all elements that one data-parallel rank owns, parameter by parameter, slice by slice.
struct cursor {
    int dp_rank, param, slice, n_slices;
    int64_t at; // elements into the slice
    struct tsr_range slices[256];
};

// What the walk goes over: gradients, which are fp32, or weights as the layers have them.
static char *base_of(const struct tsr_net *net, const struct tsr_param *p, bool gradients) {
    return gradients ? (char *)tsr_net_grad(net, p, 0) : p->w;
}

static size_t elem_bytes(const struct tsr_net *net, bool gradients) {
    return gradients ? sizeof(float) : tsr_dtype_size(net->ctx->dtype);
}

static bool takes_part(const struct tsr_param *p, bool gradients) {
    return p->sum != TSR_GRAD_NONE && (gradients || !p->alias);
}

// Steps to the next parameter that has something to walk; false at the end.
static bool settle(const struct tsr_net *net, struct cursor *c, bool gradients) {
    while (c->slice == c->n_slices) {
        if (++c->param >= net->n_params)
            return false;
        const struct tsr_param *p = &net->params[c->param];
        c->slice = c->n_slices = 0;
        c->at = 0;
        if (takes_part(p, gradients))
            c->n_slices = tsr_param_slices(net, p, c->dp_rank, c->slices);
    }
    return true;
}

// Moves up to `most` elements between the walk and a bucket; returns how many, or a code.
static int64_t walk(struct tsr_net *net, struct cursor *c, bool gradients, bool into_bucket,
                    void *bucket, int64_t most) {
    int64_t done = 0, size = (int64_t)elem_bytes(net, gradients);
    while (done < most && settle(net, c, gradients)) {
        const struct tsr_param *p = &net->params[c->param];
        struct tsr_range r = c->slices[c->slice];
        int64_t left = tsr_range_len(r) * p->cols - c->at;
        int64_t n = left < most - done ? left : most - done;
        char *mine = base_of(net, p, gradients) + (r.lo * p->cols + c->at) * size;
        char *there = (char *)bucket + done * size;
        int rc = net->ctx->ops->copy(net->ctx, into_bucket ? there : mine,
                                     into_bucket ? mine : there, (size_t)(n * size));
        if (rc < 0)
            return rc;
        done += n;
        c->at += n;
        if (c->at == tsr_range_len(r) * p->cols) {
            c->slice++;
            c->at = 0;
        }
    }
    return done;
}

static void start(struct cursor *c, int dp_rank) {
    c->dp_rank = dp_rank;
    c->param = -1;
    c->slice = c->n_slices = 0;
    c->at = 0;
}

int tsr_zero_reduce(struct tsr_net *net) {
    struct cursor from[TSR_MAX_DP], own;
    int dp = net->mesh.dp;
    if (dp == 1)
        return 0;
    for (int d = 0; d < dp; d++)
        start(&from[d], d);
    start(&own, net->mesh.dp_rank);
    for (;;) {
        size_t counts[TSR_MAX_DP], all = 0;
        for (int d = 0; d < dp; d++) {
            int64_t n = walk(net, &from[d], true, true, net->bucket[0] + all, BUCKET);
            if (n < 0)
                return (int)n;
            counts[d] = (size_t)n;
            all += (size_t)n;
        }
        if (all == 0)
            return 0;
        TSR_TRY(net->comm->ops->reduce_scatter(net->ctx, net->comm, &net->dp, net->bucket[1],
                                               net->bucket[0], counts));
        int64_t n =
            walk(net, &own, true, false, net->bucket[1], (int64_t)counts[net->mesh.dp_rank]);
        if (n < 0)
            return (int)n;
    }
}

int tsr_zero_gather(struct tsr_net *net) {
    struct cursor to[TSR_MAX_DP], own;
    int dp = net->mesh.dp, me = net->mesh.dp_rank;
    size_t size = elem_bytes(net, false);
    if (dp == 1)
        return 0;
    int64_t left[TSR_MAX_DP] = {0};
    for (int d = 0; d < dp; d++) {
        start(&to[d], d);
        for (int i = 0; i < net->n_params; i++) {
            if (!takes_part(&net->params[i], false))
                continue;
            struct tsr_range r[256];
            int n = tsr_param_slices(net, &net->params[i], d, r);
            for (int k = 0; k < n; k++)
                left[d] += tsr_range_len(r[k]) * net->params[i].cols;
        }
    }
    start(&own, me);
    for (;;) {
        size_t n_bytes[TSR_MAX_DP], at = 0;
        for (int d = 0; d < dp; d++) {
            n_bytes[d] = (size_t)(left[d] < BUCKET ? left[d] : BUCKET) * size;
            left[d] -= (int64_t)(n_bytes[d] / size);
            at += n_bytes[d];
        }
        if (at == 0)
            return 0;
        int64_t n = walk(net, &own, false, true, net->bucket[1], (int64_t)(n_bytes[me] / size));
        if (n < 0)
            return (int)n;
        TSR_TRY(net->comm->ops->all_gather(net->ctx, net->comm, &net->dp, net->bucket[0],
                                           net->bucket[1], n_bytes));
        char *src = (char *)net->bucket[0];
        for (int d = 0; d < dp; d++) {
            n = walk(net, &to[d], false, false, src, (int64_t)(n_bytes[d] / size));
            if (n < 0)
                return (int)n;
            src += n_bytes[d];
        }
    }
}

int tsr_zero_update(struct tsr_net *net, const struct tsr_adamw *hyper) {
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (p->sum == TSR_GRAD_NONE || p->alias)
            continue;
        struct tsr_adamw h = *hyper;
        h.weight_decay = p->t->decay ? hyper->weight_decay : 0.0f;
        int64_t at = 0;
        for (int s = 0; s < p->n_slices; s++) {
            int64_t rows = tsr_range_len(p->slices[s]), cols = p->cols;
            int64_t first = p->slices[s].lo * cols, n = rows * cols;
            if (cols == 1) {
                cols = rows;
                rows = 1;
            }
            tsr_elem *w = tsr_at(net->ctx, p->w, first);
            float *g = tsr_net_grad(net, p, 0) + first;
            TSR_TRY(net->ctx->ops->adamw(net->ctx, &h, p->master ? p->master + at : w, cols,
                                         p->m + at, p->v + at, g, cols, rows, cols,
                                         p->master ? w : NULL));
            at += n;
        }
    }
    return net->ctx->ops->sync(net->ctx);
}

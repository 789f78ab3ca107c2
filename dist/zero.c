#include "dist/zero.h"

#include <stdlib.h>
#include "core/error.h"

enum { BUCKET = 1 << 20 }; // elements per rank and exchange

// A walk over all elements that one data-parallel rank owns, in the order in which parameters
// became ready, slice by slice.
struct cursor {
    int dp_rank, next, slice, n_slices; // next: of the ready ones
    const struct tsr_param *p;
    int64_t at; // elements into the slice
    struct tsr_range slices[TSR_MAX_PIECES];
};

// A bucket that is on its way: n[d] elements of rank d's.
struct flight {
    bool under_way;
    size_t n[TSR_MAX_DP];
    struct tsr_request request;
};

struct tsr_zero {
    enum tsr_zero_kind kind;
    const struct tsr_param **ready; // (n_params)
    int n_ready;
    int64_t *share;         // (n_params, dp) elements that a rank owns
    int64_t *waiting;       // (dp) elements that are ready and not packed
    struct cursor *in, *to; // (dp): into buckets, and out of them
    struct flight flight[2];
    int turn; // the bucket that is filled next
};

// ---- opening

static bool takes_part(const struct tsr_param *p, enum tsr_zero_kind kind) {
    return p->sum != TSR_GRAD_NONE && (kind == TSR_ZERO_GRADIENTS || !p->alias);
}

static void count_shares(const struct tsr_net *net, struct tsr_zero *z) {
    struct tsr_range r[TSR_MAX_PIECES];
    int dp = net->mesh.dp;
    for (int i = 0; i < net->n_params; i++)
        for (int d = 0; d < dp; d++) {
            int n = tsr_param_slices(net, &net->params[i], d, r);
            for (int k = 0; k < n; k++)
                z->share[(int64_t)i * dp + d] += tsr_range_len(r[k]) * net->params[i].cols;
        }
}

static int open_maps(struct tsr_net *net) {
    size_t dp = (size_t)net->mesh.dp, n = (size_t)net->n_params + 1;
    struct tsr_zero *z = net->zero = calloc(1, sizeof *z);
    if (z) {
        z->ready = calloc(n, sizeof *z->ready);
        z->share = calloc(n * dp, sizeof *z->share);
        z->waiting = calloc(dp, sizeof *z->waiting);
        z->in = calloc(dp, sizeof *z->in);
        z->to = calloc(dp, sizeof *z->to);
    }
    if (!z || !z->ready || !z->share || !z->waiting || !z->in || !z->to)
        return tsr_fail(TSR_ENOMEM, "no memory for the exchange of gradients");
    count_shares(net, z);
    return 0;
}

int tsr_zero_open(struct tsr_net *net) {
    bool tied_apart = net->m->tied && net->mesh.pp > 1;
    if (net->mesh.dp == 1 && !tied_apart)
        return 0;
    net->bucket_elems = BUCKET;
    size_t n_bytes = (size_t)net->mesh.dp * BUCKET * sizeof(float);
    for (int i = 0; i < 2; i++) {
        void *p = NULL;
        TSR_TRY(net->ctx->ops->alloc(net->ctx, n_bytes, &p));
        net->bucket[i] = p;
    }
    return net->mesh.dp == 1 ? 0 : open_maps(net);
}

void tsr_zero_close(struct tsr_net *net) {
    struct tsr_zero *z = net->zero;
    size_t n_bytes = (size_t)net->mesh.dp * net->bucket_elems * sizeof(float);
    for (int i = 0; i < 2; i++)
        net->ctx->ops->free(net->ctx, net->bucket[i], n_bytes);
    if (!z)
        return;
    free(z->ready);
    free(z->share);
    free(z->waiting);
    free(z->in);
    free(z->to);
    free(z);
    net->zero = NULL;
}

// ---- walking

static size_t elem_bytes(const struct tsr_net *net) {
    return net->zero->kind == TSR_ZERO_GRADIENTS ? sizeof(float) : tsr_dtype_size(net->ctx->dtype);
}

// Steps to the next parameter that has something to walk; false when no more are ready.
static bool settle(const struct tsr_net *net, struct cursor *c) {
    while (c->slice == c->n_slices) {
        if (c->next == net->zero->n_ready)
            return false;
        c->p = net->zero->ready[c->next++];
        c->slice = 0;
        c->n_slices = tsr_param_slices(net, c->p, c->dp_rank, c->slices);
    }
    return true;
}

// Moves n elements between the walk and a bucket.
static int walk(struct tsr_net *net, struct cursor *c, bool into_bucket, char *bucket, size_t n) {
    int64_t size = (int64_t)elem_bytes(net), left = (int64_t)n;
    while (left > 0) {
        TSR_ASSERT(settle(net, c));
        struct tsr_range r = c->slices[c->slice];
        int64_t rest = tsr_range_len(r) * c->p->cols - c->at, part = rest < left ? rest : left;
        char *base = net->zero->kind == TSR_ZERO_GRADIENTS ? (char *)tsr_net_grad(net, c->p, 0)
                                                           : (char *)c->p->w;
        char *mine = base + (r.lo * c->p->cols + c->at) * size;
        if (part > 0)
            TSR_TRY(net->ctx->ops->copy(net->ctx, into_bucket ? bucket : mine,
                                        into_bucket ? mine : bucket, (size_t)(part * size)));
        bucket += part * size;
        left -= part;
        c->at += part;
        if (part == rest) {
            c->slice++;
            c->at = 0;
        }
    }
    return 0;
}

// ---- buckets

static char *part_of(struct tsr_net *net, const struct flight *f, int d) {
    char *at = (char *)net->bucket[f - net->zero->flight];
    for (int i = 0; i < d; i++)
        at += f->n[i] * elem_bytes(net);
    return at;
}

// What came with a bucket goes to its place.
static int land(struct tsr_net *net, struct flight *f) {
    struct tsr_zero *z = net->zero;
    int me = net->mesh.dp_rank;
    if (!f->under_way)
        return 0;
    TSR_TRY(net->comm->ops->wait(net->ctx, net->comm, &f->request));
    f->under_way = false;
    if (z->kind == TSR_ZERO_GRADIENTS)
        return walk(net, &z->to[me], false, part_of(net, f, me), f->n[me]);
    for (int d = 0; d < net->mesh.dp; d++)
        if (d != me)
            TSR_TRY(walk(net, &z->to[d], false, part_of(net, f, d), f->n[d]));
    return 0;
}

// Fills a bucket with what is ready, as much as it holds, and sends it off.
static int depart(struct tsr_net *net) {
    struct tsr_zero *z = net->zero;
    const struct tsr_comm_ops *ops = net->comm->ops;
    struct flight *f = &z->flight[z->turn];
    int dp = net->mesh.dp, me = net->mesh.dp_rank;
    int64_t most = (int64_t)net->bucket_elems;
    TSR_TRY(land(net, f));
    for (int d = 0; d < dp; d++) {
        f->n[d] = (size_t)(z->waiting[d] < most ? z->waiting[d] : most);
        z->waiting[d] -= (int64_t)f->n[d];
    }
    z->turn ^= 1;
    f->under_way = true;
    f->request = (struct tsr_request){0};
    if (z->kind == TSR_ZERO_GRADIENTS) {
        for (int d = 0; d < dp; d++)
            TSR_TRY(walk(net, &z->in[d], true, part_of(net, f, d), f->n[d]));
        return ops->reduce_scatter(net->ctx, net->comm, &net->dp, (float *)part_of(net, f, me),
                                   (float *)part_of(net, f, 0), f->n, &f->request);
    }
    size_t n_bytes[TSR_MAX_DP];
    for (int d = 0; d < dp; d++)
        n_bytes[d] = f->n[d] * elem_bytes(net);
    TSR_TRY(walk(net, &z->in[me], true, part_of(net, f, me), f->n[me]));
    return ops->all_gather(net->ctx, net->comm, &net->dp, part_of(net, f, 0), part_of(net, f, me),
                           n_bytes, &f->request);
}

static int64_t most_waiting(const struct tsr_net *net) {
    int64_t most = 0;
    for (int d = 0; d < net->mesh.dp; d++)
        if (net->zero->waiting[d] > most)
            most = net->zero->waiting[d];
    return most;
}

int tsr_zero_begin(struct tsr_net *net, enum tsr_zero_kind kind) {
    struct tsr_zero *z = net->zero;
    if (!z)
        return 0;
    z->kind = kind;
    z->n_ready = z->turn = 0;
    z->flight[0].under_way = z->flight[1].under_way = false;
    for (int d = 0; d < net->mesh.dp; d++) {
        z->waiting[d] = 0;
        for (struct cursor *c = &z->in[d]; c; c = c == &z->in[d] ? &z->to[d] : NULL) {
            c->dp_rank = d;
            c->next = c->slice = c->n_slices = 0;
            c->at = 0;
        }
    }
    return 0;
}

int tsr_zero_ready(struct tsr_net *net, const struct tsr_param *p) {
    struct tsr_zero *z = net->zero;
    if (!z || !takes_part(p, z->kind))
        return 0;
    TSR_ASSERT(z->n_ready < net->n_params);
    z->ready[z->n_ready++] = p;
    for (int d = 0; d < net->mesh.dp; d++)
        z->waiting[d] += z->share[(p - net->params) * net->mesh.dp + d];
    while (most_waiting(net) >= (int64_t)net->bucket_elems)
        TSR_TRY(depart(net));
    return 0;
}

int tsr_zero_end(struct tsr_net *net) {
    struct tsr_zero *z = net->zero;
    if (!z)
        return 0;
    int n = 0;
    for (int i = 0; i < net->n_params; i++)
        n += takes_part(&net->params[i], z->kind);
    TSR_ASSERT(z->n_ready == n); // who forgets one would train on stale numbers
    while (most_waiting(net) > 0)
        TSR_TRY(depart(net));
    TSR_TRY(land(net, &z->flight[z->turn]));
    return land(net, &z->flight[z->turn ^ 1]);
}

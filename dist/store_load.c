#include <fcntl.h>
#include <limits.h>
#include <stdlib.h>
#include "core/checkpoint_audit.h"
#include "core/error.h"
#include "core/log.h"
#include "core/place.h"
#include "core/weights.h"
#include "dist/leaves.h"
#include "dist/store.h"

enum { AHEAD = 64 << 20 }; // bytes that the disk is asked for before they are read

// One region that this rank needs, and where it stands in its file.
struct item {
    const struct tsr_tensor *t;
    struct tsr_region region;
    enum tsr_checkpoint_part part;
    float *dst;
    int fd;
    uint64_t offset, span; // bytes from the first to the last that it needs
};

struct loading {
    struct tsr_net *net;
    const struct tsr_weights *weights; // or NULL: the master is among the moments
    const struct tsr_moments *moments; // or NULL
    struct item *items;
    int n;
    float *host; // staging that grows as needed
    size_t host_bytes;
};

static void add_item(struct loading *l, enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                     struct tsr_region region, float *dst) {
    const bool hf = part == TSR_CKPT_WEIGHTS && l->weights;
    const struct tsr_st_entry *e;
    const struct tsr_st_file *f =
        hf ? tsr_weights_file(l->weights, t, &e) : tsr_moments_file(l->moments, part, t, &e);
    const struct tsr_place place = hf ? tsr_place_hf(t) : tsr_place_canonical(t);
    const struct tsr_region r = tsr_place_region(&place, t, region);
    if (tsr_region_elems(region) == 0)
        return;
    const uint64_t elem = tsr_dtype_size(e->dtype);
    const uint64_t lo = (uint64_t)(r.r0 * place.cols + r.c0) * elem;
    const uint64_t hi = (uint64_t)((r.r1 - 1) * place.cols + r.c1) * elem;
    l->items[l->n++] = (struct item){.t = t,
                                     .region = region,
                                     .part = part,
                                     .dst = dst,
                                     .fd = f->fd,
                                     .offset = f->data_offset + e->begin + lo,
                                     .span = hi - lo};
}

static void add_moments(struct loading *l, const struct tsr_param *p, enum tsr_checkpoint_part part,
                        float *dst) {
    for (int s = 0; s < p->n_slices; s++) {
        struct tsr_region r = p->held;
        r.r0 = p->held.r0 + p->slices[s].lo;
        r.r1 = p->held.r0 + p->slices[s].hi;
        add_item(l, part, p->t, r, dst);
        dst += tsr_region_elems(r);
    }
}

// All that this rank needs, file by file.
static int list_items(struct loading *l, bool moments) {
    const struct tsr_net *net = l->net;
    size_t most = 1;
    for (int i = 0; i < net->n_params; i++)
        most += 1 + 2 * (size_t)net->params[i].n_slices;
    l->items = malloc(most * sizeof *l->items);
    if (!l->items)
        return tsr_fail(TSR_ENOMEM, "no memory to read weights");
    for (int i = 0; i < net->n_params; i++)
        if (!net->params[i].alias)
            add_item(l, TSR_CKPT_WEIGHTS, net->params[i].t, net->params[i].held, net->params[i].w);
    for (int part = TSR_CKPT_M; moments && part <= TSR_CKPT_V; part++)
        for (int i = 0; i < net->n_params; i++) {
            const struct tsr_param *p = &net->params[i];
            if (!p->alias && p->sum != TSR_GRAD_NONE)
                add_moments(l, p, (enum tsr_checkpoint_part)part, part == TSR_CKPT_M ? p->m : p->v);
        }
    return 0;
}

static int read_item(struct loading *l, const struct item *x) {
    struct tsr_ctx *ctx = l->net->ctx;
    const size_t n_bytes = (size_t)tsr_region_elems(x->region) * sizeof(float);
    if (n_bytes > l->host_bytes) {
        free(l->host);
        l->host = malloc(n_bytes);
        l->host_bytes = l->host ? n_bytes : 0;
        if (!l->host)
            return tsr_fail(TSR_ENOMEM, "no memory (%zu bytes) to read %s", n_bytes, x->t->name);
    }
    if (x->part == TSR_CKPT_WEIGHTS && l->weights)
        TSR_TRY(tsr_weights_read(l->weights, x->t, x->region, l->host));
    else
        TSR_TRY(tsr_moments_read(l->moments, x->part, x->t, x->region, l->host));
    TSR_TRY(ctx->ops->to_device(ctx, x->dst, l->host, n_bytes));
    return ctx->ops->sync(ctx);
}

static int load(struct loading *l, bool moments) {
    uint64_t ahead = 0;
    int rc = list_items(l, moments);
    for (int i = 0, asked = 0; rc == 0 && i < l->n; i++) {
        for (; asked < l->n && (asked <= i || ahead < AHEAD); asked++) {
            const struct item *x = &l->items[asked];
            posix_fadvise(x->fd, (off_t)x->offset, (off_t)x->span, POSIX_FADV_WILLNEED);
            ahead += x->span;
        }
        rc = read_item(l, &l->items[i]);
        ahead -= l->items[i].span;
    }
    free(l->items);
    free(l->host);
    return rc;
}

int tsr_store_load_weights(struct tsr_net *net, const char *dir) {
    struct tsr_weights *w = NULL;
    int rc = tsr_weights_open(&w, dir, net->m, &net->tensors);
    if (rc == 0)
        rc = load(&(struct loading){.net = net, .weights = w}, false);
    tsr_weights_close(w);
    return rc;
}

int tsr_store_load_checkpoint(struct tsr_net *net, const char *dir) {
    struct tsr_weights *w = NULL;
    struct tsr_moments *m = NULL;
    int rc = tsr_moments_open(&m, dir, &net->tensors);
    if (rc == 0 && !tsr_moments_has_master(m))
        rc = tsr_weights_open(&w, dir, net->m, &net->tensors);
    if (rc == 0)
        rc = load(&(struct loading){.net = net, .weights = w, .moments = m}, net->opt.training);
    tsr_weights_close(w);
    tsr_moments_close(m);
    return rc;
}

int tsr_store_verify(struct tsr_net *net, const char *dir) {
    int rc = tsr_checkpoint_verify(dir, net->comm->rank, net->comm->world);
    return tsr_agree(net->ctx, net->comm, rc);
}

int tsr_store_find(struct tsr_net *net, const char *run_dir, char dir[static TSR_PATH_MAX]) {
    struct tsr_comm *c = net->comm;
    int64_t below = INT64_MAX;
    for (;;) {
        int64_t found[2] = {0, 0}; // result, step: rank 0 looks, so that all ranks try the same one
        if (c->rank == 0)
            found[0] = tsr_checkpoint_latest(run_dir, below, &found[1], dir);
        TSR_TRY(tsr_agree(net->ctx, c, found[0] < 0 ? (int)found[0] : 0));
        TSR_TRY(c->control->broadcast(net->ctx, c, &c->world_group, found, sizeof found, 0));
        if (found[0] == 0)
            return 0;
        TSR_TRY(tsr_checkpoint_path(dir, run_dir, found[1]));
        int rc = tsr_store_verify(net, dir);
        if (rc == 0)
            return 1;
        if (rc != TSR_EMODEL)
            return rc;
        if (c->rank == c->culprit - 1)
            tsr_warn("%s is not used: %s", dir, tsr_error_text());
        c->culprit = 0;
        below = found[1];
    }
}

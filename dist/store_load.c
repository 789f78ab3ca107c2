#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "core/checkpoint_audit.h"
#include "core/error.h"
#include "core/log.h"
#include "core/place.h"
#include "core/weights.h"
#include "dist/leaves.h"
#include "dist/read_ahead.h"
#include "dist/store.h"
#include "kernels/cpu/pages.h"

// One region that this rank needs, and where it stands in its file.
struct item {
    const struct tsr_tensor *t;
    struct tsr_region region;
    enum tsr_checkpoint_part part;
    struct tsr_param *p;        // whose weights they are, or NULL
    float *dst;                 // of moments
    struct tsr_ahead_need need; // from the first byte to the last
    void *straight;             // where just these bytes go on the device, or NULL
};

struct loading {
    struct tsr_net *net;
    struct tsr_weights *weights;  // or NULL: the master is among the moments
    struct tsr_moments *moments;  // or NULL
    struct tsr_ahead_file *files; // of both
    int n_files;
    struct item *items;
    int n;
    float *host; // room for the largest, and behind it as much of the layers' type
    size_t most; // elements
    size_t host_bytes;
    bool pinned;
    struct tsr_read_ahead *ahead; // or NULL
};

static int number_of(const struct loading *l, const struct tsr_st_file *f) {
    int i = 0;
    while (l->files[i].f != f)
        i++;
    return i;
}

static void add_item(struct loading *l, enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                     struct tsr_region region, struct tsr_param *p, float *dst) {
    const bool hf = part == TSR_CKPT_WEIGHTS && l->weights;
    const struct tsr_st_entry *e;
    const struct tsr_st_file *f =
        hf ? tsr_weights_file(l->weights, t, &e) : tsr_moments_file(l->moments, part, t, &e);
    const struct tsr_place place = hf ? tsr_place_hf(t) : tsr_place_canonical(t);
    const struct tsr_region r = tsr_place_region(&place, t, region);
    if (tsr_region_elems(region) == 0)
        return;
    const size_t n = (size_t)tsr_region_elems(region);
    l->most = n > l->most ? n : l->most;
    const uint64_t elem = tsr_dtype_size(e->dtype);
    const uint64_t lo = (uint64_t)(r.r0 * place.cols + r.c0) * elem;
    const uint64_t hi = (uint64_t)((r.r1 - 1) * place.cols + r.c1) * elem;
    // one run of the file, and in it what the device holds
    const bool as_is = !place.transposed && r.c1 - r.c0 == place.cols && !(p && p->master) &&
                       e->dtype == (p ? l->net->ctx->dtype : TSR_DT_F32);
    l->items[l->n++] = (struct item){.t = t,
                                     .region = region,
                                     .part = part,
                                     .p = p,
                                     .dst = dst,
                                     .need = {.file = number_of(l, f),
                                              .offset = f->data_offset + e->begin + lo,
                                              .n_bytes = hi - lo},
                                     .straight = !as_is ? NULL
                                                 : p    ? p->w
                                                        : dst};
}

static void add_moments(struct loading *l, const struct tsr_param *p, enum tsr_checkpoint_part part,
                        float *dst) {
    for (int s = 0; s < p->n_slices; s++) {
        struct tsr_region r = p->held;
        r.r0 = p->held.r0 + p->slices[s].lo;
        r.r1 = p->held.r0 + p->slices[s].hi;
        add_item(l, part, p->t, r, NULL, dst);
        dst += tsr_region_elems(r);
    }
}

static void add_files(struct loading *l, struct tsr_st_file *f, int n, bool optimizer) {
    for (int i = 0; i < n; i++)
        l->files[l->n_files++] = (struct tsr_ahead_file){&f[i], optimizer};
}

// Every rank opens the same ones.
static int list_files(struct loading *l) {
    struct tsr_st_file *of[4] = {NULL};
    int n[4] = {0}, all = 1;
    if (l->weights)
        of[0] = tsr_weights_files(l->weights, &n[0]);
    for (int part = TSR_CKPT_WEIGHTS; l->moments && part <= TSR_CKPT_V; part++)
        of[1 + part] = tsr_moments_files(l->moments, (enum tsr_checkpoint_part)part, &n[1 + part]);
    for (int i = 0; i < 4; i++)
        all += n[i];
    l->files = malloc((size_t)all * sizeof *l->files);
    if (!l->files)
        return tsr_fail(TSR_ENOMEM, "no memory to read weights");
    for (int i = 0; i < 4; i++)
        add_files(l, of[i], n[i], i > 0);
    return 0;
}

static int order_of_items(const void *a, const void *b) {
    const struct tsr_ahead_need *x = &((const struct item *)a)->need;
    const struct tsr_ahead_need *y = &((const struct item *)b)->need;
    if (x->file != y->file)
        return x->file < y->file ? -1 : 1;
    return x->offset < y->offset ? -1 : x->offset > y->offset;
}

// All that this rank needs, in the order of the files.
static int list_items(struct loading *l, bool moments) {
    const struct tsr_net *net = l->net;
    size_t most = 1;
    for (int i = 0; i < net->n_params; i++)
        most += 1 + 2 * (size_t)net->params[i].n_slices;
    l->items = malloc(most * sizeof *l->items);
    if (!l->items)
        return tsr_fail(TSR_ENOMEM, "no memory to read weights");
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (!p->alias)
            add_item(l, TSR_CKPT_WEIGHTS, p->t, p->held, p, NULL);
    }
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
    int rc = l->ahead && x->straight ? tsr_read_ahead_copy(l->ahead, &x->need, x->straight) : 0;
    if (rc != 0)
        return rc < 0 ? rc : 0;
    if (x->part == TSR_CKPT_WEIGHTS && l->weights)
        TSR_TRY(tsr_weights_read(l->weights, x->t, x->region, l->host));
    else
        TSR_TRY(tsr_moments_read(l->moments, x->part, x->t, x->region, l->host));
    if (x->p)
        return tsr_param_put(l->net, x->p, l->host, l->host + l->most);
    TSR_TRY(ctx->ops->to_device(ctx, x->dst, l->host,
                                (size_t)tsr_region_elems(x->region) * sizeof(float)));
    return ctx->ops->sync(ctx);
}

static int read_items(struct loading *l) {
    int rc = 0;
    for (int i = 0; rc == 0 && i < l->n; i++)
        rc = read_item(l, &l->items[i]);
    return rc;
}

static int open_loading(struct loading *l, bool moments) {
    struct tsr_ctx *ctx = l->net->ctx;
    TSR_TRY(list_files(l));
    TSR_TRY(list_items(l, moments));
    if (l->n > 0)
        qsort(l->items, (size_t)l->n, sizeof *l->items, order_of_items);
    size_t elem = ctx->dtype == TSR_DT_F32 ? 0 : tsr_dtype_size(ctx->dtype);
    size_t n_bytes = (l->most ? l->most : 1) * (sizeof(float) + elem);
    l->host = tsr_pages_map(n_bytes);
    if (!l->host)
        return tsr_fail(TSR_ENOMEM, "no memory (%zu bytes) to read weights", n_bytes);
    l->host_bytes = n_bytes;
    TSR_TRY(ctx->ops->pin(ctx, l->host, n_bytes));
    l->pinned = true;
    return 0;
}

static void close_loading(struct loading *l) {
    struct tsr_ctx *ctx = l->net->ctx;
    if (l->pinned)
        ctx->ops->unpin(ctx, l->host, l->host_bytes);
    tsr_pages_unmap(l->host, l->host_bytes);
    free(l->items);
    free(l->files);
    tsr_weights_close(l->weights);
    tsr_moments_close(l->moments);
}

// ---- the ways of reading

static bool is_my_share(void *arg, const char *file, int64_t range, int64_t r) {
    const struct tsr_comm *c = arg;
    (void)range;
    return tsr_checkpoint_is_tensors(file) && r % c->world == c->rank;
}

// What is small is read twice when it is verified: the second time it comes from memory.
static int load_small(struct loading *l, const char *verify) {
    if (verify)
        TSR_TRY(tsr_checkpoint_verify_some(verify, is_my_share, l->net->comm));
    return read_items(l);
}

static int load_ahead(struct loading *l, const char *verify) {
    struct tsr_comm *c = l->net->comm;
    struct tsr_ahead_need *needs = malloc(((size_t)l->n + 1) * sizeof *needs);
    struct tsr_ahead_opt opt = {l->net->ctx, c, verify, l->files, l->n_files, needs, l->n};
    int rc = needs ? 0 : tsr_fail(TSR_ENOMEM, "no memory to read weights");
    for (int i = 0; rc == 0 && i < l->n; i++)
        needs[i] = l->items[i].need;
    int all = tsr_agree(l->net->ctx, c, rc);
    if (all == 0) {
        all = tsr_read_ahead_open(&l->ahead, &opt);
        rc = c->culprit == c->rank + 1 ? all : 0; // it is the caller who tells the others
    }
    free(needs);
    if (all < 0)
        return rc;
    rc = read_items(l);
    int closed = tsr_read_ahead_close(l->ahead);
    return rc < 0 ? rc : closed;
}

// Which way is the same on all ranks: they have opened the same files.
static int load(struct loading *l, int rc, bool moments, const char *verify) {
    uint64_t n_bytes = 0;
    if (rc == 0)
        rc = open_loading(l, moments);
    int all = tsr_agree(l->net->ctx, l->net->comm, rc);
    for (int i = 0; all == 0 && i < l->n_files; i++)
        n_bytes += l->files[i].f->data_size;
    if (all == 0)
        rc = tsr_read_ahead_pays(n_bytes) ? load_ahead(l, verify) : load_small(l, verify);
    close_loading(l);
    return rc;
}

// ---- interface

int tsr_store_load_weights(struct tsr_net *net, const char *dir) {
    struct loading l = {.net = net};
    int rc = tsr_weights_open(&l.weights, dir, net->m, &net->tensors);
    return load(&l, rc, false, NULL);
}

int tsr_store_load_checkpoint(struct tsr_net *net, const char *dir, bool verify) {
    struct loading l = {.net = net};
    int rc = tsr_moments_open(&l.moments, dir, &net->tensors);
    if (rc == 0 && !tsr_moments_has_master(l.moments))
        rc = tsr_weights_open(&l.weights, dir, net->m, &net->tensors);
    return load(&l, rc, net->opt.training, verify ? dir : NULL);
}

static bool has_no_tensors(void *arg, const char *file, int64_t range, int64_t r) {
    const struct tsr_comm *c = arg;
    (void)range;
    return !tsr_checkpoint_is_tensors(file) && r % c->world == c->rank;
}

int tsr_store_verify(struct tsr_net *net, const char *dir) {
    int rc = tsr_checkpoint_verify_some(dir, has_no_tensors, net->comm);
    return tsr_agree(net->ctx, net->comm, rc);
}

// The newest below *below, the same on all ranks: rank 0 looks. 1, or 0: none.
static int find_next(struct tsr_net *net, const char *run_dir, int64_t *below,
                     char dir[static TSR_PATH_MAX]) {
    struct tsr_comm *c = net->comm;
    int64_t found[2] = {0, 0}; // result, step
    if (c->rank == 0)
        found[0] = tsr_checkpoint_latest(run_dir, *below, &found[1], dir);
    TSR_TRY(tsr_agree(net->ctx, c, found[0] < 0 ? (int)found[0] : 0));
    TSR_TRY(c->control->broadcast(net->ctx, c, &c->world_group, found, sizeof found, 0));
    if (found[0] == 0)
        return 0;
    *below = found[1];
    TSR_TRY(tsr_checkpoint_path(dir, run_dir, found[1]));
    return 1;
}

// The first checkpoint that could not be read: the failure, if no other turns out to be good.
struct unread {
    int code, culprit;
    char error[TSR_ERROR_TEXT];
};

static void note_unread(struct unread *u, const struct tsr_comm *c, int rc) {
    if (rc != TSR_EIO || u->code < 0)
        return;
    u->code = rc;
    u->culprit = c->culprit;
    snprintf(u->error, sizeof u->error, "%s", tsr_error_text());
}

// 1: loaded, 0: it isn't good or can't be read, or a failure that others of the run wouldn't mend.
static int try_one(struct tsr_net *net, const char *dir, tsr_resume_fn check, void *arg,
                   struct unread *u) {
    struct tsr_comm *c = net->comm;
    int rc = tsr_store_verify(net, dir);
    if (rc == 0) {
        TSR_TRY(tsr_agree(net->ctx, c, check ? check(arg, dir) : 0));
        rc = tsr_agree(net->ctx, c, tsr_store_load_checkpoint(net, dir, true));
    }
    if (rc == 0)
        return 1;
    if (rc != TSR_EMODEL && rc != TSR_EIO)
        return rc;
    note_unread(u, c, rc);
    if (c->rank == c->culprit - 1)
        tsr_warn("%s is not used: %s", dir, tsr_error_text());
    c->culprit = 0;
    if (!net->moments)
        return 0;
    rc = net->ctx->ops->zero(net->ctx, net->moments, net->moments_bytes); // as they were at first
    return tsr_agree(net->ctx, c, rc);
}

// A bad sector costs one checkpoint. Where none is left because of the disk, it may be the disk's
// fault that there is none, and a run that began anew would in time remove what it has.
int tsr_store_resume(struct tsr_net *net, const char *run_dir, int64_t below, tsr_resume_fn check,
                     void *arg, char dir[static TSR_PATH_MAX]) {
    struct unread u = {0};
    int found;
    while ((found = find_next(net, run_dir, &below, dir)) == 1) {
        int rc = try_one(net, dir, check, arg, &u);
        if (rc != 0)
            return rc;
    }
    if (found < 0 || u.code == 0)
        return found;
    net->comm->culprit = u.culprit;
    return tsr_fail((enum tsr_code)u.code, "%s; no other checkpoint is good", u.error);
}

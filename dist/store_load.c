#include <limits.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "core/weights.h"
#include "dist/leaves.h"
#include "dist/store.h"

typedef int (*read_fn)(const void *from, const struct tsr_tensor *t, struct tsr_region r,
                       float *out);

static int read_weights(const void *from, const struct tsr_tensor *t, struct tsr_region r,
                        float *out) {
    return tsr_weights_read(from, t, r, out);
}

static int read_master(const void *from, const struct tsr_tensor *t, struct tsr_region r,
                       float *out) {
    return tsr_moments_read(from, TSR_CKPT_WEIGHTS, t, r, out);
}

static int read_m(const void *from, const struct tsr_tensor *t, struct tsr_region r, float *out) {
    return tsr_moments_read(from, TSR_CKPT_M, t, r, out);
}

static int read_v(const void *from, const struct tsr_tensor *t, struct tsr_region r, float *out) {
    return tsr_moments_read(from, TSR_CKPT_V, t, r, out);
}

// Reads a region into device memory through a host buffer that grows as needed.
struct staging {
    float *host;
    size_t n_bytes;
};

static int read_to(struct tsr_net *net, struct staging *st, read_fn read, const void *from,
                   const struct tsr_tensor *t, struct tsr_region r, float *dst) {
    size_t n_bytes = (size_t)tsr_region_elems(r) * sizeof(float);
    if (n_bytes == 0)
        return 0;
    if (n_bytes > st->n_bytes) {
        free(st->host);
        st->host = malloc(n_bytes);
        st->n_bytes = st->host ? n_bytes : 0;
        if (!st->host)
            return tsr_fail(TSR_ENOMEM, "no memory (%zu bytes) to read %s", n_bytes, t->name);
    }
    TSR_TRY(read(from, t, r, st->host));
    TSR_TRY(net->ctx->ops->to_device(net->ctx, dst, st->host, n_bytes));
    return net->ctx->ops->sync(net->ctx);
}

static int load_all(struct tsr_net *net, read_fn read, const void *from) {
    struct staging st = {0};
    int rc = 0;
    for (int i = 0; i < net->n_params && rc == 0; i++) {
        struct tsr_param *p = &net->params[i];
        if (!p->alias)
            rc = read_to(net, &st, read, from, p->t, p->held, p->w);
    }
    free(st.host);
    return rc;
}

static int load_moments(struct tsr_net *net, const struct tsr_moments *from) {
    struct staging st = {0};
    int rc = 0;
    for (int i = 0; i < net->n_params && rc == 0; i++) {
        struct tsr_param *p = &net->params[i];
        int64_t at = 0;
        if (p->alias || p->sum == TSR_GRAD_NONE)
            continue;
        for (int s = 0; s < p->n_slices && rc == 0; s++) {
            struct tsr_region r = p->held;
            r.r0 = p->held.r0 + p->slices[s].lo;
            r.r1 = p->held.r0 + p->slices[s].hi;
            rc = read_to(net, &st, read_m, from, p->t, r, p->m + at);
            if (rc == 0)
                rc = read_to(net, &st, read_v, from, p->t, r, p->v + at);
            at += tsr_region_elems(r);
        }
    }
    free(st.host);
    return rc;
}

int tsr_store_load_weights(struct tsr_net *net, const char *dir) {
    struct tsr_weights *w = NULL;
    int rc = tsr_weights_open(&w, dir, net->m, &net->tensors);
    if (rc == 0)
        rc = load_all(net, read_weights, w);
    tsr_weights_close(w);
    return rc;
}

int tsr_store_load_checkpoint(struct tsr_net *net, const char *dir) {
    struct tsr_moments *m = NULL;
    int rc = tsr_moments_open(&m, dir, &net->tensors);
    if (rc == 0 && tsr_moments_has_master(m))
        rc = load_all(net, read_master, m);
    else if (rc == 0)
        rc = tsr_store_load_weights(net, dir);
    if (rc == 0 && net->opt.training)
        rc = load_moments(net, m);
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
        TSR_TRY(c->ops->broadcast(net->ctx, c, &c->world_group, found, sizeof found, 0));
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

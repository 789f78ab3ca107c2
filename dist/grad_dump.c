#include "dist/grad_dump.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/safetensors.h"

struct dump {
    struct tsr_st_entry *entries;
    const float **from; // (n) on the device; NULL: the next scalar
    int n, cap;
};

int tsr_grad_dump_path(char out[static TSR_PATH_MAX], const char *dir, int64_t step, int rank) {
    char name[96];
    snprintf(name, sizeof name, "step-%08" PRId64 "-rank-%04d.safetensors", step, rank);
    return tsr_path_join(out, dir, name);
}

static int add(struct dump *d, const char *name, enum tsr_dtype dtype, int64_t rows, int64_t cols,
               const float *from) {
    TSR_ASSERT(d->n < d->cap);
    struct tsr_st_entry *e = &d->entries[d->n];
    *e = (struct tsr_st_entry){
        .name = strdup(name), .dtype = dtype, .ndim = 2, .shape = {rows, cols}};
    if (!e->name)
        return tsr_fail(TSR_ENOMEM, "no memory for a list of gradients");
    d->from[d->n++] = from;
    return 0;
}

static int list(struct dump *d, const struct tsr_net *net) {
    d->cap = 2;
    for (int i = 0; i < net->n_params; i++)
        d->cap += net->params[i].n_slices;
    d->entries = calloc((size_t)d->cap, sizeof *d->entries);
    d->from = calloc((size_t)d->cap, sizeof *d->from);
    if (!d->entries || !d->from)
        return tsr_fail(TSR_ENOMEM, "no memory for a list of gradients");
    if (net->comm->rank == 0) {
        TSR_TRY(add(d, "loss", TSR_DT_F64, 1, 1, NULL));
        TSR_TRY(add(d, "grad_norm", TSR_DT_F64, 1, 1, NULL));
    }
    for (int i = 0; i < net->n_params; i++) {
        const struct tsr_param *p = &net->params[i];
        for (int s = 0; s < p->n_slices && p->counted && p->sum != TSR_GRAD_NONE; s++) {
            struct tsr_range rows = p->slices[s];
            char name[192];
            snprintf(name, sizeof name, "%s@%" PRId64 ",%" PRId64, p->t->name, p->held.r0 + rows.lo,
                     p->held.c0);
            TSR_TRY(add(d, name, TSR_DT_F32, tsr_range_len(rows), p->cols,
                        tsr_net_grad(net, p, 0) + rows.lo * p->cols));
        }
    }
    return 0;
}

// All tensors behind each other, through a host buffer.
static int write_data(const struct dump *d, const struct tsr_net *net,
                      const struct tsr_step_result *r, int fd, const char *path) {
    const double scalars[] = {r->loss, r->grad_norm};
    size_t most = 0;
    for (int i = 0; i < d->n; i++)
        if (d->entries[i].end - d->entries[i].begin > most)
            most = d->entries[i].end - d->entries[i].begin;
    void *host = malloc(most ? most : 1);
    int rc = host ? 0 : tsr_fail(TSR_ENOMEM, "no memory (%zu bytes) to write a gradient", most);
    for (int i = 0; rc == 0 && i < d->n; i++) {
        size_t n = (size_t)(d->entries[i].end - d->entries[i].begin);
        if (d->from[i])
            rc = net->ctx->ops->to_host(net->ctx, host, d->from[i], n);
        else
            memcpy(host, &scalars[i], n);
        if (rc == 0)
            rc = net->ctx->ops->sync(net->ctx);
        if (rc == 0)
            rc = tsr_write_all(fd, host, n, path);
    }
    free(host);
    return rc;
}

static int write_file(struct dump *d, const struct tsr_net *net, const struct tsr_step_result *r,
                      const char *path) {
    struct tsr_buf header = {0};
    TSR_TRY(tsr_st_header(d->entries, d->n, &header));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    int rc = fd < 0 ? tsr_fail_errno(errno, "cannot write", path) : 0;
    if (rc == 0)
        rc = tsr_write_all(fd, header.data, header.len, path);
    if (rc == 0)
        rc = write_data(d, net, r, fd, path);
    if (fd >= 0 && close(fd) < 0 && rc == 0)
        rc = tsr_fail_errno(errno, "cannot write", path);
    tsr_buf_free(&header);
    return rc;
}

int tsr_grad_dump(const struct tsr_trainer *t, const struct tsr_step_result *r, const char *dir) {
    char path[TSR_PATH_MAX];
    struct dump d = {0};
    TSR_TRY(tsr_grad_dump_path(path, dir, t->step, t->net.comm->rank));
    int rc = list(&d, &t->net);
    if (rc == 0)
        rc = write_file(&d, &t->net, r, path);
    for (int i = 0; i < d.n; i++)
        free(d.entries[i].name);
    free(d.entries);
    free(d.from);
    return rc;
}

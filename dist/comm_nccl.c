// Opening and closing NCCL's transport, and its table.
#include "dist/comm_nccl_private.h"

#include <stdlib.h>

static void nccl_close(struct tsr_comm *c) {
    tsr_nccl_close(c);
    c->control->close(c);
}

static void nccl_abort(struct tsr_comm *c, int exit_code) {
    c->control->abort(c, exit_code);
}

static int nccl_barrier(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                        const char *what, double timeout_s) {
    return c->control->barrier(ctx, c, g, what, timeout_s);
}

static const struct tsr_comm_ops nccl_ops = {
    .name = "nccl",
    .close = nccl_close,
    .abort = nccl_abort,
    .group_open = tsr_nccl_group_open,
    .group_close = tsr_nccl_group_close,
    .all_reduce = tsr_nccl_all_reduce,
    .all_reduce_max = tsr_nccl_all_reduce_max,
    .reduce_scatter = tsr_nccl_reduce_scatter,
    .all_gather = tsr_nccl_all_gather,
    .broadcast = tsr_nccl_broadcast,
    .barrier = nccl_barrier,
    .send = tsr_nccl_send,
    .recv = tsr_nccl_recv,
    .wait = tsr_nccl_wait,
    .overlaps = true,
    .poll = tsr_nccl_poll,
};

int tsr_nccl_open(struct tsr_comm *c, struct tsr_ctx *ctx) {
    TSR_ASSERT(c->device == NULL && c->ops == c->control);
    struct tsr_nccl *n = calloc(1, sizeof *n);
    if (n == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory to join the other ranks");
    if (pthread_mutex_init(&n->lock, NULL) != 0) {
        free(n);
        return tsr_fail(TSR_ENOMEM, "no memory to join the other ranks");
    }
    n->comm = c;
    n->ctx = n->staged.ctx = *ctx;
    n->cuda = tsr_cuda_of(ctx);
    c->device = n;
    c->ops = &nccl_ops;
    int rc = tsr_nccl_prepare(n);
    if (rc < 0)
        tsr_nccl_close(c);
    else
        tsr_cuda_set_poll(n->cuda, tsr_nccl_watch, n);
    return rc;
}

void tsr_nccl_close(struct tsr_comm *c) {
    if (c->ops != &nccl_ops)
        return;
    struct tsr_nccl *n = tsr_nccl_of(c);
    tsr_cuda_set_poll(n->cuda, NULL, NULL);
    TSR_ASSERT(n->lanes == NULL || n->failed != 0);
    tsr_staged_free_messages(&n->staged);
    pthread_mutex_destroy(&n->lock);
    free(n);
    c->device = NULL;
    c->ops = c->control;
}

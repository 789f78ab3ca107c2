// The transport of one process: every group has one rank, so each call is a no-op or a copy.
#include <stdlib.h>
#include <unistd.h>
#include "core/error.h"
#include "dist/comm.h"
#include "dist/comm_impl.h"

static void count_call(struct tsr_comm *c) {
    if (c->progress)
        atomic_fetch_add_explicit(&c->progress->collective, 1, memory_order_relaxed);
}

static void single_close(struct tsr_comm *c) {
    (void)c;
}

static void single_abort(struct tsr_comm *c, int exit_code) {
    (void)c;
    _exit(exit_code);
}

static int single_group_open(struct tsr_comm *c, struct tsr_group *g, const char *name,
                             const int *ranks, int n_ranks, enum tsr_traffic kind) {
    (void)c;
    (void)kind;
    TSR_ASSERT(n_ranks == 1 && ranks[0] == 0);
    *g = (struct tsr_group){.name = name, .size = 1};
    return 0;
}

static void single_group_close(struct tsr_comm *c, struct tsr_group *g) {
    (void)c;
    *g = (struct tsr_group){0};
}

static int single_reduce_max(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                             float *buf, size_t n) {
    (void)ctx;
    (void)g;
    (void)buf;
    (void)n;
    count_call(c);
    return 0;
}

static int single_reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, float *buf,
                         size_t n, struct tsr_request *r) {
    tsr_request_done(r);
    return single_reduce_max(ctx, c, g, buf, n);
}

static int single_copy(struct tsr_ctx *ctx, struct tsr_comm *c, void *dst, const void *src,
                       size_t n_bytes) {
    count_call(c);
    return dst == src || n_bytes == 0 ? 0 : ctx->ops->copy(ctx, dst, src, n_bytes);
}

static int single_reduce_scatter(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                                 float *recv, const float *send, const size_t *counts,
                                 struct tsr_request *r) {
    (void)g;
    tsr_request_done(r);
    return single_copy(ctx, c, recv, send, counts[0] * sizeof *recv);
}

static int single_all_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                             void *recv, const void *send, const size_t *n_bytes,
                             struct tsr_request *r) {
    (void)g;
    tsr_request_done(r);
    return single_copy(ctx, c, recv, send, n_bytes[0]);
}

static int single_broadcast(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, void *buf,
                            size_t n_bytes, int root) {
    (void)ctx;
    (void)g;
    (void)buf;
    (void)n_bytes;
    TSR_ASSERT(root == 0);
    count_call(c);
    return 0;
}

static int single_barrier(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                          const char *what, double timeout_s) {
    (void)ctx;
    (void)g;
    (void)what;
    (void)timeout_s;
    count_call(c);
    return 0;
}

// A message to oneself would be one that nobody takes: callers check the size of their group.
static int single_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                       const void *buf, size_t n_bytes, int to, int tag, struct tsr_request *r) {
    (void)ctx;
    (void)c;
    (void)buf;
    (void)n_bytes;
    (void)tag;
    (void)r;
    TSR_ASSERT(to >= 0 && to < g->size && to != g->rank);
    return 0;
}

static int single_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, void *buf,
                       size_t n_bytes, int from, int tag, struct tsr_request *r) {
    return single_send(ctx, c, g, buf, n_bytes, from, tag, r);
}

static int single_wait(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_request *r) {
    (void)ctx;
    TSR_ASSERT(!r->impl[0]);
    count_call(c);
    return 0;
}

static const struct tsr_comm_ops single_ops = {
    .name = "single",
    .close = single_close,
    .abort = single_abort,
    .group_open = single_group_open,
    .group_close = single_group_close,
    .all_reduce = single_reduce,
    .all_reduce_max = single_reduce_max,
    .reduce_scatter = single_reduce_scatter,
    .all_gather = single_all_gather,
    .broadcast = single_broadcast,
    .barrier = single_barrier,
    .send = single_send,
    .recv = single_recv,
    .wait = single_wait,
};

int tsr_comm_open_single(struct tsr_comm *c, struct tsr_progress *p) {
    TSR_TRY(tsr_comm_init(c, p));
    c->ops = c->control = &single_ops;
    return single_group_open(c, &c->world_group, "world", (const int[]){0}, 1, TSR_TRAFFIC_OTHER);
}

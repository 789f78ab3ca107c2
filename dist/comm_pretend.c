// The transport of planning: a rank of a world that isn't there. What each call would send is
// counted by the formulas of dist/comm.h; nothing is.
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/pieces.h"
#include "dist/comm_impl.h"

// A group's impl is its kind of traffic, from 1 so that NULL means closed.
static void *impl_of(enum tsr_traffic kind) {
    return (void *)(uintptr_t)(kind + 1);
}

static uint64_t *counter_of(struct tsr_comm *c, const struct tsr_group *g) {
    return &c->bytes_sent[(uintptr_t)g->impl - 1];
}

static int per_host(const struct tsr_comm *c) {
    return (int)(uintptr_t)c->impl;
}

static void pretend_close(struct tsr_comm *c) {
    (void)c;
}

static void pretend_abort(struct tsr_comm *c, int exit_code) {
    (void)c;
    _exit(exit_code);
}

static bool on_one_host(const struct tsr_comm *c, const int *ranks, int n_ranks) {
    for (int i = 1; i < n_ranks; i++)
        if (ranks[i] / per_host(c) != ranks[0] / per_host(c))
            return false;
    return true;
}

static int pretend_group_open(struct tsr_comm *c, struct tsr_group *g, const char *name,
                              const int *ranks, int n_ranks, enum tsr_traffic kind) {
    int rank = -1;
    for (int i = 0; i < n_ranks; i++)
        if (ranks[i] == c->rank)
            rank = i;
    TSR_ASSERT(rank >= 0);
    *g = (struct tsr_group){.name = name, .rank = rank, .size = n_ranks, .impl = impl_of(kind)};
    bool one_host = tsr_comm_use_shm() && on_one_host(c, ranks, n_ranks);
    c->buffer_bytes += tsr_comm_group_bytes(n_ranks, one_host);
    return 0;
}

static int pretend_nccl_group_open(struct tsr_comm *c, struct tsr_group *g, const char *name,
                                   const int *ranks, int n_ranks, enum tsr_traffic kind) {
    TSR_TRY(pretend_group_open(c, g, name, ranks, n_ranks, kind));
    if (n_ranks > 1 && kind != TSR_TRAFFIC_PP) // a pipeline's stages sum nothing
        c->device_bytes += tsr_nccl_group_bytes(n_ranks);
    return 0;
}

static void pretend_group_close(struct tsr_comm *c, struct tsr_group *g) {
    (void)c;
    *g = (struct tsr_group){0};
}

static int pretend_reduce_max(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                              float *buf, size_t n) {
    (void)ctx;
    if (g->size == 1)
        return 0;
    size_t own = (size_t)tsr_range_len(tsr_piece((int64_t)n, g->rank, g->size));
    *counter_of(c, g) += sizeof *buf * (n - own + own * (size_t)(g->size - 1));
    return 0;
}

static int pretend_reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, float *buf,
                          size_t n, struct tsr_request *r) {
    tsr_request_done(r);
    return pretend_reduce_max(ctx, c, g, buf, n);
}

static int pretend_reduce_scatter(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                                  float *recv, const float *send, const size_t *counts,
                                  struct tsr_request *rq) {
    (void)ctx;
    tsr_request_done(rq);
    (void)recv;
    for (int r = 0; r < g->size; r++)
        if (r != g->rank)
            *counter_of(c, g) += sizeof *send * counts[r];
    return 0;
}

static int pretend_all_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                              void *recv, const void *send, const size_t *n_bytes,
                              struct tsr_request *rq) {
    (void)ctx;
    tsr_request_done(rq);
    size_t at = 0, mine = n_bytes[g->rank];
    for (int r = 0; r < g->rank; r++)
        at += n_bytes[r];
    if (g->impl == impl_of(TSR_TRAFFIC_OTHER) && mine)
        memmove((char *)recv + at, send, mine);
    *counter_of(c, g) += mine * (size_t)(g->size - 1);
    return 0;
}

static int pretend_broadcast(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                             void *buf, size_t n_bytes, int root) {
    (void)ctx;
    (void)buf;
    TSR_ASSERT(root >= 0 && root < g->size);
    *counter_of(c, g) += n_bytes * (size_t)tsr_broadcast_children(g->rank, g->size, root);
    return 0;
}

static int pretend_barrier(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                           const char *what, double timeout_s) {
    (void)ctx;
    (void)c;
    (void)g;
    (void)what;
    (void)timeout_s;
    return 0;
}

static int pretend_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                        const void *buf, size_t n_bytes, int to, int tag, struct tsr_request *r) {
    (void)ctx;
    (void)buf;
    (void)tag;
    (void)r;
    TSR_ASSERT(to >= 0 && to < g->size && to != g->rank);
    *counter_of(c, g) += n_bytes;
    return 0;
}

static int pretend_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, void *buf,
                        size_t n_bytes, int from, int tag, struct tsr_request *r) {
    (void)ctx;
    (void)c;
    (void)buf;
    (void)n_bytes;
    (void)tag;
    (void)r;
    TSR_ASSERT(from >= 0 && from < g->size && from != g->rank);
    return 0;
}

static int pretend_wait(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_request *r) {
    (void)ctx;
    (void)c;
    (void)r;
    return 0;
}

#define PRETEND_CALLS                                                                              \
    .close = pretend_close, .abort = pretend_abort, .group_close = pretend_group_close,            \
    .all_reduce = pretend_reduce, .all_reduce_max = pretend_reduce_max,                            \
    .reduce_scatter = pretend_reduce_scatter, .all_gather = pretend_all_gather,                    \
    .broadcast = pretend_broadcast, .barrier = pretend_barrier, .send = pretend_send,              \
    .recv = pretend_recv, .wait = pretend_wait,

static const struct tsr_comm_ops pretend_ops = {
    .name = "pretend", .group_open = pretend_group_open, PRETEND_CALLS};
static const struct tsr_comm_ops pretend_nccl_ops = {
    .name = "pretend NCCL", .group_open = pretend_nccl_group_open, PRETEND_CALLS};

int tsr_comm_open_pretend(struct tsr_comm *c, int world, int rank, int ranks_per_host, bool nccl) {
    TSR_ASSERT(world >= 1 && rank >= 0 && rank < world && ranks_per_host >= 1);
    TSR_TRY(tsr_comm_init(c, NULL));
    c->ops = nccl ? &pretend_nccl_ops : &pretend_ops;
    c->control = &pretend_ops;
    c->pretend = true;
    c->rank = rank;
    c->world = world;
    c->local_rank = rank % ranks_per_host;
    c->local_size = ranks_per_host < world ? ranks_per_host : world;
    c->impl = (void *)(uintptr_t)ranks_per_host;
    c->world_group = (struct tsr_group){
        .name = "world", .rank = rank, .size = world, .impl = impl_of(TSR_TRAFFIC_OTHER)};
    bool one_host = tsr_comm_use_shm() && world <= ranks_per_host;
    c->buffer_bytes = tsr_comm_group_bytes(world, one_host);
    return 0;
}

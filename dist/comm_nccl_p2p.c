// Messages between devices. Each lane is one direction between two neighbours of a ring, and its
// messages are received in the order in which they are sent; ranks without a lane between them go
// through the host.
#include <string.h>
#include "core/clock.h"
#include "dist/comm_nccl_private.h"

static struct tsr_nccl_lane *lane_to(const struct tsr_nccl_group *g, int peer, int tag, int way) {
    bool two = g->size == 2;
    int next = (g->rank + 1) % g->size, prev = (g->rank + g->size - 1) % g->size;
    if (peer != next && peer != prev)
        return NULL;
    return g->edge[way][peer == next ? TSR_NCCL_NEXT : TSR_NCCL_PREV]
                  [two ? tag % TSR_NCCL_PARITIES : 0];
}

static int start(struct tsr_nccl *n, struct tsr_nccl_lane *lane, void *buf, size_t n_bytes, int way,
                 struct tsr_request *r, int peer) {
    const char *what = way == TSR_NCCL_OUT ? "send" : "recv";
    struct tsr_nccl_op *op = NULL;
    TSR_TRY(tsr_nccl_follow(n, lane));
    TSR_TRY(tsr_nccl_begin(n));
    ncclResult_t rc = way == TSR_NCCL_OUT
                          ? ncclSend(buf, n_bytes, ncclChar, 1, lane->comm, lane->stream)
                          : ncclRecv(buf, n_bytes, ncclChar, 0, lane->comm, lane->stream);
    TSR_TRY(tsr_nccl_end(n, lane, rc, what));
    TSR_TRY(tsr_nccl_mark(n, lane, what, &op));
    *r = (struct tsr_request){.impl = {NULL, op}, .what = what, .peer = peer};
    return 0;
}

int tsr_nccl_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, const void *buf,
                  size_t n_bytes, int to, int tag, struct tsr_request *r) {
    struct tsr_nccl_group *g = group->device;
    TSR_ASSERT(g != NULL && to >= 0 && to < group->size && to != group->rank && tag >= 0);
    struct tsr_nccl_lane *lane = lane_to(g, to, tag, TSR_NCCL_OUT);
    if (lane == NULL)
        return tsr_staged_send(ctx, c, group, buf, n_bytes, to, tag, r);
    *r = (struct tsr_request){0};
    if (n_bytes != 0) // the other end knows the size and doesn't wait for nothing
        TSR_TRY(start(tsr_nccl_of(c), lane, (void *)buf, n_bytes, TSR_NCCL_OUT, r, to));
    c->bytes_sent[g->kind] += n_bytes;
    return 0;
}

int tsr_nccl_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, void *buf,
                  size_t n_bytes, int from, int tag, struct tsr_request *r) {
    struct tsr_nccl_group *g = group->device;
    TSR_ASSERT(g != NULL && from >= 0 && from < group->size && from != group->rank && tag >= 0);
    struct tsr_nccl_lane *lane = lane_to(g, from, tag, TSR_NCCL_IN);
    if (lane == NULL)
        return tsr_staged_recv(ctx, c, group, buf, n_bytes, from, tag, r);
    *r = (struct tsr_request){0};
    return n_bytes == 0 ? 0 : start(tsr_nccl_of(c), lane, buf, n_bytes, TSR_NCCL_IN, r, from);
}

int tsr_nccl_wait(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_request *r) {
    if (r->impl[0] != NULL)
        return tsr_staged_wait(ctx, c, r);
    if (c->progress)
        atomic_fetch_add_explicit(&c->progress->collective, 1, memory_order_relaxed);
    if (r->impl[1] == NULL)
        return 0;
    TSR_TRY(tsr_nccl_join(tsr_nccl_of(c), r->impl[1]));
    *r = (struct tsr_request){0};
    return 0;
}

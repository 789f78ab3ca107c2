// Groups of NCCL's transport: a lane for collectives, and for a pipeline's groups one for each
// neighbour and direction. All lanes are tried out when they are opened: NCCL connects two ranks
// when they first speak, and waits for both; later it must not.
#include <stdlib.h>
#include <string.h>
#include "core/pieces.h"
#include "dist/comm_impl.h"
#include "dist/comm_nccl_private.h"

static int no_memory(const struct tsr_comm *c, const char *name) {
    return tsr_fail(TSR_ENOMEM, "rank %d (host %s): no memory for group %s", c->rank, c->host,
                    name);
}

static int get_id(const struct tsr_comm *c, ncclUniqueId *id, const char *name) {
    ncclResult_t rc = ncclGetUniqueId(id);
    if (rc == ncclSuccess)
        return 0;
    return tsr_fail(TSR_EPEER, "rank %d (host %s): NCCL gives no id for group %s: %s", c->rank,
                    c->host, name, ncclGetErrorString(rc));
}

// ---- collectives

static size_t scratch_bytes(const struct tsr_nccl_group *g) {
    return (size_t)g->size * g->stride * sizeof(float);
}

static size_t leaves_bytes(const struct tsr_nccl_group *g) {
    return (size_t)g->size * sizeof *g->leaves;
}

static int open_scratch(struct tsr_nccl *n, struct tsr_nccl_group *g) {
    struct tsr_ctx *ctx = &n->ctx;
    void *p = NULL;
    size_t n_leaves = (size_t)g->size;
    g->stride = g->part = tsr_nccl_stride(g->size);
    TSR_TRY(ctx->ops->alloc(ctx, scratch_bytes(g), &p));
    g->scratch = p;
    n->comm->device_bytes += scratch_bytes(g);
    TSR_TRY(ctx->ops->alloc(ctx, leaves_bytes(g), &p));
    g->leaves = p;
    n->comm->device_bytes += leaves_bytes(g);
    const float **leaves = calloc(n_leaves, sizeof *leaves);
    if (leaves == NULL)
        return no_memory(n->comm, g->name);
    for (size_t r = 0; r < n_leaves; r++)
        leaves[r] = g->scratch + r * g->stride;
    int rc = ctx->ops->to_device(ctx, g->leaves, leaves, n_leaves * sizeof *leaves);
    int synced = ctx->ops->sync(ctx);
    free(leaves);
    return rc < 0 ? rc : synced;
}

// The first sums of a lane, by which its ranks connect.
static int try_out(struct tsr_nccl *n, struct tsr_group *group) {
    struct tsr_nccl_group *g = group->device;
    struct tsr_comm *c = n->comm;
    float *some = g->scratch + g->stride - (size_t)g->size; // not used by such a short sum
    TSR_TRY(n->ctx.ops->zero(&n->ctx, some, (size_t)g->size * sizeof *some));
    TSR_TRY(tsr_nccl_all_reduce(&n->ctx, c, group, some, (size_t)g->size, NULL));
    return n->ctx.ops->sync(&n->ctx);
}

static int open_all(struct tsr_nccl *n, struct tsr_group *group) {
    struct tsr_nccl_group *g = group->device;
    ncclUniqueId id;
    memset(&id, 0, sizeof id);
    if (g->rank == 0)
        TSR_TRY(get_id(n->comm, &id, g->name));
    TSR_TRY(n->comm->control->broadcast(&n->ctx, n->comm, group, &id, sizeof id, 0));
    TSR_TRY(open_scratch(n, g));
    TSR_TRY(tsr_nccl_lane_open(n, &g->all, g->name, -1, id, g->rank, g->size));
    return try_out(n, group);
}

int tsr_nccl_need_all(struct tsr_nccl *n, struct tsr_group *group) {
    struct tsr_nccl_group *g = group->device;
    TSR_ASSERT(g != NULL); // the world group is the host's
    if (g->all != NULL)
        return 0;
    uint64_t *sent = &n->comm->bytes_sent[g->kind], before = *sent;
    int rc = open_all(n, group);
    *sent = before; // only what callers ask for is counted
    return rc;
}

// ---- messages

enum { MAX_EDGES = TSR_NCCL_SIDES * TSR_NCCL_PARITIES }; // that leave one rank

// Where an edge from rank `a` goes; -1: there is no such edge. In a group of two, where both
// neighbours are one rank, each of two tags has an edge; else one is enough.
static int end_of(const struct tsr_nccl_group *g, int a, int side, int parity) {
    bool two = g->size == 2;
    if (two ? side == TSR_NCCL_PREV : parity != 0)
        return -1;
    return (a + (side == TSR_NCCL_NEXT ? 1 : g->size - 1)) % g->size;
}

static int edge_index(int a, int side, int parity) {
    return a * MAX_EDGES + side * TSR_NCCL_PARITIES + parity;
}

// One byte from end to end.
static int try_edge(struct tsr_nccl *n, struct tsr_nccl_lane *lane, bool out, void *byte) {
    static const char what[] = "a first message";
    struct tsr_nccl_op *op = NULL;
    int other = out ? 1 : 0;
    TSR_TRY(tsr_nccl_follow(n, lane));
    TSR_TRY(tsr_nccl_begin(n));
    ncclResult_t rc = out ? ncclSend(byte, 1, ncclChar, other, lane->comm, lane->stream)
                          : ncclRecv(byte, 1, ncclChar, other, lane->comm, lane->stream);
    TSR_TRY(tsr_nccl_end(n, lane, rc, what));
    TSR_TRY(tsr_nccl_mark(n, lane, what, &op));
    TSR_TRY(tsr_nccl_join(n, op));
    return n->ctx.ops->sync(&n->ctx);
}

static int open_edge(struct tsr_nccl *n, struct tsr_nccl_group *g, int a, int side, int parity,
                     ncclUniqueId id, void *byte) {
    int b = end_of(g, a, side, parity);
    if (b < 0 || (a != g->rank && b != g->rank))
        return 0;
    bool out = a == g->rank;
    // The sender's next is the receiver's prev, but for two ranks both are next.
    int its_side = out || g->size == 2 ? side : TSR_NCCL_SIDES - 1 - side;
    struct tsr_nccl_lane **lane = &g->edge[out ? TSR_NCCL_OUT : TSR_NCCL_IN][its_side][parity];
    int peer = g->world_rank[out ? b : a];
    TSR_TRY(tsr_nccl_lane_open(n, lane, g->name, peer, id, out ? 0 : 1, 2));
    return try_edge(n, *lane, out, byte);
}

// All ranks go through all edges in one order, so that no two wait for each other.
static int open_each(struct tsr_nccl *n, struct tsr_nccl_group *g, const ncclUniqueId *ids) {
    void *byte = NULL;
    TSR_TRY(n->ctx.ops->alloc(&n->ctx, 1, &byte));
    int rc = 0;
    for (int a = 0; a < g->size; a++)
        for (int side = 0; side < TSR_NCCL_SIDES; side++)
            for (int parity = 0; rc == 0 && parity < TSR_NCCL_PARITIES; parity++)
                rc = open_edge(n, g, a, side, parity, ids[edge_index(a, side, parity)], byte);
    n->ctx.ops->free(&n->ctx, byte, 1);
    return rc;
}

static int open_edges(struct tsr_nccl *n, struct tsr_group *group) {
    struct tsr_nccl_group *g = group->device;
    struct tsr_comm *c = n->comm;
    uint64_t before = c->bytes_sent[g->kind];
    ncclUniqueId *ids = calloc((size_t)g->size * MAX_EDGES, sizeof *ids);
    size_t *n_bytes = calloc((size_t)g->size, sizeof *n_bytes);
    int rc = ids && n_bytes ? 0 : no_memory(c, g->name);
    for (int side = 0; side < TSR_NCCL_SIDES; side++)
        for (int parity = 0; rc == 0 && parity < TSR_NCCL_PARITIES; parity++)
            if (end_of(g, g->rank, side, parity) >= 0)
                rc = get_id(c, &ids[edge_index(g->rank, side, parity)], g->name);
    for (int r = 0; rc == 0 && r < g->size; r++)
        n_bytes[r] = MAX_EDGES * sizeof *ids;
    if (rc == 0)
        rc = c->control->all_gather(&n->ctx, c, group, ids, &ids[g->rank * MAX_EDGES], n_bytes,
                                    NULL);
    if (rc == 0)
        rc = open_each(n, g, ids);
    c->bytes_sent[g->kind] = before;
    free(ids);
    free(n_bytes);
    return rc;
}

// ---- groups

static struct tsr_nccl_group *new_group(const struct tsr_group *group, const int *ranks,
                                        enum tsr_traffic kind) {
    struct tsr_nccl_group *g = calloc(1, sizeof *g);
    size_t n = (size_t)group->size;
    if (g == NULL)
        return NULL;
    g->name = group->name;
    g->rank = group->rank;
    g->size = group->size;
    g->kind = kind;
    g->world_rank = malloc(n * sizeof *g->world_rank);
    g->offset = calloc(n + 1, sizeof *g->offset);
    if (g->world_rank == NULL || g->offset == NULL) {
        free(g->world_rank);
        free(g->offset);
        free(g);
        return NULL;
    }
    memcpy(g->world_rank, ranks, n * sizeof *ranks);
    return g;
}

int tsr_nccl_group_open(struct tsr_comm *c, struct tsr_group *group, const char *name,
                        const int *ranks, int n_ranks, enum tsr_traffic kind) {
    struct tsr_nccl *n = tsr_nccl_of(c);
    TSR_TRY(c->control->group_open(c, group, name, ranks, n_ranks, kind));
    struct tsr_nccl_group *g = new_group(group, ranks, kind);
    group->device = g;
    if (g == NULL)
        return no_memory(c, name);
    if (n_ranks == 1)
        return 0;
    // A pipeline's group may never sum anything: what sums need is made when they come.
    return kind == TSR_TRAFFIC_PP ? open_edges(n, group) : tsr_nccl_need_all(n, group);
}

void tsr_nccl_group_close(struct tsr_comm *c, struct tsr_group *group) {
    struct tsr_nccl *n = tsr_nccl_of(c);
    struct tsr_nccl_group *g = group->device;
    if (g != NULL) {
        struct tsr_ctx *ctx = &n->ctx;
        // The same order on both ends of each edge.
        for (int a = 0; a < g->size; a++)
            for (int side = 0; side < TSR_NCCL_SIDES; side++)
                for (int parity = 0; parity < TSR_NCCL_PARITIES; parity++) {
                    int b = g->size > 1 ? end_of(g, a, side, parity) : -1;
                    int in = g->size == 2 ? side : TSR_NCCL_SIDES - 1 - side;
                    if (b >= 0 && a == g->rank)
                        tsr_nccl_lane_close(n, g->edge[TSR_NCCL_OUT][side][parity]);
                    if (b >= 0 && b == g->rank)
                        tsr_nccl_lane_close(n, g->edge[TSR_NCCL_IN][in][parity]);
                }
        tsr_nccl_lane_close(n, g->all);
        if (g->scratch != NULL) {
            ctx->ops->free(ctx, g->scratch, scratch_bytes(g));
            c->device_bytes -= scratch_bytes(g);
        }
        if (g->leaves != NULL) {
            ctx->ops->free(ctx, g->leaves, leaves_bytes(g));
            c->device_bytes -= leaves_bytes(g);
        }
        free(g->world_rank);
        free(g->offset);
        free(g);
        group->device = NULL;
    }
    c->control->group_close(c, group);
}

// Collectives between devices. Sums don't depend on NCCL's algorithms: rank r owns slice r; the
// others send it their part, its device joins them by the tree of core/pieces.h, and the slices are
// gathered. Sends and receives of a round are one call of NCCL's, so each byte travels as it would
// in a ring. Runs that don't ask for exact sums take NCCL's own.
#include "core/clock.h"
#include "core/pieces.h"
#include "dist/comm_impl.h"
#include "dist/comm_nccl_private.h"

typedef int joiner(void *stream, float *out, const float *const *in, int n_in, size_t n);

enum { WHOLE_BYTES = 64 << 10 }; // up to here every rank adds everything, which saves a message

// One call of the table under way.
struct call {
    struct tsr_nccl *n;
    struct tsr_nccl_group *g;
    struct tsr_nccl_lane *lane;
    const char *what;
    double begun;
};

static void count_call(struct tsr_comm *c) {
    if (c->progress)
        atomic_fetch_add_explicit(&c->progress->collective, 1, memory_order_relaxed);
}

static int start(struct call *x, struct tsr_comm *c, struct tsr_group *group, const char *what) {
    struct tsr_nccl *n = tsr_nccl_of(c);
    *x = (struct call){.n = n, .what = what, .begun = tsr_now()};
    TSR_TRY(tsr_nccl_need_all(n, group));
    x->g = group->device;
    x->lane = x->g->all;
    return tsr_nccl_follow(n, x->lane);
}

// Without a request the compute stream waits at once.
static int finish(struct call *x, struct tsr_request *r) {
    struct tsr_nccl_op *op = NULL;
    TSR_TRY(tsr_nccl_mark(x->n, x->lane, x->what, &op));
    if (r)
        *r = (struct tsr_request){.impl = {NULL, op}, .what = x->what, .peer = -1};
    else
        TSR_TRY(tsr_nccl_join(x->n, op));
    x->n->comm->seconds += tsr_now() - x->begun;
    return 0;
}

// ---- rounds of messages

static ncclResult_t first_error(ncclResult_t a, ncclResult_t b) {
    return a == ncclSuccess || a == ncclInProgress ? b : a;
}

static ncclResult_t send(const struct call *x, const void *buf, size_t n_bytes, int to) {
    return n_bytes ? ncclSend(buf, n_bytes, ncclChar, to, x->lane->comm, x->lane->stream)
                   : ncclSuccess;
}

static ncclResult_t recv(const struct call *x, void *buf, size_t n_bytes, int from) {
    return n_bytes ? ncclRecv(buf, n_bytes, ncclChar, from, x->lane->comm, x->lane->stream)
                   : ncclSuccess;
}

static float *scratch_of(const struct tsr_nccl_group *g, int r) {
    return g->scratch + (size_t)r * g->stride;
}

// Sends the parts of round t of the others' slices to them and receives theirs of the own one.
static ncclResult_t scatter_round(const struct call *x, const float *buf, size_t t) {
    const struct tsr_nccl_group *g = x->g;
    size_t mine = tsr_round_len(g->offset, g->rank, t, g->part) * sizeof *buf;
    ncclResult_t rc = ncclSuccess;
    for (int i = 1; i < g->size; i++) {
        int from = (g->rank - i + g->size) % g->size, to = (g->rank + i) % g->size;
        size_t theirs = tsr_round_len(g->offset, to, t, g->part) * sizeof *buf;
        rc = first_error(rc, send(x, buf + g->offset[to] + t * g->part, theirs, to));
        rc = first_error(rc, recv(x, scratch_of(g, from), mine, from));
    }
    return rc;
}

// Sends round t of the own slice, in parts of `part` elements, to all and receives theirs.
static ncclResult_t gather_round(const struct call *x, char *buf, size_t t, size_t part,
                                 size_t elem_bytes) {
    const struct tsr_nccl_group *g = x->g;
    size_t mine = tsr_round_len(g->offset, g->rank, t, part) * elem_bytes;
    ncclResult_t rc = ncclSuccess;
    for (int i = 1; i < g->size; i++) {
        int from = (g->rank - i + g->size) % g->size, to = (g->rank + i) % g->size;
        size_t theirs = tsr_round_len(g->offset, from, t, part) * elem_bytes;
        rc = first_error(rc, send(x, buf + (g->offset[g->rank] + t * part) * elem_bytes, mine, to));
        rc =
            first_error(rc, recv(x, buf + (g->offset[from] + t * part) * elem_bytes, theirs, from));
    }
    return rc;
}

// Joins `n` elements of the ranks' parts into out: `own` and what the scratch has of the others.
static int join_round(const struct call *x, joiner *join, float *out, const float *own, size_t n) {
    const struct tsr_nccl_group *g = x->g;
    if (n == 0)
        return 0;
    TSR_CUDA_TRY(cudaMemcpyAsync, scratch_of(g, g->rank), own, n * sizeof *own,
                 cudaMemcpyDeviceToDevice, x->lane->stream);
    return join(x->lane->stream, out, g->leaves, g->size, n);
}

// Each rank sends everything to all, and all add.
static int reduce_whole(struct call *x, joiner *join, float *buf, size_t n) {
    const struct tsr_nccl_group *g = x->g;
    for (size_t at = 0; at < n; at += g->part) {
        size_t len = n - at < g->part ? n - at : g->part;
        TSR_TRY(tsr_nccl_begin(x->n));
        ncclResult_t rc = ncclGroupStart();
        for (int i = 1; i < g->size; i++) {
            int from = (g->rank - i + g->size) % g->size, to = (g->rank + i) % g->size;
            rc = first_error(rc, send(x, buf + at, len * sizeof *buf, to));
            rc = first_error(rc, recv(x, scratch_of(g, from), len * sizeof *buf, from));
        }
        rc = first_error(rc, ncclGroupEnd());
        TSR_TRY(tsr_nccl_end(x->n, x->lane, rc, x->what));
        TSR_TRY(join_round(x, join, buf + at, buf + at, len));
    }
    return 0;
}

// The messages that gather a round are sent together with those of the round after it.
static int reduce_slices(struct call *x, joiner *join, float *buf) {
    const struct tsr_nccl_group *g = x->g;
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, g->part);
    float *own = buf + g->offset[g->rank];
    for (size_t t = 0; t <= n_rounds; t++) {
        TSR_TRY(tsr_nccl_begin(x->n));
        ncclResult_t rc = ncclGroupStart();
        if (t < n_rounds)
            rc = first_error(rc, scatter_round(x, buf, t));
        if (t > 0)
            rc = first_error(rc, gather_round(x, (char *)buf, t - 1, g->part, sizeof *buf));
        rc = first_error(rc, ncclGroupEnd());
        TSR_TRY(tsr_nccl_end(x->n, x->lane, rc, x->what));
        if (t < n_rounds)
            TSR_TRY(join_round(x, join, own + t * g->part, own + t * g->part,
                               tsr_round_len(g->offset, g->rank, t, g->part)));
    }
    return 0;
}

static int reduce(struct call *x, joiner *join, float *buf, size_t n) {
    struct tsr_nccl_group *g = x->g;
    for (int r = 0; r <= g->size; r++)
        g->offset[r] = (size_t)tsr_piece((int64_t)n, r, g->size).lo;
    if (g->size == 2 || n * sizeof *buf <= WHOLE_BYTES)
        return reduce_whole(x, join, buf, n);
    return reduce_slices(x, join, buf);
}

static int library_sum(struct call *x, float *buf, size_t n) {
    TSR_TRY(tsr_nccl_begin(x->n));
    ncclResult_t rc =
        ncclAllReduce(buf, buf, n, ncclFloat, ncclSum, x->lane->comm, x->lane->stream);
    return tsr_nccl_end(x->n, x->lane, rc, x->what);
}

static int reduce_call(struct tsr_comm *c, struct tsr_group *group, joiner *join, float *buf,
                       size_t n, bool by_library, const char *what, struct tsr_request *r) {
    struct call x;
    count_call(c);
    tsr_request_done(r);
    if (group->size == 1 || n == 0)
        return 0;
    TSR_TRY(start(&x, c, group, what));
    TSR_TRY(by_library ? library_sum(&x, buf, n) : reduce(&x, join, buf, n));
    size_t own = (size_t)tsr_range_len(tsr_piece((int64_t)n, group->rank, group->size));
    c->bytes_sent[x.g->kind] += sizeof *buf * (n - own + own * (size_t)(group->size - 1));
    return finish(&x, r);
}

int tsr_nccl_all_reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                        float *buf, size_t n, struct tsr_request *r) {
    (void)ctx;
    return reduce_call(c, group, tsr_cuda_tree_add, buf, n, !tsr_nccl_of(c)->cuda->exact,
                       "all_reduce", r);
}

// NCCL's maximum may lose a NaN.
int tsr_nccl_all_reduce_max(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                            float *buf, size_t n) {
    (void)ctx;
    return reduce_call(c, group, tsr_cuda_tree_max, buf, n, false, "all_reduce_max", NULL);
}

// ---- uneven slices

// True when all slices have one length, as NCCL's own collectives want them.
static bool set_offsets(struct tsr_nccl_group *g, const size_t *counts) {
    bool even = true;
    for (int r = 0; r < g->size; r++) {
        g->offset[r + 1] = g->offset[r] + counts[r];
        even = even && counts[r] == counts[0];
    }
    return even;
}

static int reduce_scatter(struct call *x, float *recv_at, const float *send_at) {
    const struct tsr_nccl_group *g = x->g;
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, g->part);
    for (size_t t = 0; t < n_rounds; t++) {
        TSR_TRY(tsr_nccl_begin(x->n));
        ncclResult_t rc = ncclGroupStart();
        rc = first_error(rc, scatter_round(x, send_at, t));
        rc = first_error(rc, ncclGroupEnd());
        TSR_TRY(tsr_nccl_end(x->n, x->lane, rc, x->what));
        TSR_TRY(join_round(x, tsr_cuda_tree_add, recv_at + t * g->part,
                           send_at + g->offset[g->rank] + t * g->part,
                           tsr_round_len(g->offset, g->rank, t, g->part)));
    }
    return 0;
}

static int library_scatter(struct call *x, float *recv_at, const float *send_at, size_t n) {
    TSR_TRY(tsr_nccl_begin(x->n));
    ncclResult_t rc =
        ncclReduceScatter(send_at, recv_at, n, ncclFloat, ncclSum, x->lane->comm, x->lane->stream);
    return tsr_nccl_end(x->n, x->lane, rc, x->what);
}

int tsr_nccl_reduce_scatter(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                            float *recv_at, const float *send_at, const size_t *counts,
                            struct tsr_request *r) {
    struct call x;
    count_call(c);
    tsr_request_done(r);
    if (group->size == 1)
        return recv_at == send_at || counts[0] == 0
                   ? 0
                   : ctx->ops->copy(ctx, recv_at, send_at, counts[0] * sizeof *recv_at);
    TSR_TRY(start(&x, c, group, "reduce_scatter"));
    bool even = set_offsets(x.g, counts);
    TSR_TRY(even && !x.n->cuda->exact ? library_scatter(&x, recv_at, send_at, counts[0])
                                      : reduce_scatter(&x, recv_at, send_at));
    c->bytes_sent[x.g->kind] += sizeof *send_at * (x.g->offset[x.g->size] - counts[x.g->rank]);
    return finish(&x, r);
}

static int gather(struct call *x, char *buf, size_t most) {
    TSR_TRY(tsr_nccl_begin(x->n));
    ncclResult_t rc = ncclGroupStart();
    rc = first_error(rc, gather_round(x, buf, 0, most, 1));
    rc = first_error(rc, ncclGroupEnd());
    return tsr_nccl_end(x->n, x->lane, rc, x->what);
}

static int library_gather(struct call *x, char *buf, size_t n) {
    TSR_TRY(tsr_nccl_begin(x->n));
    ncclResult_t rc = ncclAllGather(buf + n * (size_t)x->g->rank, buf, n, ncclChar, x->lane->comm,
                                    x->lane->stream);
    return tsr_nccl_end(x->n, x->lane, rc, x->what);
}

int tsr_nccl_all_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                        void *recv_at, const void *send_at, const size_t *n_bytes,
                        struct tsr_request *r) {
    struct call x;
    size_t at = 0, most = 1, mine = n_bytes[group->rank];
    for (int i = 0; i < group->size; i++) {
        at += i < group->rank ? n_bytes[i] : 0;
        most = n_bytes[i] > most ? n_bytes[i] : most;
    }
    count_call(c);
    tsr_request_done(r);
    if (mine && (char *)recv_at + at != send_at)
        TSR_TRY(ctx->ops->copy(ctx, (char *)recv_at + at, send_at, mine));
    if (group->size == 1)
        return 0;
    TSR_TRY(start(&x, c, group, "all_gather"));
    // A gather moves bits and adds nothing: NCCL's own, which knows the machine's wires, is exact.
    bool even = set_offsets(x.g, n_bytes);
    TSR_TRY(even && mine ? library_gather(&x, recv_at, mine) : gather(&x, recv_at, most));
    c->bytes_sent[x.g->kind] += mine * (size_t)(group->size - 1);
    return finish(&x, r);
}

int tsr_nccl_broadcast(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, void *buf,
                       size_t n_bytes, int root) {
    struct call x;
    (void)ctx;
    TSR_ASSERT(root >= 0 && root < group->size);
    count_call(c);
    if (group->size == 1 || n_bytes == 0)
        return 0;
    TSR_TRY(start(&x, c, group, "broadcast"));
    TSR_TRY(tsr_nccl_begin(x.n));
    ncclResult_t rc =
        ncclBroadcast(buf, buf, n_bytes, ncclChar, root, x.lane->comm, x.lane->stream);
    TSR_TRY(tsr_nccl_end(x.n, x.lane, rc, x.what));
    c->bytes_sent[x.g->kind] +=
        n_bytes * (size_t)tsr_broadcast_children(group->rank, group->size, root);
    return finish(&x, NULL);
}

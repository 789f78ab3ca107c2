// Device buffers over the host's transport. Copies and the host's calls follow one pattern: while
// one part travels between hosts, the part after it comes from the device and the part before it
// goes back. A stage is written by the host only after a sync that followed its last copy.
#include "dist/comm_staged.h"

#include <stdlib.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/pieces.h"
#include "dist/comm_impl.h"

// A group's device is its kind of traffic, from 1; the world group has none.
static enum tsr_traffic kind_of(const struct tsr_group *g) {
    uintptr_t kind = (uintptr_t)g->device;
    return kind ? (enum tsr_traffic)(kind - 1) : TSR_TRAFFIC_OTHER;
}

static size_t least(size_t a, size_t b) {
    return a < b ? a : b;
}

static void count_call(struct tsr_comm *c) {
    if (c->progress)
        atomic_fetch_add_explicit(&c->progress->collective, 1, memory_order_relaxed);
}

// ---- groups

static int staged_group_open(struct tsr_comm *c, struct tsr_group *g, const char *name,
                             const int *ranks, int n_ranks, enum tsr_traffic kind) {
    TSR_TRY(c->control->group_open(c, g, name, ranks, n_ranks, kind));
    g->device = (void *)((uintptr_t)kind + 1);
    return 0;
}

static void staged_group_close(struct tsr_comm *c, struct tsr_group *g) {
    c->control->group_close(c, g);
}

// ---- collectives

typedef int host_reduce(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *, size_t);

static int reduce_parts(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                        host_reduce *call, float *buf, size_t n) {
    struct tsr_staged *s = c->device;
    size_t part = s->part / sizeof *buf, len = least(n, part);
    TSR_TRY(tsr_staged_from(ctx, s->stage[0], buf, len * sizeof *buf));
    TSR_TRY(ctx->ops->sync(ctx));
    size_t at = 0;
    for (int t = 0; t == 0 || at < n; t++, at += part) {
        float *stage = (float *)s->stage[t & 1];
        size_t next = at + part < n ? least(n - at - part, part) : 0;
        len = least(n - at, part);
        TSR_TRY(tsr_staged_from(ctx, s->stage[~t & 1], next ? buf + at + part : NULL,
                                next * sizeof *buf));
        TSR_TRY(call(ctx, c, g, stage, len));
        if (next)
            TSR_TRY(ctx->ops->sync(ctx));
        TSR_TRY(tsr_staged_to(ctx, buf + at, stage, len * sizeof *buf));
    }
    return 0;
}

static int reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, host_reduce *call,
                  float *buf, size_t n) {
    if (g->size == 1)
        return call(ctx, c, g, buf, n); // touches nothing
    double begun = tsr_now(), seconds = c->seconds;
    uint64_t *sent = &c->bytes_sent[kind_of(g)], before = *sent;
    int rc = reduce_parts(ctx, c, g, call, buf, n);
    // The formula's slices are the whole buffer's, not each part's.
    size_t own = (size_t)tsr_range_len(tsr_piece((int64_t)n, g->rank, g->size));
    *sent = before + sizeof *buf * (n - own + own * (size_t)(g->size - 1));
    c->seconds = seconds + tsr_now() - begun;
    return rc;
}

static int host_all_reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, float *buf,
                           size_t n) {
    return c->control->all_reduce(ctx, c, g, buf, n, NULL);
}

static int staged_all_reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                             float *buf, size_t n, struct tsr_request *r) {
    tsr_request_done(r);
    return reduce(ctx, c, g, host_all_reduce, buf, n);
}

static int staged_all_reduce_max(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                                 float *buf, size_t n) {
    return reduce(ctx, c, g, c->control->all_reduce_max, buf, n);
}

// Slices of all ranks, one behind the other, and the rounds in which they travel: `part` bytes of
// each, one behind the other in a stage.
struct slices {
    const size_t *n; // (size), in elements
    size_t elem, part, n_rounds;
    int size;
};

static struct slices slices_of(const struct tsr_staged *s, const struct tsr_group *g,
                               const size_t *n, size_t elem) {
    size_t part = s->part / elem / (size_t)g->size * elem, most = 0;
    for (int r = 0; r < g->size; r++)
        most = n[r] > most ? n[r] : most;
    part = part ? part : elem;
    size_t n_rounds = most ? (most * elem - 1) / part + 1 : 1;
    return (struct slices){
        .n = n, .elem = elem, .part = part, .n_rounds = n_rounds, .size = g->size};
}

static size_t round_bytes(const struct slices *x, int r, size_t t) {
    size_t n = x->n[r] * x->elem;
    return t * x->part < n ? least(n - t * x->part, x->part) : 0;
}

enum direction { FROM_DEVICE, TO_DEVICE };

// Copies the round's parts of the slices of ranks [from, to) between `buf` and a stage.
static int copy_round(struct tsr_ctx *ctx, enum direction way, char *buf, char *stage,
                      const struct slices *x, int from, int to, size_t t) {
    size_t at = 0, slice = 0;
    for (int r = 0; r < to; r++) {
        size_t n = round_bytes(x, r, t);
        if (r >= from && n) {
            char *mine = buf + slice + t * x->part;
            TSR_TRY(way == FROM_DEVICE ? tsr_staged_from(ctx, stage + at, mine, n)
                                       : tsr_staged_to(ctx, mine, stage + at, n));
        }
        at += n;
        slice += x->n[r] * x->elem;
    }
    return 0;
}

// Fills s->len, in elements; returns where rank r's part begins in the stage.
static size_t fill_lengths(struct tsr_staged *s, const struct slices *x, int rank, size_t t) {
    size_t at = 0;
    for (int r = 0; r < x->size; r++) {
        s->len[r] = round_bytes(x, r, t) / x->elem;
        at += r < rank ? round_bytes(x, r, t) : 0;
    }
    return at;
}

static int reduce_scatter_rounds(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                                 float *recv, const float *send, const struct slices *x) {
    struct tsr_staged *s = c->device;
    char *src = (char *)send;
    TSR_TRY(copy_round(ctx, FROM_DEVICE, src, s->stage[0], x, 0, x->size, 0));
    TSR_TRY(ctx->ops->sync(ctx));
    for (size_t t = 0; t < x->n_rounds; t++) {
        char *stage = s->stage[t & 1];
        bool more = t + 1 < x->n_rounds;
        if (more)
            TSR_TRY(copy_round(ctx, FROM_DEVICE, src, s->stage[~t & 1], x, 0, x->size, t + 1));
        float *own = (float *)(stage + fill_lengths(s, x, g->rank, t));
        TSR_TRY(c->control->reduce_scatter(ctx, c, g, own, (float *)stage, s->len, NULL));
        if (more)
            TSR_TRY(ctx->ops->sync(ctx));
        TSR_TRY(tsr_staged_to(ctx, (char *)recv + t * x->part, own, s->len[g->rank] * x->elem));
    }
    return 0;
}

static int staged_reduce_scatter(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                                 float *recv, const float *send, const size_t *counts,
                                 struct tsr_request *r) {
    tsr_request_done(r);
    if (g->size == 1) {
        count_call(c);
        size_t n = counts[0] * sizeof *recv;
        return recv == send || n == 0 ? 0 : ctx->ops->copy(ctx, recv, send, n);
    }
    double begun = tsr_now(), seconds = c->seconds;
    struct slices x = slices_of(c->device, g, counts, sizeof *recv);
    int rc = reduce_scatter_rounds(ctx, c, g, recv, send, &x);
    c->seconds = seconds + tsr_now() - begun;
    return rc;
}

static int all_gather_rounds(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                             char *recv, const struct slices *x) {
    struct tsr_staged *s = c->device;
    int me = g->rank;
    TSR_TRY(copy_round(ctx, FROM_DEVICE, recv, s->stage[0], x, me, me + 1, 0));
    TSR_TRY(ctx->ops->sync(ctx));
    for (size_t t = 0; t < x->n_rounds; t++) {
        char *stage = s->stage[t & 1];
        bool more = t + 1 < x->n_rounds;
        if (more)
            TSR_TRY(copy_round(ctx, FROM_DEVICE, recv, s->stage[~t & 1], x, me, me + 1, t + 1));
        size_t own = fill_lengths(s, x, me, t);
        TSR_TRY(c->control->all_gather(ctx, c, g, stage, stage + own, s->len, NULL));
        if (more)
            TSR_TRY(ctx->ops->sync(ctx));
        TSR_TRY(copy_round(ctx, TO_DEVICE, recv, stage, x, 0, me, t));
        TSR_TRY(copy_round(ctx, TO_DEVICE, recv, stage, x, me + 1, x->size, t));
    }
    return 0;
}

static int staged_all_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                             void *recv, const void *send, const size_t *n_bytes,
                             struct tsr_request *rq) {
    tsr_request_done(rq);
    char *own = recv;
    for (int r = 0; r < g->rank; r++)
        own += n_bytes[r];
    if (own != send && n_bytes[g->rank])
        TSR_TRY(ctx->ops->copy(ctx, own, send, n_bytes[g->rank]));
    if (g->size == 1) {
        count_call(c);
        return 0;
    }
    double begun = tsr_now(), seconds = c->seconds;
    struct slices x = slices_of(c->device, g, n_bytes, 1);
    int rc = all_gather_rounds(ctx, c, g, recv, &x);
    c->seconds = seconds + tsr_now() - begun;
    return rc;
}

static int broadcast_parts(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, char *buf,
                           size_t n_bytes, int root) {
    struct tsr_staged *s = c->device;
    bool mine = g->rank == root;
    TSR_TRY(tsr_staged_from(ctx, s->stage[0], buf, mine ? least(n_bytes, s->part) : 0));
    TSR_TRY(ctx->ops->sync(ctx));
    size_t at = 0;
    for (int t = 0; t == 0 || at < n_bytes; t++, at += s->part) {
        char *stage = s->stage[t & 1];
        size_t len = least(n_bytes - at, s->part);
        size_t next = at + s->part < n_bytes ? least(n_bytes - at - s->part, s->part) : 0;
        TSR_TRY(tsr_staged_from(ctx, s->stage[~t & 1], next ? buf + at + s->part : NULL,
                                mine ? next : 0));
        TSR_TRY(c->control->broadcast(ctx, c, g, stage, len, root));
        if (next)
            TSR_TRY(ctx->ops->sync(ctx));
        TSR_TRY(tsr_staged_to(ctx, buf + at, stage, mine ? 0 : len));
    }
    return 0;
}

static int staged_broadcast(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, void *buf,
                            size_t n_bytes, int root) {
    if (g->size == 1)
        return c->control->broadcast(ctx, c, g, buf, n_bytes, root); // touches nothing
    double begun = tsr_now(), seconds = c->seconds;
    int rc = broadcast_parts(ctx, c, g, buf, n_bytes, root);
    c->seconds = seconds + tsr_now() - begun;
    return rc;
}

static int staged_barrier(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g,
                          const char *what, double timeout_s) {
    return c->control->barrier(ctx, c, g, what, timeout_s);
}

// ---- opening and closing

static void staged_close(struct tsr_comm *c) {
    tsr_comm_end_staged(c);
    c->control->close(c);
}

static void staged_abort(struct tsr_comm *c, int exit_code) {
    c->control->abort(c, exit_code);
}

static const struct tsr_comm_ops staged_ops = {
    .name = "staged",
    .close = staged_close,
    .abort = staged_abort,
    .group_open = staged_group_open,
    .group_close = staged_group_close,
    .all_reduce = staged_all_reduce,
    .all_reduce_max = staged_all_reduce_max,
    .reduce_scatter = staged_reduce_scatter,
    .all_gather = staged_all_gather,
    .broadcast = staged_broadcast,
    .barrier = staged_barrier,
    .send = tsr_staged_send,
    .recv = tsr_staged_recv,
    .wait = tsr_staged_wait,
};

int tsr_comm_use_staged(struct tsr_comm *c, struct tsr_ctx *ctx) {
    TSR_ASSERT(!c->device);
    struct tsr_staged *s = calloc(1, sizeof *s);
    if (!s)
        return tsr_fail(TSR_ENOMEM, "no memory to join the other ranks");
    s->ctx = *ctx;
    s->part = TSR_STAGE_BYTES;
    c->device = s;
    c->ops = &staged_ops;
    s->len = calloc((size_t)c->world, sizeof *s->len);
    int rc = s->len ? 0 : tsr_fail(TSR_ENOMEM, "no memory for %d ranks", c->world);
    for (int i = 0; rc == 0 && i < 2; i++) {
        s->stage[i] = aligned_alloc(4096, TSR_STAGE_BYTES);
        rc = s->stage[i] ? ctx->ops->pin(ctx, s->stage[i], TSR_STAGE_BYTES)
                         : tsr_fail(TSR_ENOMEM, "no memory to copy messages of the device");
    }
    if (rc < 0)
        tsr_comm_end_staged(c);
    return rc;
}

void tsr_comm_end_staged(struct tsr_comm *c) {
    if (c->ops != &staged_ops)
        return;
    struct tsr_staged *s = c->device;
    struct tsr_ctx *ctx = &s->ctx;
    ctx->ops->sync(ctx); // what fails here has nobody to tell, and nothing is used any more
    tsr_staged_free_messages(s);
    for (int i = 0; i < 2; i++) {
        if (s->stage[i])
            ctx->ops->unpin(ctx, s->stage[i], TSR_STAGE_BYTES);
        free(s->stage[i]);
    }
    free(s->len);
    free(s);
    c->device = NULL;
    c->ops = c->control;
}

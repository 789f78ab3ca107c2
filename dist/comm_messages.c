// Collectives by messages, for groups that span hosts. Rank r owns slice r: the others send it
// their part, it joins them by the tree, and the slices are gathered. Each rank sends and receives
// 2 (p-1)/p of the buffer, as in a ring, in rounds of bounded scratch; a round's messages travel
// while the round before is added.
#include "core/error.h"
#include "dist/comm_impl.h"
#include "dist/comm_mpi.h"

enum { TAG_REDUCE, TAG_GATHER, TAG_BROADCAST, TAG_BARRIER };
enum { GATHER_PART = 8 << 20, BROADCAST_PART = 4 << 20 }; // bytes

static float *scratch_of(const struct tsr_mpi_group *g, size_t t, int r) {
    return g->scratch + ((t & 1) * (size_t)g->size + (size_t)r) * g->part;
}

// Sends the parts of round t of the others' slices to them and receives theirs of the own one.
static int post_reduce(struct tsr_comm *c, struct tsr_mpi_group *g, const float *send, size_t t) {
    struct tsr_batch *b = &g->batch[t & 1];
    size_t mine = tsr_round_len(g->offset, g->rank, t, g->part);
    for (int i = 1; i < g->size; i++) {
        int from = (g->rank - i + g->size) % g->size, to = (g->rank + i) % g->size;
        size_t n = tsr_round_len(g->offset, to, t, g->part);
        if (mine)
            TSR_TRY(tsr_batch_recv(c, g, b, scratch_of(g, t, from), mine * sizeof *send, from,
                                   TAG_REDUCE));
        if (n)
            TSR_TRY(tsr_batch_send(c, g, b, send + g->offset[to] + t * g->part, n * sizeof *send,
                                   to, TAG_REDUCE));
    }
    return 0;
}

// Joins round t of the own slice out of `own` and the scratch of the round; out may be own.
static void join_round(struct tsr_mpi_group *g, tsr_joiner *join, float *out, const float *own,
                       size_t t) {
    size_t n = tsr_round_len(g->offset, g->rank, t, g->part);
    if (n == 0)
        return;
    for (int r = 0; r < g->size; r++)
        g->leaf[r] = r == g->rank ? own + t * g->part : scratch_of(g, t, r);
    tsr_tree_join(join, out + t * g->part, g->leaf, g->size, n);
}

// Sends round t of the own slice to all and receives theirs.
static int post_gather(struct tsr_comm *c, struct tsr_mpi_group *g, char *buf, size_t t,
                       size_t part, size_t elem_bytes) {
    struct tsr_batch *b = &g->batch[2];
    size_t mine = tsr_round_len(g->offset, g->rank, t, part);
    for (int i = 1; i < g->size; i++) {
        int from = (g->rank - i + g->size) % g->size, to = (g->rank + i) % g->size;
        size_t n = tsr_round_len(g->offset, from, t, part);
        if (n)
            TSR_TRY(tsr_batch_recv(c, g, b, buf + (g->offset[from] + t * part) * elem_bytes,
                                   n * elem_bytes, from, TAG_GATHER));
        if (mine)
            TSR_TRY(tsr_batch_send(c, g, b, buf + (g->offset[g->rank] + t * part) * elem_bytes,
                                   mine * elem_bytes, to, TAG_GATHER));
    }
    return 0;
}

// Two ranks exchange everything and both add: as many bytes as with slices, half the latency.
static int exchange(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                    const char *what) {
    size_t n = g->offset[2], part = g->part;
    int other = 1 - g->rank;
    for (size_t t = 0; t <= (n - 1) / part + 1; t++) {
        size_t at = t * part;
        if (at < n) {
            size_t len = n - at < part ? n - at : part;
            struct tsr_batch *b = &g->batch[t & 1];
            TSR_TRY(tsr_batch_recv(c, g, b, scratch_of(g, t, other), len * sizeof *buf, other,
                                   TAG_REDUCE));
            TSR_TRY(tsr_batch_send(c, g, b, buf + at, len * sizeof *buf, other, TAG_REDUCE));
        }
        if (t == 0)
            continue;
        at = (t - 1) * part;
        TSR_TRY(tsr_batch_wait(c, g, &g->batch[(t - 1) & 1], what, c->timeout_s));
        g->leaf[g->rank] = buf + at;
        g->leaf[other] = scratch_of(g, t - 1, other);
        tsr_tree_join(join, buf + at, g->leaf, 2, n - at < part ? n - at : part);
    }
    return 0;
}

int tsr_messages_reduce(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                        const char *what) {
    if (g->size == 2)
        return exchange(c, g, join, buf, what);
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, g->part);
    TSR_TRY(post_reduce(c, g, buf, 0));
    for (size_t t = 0; t < n_rounds; t++) {
        if (t + 1 < n_rounds)
            TSR_TRY(post_reduce(c, g, buf, t + 1));
        TSR_TRY(tsr_batch_wait(c, g, &g->batch[t & 1], what, c->timeout_s));
        join_round(g, join, buf + g->offset[g->rank], buf + g->offset[g->rank], t);
        TSR_TRY(tsr_batch_wait(c, g, &g->batch[2], what, c->timeout_s));
        TSR_TRY(post_gather(c, g, (char *)buf, t, g->part, sizeof *buf));
    }
    return tsr_batch_wait(c, g, &g->batch[2], what, c->timeout_s);
}

int tsr_messages_reduce_scatter(struct tsr_comm *c, struct tsr_mpi_group *g, float *recv,
                                const float *send) {
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, g->part);
    TSR_TRY(post_reduce(c, g, send, 0));
    for (size_t t = 0; t < n_rounds; t++) {
        if (t + 1 < n_rounds)
            TSR_TRY(post_reduce(c, g, send, t + 1));
        TSR_TRY(tsr_batch_wait(c, g, &g->batch[t & 1], "reduce_scatter", c->timeout_s));
        join_round(g, tsr_join_add, recv, send + g->offset[g->rank], t);
    }
    return 0;
}

int tsr_messages_gather(struct tsr_comm *c, struct tsr_mpi_group *g, char *recv) {
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, GATHER_PART);
    for (size_t t = 0; t < n_rounds; t++) {
        TSR_TRY(post_gather(c, g, recv, t, GATHER_PART, 1));
        TSR_TRY(tsr_batch_wait(c, g, &g->batch[2], "all_gather", c->timeout_s));
    }
    return 0;
}

int tsr_messages_broadcast(struct tsr_comm *c, struct tsr_mpi_group *g, char *buf, size_t n_bytes,
                           int root) {
    static const char what[] = "broadcast";
    int relative = (g->rank - root + g->size) % g->size;
    int low = tsr_lowest_bit(relative, g->size);
    for (size_t at = 0; at < n_bytes; at += BROADCAST_PART) {
        size_t len = n_bytes - at < BROADCAST_PART ? n_bytes - at : BROADCAST_PART;
        if (relative) {
            int parent = (relative - low + root) % g->size;
            TSR_TRY(tsr_batch_recv(c, g, &g->batch[0], buf + at, len, parent, TAG_BROADCAST));
            TSR_TRY(tsr_batch_wait(c, g, &g->batch[0], what, c->timeout_s));
        }
        TSR_TRY(tsr_batch_wait(c, g, &g->batch[1], what, c->timeout_s));
        for (int bit = low >> 1; bit; bit >>= 1)
            if (relative + bit < g->size)
                TSR_TRY(tsr_batch_send(c, g, &g->batch[1], buf + at, len,
                                       (relative + bit + root) % g->size, TAG_BROADCAST));
    }
    return tsr_batch_wait(c, g, &g->batch[1], what, c->timeout_s);
}

// Rank 0 hears from all and then answers all, so that its message names the one that is missing.
int tsr_messages_barrier(struct tsr_comm *c, struct tsr_mpi_group *g, const char *what,
                         double timeout_s) {
    struct tsr_batch *b = &g->batch[0];
    if (g->rank != 0) {
        TSR_TRY(tsr_batch_send(c, g, b, NULL, 0, 0, TAG_BARRIER));
        TSR_TRY(tsr_batch_recv(c, g, b, NULL, 0, 0, TAG_BARRIER));
        return tsr_batch_wait(c, g, b, what, timeout_s);
    }
    for (int r = 1; r < g->size; r++)
        TSR_TRY(tsr_batch_recv(c, g, b, NULL, 0, r, TAG_BARRIER));
    TSR_TRY(tsr_batch_wait(c, g, b, what, timeout_s));
    for (int r = 1; r < g->size; r++)
        TSR_TRY(tsr_batch_send(c, g, b, NULL, 0, r, TAG_BARRIER));
    return tsr_batch_wait(c, g, b, what, timeout_s);
}

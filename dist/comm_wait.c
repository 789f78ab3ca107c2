// Waiting with a deadline, and messages under way.
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/comm_mpi.h"

// A wait spins for about a microsecond or two, yields while it is short, and then sleeps for a
// small share of the time that it has waited already: a rank that computes on the same core must
// not be slowed by those that wait for it, and a sleep must not add much to a wait.
enum { SPINS = 200 };
static const double YIELD_S = 1e-3, CROWDED_YIELD_S = 50e-6;
static const double SLEEP_SHARE = 1.0 / 16, MAX_SLEEP_S = 100e-6;

static void relax(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#else
    atomic_signal_fence(memory_order_seq_cst);
#endif
}

bool tsr_wait_more(struct tsr_wait *w) {
    const struct tsr_mpi *m = w->comm->impl;
    w->n++;
    if (w->n <= SPINS && !m->crowded) {
        relax();
        return true;
    }
    double now = tsr_now();
    if (w->start == 0)
        w->start = now;
    double waited = now - w->start;
    if (waited >= w->timeout_s)
        return false;
    if (waited < (m->crowded ? CROWDED_YIELD_S : YIELD_S)) {
        sched_yield();
        return true;
    }
    double sleep_s = waited * SLEEP_SHARE;
    if (sleep_s > MAX_SLEEP_S)
        sleep_s = MAX_SLEEP_S;
    nanosleep(&(struct timespec){.tv_nsec = (long)(sleep_s * 1e9)}, NULL);
    return true;
}

int tsr_wait_failed(const struct tsr_wait *w, int world_rank) {
    return tsr_fail(TSR_ETIMEOUT, "rank %d (host %s) waited %.1f s for %s from rank %d in group %s",
                    w->comm->rank, w->comm->host, tsr_now() - w->start, w->what, world_rank,
                    w->group);
}

int tsr_mpi_check(const struct tsr_comm *c, int rc, const char *what, const char *group) {
    if (rc == MPI_SUCCESS)
        return 0;
    char text[MPI_MAX_ERROR_STRING] = "unknown error";
    int length = 0;
    MPI_Error_string(rc, text, &length);
    return tsr_fail(TSR_EPEER, "rank %d (host %s): %s in group %s failed: %s", c->rank, c->host,
                    what, group, text);
}

int tsr_batch_recv(struct tsr_comm *c, struct tsr_mpi_group *g, struct tsr_batch *b, void *buf,
                   size_t n_bytes, int from, int tag) {
    TSR_ASSERT(b->n < 2 * (g->size - 1) && n_bytes <= INT32_MAX);
    int rc = MPI_Irecv(buf, (int)n_bytes, MPI_BYTE, from, tag, g->collective, &b->request[b->n]);
    b->peer[b->n++] = from;
    return tsr_mpi_check(c, rc, "receive", g->name);
}

int tsr_batch_send(struct tsr_comm *c, struct tsr_mpi_group *g, struct tsr_batch *b,
                   const void *buf, size_t n_bytes, int to, int tag) {
    TSR_ASSERT(b->n < 2 * (g->size - 1) && n_bytes <= INT32_MAX);
    int rc = MPI_Isend(buf, (int)n_bytes, MPI_BYTE, to, tag, g->collective, &b->request[b->n]);
    b->peer[b->n++] = to;
    return tsr_mpi_check(c, rc, "send", g->name);
}

// Waits for all requests; returns 1 with *late when the deadline has passed, or an error.
static int wait_all(struct tsr_wait *w, MPI_Request *request, int n, int *late) {
    for (bool more = true;; more = tsr_wait_more(w)) {
        int done = 0;
        int rc = MPI_Testall(n, request, &done, MPI_STATUSES_IGNORE);
        TSR_TRY(tsr_mpi_check(w->comm, rc, w->what, w->group));
        if (done)
            return 0;
        if (!more)
            break;
    }
    for (*late = 0; *late < n - 1; ++*late) {
        int done = 0;
        MPI_Request_get_status(request[*late], &done, MPI_STATUS_IGNORE);
        if (!done)
            break;
    }
    return 1;
}

int tsr_batch_wait(struct tsr_comm *c, struct tsr_mpi_group *g, struct tsr_batch *b,
                   const char *what, double timeout_s) {
    struct tsr_wait w = {.comm = c, .what = what, .group = g->name, .timeout_s = timeout_s};
    int late = 0;
    int rc = wait_all(&w, b->request, b->n, &late);
    if (rc == 1)
        return tsr_wait_failed(&w, g->world_rank[b->peer[late]]);
    if (rc == 0)
        b->n = 0;
    return rc;
}

// A free request for `n_bytes`, with room for its parts.
static struct tsr_pending *take_pending(struct tsr_mpi *m, size_t n_bytes) {
    size_t n = n_bytes == 0 ? 1 : (n_bytes - 1) / m->max_message + 1;
    struct tsr_pending *p = m->pending;
    while (p && p->busy)
        p = p->next;
    if (!p) {
        p = calloc(1, sizeof *p);
        if (!p)
            return NULL;
        p->next = m->pending;
        m->pending = p;
    }
    if ((size_t)p->cap < n) {
        MPI_Request *grown = n > INT32_MAX ? NULL : realloc(p->part, n * sizeof *grown);
        if (!grown)
            return NULL;
        p->part = grown;
        p->cap = (int)n;
    }
    p->n = (int)n;
    p->busy = true;
    return p;
}

// Messages of one source and tag arrive in order, so the parts need no tags of their own.
static int start(struct tsr_comm *c, struct tsr_group *group, char *buf, size_t n_bytes, int peer,
                 int tag, bool is_send, struct tsr_request *r) {
    struct tsr_mpi *m = c->impl;
    struct tsr_mpi_group *g = group->impl;
    TSR_ASSERT(peer >= 0 && peer < group->size && peer != group->rank && tag >= 0);
    struct tsr_pending *p = take_pending(m, n_bytes);
    if (!p)
        return tsr_fail(TSR_ENOMEM, "rank %d (host %s): no memory for a message of %zu bytes",
                        c->rank, c->host, n_bytes);
    p->group = g;
    *r = (struct tsr_request){.impl = {p}, .what = is_send ? "send" : "recv", .peer = peer};
    for (int i = 0; i < p->n; i++) {
        size_t at = (size_t)i * m->max_message;
        size_t left = n_bytes - at;
        int len = (int)(left < m->max_message ? left : m->max_message);
        char *part = buf ? buf + at : NULL;
        int rc = is_send
                     ? MPI_Isend(part, len, MPI_BYTE, peer, tag, g->point_to_point, &p->part[i])
                     : MPI_Irecv(part, len, MPI_BYTE, peer, tag, g->point_to_point, &p->part[i]);
        TSR_TRY(tsr_mpi_check(c, rc, r->what, g->name));
    }
    return 0;
}

int tsr_mpi_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, const void *buf,
                 size_t n_bytes, int to, int tag, struct tsr_request *r) {
    (void)ctx;
    struct tsr_mpi_group *g = group->impl;
    TSR_TRY(start(c, group, (char *)buf, n_bytes, to, tag, true, r));
    c->bytes_sent[g->kind] += n_bytes;
    return 0;
}

int tsr_mpi_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, void *buf,
                 size_t n_bytes, int from, int tag, struct tsr_request *r) {
    (void)ctx;
    return start(c, group, buf, n_bytes, from, tag, false, r);
}

int tsr_mpi_wait(struct tsr_comm *c, struct tsr_request *r) {
    struct tsr_pending *p = r->impl[0];
    if (!p)
        return 0;
    struct tsr_wait w = {
        .comm = c, .what = r->what, .group = p->group->name, .timeout_s = c->timeout_s};
    int late = 0;
    int rc = wait_all(&w, p->part, p->n, &late);
    if (rc == 1)
        return tsr_wait_failed(&w, p->group->world_rank[r->peer]);
    if (rc < 0)
        return rc;
    p->busy = false;
    *r = (struct tsr_request){0};
    return 0;
}

// Messages between two ranks, and waits whose deadline passes.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "tests/parallel/comm_test.h"

static char byte_of(int from, int tag, size_t i) {
    return (char)((size_t)from * 31 + (size_t)tag * 17 + i * 3);
}

// Messages of one pass to the next rank and from the one before, all under way at once.
struct messages {
    struct tsr_request send[4], recv[4];
    char *out[4], *in[4]; // on the device, with one byte behind
};

static char *device_bytes(struct fixture *f, size_t n, int from, int tag) {
    char *host = malloc(n + 1);
    for (size_t i = 0; i < n; i++)
        host[i] = byte_of(from, tag, i);
    host[n] = 0x55;
    char *dev = up(f, host, n + 1);
    free(host);
    return dev;
}

static void send_all(struct fixture *f, struct tsr_group *g, struct messages *m, size_t n,
                     int n_tags) {
    int next = (g->rank + 1) % g->size;
    for (int tag = 0; tag < n_tags; tag++)
        CHECK_OK(f, f->c.ops->send(&f->ctx, &f->c, g, m->out[tag], n, next, tag, &m->send[tag]));
}

static void recv_all(struct fixture *f, struct tsr_group *g, struct messages *m, size_t n,
                     int n_tags) {
    int prev = (g->rank + g->size - 1) % g->size;
    for (int tag = 0; tag < n_tags; tag++)
        CHECK_OK(f, f->c.ops->recv(&f->ctx, &f->c, g, m->in[tag], n, prev, tag, &m->recv[tag]));
}

// Receives are waited for in the opposite order.
static void wait_all(struct fixture *f, struct messages *m, int n_tags) {
    for (int tag = n_tags - 1; tag >= 0; tag--) {
        CHECK_OK(f, f->c.ops->wait(&f->ctx, &f->c, &m->recv[tag]));
        CHECK_OK(f, f->c.ops->wait(&f->ctx, &f->c, &m->send[tag]));
        CHECK_EQ(f, m->recv[tag].impl[0] == NULL && m->send[tag].impl[0] == NULL, 1);
    }
}

static void new_pass(struct fixture *f, struct tsr_group *g, struct messages *m, size_t n,
                     int n_tags) {
    for (int tag = 0; tag < n_tags; tag++) {
        m->out[tag] = device_bytes(f, n, g->rank, tag);
        m->in[tag] = device_bytes(f, n, -1, tag);
    }
}

static void check_bytes(struct fixture *f, char *dev, size_t n, int from, int tag) {
    char *host = malloc(n + 1);
    size_t wrong = 0;
    down(f, host, dev, n + 1);
    for (size_t i = 0; i < n; i++)
        wrong += host[i] != byte_of(from, tag, i);
    CHECK_EQ(f, wrong, 0);
    CHECK_EQ(f, host[n], 0x55);
    free(host);
}

static void check_pass(struct fixture *f, struct tsr_group *g, struct messages *m, size_t n,
                       int n_tags) {
    int prev = (g->rank + g->size - 1) % g->size;
    for (int tag = 0; tag < n_tags; tag++) {
        check_bytes(f, m->in[tag], n, prev, tag);
        check_bytes(f, m->out[tag], n, g->rank, tag);
    }
}

// Two passes before the device is waited for: the second must not use what the first still does.
static void ring(struct fixture *f, struct tsr_group *g, size_t n, int n_tags) {
    struct messages m[2] = {0};
    for (int pass = 0; pass < 2; pass++)
        new_pass(f, g, &m[pass], n, n_tags - pass);
    send_all(f, g, &m[0], n, n_tags);
    recv_all(f, g, &m[0], n, n_tags);
    wait_all(f, &m[0], n_tags);
    recv_all(f, g, &m[1], n, n_tags - 1);
    send_all(f, g, &m[1], n, n_tags - 1);
    wait_all(f, &m[1], n_tags - 1);
    for (int pass = 0; pass < 2; pass++)
        check_pass(f, g, &m[pass], n, n_tags - pass);
}

// Messages one after another to a rank that sends nothing, and looks at them only at the end.
static void one_way(struct fixture *f, struct tsr_group *g) {
    enum { N = 3000, ROUNDS = 12 };
    const struct tsr_comm_ops *o = f->c.ops;
    struct tsr_request r = {0};
    char *buf[ROUNDS];
    if (g->rank > 1)
        return;
    for (int k = 0; k < ROUNDS; k++)
        buf[k] = device_bytes(f, N, g->rank == 0 ? 0 : -1, k);
    for (int k = 0; k < ROUNDS; k++) {
        CHECK_OK(f, g->rank == 0 ? o->send(&f->ctx, &f->c, g, buf[k], N, 1, 0, &r)
                                 : o->recv(&f->ctx, &f->c, g, buf[k], N, 0, 0, &r));
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
    }
    for (int k = 0; k < ROUNDS; k++)
        check_bytes(f, buf[k], N, 0, k);
}

// Every rank receives from both neighbours before it sends to them; between two ranks, tags of
// different parity overtake each other.
static void both_ways(struct fixture *f, struct tsr_group *g) {
    enum { N = 5000 };
    const struct tsr_comm_ops *o = f->c.ops;
    int peer[2] = {(g->rank + 1) % g->size, (g->rank + g->size - 1) % g->size};
    struct tsr_request send[2] = {0}, recv[2] = {0};
    char *in[2], *out[2];
    for (int i = 0; i < 2; i++) {
        in[i] = device_bytes(f, N, -1, i);
        out[i] = device_bytes(f, N, g->rank, i);
    }
    for (int i = 0; i < 2; i++) // to its other neighbour the peer sends with the other tag
        CHECK_OK(f, o->recv(&f->ctx, &f->c, g, in[i], N, peer[i], 1 - i, &recv[i]));
    for (int i = 0; i < 2; i++)
        CHECK_OK(f, o->send(&f->ctx, &f->c, g, out[i], N, peer[i], i, &send[i]));
    for (int i = 0; i < 2; i++) {
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &recv[i]));
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &send[i]));
    }
    for (int i = 0; i < 2; i++) {
        check_bytes(f, in[i], N, peer[i], 1 - i);
        check_bytes(f, out[i], N, g->rank, i);
    }
}

void test_send_recv(struct fixture *f, struct tsr_group *g) {
    struct tsr_request never = {0};
    CHECK_OK(f, f->c.ops->wait(&f->ctx, &f->c, &never));
    if (g->size == 1)
        return;
    struct tsr_mpi_group *impl = g->impl;
    one_way(f, g);
    uint64_t before = f->c.bytes_sent[impl->kind];
    ring(f, g, 0, 2);
    ring(f, g, 1, 4);
    ring(f, g, 1000, 3);
    ring(f, g, 300001, 2);
    both_ways(f, g);
    CHECK_EQ(f, f->c.bytes_sent[impl->kind] - before, 7 + 5000 + 900003 + 10000);
}

// Messages above the limit of one MPI message travel in parts; the limit is lowered for this.
void test_split_messages(struct fixture *f, struct tsr_group *g) {
    struct tsr_mpi *m = f->c.impl;
    size_t limit = m->max_message;
    m->max_message = 1000;
    if (g->size > 1) {
        ring(f, g, 999, 2);
        ring(f, g, 1000, 2);
        ring(f, g, 1001, 2);
        ring(f, g, 54321, 4);
    }
    m->max_message = limit;
}

// Rank 0 starts a large message to rank 1 and waits in another group for rank 2, which waits for
// rank 3, which waits for rank 1, which waits for the message: it must travel meanwhile.
void test_progress_in_barrier(struct fixture *f) {
    enum { N = 3 << 20 };
    if (f->c.world < 4)
        return;
    const struct tsr_comm_ops *o = f->c.ops;
    struct tsr_group *all = &f->world;
    struct tsr_request r = {0};
    char *host = calloc(1, N), *buf = up(f, host, N);
    float *x = up(f, host, sizeof *x);
    if (f->c.rank == 0)
        CHECK_OK(f, o->send(&f->ctx, &f->c, all, buf, N, 1, 0, &r));
    if (f->c.rank == 1)
        CHECK_OK(f, o->recv(&f->ctx, &f->c, all, buf, N, 0, 0, &r));
    if (f->c.rank == 2)
        CHECK_OK(f, o->recv(&f->ctx, &f->c, all, buf, 1, 3, 1, &r));
    if (f->c.rank != 0)
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
    CHECK_OK(f, o->all_reduce(&f->ctx, &f->c, &f->stride, x, 1, NULL));
    if (f->c.rank == 3)
        CHECK_OK(f, o->send(&f->ctx, &f->c, all, buf, 1, 2, 1, &r));
    CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
    down(f, host, x, sizeof *x);
    down(f, host, buf, N);
    free(host);
}

static const double DEADLINE_S = 0.15;
enum { TOO_LATE = 7777 }; // a tag that nobody else uses

// Rank 0 stays away until all others have waited in vain, however long the machine makes that.
static void stay_away(struct fixture *f) {
    for (int from = 1; from < f->c.world; from++)
        CHECK_EQ(f, MPI_Recv(NULL, 0, MPI_CHAR, from, TOO_LATE, MPI_COMM_WORLD, MPI_STATUS_IGNORE),
                 MPI_SUCCESS);
}

// The call must have failed at its deadline, naming the operation and one late rank.
static void check_late(struct fixture *f, int rc, double begun, const char *what, int late) {
    double took = tsr_now() - begun;
    CHECK_EQ(f, rc, TSR_ETIMEOUT);
    CHECK_EQ(f, took >= DEADLINE_S && took < DEADLINE_S + 20, 1); // others may use the cores
    char expected[512];
    snprintf(expected, sizeof expected, " s for %s from rank %d in group all", what, late);
    if (!strstr(tsr_error_text(), expected)) {
        fprintf(stderr, "expected '...%s', found '%s'\n", expected, tsr_error_text());
        CHECK_EQ(f, 0, 1);
    }
    snprintf(expected, sizeof expected, "rank %d (host %s) waited ", f->c.rank, f->c.host);
    CHECK_EQ(f, strncmp(tsr_error_text(), expected, strlen(expected)), 0);
    CHECK_EQ(f, MPI_Send(NULL, 0, MPI_CHAR, late, TOO_LATE, MPI_COMM_WORLD), MPI_SUCCESS);
}

static void late_to_recv(struct fixture *f) {
    const struct tsr_comm_ops *o = f->c.ops;
    struct tsr_request r = {0};
    int x = 0;
    if (f->c.rank == 0) {
        stay_away(f);
        for (int to = 1; to < f->c.world; to++) {
            int *dev = up(f, &to, sizeof to);
            CHECK_OK(f, o->send(&f->ctx, &f->c, &f->world, dev, sizeof to, to, 3, &r));
            CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
            down(f, &x, dev, sizeof x);
        }
        return;
    }
    int *dev = up(f, &x, sizeof x);
    CHECK_OK(f, o->recv(&f->ctx, &f->c, &f->world, dev, sizeof x, 0, 3, &r));
    double begun = tsr_now();
    f->c.timeout_s = DEADLINE_S;
    check_late(f, o->wait(&f->ctx, &f->c, &r), begun, "recv", 0);
    f->c.timeout_s = 60;
    CHECK_OK(f, o->wait(&f->ctx, &f->c, &r)); // the request is still good
    down(f, &x, dev, sizeof x);
    CHECK_EQ(f, x, f->c.rank);
}

// Rank 0 comes late; then the others take up what is still under way, so that the group can be
// used again.
static void late_to_barrier(struct fixture *f) {
    const struct tsr_comm_ops *o = f->c.ops;
    if (f->c.rank == 0) {
        stay_away(f);
        CHECK_OK(f, o->barrier(&f->ctx, &f->c, &f->world, "tokenizing", 60));
        return;
    }
    double begun = tsr_now();
    int rc = o->barrier(&f->ctx, &f->c, &f->world, "tokenizing", DEADLINE_S);
    check_late(f, rc, begun, "tokenizing", 0);
    struct tsr_mpi_group *g = f->world.impl;
    CHECK_OK(f, tsr_batch_wait(&f->c, g, &g->batch[0], "the end", 60));
}

// The group can only be closed after this.
static void late_to_reduce(struct fixture *f) {
    const struct tsr_comm_ops *o = f->c.ops;
    enum { N = 100 };
    float x[N] = {0}, *dev = up(f, x, sizeof x);
    if (f->c.rank == 0) {
        stay_away(f);
        CHECK_OK(f, o->all_reduce(&f->ctx, &f->c, &f->world, dev, N, NULL));
        down(f, x, dev, sizeof x);
        return;
    }
    f->c.timeout_s = DEADLINE_S;
    double begun = tsr_now();
    check_late(f, o->all_reduce(&f->ctx, &f->c, &f->world, dev, N, NULL), begun, "all_reduce", 0);
    f->c.timeout_s = 60;
    struct tsr_mpi_group *g = f->world.impl;
    CHECK_OK(f, tsr_batch_wait(&f->c, g, &g->batch[0], "the end", 60));
    down(f, x, dev, sizeof x);
}

void test_timeouts(struct fixture *f) {
    if (f->c.world == 1)
        return;
    late_to_recv(f);
    late_to_barrier(f);
    // By messages a late rank of three or more needs slices that the others will not send any more.
    struct tsr_mpi_group *g = f->world.impl;
    if (g->shm || g->size == 2)
        late_to_reduce(f);
}

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

// Sends n bytes to the next rank and receives as many from the one before, `n_tags` messages under
// way at once. Receives are waited for in the opposite order.
static void ring(struct fixture *f, struct tsr_group *g, size_t n, int n_tags) {
    const struct tsr_comm_ops *o = f->c.ops;
    int next = (g->rank + 1) % g->size, prev = (g->rank + g->size - 1) % g->size;
    struct tsr_request send[4] = {0}, recv[4] = {0};
    char *out[4], *in[4];
    for (int tag = 0; tag < n_tags; tag++) {
        out[tag] = malloc(n + 1);
        in[tag] = calloc(1, n + 1);
        for (size_t i = 0; i < n; i++)
            out[tag][i] = byte_of(g->rank, tag, i);
        in[tag][n] = 0x55;
        CHECK_OK(f, o->send(&f->ctx, &f->c, g, out[tag], n, next, tag, &send[tag]));
    }
    for (int tag = 0; tag < n_tags; tag++)
        CHECK_OK(f, o->recv(&f->ctx, &f->c, g, in[tag], n, prev, tag, &recv[tag]));
    for (int tag = n_tags - 1; tag >= 0; tag--) {
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &recv[tag]));
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &send[tag]));
        CHECK_EQ(f, recv[tag].impl[0] == NULL && send[tag].impl[0] == NULL, 1);
        size_t wrong = 0;
        for (size_t i = 0; i < n; i++)
            wrong += in[tag][i] != byte_of(prev, tag, i);
        CHECK_EQ(f, wrong, 0);
        CHECK_EQ(f, in[tag][n], 0x55);
        free(out[tag]);
        free(in[tag]);
    }
}

void test_send_recv(struct fixture *f, struct tsr_group *g) {
    struct tsr_request never = {0};
    CHECK_OK(f, f->c.ops->wait(&f->ctx, &f->c, &never));
    if (g->size == 1)
        return;
    struct tsr_mpi_group *impl = g->impl;
    uint64_t before = f->c.bytes_sent[impl->kind];
    ring(f, g, 0, 2);
    ring(f, g, 1, 4);
    ring(f, g, 1000, 3);
    ring(f, g, 300001, 2);
    CHECK_EQ(f, f->c.bytes_sent[impl->kind] - before, 4 + 3000 + 600002);
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
    char *buf = calloc(1, N);
    float x = 1;
    if (f->c.rank == 0)
        CHECK_OK(f, o->send(&f->ctx, &f->c, all, buf, N, 1, 0, &r));
    if (f->c.rank == 1)
        CHECK_OK(f, o->recv(&f->ctx, &f->c, all, buf, N, 0, 0, &r));
    if (f->c.rank == 2)
        CHECK_OK(f, o->recv(&f->ctx, &f->c, all, buf, 1, 3, 1, &r));
    if (f->c.rank != 0)
        CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
    CHECK_OK(f, o->all_reduce(&f->ctx, &f->c, &f->stride, &x, 1));
    if (f->c.rank == 3)
        CHECK_OK(f, o->send(&f->ctx, &f->c, all, buf, 1, 2, 1, &r));
    CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
    free(buf);
}

static const double DEADLINE_S = 0.15;

// The call must have failed at its deadline, naming the operation and one late rank.
static void check_late(struct fixture *f, int rc, double begun, const char *what, int late) {
    double took = tsr_now() - begun;
    CHECK_EQ(f, rc, TSR_ETIMEOUT);
    CHECK_EQ(f, took >= DEADLINE_S && took < DEADLINE_S + 2, 1);
    char expected[512];
    snprintf(expected, sizeof expected, " s for %s from rank %d in group all", what, late);
    if (!strstr(tsr_error_text(), expected)) {
        fprintf(stderr, "expected '...%s', found '%s'\n", expected, tsr_error_text());
        CHECK_EQ(f, 0, 1);
    }
    snprintf(expected, sizeof expected, "rank %d (host %s) waited ", f->c.rank, f->c.host);
    CHECK_EQ(f, strncmp(tsr_error_text(), expected, strlen(expected)), 0);
}

static void late_to_recv(struct fixture *f) {
    const struct tsr_comm_ops *o = f->c.ops;
    struct tsr_request r = {0};
    int x = 0;
    if (f->c.rank == 0) {
        usleep((useconds_t)(3e6 * DEADLINE_S));
        for (int to = 1; to < f->c.world; to++) {
            CHECK_OK(f, o->send(&f->ctx, &f->c, &f->world, &to, sizeof to, to, 3, &r));
            CHECK_OK(f, o->wait(&f->ctx, &f->c, &r));
        }
        return;
    }
    CHECK_OK(f, o->recv(&f->ctx, &f->c, &f->world, &x, sizeof x, 0, 3, &r));
    double begun = tsr_now();
    f->c.timeout_s = DEADLINE_S;
    check_late(f, o->wait(&f->ctx, &f->c, &r), begun, "recv", 0);
    f->c.timeout_s = 60;
    CHECK_OK(f, o->wait(&f->ctx, &f->c, &r)); // the request is still good
    CHECK_EQ(f, x, f->c.rank);
}

// Rank 0 comes late; then the others take up what is still under way, so that the group can be
// used again.
static void late_to_barrier(struct fixture *f) {
    const struct tsr_comm_ops *o = f->c.ops;
    if (f->c.rank == 0) {
        usleep((useconds_t)(3e6 * DEADLINE_S));
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
    float x[N] = {0};
    if (f->c.rank == 0) {
        usleep((useconds_t)(3e6 * DEADLINE_S));
        CHECK_OK(f, o->all_reduce(&f->ctx, &f->c, &f->world, x, N));
        return;
    }
    f->c.timeout_s = DEADLINE_S;
    double begun = tsr_now();
    check_late(f, o->all_reduce(&f->ctx, &f->c, &f->world, x, N), begun, "all_reduce", 0);
    f->c.timeout_s = 60;
    struct tsr_mpi_group *g = f->world.impl;
    CHECK_OK(f, tsr_batch_wait(&f->c, g, &g->batch[0], "the end", 60));
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

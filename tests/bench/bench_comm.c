// Speed of the MPI transport: all_reduce through shared memory and through messages beside
// MPI_Allreduce (whose sum has no fixed order), and a ping-pong. GB/s count the buffer once.
//   mpirun --bind-to none --mca mpi_yield_when_idle 1 -np 2 bench_comm
#include <stdio.h>
#include <stdlib.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/comm_mpi.h"

struct bench {
    struct tsr_comm c;
    struct tsr_ctx ctx;
    struct tsr_group group;
    float *buf;
    size_t n_bytes;
};

static int reduce_once(struct bench *b) {
    return b->c.ops->all_reduce(&b->ctx, &b->c, &b->group, b->buf, b->n_bytes / sizeof *b->buf,
                                NULL);
}

static int mpi_once(struct bench *b) {
    int rc = MPI_Allreduce(MPI_IN_PLACE, b->buf, (int)(b->n_bytes / sizeof *b->buf), MPI_FLOAT,
                           MPI_SUM, MPI_COMM_WORLD);
    return tsr_mpi_check(&b->c, rc, "MPI_Allreduce", "world");
}

// There and back between ranks 0 and 1.
static int ping_pong_once(struct bench *b) {
    struct tsr_request r = {0};
    const struct tsr_comm_ops *o = b->c.ops;
    if (b->c.rank > 1)
        return 0;
    for (int i = 0; i < 2; i++) {
        if (i == b->c.rank)
            TSR_TRY(o->send(&b->ctx, &b->c, &b->group, b->buf, b->n_bytes, 1 - b->c.rank, 0, &r));
        else
            TSR_TRY(o->recv(&b->ctx, &b->c, &b->group, b->buf, b->n_bytes, 1 - b->c.rank, 0, &r));
        TSR_TRY(o->wait(&b->ctx, &b->c, &r));
    }
    return 0;
}

// The best of several repetitions: seconds of one call.
static double measure(struct bench *b, int (*once)(struct bench *), size_t n_bytes) {
    b->n_bytes = n_bytes;
    int n = n_bytes < 4096 ? 2000 : n_bytes < (1 << 20) ? 200 : n_bytes < (16 << 20) ? 10 : 2;
    double best = 1e9;
    for (int repeat = 0; repeat < 7; repeat++) {
        int rc = b->c.ops->barrier(&b->ctx, &b->c, &b->group, "bench", 60);
        double begun = tsr_now();
        for (int i = 0; i < n && rc == 0; i++)
            rc = once(b);
        if (rc < 0)
            tsr_comm_abort(&b->c, tsr_exit_code(rc));
        double took = (tsr_now() - begun) / n;
        best = took < best ? took : best;
    }
    return best;
}

static void print(const struct bench *b, const char *what, size_t n_bytes, double seconds) {
    if (b->c.rank == 0)
        printf("%-24s %10zu B %12.2f us %8.2f GB/s\n", what, n_bytes, 1e6 * seconds,
               1e-9 * (double)n_bytes / seconds);
}

int main(int argc, char **argv) {
    static const size_t sizes[] = {4, 4096, 64 << 10, 3 << 20, 64 << 20};
    struct bench b = {0};
    struct tsr_progress progress = {0};
    int rc = tsr_comm_open_mpi(&b.c, &argc, &argv, &progress);
    b.buf = calloc(1, 64 << 20);
    if (rc < 0 || !b.buf)
        tsr_comm_abort(&b.c, 3);
    int *ranks = calloc((size_t)b.c.world, sizeof *ranks);
    for (int i = 0; ranks && i < b.c.world; i++)
        ranks[i] = i;
    for (int shm = 1; shm >= 0; shm--) {
        struct tsr_mpi *m = b.c.impl;
        m->shared_memory = shm;
        rc = b.c.ops->group_open(&b.c, &b.group, "bench", ranks, b.c.world, TSR_TRAFFIC_OTHER);
        if (rc < 0)
            tsr_comm_abort(&b.c, tsr_exit_code(rc));
        for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
            print(&b, shm ? "all_reduce, memory" : "all_reduce, messages", sizes[i],
                  measure(&b, reduce_once, sizes[i]));
            if (!shm)
                print(&b, "MPI_Allreduce", sizes[i], measure(&b, mpi_once, sizes[i]));
        }
        for (size_t i = 0; !shm && b.c.world > 1 && i < sizeof sizes / sizeof *sizes; i++)
            print(&b, "one way of a ping-pong", sizes[i],
                  measure(&b, ping_pong_once, sizes[i]) / 2);
        b.c.ops->group_close(&b.c, &b.group);
    }
    free(ranks);
    free(b.buf);
    tsr_comm_close(&b.c);
    return 0;
}

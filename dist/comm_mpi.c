// The MPI transport: opening, groups, and the table. Ranks of one host meet in shared memory
// (comm_shm.c), others exchange messages (comm_messages.c); both give the same bits.
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/comm_impl.h"
#include "dist/comm_mpi.h"

static double begin(struct tsr_comm *c) {
    if (c->progress)
        atomic_fetch_add_explicit(&c->progress->collective, 1, memory_order_relaxed);
    return tsr_now();
}

static int end(struct tsr_comm *c, double begun, int rc) {
    c->seconds += tsr_now() - begun;
    return rc;
}

// ---- groups

static void free_group(struct tsr_mpi_group *g) {
    if (!g)
        return;
    for (size_t i = 0; i < sizeof g->batch / sizeof *g->batch; i++) {
        free(g->batch[i].request);
        free(g->batch[i].peer);
    }
    free(g->scratch);
    free(g->leaf);
    free(g->offset);
    free(g->world_rank);
    free(g);
}

static struct tsr_mpi_group *new_group(const char *name, const int *ranks, int n_ranks,
                                       enum tsr_traffic kind) {
    struct tsr_mpi_group *g = calloc(1, sizeof *g);
    size_t n = (size_t)n_ranks;
    if (!g)
        return NULL;
    *g = (struct tsr_mpi_group){.name = name, .size = n_ranks, .kind = kind};
    g->collective = g->point_to_point = MPI_COMM_NULL;
    g->part = tsr_round_part(n);
    g->world_rank = malloc(n * sizeof *g->world_rank);
    g->offset = calloc(n + 1, sizeof *g->offset);
    g->leaf = calloc(n, sizeof *g->leaf);
    bool ok = g->world_rank && g->offset && g->leaf;
    for (size_t i = 0; i < sizeof g->batch / sizeof *g->batch; i++) {
        g->batch[i].request = calloc(2 * n, sizeof(MPI_Request));
        g->batch[i].peer = calloc(2 * n, sizeof(int));
        ok = ok && g->batch[i].request && g->batch[i].peer;
    }
    if (!ok) {
        free_group(g);
        return NULL;
    }
    memcpy(g->world_rank, ranks, n * sizeof *ranks);
    return g;
}

size_t tsr_comm_group_bytes(int n_ranks, bool one_host) {
    if (n_ranks == 1)
        return 0;
    if (one_host)
        return tsr_shm_bytes();
    return 2 * (size_t)n_ranks * tsr_round_part((size_t)n_ranks) * sizeof(float);
}

bool tsr_comm_use_shm(void) {
    const char *shm = getenv("TESSERA_SHM");
    return !shm || strcmp(shm, "0") != 0;
}

// Makes the group's communicators. MPI has no deadline here; all ranks are known to have come.
static int make_communicators(struct tsr_comm *c, struct tsr_mpi_group *g) {
    MPI_Group world, members;
    MPI_Comm_group(MPI_COMM_WORLD, &world);
    int rc = MPI_Group_incl(world, g->size, g->world_rank, &members);
    MPI_Group_free(&world);
    TSR_TRY(tsr_mpi_check(c, rc, "making a communicator", g->name));
    rc = MPI_Comm_create_group(MPI_COMM_WORLD, members, 0, &g->collective);
    MPI_Group_free(&members);
    TSR_TRY(tsr_mpi_check(c, rc, "making a communicator", g->name));
    MPI_Comm_set_errhandler(g->collective, MPI_ERRORS_RETURN);
    rc = MPI_Comm_dup(g->collective, &g->point_to_point);
    TSR_TRY(tsr_mpi_check(c, rc, "making a communicator", g->name));
    MPI_Comm_set_errhandler(g->point_to_point, MPI_ERRORS_RETURN);
    return 0;
}

// Waits until all ranks of the world are here, so that what blocks inside MPI can't wait for long.
static int meet(struct tsr_comm *c, const char *what) {
    struct tsr_wait w = {.comm = c, .what = what, .group = "world", .timeout_s = c->timeout_s};
    MPI_Request request;
    TSR_TRY(tsr_mpi_check(c, MPI_Ibarrier(MPI_COMM_WORLD, &request), what, "world"));
    for (bool more = true;; more = tsr_wait_more(&w)) {
        int done = 0;
        TSR_TRY(tsr_mpi_check(c, MPI_Test(&request, &done, MPI_STATUS_IGNORE), what, "world"));
        if (done)
            return 0;
        if (!more)
            return tsr_fail(TSR_ETIMEOUT,
                            "rank %d (host %s) waited %.1f s for %s from the other ranks in group "
                            "world",
                            c->rank, c->host, tsr_now() - w.start, what);
    }
}

static int mpi_group_open(struct tsr_comm *c, struct tsr_group *group, const char *name,
                          const int *ranks, int n_ranks, enum tsr_traffic kind) {
    int rank = -1;
    for (int i = 0; i < n_ranks; i++)
        if (ranks[i] == c->rank)
            rank = i;
    TSR_ASSERT(rank >= 0);
    struct tsr_mpi_group *g = new_group(name, ranks, n_ranks, kind);
    if (!g)
        return tsr_fail(TSR_ENOMEM, "rank %d (host %s): no memory for group %s of %d ranks",
                        c->rank, c->host, name, n_ranks);
    g->rank = rank;
    *group = (struct tsr_group){.name = name, .rank = rank, .size = n_ranks, .impl = g};
    TSR_TRY(meet(c, "opening a group"));
    if (n_ranks == 1)
        return 0;
    TSR_TRY(make_communicators(c, g));
    TSR_TRY(tsr_shm_open(c, g));
    c->buffer_bytes += tsr_comm_group_bytes(n_ranks, g->shm);
    if (g->shm)
        return 0;
    g->scratch = malloc(tsr_comm_group_bytes(n_ranks, false));
    if (!g->scratch)
        return tsr_fail(TSR_ENOMEM, "rank %d (host %s): no memory for the scratch of group %s",
                        c->rank, c->host, name);
    return 0;
}

static void mpi_group_close(struct tsr_comm *c, struct tsr_group *group) {
    struct tsr_mpi_group *g = group->impl;
    if (!g)
        return;
    if (g->shm || g->scratch)
        c->buffer_bytes -= tsr_comm_group_bytes(g->size, g->shm);
    tsr_shm_close(g);
    if (g->point_to_point != MPI_COMM_NULL)
        MPI_Comm_free(&g->point_to_point);
    if (g->collective != MPI_COMM_NULL)
        MPI_Comm_free(&g->collective);
    free_group(g);
    *group = (struct tsr_group){0};
}

// ---- collectives

static int reduce(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                  size_t n, const char *what) {
    double begun = begin(c);
    if (g->size == 1 || n == 0)
        return end(c, begun, 0);
    for (int r = 0; r <= g->size; r++)
        g->offset[r] = (size_t)tsr_piece((int64_t)n, r, g->size).lo;
    size_t own = g->offset[g->rank + 1] - g->offset[g->rank];
    int rc =
        g->shm ? tsr_shm_reduce(c, g, join, buf, what) : tsr_messages_reduce(c, g, join, buf, what);
    c->bytes_sent[g->kind] += sizeof *buf * (n - own + own * (size_t)(g->size - 1));
    return end(c, begun, rc);
}

static int mpi_all_reduce(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                          float *buf, size_t n, struct tsr_request *r) {
    (void)ctx;
    tsr_request_done(r);
    return reduce(c, group->impl, tsr_join_add, buf, n, "all_reduce");
}

static int mpi_all_reduce_max(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                              float *buf, size_t n) {
    (void)ctx;
    return reduce(c, group->impl, tsr_join_max, buf, n, "all_reduce_max");
}

static void set_offsets(struct tsr_mpi_group *g, const size_t *counts) {
    for (int r = 0; r < g->size; r++)
        g->offset[r + 1] = g->offset[r] + counts[r];
}

static int mpi_reduce_scatter(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                              float *recv, const float *send, const size_t *counts,
                              struct tsr_request *r) {
    (void)ctx;
    tsr_request_done(r);
    struct tsr_mpi_group *g = group->impl;
    double begun = begin(c);
    if (g->size == 1) {
        if (recv != send && counts[0])
            memcpy(recv, send, counts[0] * sizeof *recv);
        return end(c, begun, 0);
    }
    set_offsets(g, counts);
    int rc = g->shm ? tsr_shm_reduce_scatter(c, g, recv, send)
                    : tsr_messages_reduce_scatter(c, g, recv, send);
    c->bytes_sent[g->kind] += sizeof *send * (g->offset[g->size] - counts[g->rank]);
    return end(c, begun, rc);
}

static int mpi_all_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                          void *recv, const void *send, const size_t *n_bytes,
                          struct tsr_request *r) {
    (void)ctx;
    tsr_request_done(r);
    struct tsr_mpi_group *g = group->impl;
    double begun = begin(c);
    set_offsets(g, n_bytes);
    size_t mine = n_bytes[g->rank];
    char *own = mine ? (char *)recv + g->offset[g->rank] : NULL;
    if (mine && own != send)
        memcpy(own, send, mine);
    if (g->size == 1)
        return end(c, begun, 0);
    int rc = g->shm ? tsr_shm_gather(c, g, recv) : tsr_messages_gather(c, g, recv);
    c->bytes_sent[g->kind] += mine * (size_t)(g->size - 1);
    return end(c, begun, rc);
}

static int mpi_broadcast(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                         void *buf, size_t n_bytes, int root) {
    (void)ctx;
    struct tsr_mpi_group *g = group->impl;
    TSR_ASSERT(root >= 0 && root < g->size);
    double begun = begin(c);
    if (g->size == 1)
        return end(c, begun, 0);
    int rc = g->shm ? tsr_shm_broadcast(c, g, buf, n_bytes, root)
                    : tsr_messages_broadcast(c, g, buf, n_bytes, root);
    c->bytes_sent[g->kind] += n_bytes * (size_t)tsr_broadcast_children(g->rank, g->size, root);
    return end(c, begun, rc);
}

static int mpi_barrier(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group,
                       const char *what, double timeout_s) {
    (void)ctx;
    struct tsr_mpi_group *g = group->impl;
    double begun = begin(c);
    if (g->size == 1)
        return end(c, begun, 0);
    return end(c, begun,
               g->shm ? tsr_shm_barrier(c, g, what, timeout_s)
                      : tsr_messages_barrier(c, g, what, timeout_s));
}

static int mpi_wait(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_request *r) {
    (void)ctx;
    double begun = begin(c);
    return end(c, begun, tsr_mpi_wait(c, r));
}

// ---- opening and closing

static void mpi_close(struct tsr_comm *c) {
    struct tsr_mpi *m = c->impl;
    mpi_group_close(c, &c->world_group);
    while (m->pending) {
        struct tsr_pending *p = m->pending;
        m->pending = p->next;
        free(p->part);
        free(p);
    }
    if (m->finalize)
        MPI_Finalize();
    free(m);
}

static void mpi_abort(struct tsr_comm *c, int exit_code) {
    (void)c;
    MPI_Abort(MPI_COMM_WORLD, exit_code);
}

static const struct tsr_comm_ops mpi_ops = {
    .name = "mpi",
    .close = mpi_close,
    .abort = mpi_abort,
    .group_open = mpi_group_open,
    .group_close = mpi_group_close,
    .all_reduce = mpi_all_reduce,
    .all_reduce_max = mpi_all_reduce_max,
    .reduce_scatter = mpi_reduce_scatter,
    .all_gather = mpi_all_gather,
    .broadcast = mpi_broadcast,
    .barrier = mpi_barrier,
    .send = tsr_mpi_send,
    .recv = tsr_mpi_recv,
    .wait = mpi_wait,
};

// Cores that the ranks of this host may use, all together: mpirun may have bound each to its own.
static int n_cores(MPI_Comm local) {
    cpu_set_t cores;
    CPU_ZERO(&cores);
    if (sched_getaffinity(0, sizeof cores, &cores) != 0)
        CPU_SET(0, &cores);
    MPI_Allreduce(MPI_IN_PLACE, &cores, (int)sizeof cores, MPI_BYTE, MPI_BOR, local);
    return CPU_COUNT(&cores);
}

// MPI for a process whose other threads don't call it. Yielding must be set before MPI starts:
// Open MPI does it by itself only when it sees more ranks than slots.
static int init_mpi(struct tsr_comm *c, int *argc, char ***argv) {
    struct tsr_mpi *m = c->impl;
    int initialized = 0, provided = 0;
    MPI_Initialized(&initialized);
    if (initialized)
        return 0;
    setenv("OMPI_MCA_mpi_yield_when_idle", "1", 0);
    int rc = MPI_Init_thread(argc, argv, MPI_THREAD_FUNNELED, &provided);
    if (rc != MPI_SUCCESS)
        return tsr_fail(TSR_EPEER, "MPI doesn't start: MPI_Init_thread returned %d", rc);
    m->finalize = true;
    if (provided < MPI_THREAD_FUNNELED)
        return tsr_fail(TSR_EPEER, "expected an MPI that allows threads, found one without");
    return 0;
}

static int find_place(struct tsr_comm *c) {
    struct tsr_mpi *m = c->impl;
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    MPI_Comm_rank(MPI_COMM_WORLD, &c->rank);
    MPI_Comm_size(MPI_COMM_WORLD, &c->world);
    if (c->world == 1 && tsr_comm_slurm_tasks() > 1)
        return tsr_fail(TSR_EUSAGE,
                        "srun started %d tasks but MPI sees one: expected srun --mpi=pmix",
                        tsr_comm_slurm_tasks());
    MPI_Comm local;
    int rc =
        MPI_Comm_split_type(MPI_COMM_WORLD, MPI_COMM_TYPE_SHARED, c->rank, MPI_INFO_NULL, &local);
    TSR_TRY(tsr_mpi_check(c, rc, "finding the ranks of this host", "world"));
    MPI_Comm_set_errhandler(local, MPI_ERRORS_RETURN);
    MPI_Comm_rank(local, &c->local_rank);
    MPI_Comm_size(local, &c->local_size);
    m->crowded = c->local_size > n_cores(local);
    MPI_Comm_free(&local);
    return 0;
}

static int open_world(struct tsr_comm *c) {
    int *ranks = malloc((size_t)c->world * sizeof *ranks);
    if (!ranks)
        return tsr_fail(TSR_ENOMEM, "no memory for %d ranks", c->world);
    for (int i = 0; i < c->world; i++)
        ranks[i] = i;
    int rc = mpi_group_open(c, &c->world_group, "world", ranks, c->world, TSR_TRAFFIC_OTHER);
    free(ranks);
    return rc;
}

int tsr_comm_open_mpi(struct tsr_comm *c, int *argc, char ***argv, struct tsr_progress *p) {
    TSR_TRY(tsr_comm_init(c, p));
    struct tsr_mpi *m = calloc(1, sizeof *m);
    if (!m)
        return tsr_fail(TSR_ENOMEM, "no memory to join the other ranks");
    m->shared_memory = tsr_comm_use_shm();
    m->max_message = (size_t)1 << 30;
    c->impl = m;
    int rc = init_mpi(c, argc, argv);
    if (rc == 0) {
        c->ops = c->control = &mpi_ops;
        rc = find_place(c);
    }
    if (rc == 0)
        return open_world(c);
    if (!c->ops) {
        free(m);
        c->impl = NULL;
    }
    return rc;
}

// Collectives of ranks on one host, out of a window of shared memory. Each rank has a staging area
// of two buffers that rounds use in turn and a counter of the barriers that it has reached. A rank
// copies its part in, passes a barrier, and joins straight out of the others' areas.
//
// One barrier per round is enough: a rank fills a buffer again two rounds later, after the barrier
// of the round between, which the others reach only when they have read the earlier contents.
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/comm_mpi.h"

enum {
    LINE_BYTES = 64,
    PAGE_BYTES = 4096,
    STAGE_BYTES = 256 << 10, // of one buffer: with its source and result it stays in a core's L2
    WHOLE_BYTES = 16 << 10,  // up to here all ranks add everything, which saves a barrier
};

struct counter {
    _Alignas(LINE_BYTES) _Atomic uint64_t n;
};

struct tsr_shm {
    MPI_Win window;
    uint64_t n_barriers;
    unsigned turn;            // buffer of the next round
    struct counter **reached; // (size)
    char **stage;             // (size), each (2, STAGE_BYTES)
};

static char *stage_of(const struct tsr_shm *s, int r) {
    return s->stage[r] + (size_t)(s->turn & 1) * STAGE_BYTES;
}

// True when all ranks say yes. Blocks: used at start-up, after a barrier with a deadline.
static bool all_agree(MPI_Comm comm, bool yes) {
    int mine = yes, all = 0;
    return MPI_Allreduce(&mine, &all, 1, MPI_INT, MPI_MIN, comm) == MPI_SUCCESS && all;
}

static bool on_one_host(const struct tsr_mpi_group *g) {
    MPI_Comm local;
    int size = 0;
    if (MPI_Comm_split_type(g->collective, MPI_COMM_TYPE_SHARED, g->rank, MPI_INFO_NULL, &local))
        return false;
    MPI_Comm_size(local, &size);
    MPI_Comm_free(&local);
    return size == g->size;
}

// A page to align to, a page for the counter, the buffers. Open MPI aligns to less than a line.
size_t tsr_shm_bytes(void) {
    return 2 * PAGE_BYTES + 2 * (size_t)STAGE_BYTES;
}

// Maps the window; false when some rank can't.
static bool map_window(struct tsr_mpi_group *g, struct tsr_shm *s) {
    MPI_Aint n_bytes = (MPI_Aint)tsr_shm_bytes();
    void *base = NULL;
    int rc = MPI_Win_allocate_shared(n_bytes, 1, MPI_INFO_NULL, g->collective, &base, &s->window);
    if (!all_agree(g->collective, rc == MPI_SUCCESS))
        return false;
    for (int r = 0; r < g->size; r++) {
        MPI_Aint size;
        int unit;
        MPI_Win_shared_query(s->window, r, &size, &unit, &base);
        char *page = (char *)(((uintptr_t)base + PAGE_BYTES - 1) / PAGE_BYTES * PAGE_BYTES);
        s->reached[r] = (struct counter *)page;
        s->stage[r] = page + PAGE_BYTES;
    }
    MPI_Win_lock_all(MPI_MODE_NOCHECK, s->window);
    atomic_init(&s->reached[g->rank]->n, 0);
    MPI_Win_sync(s->window);
    return all_agree(g->collective, true);
}

int tsr_shm_open(struct tsr_comm *c, struct tsr_mpi_group *g) {
    const struct tsr_mpi *m = c->impl;
    struct tsr_shm *s = calloc(1, sizeof *s);
    if (s) {
        s->window = MPI_WIN_NULL;
        s->reached = calloc((size_t)g->size, sizeof *s->reached);
        s->stage = calloc((size_t)g->size, sizeof *s->stage);
    }
    g->shm = s;
    bool ready = s && s->reached && s->stage && m->shared_memory;
    ready = on_one_host(g) && ready;
    if (!all_agree(g->collective, ready) || !map_window(g, s))
        tsr_shm_close(g);
    return 0;
}

void tsr_shm_close(struct tsr_mpi_group *g) {
    struct tsr_shm *s = g->shm;
    if (!s)
        return;
    if (s->window != MPI_WIN_NULL) {
        MPI_Win_unlock_all(s->window);
        MPI_Win_free(&s->window);
    }
    free(s->reached);
    free(s->stage);
    free(s);
    g->shm = NULL;
}

// A peer may wait for a message that this rank has started: let MPI move it.
static void progress_messages(void) {
    int flag;
    MPI_Iprobe(MPI_ANY_SOURCE, MPI_ANY_TAG, MPI_COMM_SELF, &flag, MPI_STATUS_IGNORE);
}

int tsr_shm_barrier(struct tsr_comm *c, struct tsr_mpi_group *g, const char *what,
                    double timeout_s) {
    struct tsr_shm *s = g->shm;
    uint64_t n = ++s->n_barriers;
    atomic_store_explicit(&s->reached[g->rank]->n, n, memory_order_release);
    struct tsr_wait w = {.comm = c, .what = what, .group = g->name, .timeout_s = timeout_s};
    for (int r = 0; r < g->size; r++) {
        while (atomic_load_explicit(&s->reached[r]->n, memory_order_acquire) < n) {
            bool more = tsr_wait_more(&w);
            if (w.start != 0)
                progress_messages();
            if (!more && atomic_load_explicit(&s->reached[r]->n, memory_order_acquire) < n)
                return tsr_wait_failed(&w, g->world_rank[r]);
        }
    }
    return 0;
}

static int round_barrier(struct tsr_comm *c, struct tsr_mpi_group *g, const char *what) {
    return tsr_shm_barrier(c, g, what, c->timeout_s);
}

// All ranks add everything, one barrier a round: best for two ranks and for little data.
static int reduce_whole(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                        const char *what) {
    struct tsr_shm *s = g->shm;
    size_t n = g->offset[g->size], part = STAGE_BYTES / sizeof *buf;
    for (size_t at = 0; at < n; at += part, s->turn++) {
        size_t len = n - at < part ? n - at : part;
        memcpy(stage_of(s, g->rank), buf + at, len * sizeof *buf);
        TSR_TRY(round_barrier(c, g, what));
        for (int r = 0; r < g->size; r++)
            g->leaf[r] = r == g->rank ? buf + at : (const float *)stage_of(s, r);
        tsr_tree_join(join, buf + at, g->leaf, g->size, len);
    }
    return 0;
}

// Each rank joins its slice into its own staging area; the others copy it out after a second
// barrier. In a buffer slice r lies at r times `part`.
static int reduce_slices(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                         const char *what) {
    struct tsr_shm *s = g->shm;
    size_t part = STAGE_BYTES / sizeof *buf / (size_t)g->size;
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, part);
    for (size_t t = 0; t < n_rounds; t++, s->turn++) {
        for (int r = 0; r < g->size; r++) {
            float *to = (float *)stage_of(s, g->rank) + (size_t)r * part;
            size_t len = tsr_round_len(g->offset, r, t, part);
            if (len)
                memcpy(to, buf + g->offset[r] + t * part, len * sizeof *buf);
            g->leaf[r] = (const float *)stage_of(s, r) + (size_t)g->rank * part;
        }
        TSR_TRY(round_barrier(c, g, what));
        float *own = (float *)stage_of(s, g->rank) + (size_t)g->rank * part;
        tsr_tree_join(join, own, g->leaf, g->size, tsr_round_len(g->offset, g->rank, t, part));
        TSR_TRY(round_barrier(c, g, what));
        for (int r = 0; r < g->size; r++) {
            size_t len = tsr_round_len(g->offset, r, t, part);
            if (len)
                memcpy(buf + g->offset[r] + t * part, (float *)stage_of(s, r) + (size_t)r * part,
                       len * sizeof *buf);
        }
    }
    return 0;
}

int tsr_shm_reduce(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                   const char *what) {
    bool whole = g->size == 2 || g->offset[g->size] * sizeof *buf <= WHOLE_BYTES;
    return whole ? reduce_whole(c, g, join, buf, what) : reduce_slices(c, g, join, buf, what);
}

int tsr_shm_reduce_scatter(struct tsr_comm *c, struct tsr_mpi_group *g, float *recv,
                           const float *send) {
    struct tsr_shm *s = g->shm;
    size_t part = STAGE_BYTES / sizeof *send / (size_t)g->size;
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, part);
    for (size_t t = 0; t < n_rounds; t++, s->turn++) {
        for (int r = 0; r < g->size; r++) {
            float *to = (float *)stage_of(s, g->rank) + (size_t)r * part;
            size_t len = tsr_round_len(g->offset, r, t, part);
            if (len && r != g->rank)
                memcpy(to, send + g->offset[r] + t * part, len * sizeof *send);
            g->leaf[r] = (const float *)stage_of(s, r) + (size_t)g->rank * part;
        }
        TSR_TRY(round_barrier(c, g, "reduce_scatter"));
        size_t len = tsr_round_len(g->offset, g->rank, t, part);
        if (len == 0)
            continue;
        g->leaf[g->rank] = send + g->offset[g->rank] + t * part;
        tsr_tree_join(tsr_join_add, recv + t * part, g->leaf, g->size, len);
    }
    return 0;
}

int tsr_shm_gather(struct tsr_comm *c, struct tsr_mpi_group *g, char *recv) {
    struct tsr_shm *s = g->shm;
    size_t n_rounds = tsr_n_rounds(g->offset, g->size, STAGE_BYTES);
    for (size_t t = 0; t < n_rounds; t++, s->turn++) {
        size_t mine = tsr_round_len(g->offset, g->rank, t, STAGE_BYTES);
        if (mine)
            memcpy(stage_of(s, g->rank), recv + g->offset[g->rank] + t * STAGE_BYTES, mine);
        TSR_TRY(round_barrier(c, g, "all_gather"));
        for (int r = 0; r < g->size; r++) {
            size_t len = tsr_round_len(g->offset, r, t, STAGE_BYTES);
            if (len && r != g->rank)
                memcpy(recv + g->offset[r] + t * STAGE_BYTES, stage_of(s, r), len);
        }
    }
    return 0;
}

int tsr_shm_broadcast(struct tsr_comm *c, struct tsr_mpi_group *g, char *buf, size_t n_bytes,
                      int root) {
    struct tsr_shm *s = g->shm;
    for (size_t at = 0; at < n_bytes; at += STAGE_BYTES, s->turn++) {
        size_t len = n_bytes - at < STAGE_BYTES ? n_bytes - at : STAGE_BYTES;
        if (g->rank == root)
            memcpy(stage_of(s, root), buf + at, len);
        TSR_TRY(round_barrier(c, g, "broadcast"));
        if (g->rank != root)
            memcpy(buf + at, stage_of(s, root), len);
    }
    return 0;
}

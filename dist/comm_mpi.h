// Inside of the MPI transport. MPI is called on the main thread only: nonblocking calls and one
// kind of wait, which yields the core (ranks may outnumber cores) and has a deadline.
//
//   comm_mpi.c       opening, groups, the table
//   comm_wait.c      waiting, batches of messages, point-to-point requests
//   comm_tree.c      joining by the tree
//   comm_messages.c  collectives by messages, between hosts
//   comm_shm.c       collectives out of shared memory, on one host
#ifndef TSR_DIST_COMM_MPI_H
#define TSR_DIST_COMM_MPI_H

#include <mpi.h>
#include <stdbool.h>
#include "core/pieces.h"
#include "dist/comm.h"
#include "dist/comm_impl.h"

// A send or receive under way, in as many MPI messages as its size needs. Kept for reuse.
struct tsr_pending {
    MPI_Request *part; // (n of cap)
    int n, cap;
    bool busy;
    struct tsr_mpi_group *group;
    struct tsr_pending *next; // of all
};

// struct tsr_comm's impl.
struct tsr_mpi {
    bool finalize;      // this process called MPI_Init
    bool shared_memory; // may be used at all
    bool crowded;       // more ranks on this host than cores: never spin
    size_t max_message; // bytes of one MPI message
    struct tsr_pending *pending;
};

// Messages of one round of a collective, at most 2 (size - 1).
struct tsr_batch {
    MPI_Request *request;
    int *peer; // in the group
    int n;
};

struct tsr_shm;

// struct tsr_group's impl.
struct tsr_mpi_group {
    const char *name;
    int rank, size;
    enum tsr_traffic kind;
    int *world_rank; // (size)
    MPI_Comm collective, point_to_point;
    struct tsr_shm *shm;       // NULL: not all on one host
    size_t *offset;            // (size + 1) slices of the call under way
    const float **leaf;        // (size)
    struct tsr_batch batch[3]; // reduce of even and odd rounds, gather
    float *scratch;            // (2, size, part): slices of other ranks
    size_t part;               // elements of a slice that travel in one round
};

enum { TSR_MAX_SCRATCH = 4 << 20 }; // bytes per group

// ---- waiting
struct tsr_wait {
    const struct tsr_comm *comm;
    const char *what, *group;
    double timeout_s;
    double start; // 0 until the first look at the clock
    unsigned n;
};

// One pause of a waiting loop. False: the deadline has passed.
bool tsr_wait_more(struct tsr_wait *w);
// Records that `world_rank` didn't come; TSR_ETIMEOUT.
int tsr_wait_failed(const struct tsr_wait *w, int world_rank);
// Records an MPI error code as TSR_EPEER; 0 for MPI_SUCCESS.
int tsr_mpi_check(const struct tsr_comm *c, int rc, const char *what, const char *group);

int tsr_batch_recv(struct tsr_comm *c, struct tsr_mpi_group *g, struct tsr_batch *b, void *buf,
                   size_t n_bytes, int from, int tag);
int tsr_batch_send(struct tsr_comm *c, struct tsr_mpi_group *g, struct tsr_batch *b,
                   const void *buf, size_t n_bytes, int to, int tag);
// Waits for all of the batch and empties it. On failure its messages stay under way.
int tsr_batch_wait(struct tsr_comm *c, struct tsr_mpi_group *g, struct tsr_batch *b,
                   const char *what, double timeout_s);

int tsr_mpi_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, const void *buf,
                 size_t n_bytes, int to, int tag, struct tsr_request *r);
int tsr_mpi_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *group, void *buf,
                 size_t n_bytes, int from, int tag, struct tsr_request *r);
int tsr_mpi_wait(struct tsr_comm *c, struct tsr_request *r);

// ---- the tree: out(n) = tree over in[0..n_in), elementwise; out may be one of them.
typedef void tsr_joiner(float *out, const float *a, const float *b, size_t n);
tsr_joiner tsr_join_add, tsr_join_max;
void tsr_tree_join(tsr_joiner *join, float *out, const float *const *in, int n_in, size_t n);

// ---- collectives; groups of at least two. Slices are given by g->offset, in elements for sums
// and in bytes for gathers.
int tsr_messages_reduce(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                        const char *what);
int tsr_messages_reduce_scatter(struct tsr_comm *c, struct tsr_mpi_group *g, float *recv,
                                const float *send);
int tsr_messages_gather(struct tsr_comm *c, struct tsr_mpi_group *g, char *recv);
int tsr_messages_broadcast(struct tsr_comm *c, struct tsr_mpi_group *g, char *buf, size_t n_bytes,
                           int root);
int tsr_messages_barrier(struct tsr_comm *c, struct tsr_mpi_group *g, const char *what,
                         double timeout_s);

size_t tsr_shm_bytes(void); // a rank's part of a window
// Elements of a slice that travel in one round between n_ranks hosts.
static inline size_t tsr_round_part(size_t n_ranks) {
    size_t part = TSR_MAX_SCRATCH / (2 * n_ranks * sizeof(float));
    return part ? part : 1;
}
// Sets g->shm when all ranks of the group share a host and memory; else leaves it NULL.
int tsr_shm_open(struct tsr_comm *c, struct tsr_mpi_group *g);
void tsr_shm_close(struct tsr_mpi_group *g);
int tsr_shm_reduce(struct tsr_comm *c, struct tsr_mpi_group *g, tsr_joiner *join, float *buf,
                   const char *what);
int tsr_shm_reduce_scatter(struct tsr_comm *c, struct tsr_mpi_group *g, float *recv,
                           const float *send);
int tsr_shm_gather(struct tsr_comm *c, struct tsr_mpi_group *g, char *recv);
int tsr_shm_broadcast(struct tsr_comm *c, struct tsr_mpi_group *g, char *buf, size_t n_bytes,
                      int root);
int tsr_shm_barrier(struct tsr_comm *c, struct tsr_mpi_group *g, const char *what,
                    double timeout_s);

#endif

// Communication between ranks: one const table per transport, so that every parallel test runs on
// CPU ranks. Calls take a context and device pointers, may be asynchronous on ctx->stream and
// return only an error code. Sums are never in arrival order: they follow the tree of
// core/pieces.h over the group's ranks, so a result doesn't depend on how many ranks hold the
// leaves. Every wait has a deadline and names what it waited for (TSR_ETIMEOUT).
#ifndef TSR_DIST_COMM_H
#define TSR_DIST_COMM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/progress.h"
#include "kernels/ops.h"

struct tsr_comm;

// A set of ranks; rank and size are within it. A group of one makes every call a no-op or copy.
// The world's group may be of the host's transport only: comm->control is for it.
struct tsr_group {
    const char *name; // "tp", "pp", "dp", "world"
    int rank, size;
    void *impl;   // of the host's transport
    void *device; // of the devices' transport, or NULL
};

// A message under way.
struct tsr_request {
    void *impl[2];
    const char *what;
    int peer;
};

enum tsr_traffic {
    TSR_TRAFFIC_TP,
    TSR_TRAFFIC_PP,
    TSR_TRAFFIC_DP,
    TSR_TRAFFIC_OTHER,
    TSR_N_TRAFFIC
};

// What each call adds to c->bytes_sent[kind], for rank r of p, elements of 4 bytes. It is the count
// of the message algorithm; ranks on one host that add out of shared memory report the same.
//   all_reduce, all_reduce_max of n   4 ((n - s) + (p - 1) s), where s = floor((r + 1) n / p) -
//                                     floor(r n / p): the others' slices, and the own reduced one
//   reduce_scatter                    4 (sum of counts - counts[r])
//   all_gather                        (p - 1) n_bytes[r]
//   broadcast                         n_bytes for each child of r in the binomial tree
//   send                              n_bytes
//   recv, wait, barrier               0
// A group of one adds nothing.
struct tsr_comm_ops {
    const char *name;
    // Ends communication: called by all ranks, after their groups are closed.
    void (*close)(struct tsr_comm *);
    // Ends the processes of the whole job; does not return.
    void (*abort)(struct tsr_comm *, int exit_code);

    // Groups are made once, in the same order by all ranks of the world. `ranks` are world ranks.
    int (*group_open)(struct tsr_comm *, struct tsr_group *g, const char *name, const int *ranks,
                      int n_ranks, enum tsr_traffic kind);
    void (*group_close)(struct tsr_comm *, struct tsr_group *g);

    // The three collectives that may run beside computation take a request: NULL means that what
    // ctx->stream is asked for next sees the result; else that holds from wait on, until when the
    // buffers stay untouched. A group's requests are waited for in the order of the calls. A
    // transport without streams of its own has the result at once and a request that waits for
    // nothing.

    // buf(n) = tree over ranks of buf, on every rank. In place.
    int (*all_reduce)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *buf, size_t n,
                      struct tsr_request *r);
    // As all_reduce, of the maximum; one that meets a NaN is NaN.
    int (*all_reduce_max)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *buf,
                          size_t n);
    // send holds one contiguous slice per rank, counts[r] elements each, in rank order; recv
    // (counts[rank]) = tree over ranks of this rank's slice; recv may be that slice inside send.
    int (*reduce_scatter)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *recv,
                          const float *send, const size_t *counts, struct tsr_request *r);
    // recv = the ranks' slices in rank order; send may lie in its place inside recv.
    int (*all_gather)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, void *recv,
                      const void *send, const size_t *n_bytes, struct tsr_request *r);
    int (*broadcast)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, void *buf,
                     size_t n_bytes, int root);
    // Returns when all ranks of the group have called it; `what` names the wait in messages.
    int (*barrier)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, const char *what,
                   double timeout_s);

    // Point to point within a group; tags keep micro-batches apart. Messages between two ranks
    // whose tags are both even or both odd are received in the order in which they are sent: a
    // transport may have no more than two ways. Buffers stay untouched until wait. A request that
    // was never started (all zero) waits at once; wait zeroes the request when it succeeds.
    // Messages may be empty.
    int (*send)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, const void *buf,
                size_t n_bytes, int to, int tag, struct tsr_request *r);
    int (*recv)(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, void *buf, size_t n_bytes,
                int from, int tag, struct tsr_request *r);
    int (*wait)(struct tsr_ctx *, struct tsr_comm *, struct tsr_request *r);

    // Whether a collective with a request runs beside computation: what it costs to cut work in
    // parts for it is then worth paying.
    bool overlaps;

    // Asks the transport whether it has noticed that a peer failed; then all waits in it are ended
    // and TSR_EPEER is returned. Any thread. NULL: it has nothing to ask.
    int (*poll)(struct tsr_comm *);
};

struct tsr_comm {
    const struct tsr_comm_ops *ops; // between the devices: buffers of ctx->ops->alloc
    // Between this process's own memory and the others': control data. The same table where the
    // device is the CPU.
    const struct tsr_comm_ops *control;
    int rank, world;
    int local_rank, local_size; // on this host
    char host[256];
    double timeout_s; // deadline of every wait
    struct tsr_progress *progress;
    uint64_t bytes_sent[TSR_N_TRAFFIC]; // since start, payload this rank handed to others
    double seconds;                     // spent waiting in calls, for the bench report
    struct tsr_group world_group;
    int culprit;         // 1 + the rank whose failure tsr_agree made known to all; 0: none
    void *impl;          // of the host's transport
    void *device;        // of the devices' transport, or NULL
    size_t buffer_bytes; // that its open groups hold for the ranks to meet in
    size_t device_bytes; // of ctx->ops->alloc that they hold
    bool pretend;        // nothing is sent, only counted; there is nobody else
};

// One process, no MPI.
int tsr_comm_open_single(struct tsr_comm *c, struct tsr_progress *p);
// As if this process were rank `rank` of `world`, `per_host` to a host in order: calls count bytes
// and return. Buffers are left as they are, except that an all_gather of the world group puts this
// rank's part in its place. `nccl`: groups hold on a device what NCCL's would. For planning
// (dist/plan.h).
int tsr_comm_open_pretend(struct tsr_comm *c, int world, int rank, int per_host, bool nccl);
// Joins the MPI job that this process was started in. Called on the main thread, once. Reads the
// environment: TESSERA_TIMEOUT (seconds, default 600) is the deadline of waits; TESSERA_SHM=0
// sends messages even between ranks of one host.
int tsr_comm_open_mpi(struct tsr_comm *c, int *argc, char ***argv, struct tsr_progress *p);
// True when mpirun or srun started this process, be it as the only rank (from the environment,
// without MPI_Init).
int tsr_comm_under_mpi(void);
// This process's number among those that mpirun or srun started, from the environment; 0 alone.
// For messages before the ranks know each other.
int tsr_comm_env_rank(void);
void tsr_comm_close(struct tsr_comm *c);
// A local failure: prints one line with rank, host and the recorded error sentence, and ends the
// whole job with `exit_code`.
_Noreturn void tsr_comm_abort(struct tsr_comm *c, int exit_code);

#endif

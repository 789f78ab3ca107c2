// What the parts of NCCL's transport share.
//
//   comm_nccl.c              opening, closing, the table
//   comm_nccl_group.c        groups and their lanes
//   comm_nccl_start.c        communicators: joining with a deadline, several ranks on one device
//   comm_nccl_watch.c        failures, deadlines, what is under way
//   comm_nccl_abort.c        the end of all communicators after a failure
//   comm_nccl_collectives.c  sums by the tree, gathers, broadcasts
//   comm_nccl_p2p.c          messages
//
// The main thread issues all work. Another thread may only ask for failures (poll); `lock` keeps
// it from ending communicators while the main thread is in a call of NCCL's.
#ifndef TSR_DIST_COMM_NCCL_PRIVATE_H
#define TSR_DIST_COMM_NCCL_PRIVATE_H

#include <nccl.h>
#include <pthread.h>
#include "dist/comm_nccl.h"
#include "dist/comm_staged.h"
#include "kernels/cuda/backend.h"

struct tsr_nccl_lane;

// A collective or message under way, or one that has been and is kept for its event.
struct tsr_nccl_op {
    cudaEvent_t done;
    const char *what;
    double begun;
    bool waited; // the compute stream waits for it or has: free once it is done
    struct tsr_nccl_lane *lane;
    struct tsr_nccl_op *next; // asked for later
};

// A communicator, the stream that its work runs on in order, and that work, oldest first.
struct tsr_nccl_lane {
    ncclComm_t comm;
    cudaStream_t stream;
    cudaEvent_t
        ready; // of the compute stream, before the work of this lane that was asked for last
    const char *group;
    int peer; // world rank at the other end; -1: all of the group
    struct tsr_nccl_op *oldest, *newest;
    struct tsr_nccl_lane *next; // of all
};

// Messages go on lanes of their own, one for each direction, so that a receive which waits for its
// message holds up nothing else. Between two ranks that are neighbours on both sides (a group of
// two) tags of either parity have their own: there the wrap-around of a pipeline's forward shares
// the way with its backward, and the two kinds of messages may overtake each other.
enum { TSR_NCCL_NEXT, TSR_NCCL_PREV, TSR_NCCL_SIDES };
enum { TSR_NCCL_OUT, TSR_NCCL_IN, TSR_NCCL_WAYS };
enum { TSR_NCCL_PARITIES = 2 };

// struct tsr_group's device; NULL for a group of one.
struct tsr_nccl_group {
    const char *name;
    int rank, size;
    enum tsr_traffic kind;
    int *world_rank;           // (size)
    struct tsr_nccl_lane *all; // collectives
    struct tsr_nccl_lane *edge[TSR_NCCL_WAYS][TSR_NCCL_SIDES][TSR_NCCL_PARITIES];
    size_t *offset; // (size + 1) slices of the call under way, in elements or bytes
    float *scratch; // device (size, stride): what the ranks have of this rank's slice
    size_t stride;
    size_t part;          // elements of a slice that travel in one round: stride; tests use less
    const float **leaves; // device (size): scratch of each rank
};

// struct tsr_comm's device. `staged` carries messages between ranks without a lane.
struct tsr_nccl {
    struct tsr_staged staged; // first: dist/comm_staged_p2p.c finds it there
    struct tsr_comm *comm;
    struct tsr_ctx ctx;
    struct tsr_cuda *cuda;
    struct tsr_nccl_lane *lanes;
    pthread_mutex_t lock; // lanes and what follows
    int failed;           // 0, or the code that every later call returns
    char failure[1024];
};

static inline struct tsr_nccl *tsr_nccl_of(const struct tsr_comm *c) {
    return (struct tsr_nccl *)c->device;
}

// ---- comm_nccl_start.c
// Tells NCCL when ranks share a device, before its first call. Collective.
int tsr_nccl_prepare(struct tsr_nccl *n);
// A lane for `size` ranks of group `g`, of which this is `rank`. `peer` as in the struct.
int tsr_nccl_lane_open(struct tsr_nccl *n, struct tsr_nccl_lane **out, const char *group, int peer,
                       ncclUniqueId id, int rank, int size);
// Waits for its work, then ends it together with the other ranks.
void tsr_nccl_lane_close(struct tsr_nccl *n, struct tsr_nccl_lane *lane);

// ---- comm_nccl_group.c
int tsr_nccl_group_open(struct tsr_comm *c, struct tsr_group *group, const char *name,
                        const int *ranks, int n_ranks, enum tsr_traffic kind);
void tsr_nccl_group_close(struct tsr_comm *c, struct tsr_group *group);
// g->all, which a group of messages opens when the first collective needs it.
int tsr_nccl_need_all(struct tsr_nccl *n, struct tsr_group *group);

// ---- comm_nccl_watch.c
// Brackets calls of NCCL: begin fails when the transport has. end takes the last call's result and
// waits until all is in the stream's queue.
int tsr_nccl_begin(struct tsr_nccl *n);
int tsr_nccl_end(struct tsr_nccl *n, struct tsr_nccl_lane *lane, ncclResult_t rc, const char *what);
// Waits while the communicator is busy with what it was asked for last.
int tsr_nccl_settle(struct tsr_nccl *n, struct tsr_nccl_lane *lane, const char *what);
// The lane's stream goes on once what the compute stream was asked for so far is done.
int tsr_nccl_follow(struct tsr_nccl *n, struct tsr_nccl_lane *lane);
// What the lane was asked for since is `*op`, begun now.
int tsr_nccl_mark(struct tsr_nccl *n, struct tsr_nccl_lane *lane, const char *what,
                  struct tsr_nccl_op **op);
// The compute stream goes on once the op is done.
int tsr_nccl_join(struct tsr_nccl *n, struct tsr_nccl_op *op);
// Records the failure, the first one, and ends all communicators, so that no kernel waits on.
// Returns its code. `locked`: by the caller.
int tsr_nccl_fail(struct tsr_nccl *n, bool locked, enum tsr_code code, const char *text);
// Ends the communicators of all lanes, which have none then; returns at the latest after some
// seconds. `lock` is held.
void tsr_nccl_abort(struct tsr_nccl *n);
int tsr_nccl_poll(struct tsr_comm *c); // any thread
int tsr_nccl_watch(void *n);           // main thread, while it waits: deadlines, too

// ---- comm_nccl_collectives.c, comm_nccl_p2p.c: as in struct tsr_comm_ops
int tsr_nccl_all_reduce(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *buf,
                        size_t n, struct tsr_request *r);
int tsr_nccl_all_reduce_max(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *buf,
                            size_t n);
int tsr_nccl_reduce_scatter(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, float *recv,
                            const float *send, const size_t *counts, struct tsr_request *r);
int tsr_nccl_all_gather(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, void *recv,
                        const void *send, const size_t *n_bytes, struct tsr_request *r);
int tsr_nccl_broadcast(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, void *buf,
                       size_t n_bytes, int root);
int tsr_nccl_send(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, const void *buf,
                  size_t n_bytes, int to, int tag, struct tsr_request *r);
int tsr_nccl_recv(struct tsr_ctx *, struct tsr_comm *, struct tsr_group *, void *buf,
                  size_t n_bytes, int from, int tag, struct tsr_request *r);
int tsr_nccl_wait(struct tsr_ctx *, struct tsr_comm *, struct tsr_request *r);

#endif

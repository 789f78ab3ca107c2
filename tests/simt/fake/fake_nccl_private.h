// What the parts of the simulated NCCL share.
#ifndef TSR_TESTS_SIMT_FAKE_NCCL_PRIVATE_H
#define TSR_TESTS_SIMT_FAKE_NCCL_PRIVATE_H

#include <mpi.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include "tests/simt/fake/nccl.h"

struct member {
    int rank, world;
};

struct work;

struct ncclComm {
    int rank, size, tag;
    struct member self, *members; // (size)
    int *world;                   // (size) world rank of each
    MPI_Request *request;         // (2 size) of joining
    int n_requests, stage;
    _Atomic bool aborted;
    _Atomic int state;                // ncclResult_t
    _Atomic int n_queued;             // work in streams that isn't done
    struct work *asked;               // by the last call, which hasn't put it into streams yet
    bool slow, finalizing, finalized; // slow: that call has been asked for once
    struct ncclComm *next;            // of all
};

// What the environment wants, and what has been done.
struct fake_nccl {
    bool looked, init_hang, init_error, abort_hang;
    long hang, error, die, operations; // numbers of operations
    pthread_t main;                    // that calls MPI
    _Atomic bool broken;               // a remote error has happened
};

struct fake_nccl *fake_nccl(void);
int fake_nccl_world_rank(void);
void fake_nccl_stop(const char *text);
void fake_nccl_launch(struct ncclComm *c); // puts c->asked into streams
void fake_nccl_abort_all(void);            // at the end of the group that aborted
void *fake_nccl_must(void *p);             // not NULL

#endif

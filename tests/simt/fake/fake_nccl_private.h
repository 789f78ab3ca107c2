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

struct ncclComm {
    int rank, size, tag;
    struct member self, *members; // (size)
    int *world;                   // (size) world rank of each
    MPI_Request *request;         // (2 size) of joining
    int n_requests, stage;
    _Atomic bool aborted;
    _Atomic int state; // ncclResult_t
};

// What the environment wants, and what has been done.
struct fake_nccl {
    bool looked, init_hang, init_error;
    long hang, error, die, operations; // numbers of operations
    pthread_t main;                    // that calls MPI
    _Atomic bool broken;               // a remote error has happened
};

struct fake_nccl *fake_nccl(void);
int fake_nccl_world_rank(void);
void fake_nccl_stop(const char *text);
void *fake_nccl_must(void *p); // not NULL

#endif

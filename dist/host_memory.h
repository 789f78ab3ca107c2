// Memory that the ranks of one host can read of each other, each rank its own segment.
#ifndef TSR_DIST_HOST_MEMORY_H
#define TSR_DIST_HOST_MEMORY_H

#include <stdatomic.h>
#include "dist/comm.h"

struct tsr_host_memory {
    int n, mine;     // ranks that see each other, in rank order, and this one's place among them
    char **at;       // (n) their segments
    size_t *n_bytes; // (n)
    bool shared;     // the own segment is a file in memory
    _Atomic uint64_t *counter; // that all of them may count on, in the first one's; 0 at first
};

// A segment of n_bytes on every rank, zero, its pages there already. Where processes can't open
// each other's memory, each rank is alone: n = 1. Collective. TSR_ENOMEM.
int tsr_host_memory_open(struct tsr_host_memory *m, struct tsr_ctx *ctx, struct tsr_comm *c,
                         size_t n_bytes);
void tsr_host_memory_close(struct tsr_host_memory *m); // all zero is fine

#endif

// What the files of dist/comm*.c share, without MPI.
#ifndef TSR_DIST_COMM_IMPL_H
#define TSR_DIST_COMM_IMPL_H

#include "dist/comm.h"

// Fills what needs no transport: one rank, host name, deadline from the environment (TSR_EUSAGE).
int tsr_comm_init(struct tsr_comm *c, struct tsr_progress *p);

// The request of a collective that is complete already.
static inline void tsr_request_done(struct tsr_request *r) {
    if (r)
        *r = (struct tsr_request){0};
}

// Bytes that a rank holds for a group's meetings: its part of the window of shared memory, or the
// scratch for messages between hosts.
size_t tsr_comm_group_bytes(int n_ranks, bool one_host);

// Elements of each rank's part of the scratch on the device in which NCCL's transport brings a
// group's slices together, and the bytes that a group holds there: the scratch, and where each
// part of it is.
static inline size_t tsr_nccl_stride(int size) {
    const size_t all = (size_t)(32 << 20) / sizeof(float);
    return all / (size_t)size / 4 * 4;
}

static inline size_t tsr_nccl_group_bytes(int size) {
    return (size_t)size * (tsr_nccl_stride(size) * sizeof(float) + sizeof(float *));
}

// Whether ranks of one host meet in shared memory (TESSERA_SHM).
bool tsr_comm_use_shm(void);

// ---- a broadcast's binomial tree over ranks counted from the root: a rank's parent is itself
// without its lowest bit, its children are itself plus each lower power of two.
static inline int tsr_lowest_bit(int relative, int size) {
    if (relative)
        return relative & -relative;
    int bit = 1;
    while (bit < size)
        bit <<= 1;
    return bit;
}

static inline int tsr_broadcast_children(int rank, int size, int root) {
    int relative = (rank - root + size) % size, n = 0;
    for (int bit = tsr_lowest_bit(relative, size) >> 1; bit; bit >>= 1)
        n += relative + bit < size;
    return n;
}

// ---- slices [offset[r], offset[r + 1]) that travel in rounds of `part` elements of each

// Elements that round t moves of slice r.
static inline size_t tsr_round_len(const size_t *offset, int r, size_t t, size_t part) {
    size_t len = offset[r + 1] - offset[r];
    if (t * part >= len)
        return 0;
    return len - t * part < part ? len - t * part : part;
}

// Rounds until the longest slice is through.
static inline size_t tsr_n_rounds(const size_t *offset, int size, size_t part) {
    size_t most = 0;
    for (int r = 0; r < size; r++) {
        size_t len = offset[r + 1] - offset[r];
        most = len > most ? len : most;
    }
    return most == 0 ? 0 : (most - 1) / part + 1;
}

// Tasks of the srun step that this process is one of; 0 outside srun.
int tsr_comm_slurm_tasks(void);

#endif

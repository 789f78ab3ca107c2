// What the files of dist/comm*.c share, without MPI.
#ifndef TSR_DIST_COMM_IMPL_H
#define TSR_DIST_COMM_IMPL_H

#include "dist/comm.h"

// Fills what needs no transport: one rank, host name, deadline from the environment (TSR_EUSAGE).
int tsr_comm_init(struct tsr_comm *c, struct tsr_progress *p);

// Bytes that a rank holds for a group's meetings: its part of the window of shared memory, or the
// scratch for messages between hosts.
size_t tsr_comm_group_bytes(int n_ranks, bool one_host);
// Whether ranks of one host meet in shared memory (TESSERA_SHM).
bool tsr_comm_use_shm(void);

// Children of a rank in the binomial tree of a broadcast.
int tsr_broadcast_children(int rank, int size, int root);

// Tasks of the srun step that this process is one of; 0 outside srun.
int tsr_comm_slurm_tasks(void);

#endif

// What the files of dist/comm*.c share, without MPI.
#ifndef TSR_DIST_COMM_IMPL_H
#define TSR_DIST_COMM_IMPL_H

#include "dist/comm.h"

// Fills what needs no transport: one rank, host name, deadline from the environment (TSR_EUSAGE).
int tsr_comm_init(struct tsr_comm *c, struct tsr_progress *p);

// Tasks of the srun step that this process is one of; 0 outside srun.
int tsr_comm_slurm_tasks(void);

#endif

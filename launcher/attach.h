// What ties a rank of a training run to the run's coordinator: the address and the epoch, from the
// supervisor's environment or, under a bare mpirun, from rank 0, which then hosts the coordinator
// on a thread; and the agent (docs/operations.md).
#ifndef TSR_LAUNCHER_ATTACH_H
#define TSR_LAUNCHER_ATTACH_H

#include <stdbool.h>
#include "launcher/agent.h"
#include "launcher/coordinator/loop.h"
#include "launcher/job.h"

struct tsr_attachment {
    bool begun;     // tsr_attach was called
    uint64_t epoch; // of this incarnation of the run
    struct tsr_agent *agent;
    struct tsr_coordinator_thread *coordinator; // rank 0 of a bare mpirun, else NULL
};

// True in a process that a supervisor or mpirun started as a rank.
bool tsr_is_rank(void);

// Makes the run directory, checks that all ranks see the same one, finds or starts the coordinator
// and joins it. Collective; all ranks get the same code.
int tsr_attach(struct tsr_attachment *a, struct tsr_job *j);

// Leaves in order, `exit_code` being this process's. Collective, after tsr_job_settle; nothing when
// tsr_attach was never called.
void tsr_detach(struct tsr_attachment *a, struct tsr_job *j, int exit_code);

#endif

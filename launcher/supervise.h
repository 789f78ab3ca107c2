// `tessera train` when it is not a rank: starts the coordinator and the ranks, and keeps the run
// going until it is done (docs/operations.md).
#ifndef TSR_LAUNCHER_SUPERVISE_H
#define TSR_LAUNCHER_SUPERVISE_H

#include "core/model.h"
#include "core/run.h"

struct tsr_supervise_opt {
    const struct tsr_run *run;     // loaded and checked
    const struct tsr_model *model; // every layout is checked against it
    const char *run_file;          // for the ranks, with the overrides as they were given
    const char *const *overrides;
    int n_overrides;
    const char *hosts; // of --hosts, or NULL: those of Slurm, else this machine
};

// Trains until the run is done, interrupted or hopeless; prints what happened. Call it on the main
// thread, before there are others: the processes that it starts die with the thread. Returns the
// exit code of the process: 0, 2, 3, 4, 5, 70, or 128 + signal when it had to stop at once.
int tsr_supervise(const struct tsr_supervise_opt *opt);

#endif

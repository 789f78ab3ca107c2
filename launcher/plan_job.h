// A run file with its plan (dist/plan.h), whether it fits on the machines, and what would make it
// fit.
#ifndef TSR_LAUNCHER_PLAN_JOB_H
#define TSR_LAUNCHER_PLAN_JOB_H

#include "dist/plan.h"
#include "dist/traffic.h"
#include "launcher/job.h"
#include "launcher/units.h"

enum { TSR_MAX_ADVICE = 32, TSR_MAX_RANKS = 65536 };

// One change of the run, or several, with what it would hold then.
struct tsr_advice {
    char change[200];   // "train.recompute=full", or in words: "2 hosts, 4 ranks on each"
    size_t rank_bytes;  // of the largest rank
    size_t host_bytes;  // of the fullest host
    bool fits;          // on every host
    bool other_numbers; // changes the order of sums: not for a run that is under way
};

struct tsr_planned {
    struct tsr_job job;
    struct tsr_plan_opt opt;
    struct tsr_plan plan;
    size_t host_bytes; // of the fullest host
    int full_host;     // which one
    uint64_t memory;   // of a host, for this run
    struct tsr_advice advice[TSR_MAX_ADVICE];
    int n_advice;
};

// Reads and plans a run over its tp x pp x dp ranks. `per_host` 0: all on one host; `memory` 0:
// what this machine has available. Close after failures, too.
int tsr_planned_open(struct tsr_planned *p, const char *command, const char *path,
                     const char *const *overrides, int n_overrides, int64_t per_host,
                     uint64_t memory);
void tsr_planned_close(struct tsr_planned *p);

// Bytes of the fullest host, and which one it is.
size_t tsr_plan_host(const struct tsr_plan *plan, int per_host, int *host);

// Fills `out` (at most TSR_MAX_ADVICE) with changes that save memory, from the one that costs least
// to the one that costs most. Returns how many.
int tsr_plan_advise(struct tsr_advice *out, const struct tsr_run *run, const struct tsr_model *m,
                    const struct tsr_plan *plan, const struct tsr_plan_opt *opt, uint64_t memory);
// The first that fits, else the one that saves most; NULL when there is none.
const struct tsr_advice *tsr_plan_best(const struct tsr_advice *a, int n);

// Before a run starts: TSR_ENOMEM with one sentence when the ranks of this host, [first, first +
// n), can't fit into what it has available. `threads` of each rank. Not collective.
int tsr_plan_refuse(const struct tsr_run *run, const struct tsr_model *m,
                    const struct tsr_mesh *mesh, int first, int n, int threads);

// The same for a job that has joined its ranks, read its run and opened its device, on every host
// and for every device: collective, before anything large is allocated.
int tsr_plan_refuse_job(struct tsr_job *j);

// The report on standard output.
void tsr_plan_print(const struct tsr_planned *p);
int tsr_plan_print_json(const struct tsr_planned *p); // TSR_ENOMEM

#endif

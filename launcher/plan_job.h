// A run file with its plan (dist/plan.h), whether it fits on the machines, and what would make it
// fit.
#ifndef TSR_LAUNCHER_PLAN_JOB_H
#define TSR_LAUNCHER_PLAN_JOB_H

#include "dist/plan.h"
#include "dist/traffic.h"
#include "launcher/job.h"
#include "launcher/units.h"

enum { TSR_MAX_ADVICE = 32, TSR_MAX_RANKS = 65536 };

// What the fullest host of a run holds, and the fullest device: 0 when the ranks compute on the
// host.
struct tsr_fill {
    size_t host_bytes, device_bytes;
};

// What each host has for it.
struct tsr_room {
    uint64_t host_bytes;
    uint64_t device_bytes; // of each device; UINT64_MAX: unknown
    int devices;           // its ranks take them in turns; 0: they compute on the host
};

// One change of the run, or several, with what it would hold then.
struct tsr_advice {
    char change[200];  // "train.recompute=full", or in words: "2 hosts, 4 ranks on each"
    size_t rank_bytes; // of the largest rank
    struct tsr_fill fill;
    size_t scarce_bytes; // of it, what there is too little of: a device's, or else the host's
    bool fits;           // everywhere
    bool other_numbers;  // changes the order of sums: not for a run that is under way
};

struct tsr_planned {
    struct tsr_job job;
    struct tsr_plan_opt opt;
    struct tsr_plan plan;
    struct tsr_fill fill;
    struct tsr_room room;
    bool fits;
    struct tsr_advice advice[TSR_MAX_ADVICE];
    int n_advice;
};

// Where a run is to be planned for; zeros ask this machine.
struct tsr_planned_for {
    int64_t per_host;      // ranks; 0: all on one host
    int64_t devices;       // of a host; 0: this machine's, or else one for each of its ranks
    uint64_t host_bytes;   // 0: what this machine has available
    uint64_t device_bytes; // 0: what this machine's first device has free, or else unknown
};

// Reads and plans a run over its tp x pp x dp ranks. Close after failures, too.
int tsr_planned_open(struct tsr_planned *p, const char *command, const char *path,
                     const char *const *overrides, int n_overrides,
                     const struct tsr_planned_for *where);
void tsr_planned_close(struct tsr_planned *p);

// What the fullest host and device hold of ranks that are dealt out in order, `per_host` to a host.
struct tsr_fill tsr_plan_fill(const struct tsr_plan *plan, int per_host, int devices);
bool tsr_plan_fits(const struct tsr_fill *fill, const struct tsr_room *room);
// How a run is planned whose device is no more `auto`.
struct tsr_plan_opt tsr_plan_options(const struct tsr_run *run, int per_host);

// Fills `out` (at most TSR_MAX_ADVICE) with changes that save memory where it is missing, from the
// one that costs least to the one that costs most. Returns how many.
int tsr_plan_advise(struct tsr_advice *out, const struct tsr_run *run, const struct tsr_model *m,
                    const struct tsr_plan *plan, const struct tsr_plan_opt *opt,
                    const struct tsr_room *room);
// The first that fits, else the one that saves most; NULL when there is none.
const struct tsr_advice *tsr_plan_best(const struct tsr_advice *a, int n);

// Before a job starts that has joined its ranks, read its run and opened its device: TSR_ENOMEM
// with one sentence when the ranks of a host, or of one of its devices, can't fit into what is free
// there. Collective, before anything large is allocated.
int tsr_plan_refuse(struct tsr_job *j);

// The report on standard output.
void tsr_plan_print(const struct tsr_planned *p);
int tsr_plan_print_json(const struct tsr_planned *p); // TSR_ENOMEM

#endif

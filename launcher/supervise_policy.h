// What to do after the ranks of a run have ended: pure decisions, without processes or clocks.
#ifndef TSR_LAUNCHER_SUPERVISE_POLICY_H
#define TSR_LAUNCHER_SUPERVISE_POLICY_H

#include <stdbool.h>
#include <stdint.h>
#include "core/run.h"

enum {
    TSR_MAX_LAYOUTS = 64,
    TSR_VAIN_RESTARTS = 2,    // where ranks never came up
    TSR_EXIT_PEER = 4,        // a peer or host failed
    TSR_EXIT_INTERRUPTED = 5, // a checkpoint was written first
};

#define TSR_FIRST_DELAY_S 0.2
#define TSR_MAX_DELAY_S   30.0

struct tsr_policy {
    int64_t max_restarts;                        // in a row without a newly committed step
    struct tsr_layout3 layouts[TSR_MAX_LAYOUTS]; // in order of preference, the run file's own first
    int n_layouts;
    // state
    int64_t committed; // newest step committed so far; 0: none
    int64_t restarts;  // since then
    bool began;        // ranks reached the coordinator, in any incarnation
    int64_t ends_70;   // ends by our own bug, since then
    int layout;        // of the incarnation that runs or ran last
    int failures;      // of that layout in a row, since then
    uint64_t given_up; // layouts that failed twice in a row since then, bit by bit
    double delay_s;    // before the last restart
};

// The run file's layout and its parallel.elastic. `committed` as found at the start.
// TSR_ECONFIG: more than TSR_MAX_LAYOUTS.
int tsr_policy_init(struct tsr_policy *p, const struct tsr_run *r, int64_t committed);

struct tsr_end {
    int code;          // exit code of the job, 128 + signal when a signal ended it
    bool stopping;     // the user asked for the end
    bool began;        // ranks reached the coordinator
    int64_t committed; // newest step committed now
};

struct tsr_verdict {
    bool restart;
    int exit_code;  // when not restarting
    double delay_s; // when restarting
};

// 0, 2, 3 and 5 are final: done, the user's mistake, an exhausted resource (the message says which;
// trying again would fill the log, not the disk), an orderly interruption. 70 is tried again once.
// Everything else is a peer's or host's failure: tried again after a delay that doubles from 0.2 s
// to 30 s, until max_restarts ends in a row committed nothing new; the exit code is then 4. Where
// the ranks could not be brought up even once, TSR_VAIN_RESTARTS are enough. After the user asked
// for the end nothing is tried again.
struct tsr_verdict tsr_policy_after(struct tsr_policy *p, const struct tsr_end *e);

// Chooses the layout of the next incarnation: the first one that fits `n_ranks` ranks and hasn't
// failed twice in a row without a newly committed step; when all that fit have, they are tried
// again from the first. Returns its index and remembers it, or -1 when none fits.
int tsr_policy_choose(struct tsr_policy *p, int64_t n_ranks);

int64_t tsr_layout_ranks(const struct tsr_layout3 *l);

#endif

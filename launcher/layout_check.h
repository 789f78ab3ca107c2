// The parts of `tessera layout-check`.
#ifndef TSR_LAUNCHER_LAYOUT_CHECK_H
#define TSR_LAUNCHER_LAYOUT_CHECK_H

#include "launcher/gradients.h"
#include "launcher/plan_job.h"

enum { TSR_CHECK_MAX_ARGS = 256 };

// One of the two layouts.
struct tsr_side {
    struct tsr_planned plan; // its run file, checked
    const char *overrides[2 * TSR_CHECK_MAX_ARGS];
    int n_overrides;
    char text[80];          // "tp=2 pp=2 dp=1"
    char dir[TSR_PATH_MAX]; // of its gradients
};

struct tsr_check {
    const char *path; // of the run file
    int64_t steps;
    char scratch[TSR_PATH_MAX];
    struct tsr_side side[2];
    char extra[TSR_CHECK_MAX_ARGS][128]; // overrides made of --against
    int n_extra;
    bool exact; // in both
};

// Turns "tp=1,pp=1,dp=1" into overrides of the other side. TSR_EUSAGE.
int tsr_check_against(struct tsr_check *c, const char *against);

// Starts the ranks of a side and waits for them. On failure *exit_code is theirs (0: none of them
// failed), and what they said stands on standard error.
int tsr_check_run(struct tsr_check *c, struct tsr_side *s, int *exit_code);

// What such a rank does: `args` are the folder, the steps, the run file and its overrides. Returns
// the process's exit code.
int tsr_check_rank(int argc, char **argv);

#endif

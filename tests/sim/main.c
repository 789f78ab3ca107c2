// sim_coordinator [--seeds N] [--first SEED] [--bug NAME] [--trace SEED] [--bugs]
//
//   --seeds N     runs so many seeds of the product; ends with 1 at the first violation, which
//                 it prints with its seed
//   --trace SEED  runs one and tells what happens
//   --bug NAME    seeds a bug; ends with 1 when no seed finds it
//   --bugs        all bugs, one after another
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/log.h"
#include "tests/sim/sim.h"

static const char *const names[] = {
#define X(name, text) #name,
    SIM_BUGS(X)
#undef X
};

static const char *const texts[] = {
#define X(name, text) text,
    SIM_BUGS(X)
#undef X
};

static int run_seeds(uint64_t first, uint64_t n) {
    uint64_t n_events = 0, n_commits = 0;
    double began = tsr_now();
    for (uint64_t seed = first; seed < first + n; seed++) {
        struct sim_result r;
        sim_run(seed, BUG_NONE, false, &r);
        n_events += r.n_events;
        n_commits += r.n_commits;
        if (!r.violation[0])
            continue;
        printf("seed %" PRIu64 ": %s\nsee it: sim_coordinator --trace %" PRIu64 "\n", seed,
               r.violation, seed);
        return 1;
    }
    double took = tsr_now() - began;
    printf("%" PRIu64 " seeds hold: %" PRIu64 " events, %" PRIu64
           " commits, %.1f s, %.0f seeds/s\n",
           n, n_events, n_commits, took, (double)n / took);
    return 0;
}

// A bug that no invariant notices would make the invariants worthless.
static int find_bug(enum sim_bug bug, uint64_t first, uint64_t n) {
    for (uint64_t seed = first; seed < first + n; seed++) {
        struct sim_result r;
        sim_run(seed, bug, false, &r);
        if (!r.violation[0])
            continue;
        printf("%-18s caught after %4" PRIu64 " seeds (%s): %s\n", names[bug], seed - first + 1,
               texts[bug], r.violation);
        return 0;
    }
    printf("%-18s not caught in %" PRIu64 " seeds (%s)\n", names[bug], n, texts[bug]);
    return 1;
}

static int find_bugs(uint64_t first, uint64_t n) {
    int missed = 0;
    for (int bug = BUG_NONE + 1; bug < N_BUGS; bug++)
        missed += find_bug((enum sim_bug)bug, first, n);
    return missed > 0;
}

static int usage(void) {
    fprintf(stderr, "usage: sim_coordinator [--seeds N] [--first SEED] [--bug NAME] [--bugs] "
                    "[--trace SEED]\n");
    return 2;
}

int main(int argc, char **argv) {
    uint64_t first = 0, n = 0, traced = 0;
    int bug = BUG_NONE;
    bool trace = false, bugs = false;
    tsr_log_level(TSR_LOG_ERROR);
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;
        if (strcmp(argv[i], "--bugs") == 0) {
            bugs = true;
            continue;
        }
        if (!value)
            return usage();
        if (strcmp(argv[i], "--seeds") == 0)
            n = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--first") == 0)
            first = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--trace") == 0)
            trace = true, traced = strtoull(value, NULL, 10);
        else if (strcmp(argv[i], "--bug") == 0)
            for (bug = 0; bug < N_BUGS && strcmp(names[bug], value) != 0;)
                bug++;
        else
            return usage();
        i++;
    }
    if (bug == N_BUGS)
        return usage();
    if (trace) {
        struct sim_result r;
        tsr_log_level(TSR_LOG_DEBUG);
        sim_run(traced, (enum sim_bug)bug, true, &r);
        printf("%s\n", r.violation[0] ? r.violation : "all invariants hold");
        return r.violation[0] != '\0';
    }
    if (bugs)
        return find_bugs(first, n ? n : 5000);
    return bug == BUG_NONE ? run_seeds(first, n ? n : 1000)
                           : find_bug((enum sim_bug)bug, first, n ? n : 5000);
}

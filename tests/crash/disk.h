// A state of the model as real files, so that the project's own recovery can be asked about it.
#ifndef TSR_TESTS_CRASH_DISK_H
#define TSR_TESTS_CRASH_DISK_H

#include "tests/crash/model.h"

struct crash_path {
    char *path;  // below the run directory
    int content; // -1: a folder
};

struct crash_disk {
    struct crash_model *m;
    char dir[TSR_PATH_MAX];
    struct crash_path *now; // what is there, by path
    int n_now;
};

void crash_disk_open(struct crash_disk *d, struct crash_model *m, const char *dir);
void crash_disk_close(struct crash_disk *d);

// What the next start of a run would find.
struct crash_found {
    int64_t step;      // of the newest checkpoint that verifies; -1: there is none
    uint64_t manifest; // XXH3 of its manifest
    int n_refused;     // newer ones that don't verify
};

// Makes the files of a state, changing as little as possible, and recovers as a run does.
struct crash_found crash_disk_recover(struct crash_disk *d, const struct crash_state *s);

#endif

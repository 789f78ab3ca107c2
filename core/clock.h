// The one clock that durations are measured by.
#ifndef TSR_CORE_CLOCK_H
#define TSR_CORE_CLOCK_H

#include <time.h>

// Seconds of a clock: CLOCK_MONOTONIC for durations, CLOCK_BOOTTIME to compare with /proc.
static inline double tsr_clock(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static inline double tsr_now(void) {
    return tsr_clock(CLOCK_MONOTONIC);
}

#endif

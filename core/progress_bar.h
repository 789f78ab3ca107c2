// The progress of one long job. On a terminal it is a bar that is redrawn in place, with percent,
// rate and time left; elsewhere it is an ordinary log line every few seconds.
#ifndef TSR_CORE_PROGRESS_BAR_H
#define TSR_CORE_PROGRESS_BAR_H

#include <stdint.h>

struct tsr_bar {
    const char *label, *unit; // not copied; unit "B" is counted in kB, MB, GB
    uint64_t first, total;    // units done before it began, and at the end
    uint64_t done;
    double began_s, shown_s; // monotonic clock
};

// `done` units of `total` are done already (a resumed run). total 0: the end isn't known.
void tsr_bar_begin(struct tsr_bar *bar, const char *label, const char *unit, uint64_t done,
                   uint64_t total);

// Cheap: draws at most ten times a second on a terminal, one line in five seconds elsewhere.
// `extra` ("loss 4.31  8.1k tokens/s") is put at the end; NULL: nothing.
void tsr_bar_update(struct tsr_bar *bar, uint64_t done, const char *extra);

// Takes the bar off the terminal and logs one line: what was done, in what time, how fast.
void tsr_bar_end(struct tsr_bar *bar);

// Takes the bar off the terminal and says nothing (the job failed, or isn't worth a line).
void tsr_bar_stop(struct tsr_bar *bar);

#endif

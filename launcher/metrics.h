// RUN_DIR/metrics.jsonl: one object per step, floats with 9 significant digits, so that equal text
// is equal bits.
#ifndef TSR_LAUNCHER_METRICS_H
#define TSR_LAUNCHER_METRICS_H

#include <stdint.h>
#include <stdio.h>

struct tsr_metrics {
    FILE *f;
    char *path;
};

struct tsr_metrics_line {
    int64_t step, tokens; // tokens: seen since the run began
    double loss, grad_norm, lr, tokens_per_s, mfu, step_ms;
    int64_t skipped;   // bad steps so far, of those that count
    int64_t rollbacks; // so far
    int64_t dropped;   // sequences left out by them
    double valid_loss; // negative: not evaluated after this step
};

// Keeps the lines of steps 1 to `after_step` and opens for append. A line that isn't ours ends what
// is kept.
int tsr_metrics_open(struct tsr_metrics *m, const char *run_dir, int64_t after_step);
int tsr_metrics_write(struct tsr_metrics *m, const struct tsr_metrics_line *l);
void tsr_metrics_close(struct tsr_metrics *m);

#endif

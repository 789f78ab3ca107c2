// Steps that went wrong: loss or gradient norm not finite, or a spike, far above those of the steps
// before. What is done about one is decided here, as a pure function of numbers that all ranks
// agree on and before anything is updated, so that every rank of every layout decides alike.
//
// Skipping what isn't finite is usual; going back to a checkpoint and on with the data after the
// bad batch is what the PaLM paper did about spikes (Chowdhery et al. 2022, section 5.1). The
// gradient norm shows a spike before the weights suffer from it, the loss one that is already
// there; the median of a window is hardly moved by the few outliers that may have passed as good.
#ifndef TSR_CORE_GUARD_H
#define TSR_CORE_GUARD_H

#include "core/run.h"

enum { TSR_GUARD_WINDOW = 1024 }; // largest train.spike.window

// What decisions depend on; a part of each checkpoint (state.json), so that a resumed run decides
// as one that never stopped.
struct tsr_guard {
    int64_t skips;     // bad steps skipped in a row
    int64_t rollbacks; // of the whole run
    int64_t retries;   // rollbacks to the anchor
    bool anchored;
    int64_t anchor; // step of the checkpoint that a rollback goes to, when anchored
    // The last `n` good steps, oldest first. In fp32 as in metrics.jsonl, from which a reader can
    // find each decision again.
    int n;
    float loss[TSR_GUARD_WINDOW], grad_norm[TSR_GUARD_WINDOW];
};

enum tsr_step_kind {
    TSR_STEP_GOOD,
    TSR_STEP_NOT_FINITE,
    TSR_STEP_NORM_SPIKE,
    TSR_STEP_LOSS_SPIKE,
};

struct tsr_judgement {
    enum tsr_step_kind kind;
    enum tsr_on_bad action;   // of a bad step
    bool worn_out;            // it is to stop because train.max_skips is reached
    double loss, grad_norm;   // of the step
    double factor, median;    // of a spike: more than factor x median
    int64_t window, in_a_row; // good steps in the window; bad ones before this one
};

// Judges a step by its loss and gradient norm (before clipping). A spike needs a full window of
// good steps before it; train.spike.grad_norm is asked first.
struct tsr_judgement tsr_guard_judge(const struct tsr_guard *g, const struct tsr_run *r,
                                     double loss, double grad_norm);
// Remembers a step that counts: a good one, or a bad one whose update is skipped.
void tsr_guard_count(struct tsr_guard *g, const struct tsr_run *r, const struct tsr_judgement *j);

// Whether the run file lets a step lead to a rollback.
bool tsr_guard_may_roll_back(const struct tsr_run *r);

// "step 14: loss 2.1, gradient norm 52.1: the norm is more than 5 x 1.02, …": what is wrong with
// step `step`, for a message.
enum { TSR_GUARD_TEXT = 320 };
void tsr_guard_describe(char out[static TSR_GUARD_TEXT], const struct tsr_judgement *j,
                        int64_t step);

#endif

// What the files of the training loop share.
#ifndef TSR_LAUNCHER_TRAINING_PRIVATE_H
#define TSR_LAUNCHER_TRAINING_PRIVATE_H

#include "core/progress_bar.h"
#include "dist/train.h"
#include "launcher/attach.h"
#include "launcher/metrics.h"
#include "launcher/saver.h"

struct tsr_training {
    struct tsr_job job;
    struct tsr_trainer trainer;
    struct tsr_metrics metrics;
    struct tsr_attachment attachment;
    struct tsr_saver *saver;
    struct tsr_bar bar;
    double peak_flops; // of all ranks
    double valid_loss; // of the last evaluation, when has_valid_loss
    bool has_valid_loss;
    int64_t saved_step; // of the newest checkpoint that was begun or loaded; -1: none
};

static inline bool tsr_is_rank0(const struct tsr_training *tr) {
    return tr->job.comm.rank == 0;
}

// ---- training_state.c. All of these are called by all ranks together.

// Weights: the newest good checkpoint, a model directory, or fresh ones. Collective.
int tsr_training_load(struct tsr_training *tr);
// All state from the newest good checkpoint of a step below `below`, whose directory goes to dir.
// 1, or 0: there is none. Collective.
int tsr_training_resume(struct tsr_training *tr, int64_t below, char dir[static TSR_PATH_MAX]);

enum tsr_save_kind {
    TSR_SAVE_PLAIN,  // at an interruption or the end
    TSR_SAVE_ANCHOR, // periodical, or of the beginning: rollbacks go to the last one
    TSR_SAVE_AGAIN,  // the anchor after a rollback, with another data position
};
// Has a checkpoint of this step written; `wait`: until it is committed. A plain one that is there
// already isn't written again. The ranks' codes may differ.
int tsr_training_save(struct tsr_training *tr, enum tsr_save_kind kind, bool wait);

// ---- bad_step.c

// A run that may roll back has a checkpoint to go to before its first step. Collective.
int tsr_training_anchor(struct tsr_training *tr);
// After a step that doesn't stand: back to the anchor, or to the end with a checkpoint of the state
// before it (TSR_EDIVERGED). Collective.
int tsr_training_bad_step(struct tsr_training *tr, const struct tsr_step_result *s);

#endif

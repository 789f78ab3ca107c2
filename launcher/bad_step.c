// What a run does about a step that doesn't stand (core/guard.h).
//
// A rollback loads the anchor, the last periodical checkpoint, and writes it again with the data
// position after the bad batch before training goes on: from then on no resume can meet that batch.
// A run that is killed before that has the old anchor, and comes to the same end again. Checkpoints
// after the anchor (of interruptions) are of steps that are given up, and go first.
//
// The anchor, not the newest checkpoint, so that a run that was interrupted now and then rolls back
// to where one that was left alone does.
#include "core/checkpoint_publish.h"
#include "core/error.h"
#include "core/guard.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "launcher/training_private.h"

static int agree(struct tsr_training *tr, int rc) {
    return tsr_agree(&tr->job.ctx, &tr->job.comm, rc);
}

int tsr_training_anchor(struct tsr_training *tr) {
    const struct tsr_run *r = &tr->job.run;
    if (!tsr_guard_may_roll_back(r) || tr->trainer.guard.anchored)
        return 0;
    return agree(tr, tsr_training_save(tr, TSR_SAVE_ANCHOR, !r->checkpoint.async));
}

// Loads the anchor, or an older one when it isn't good.
static int load_anchor(struct tsr_training *tr) {
    const struct tsr_run *r = &tr->job.run;
    const struct tsr_trainer *t = &tr->trainer;
    TSR_ASSERT(t->guard.anchored); // tsr_training_anchor
    int64_t anchor = t->guard.anchor;
    char dir[TSR_PATH_MAX];
    TSR_TRY(agree(tr, tsr_saver_wait(tr->saver))); // nothing is written into what is read now
    int rc = tsr_is_rank0(tr) ? tsr_checkpoint_discard(r->run.dir, anchor, t->step) : 0;
    TSR_TRY(agree(tr, rc));
    TSR_TRY(rc = tsr_training_resume(tr, anchor + 1, dir));
    return rc == 1 ? 0
                   : agree(tr, tsr_fail(TSR_EMODEL,
                                        "%s: expected a checkpoint of step %lld or before to roll "
                                        "back to, found none that is good",
                                        r->run.dir, (long long)anchor));
}

static int restart_reports(struct tsr_training *tr) {
    const struct tsr_run *r = &tr->job.run;
    if (!tsr_is_rank0(tr))
        return 0;
    tsr_metrics_close(&tr->metrics);
    TSR_TRY(tsr_metrics_open(&tr->metrics, r->run.dir, tr->trainer.step));
    tsr_bar_begin(&tr->bar, "train", "steps", (uint64_t)tr->trainer.step, (uint64_t)r->train.steps);
    return 0;
}

static int roll_back(struct tsr_training *tr, const char *what) {
    struct tsr_trainer *t = &tr->trainer;
    int64_t batch = tr->job.run.train.global_batch;
    int64_t sequences = t->sequences + batch, rollbacks = t->guard.rollbacks + 1;
    int64_t anchor = t->guard.anchor;
    tr->job.progress.phase = TSR_PHASE_LOAD;
    TSR_TRY(load_anchor(tr));
    int64_t dropped = sequences - t->sequences;
    t->sequences = sequences;
    t->guard.rollbacks = rollbacks;
    t->guard.retries++;
    tr->job.progress.step = (uint64_t)t->step;
    if (tsr_is_rank0(tr))
        tsr_warn("%s: rolled back to step %lld; %lld sequences are left out, training goes on with "
                 "sequence %lld",
                 what, (long long)t->step, (long long)dropped, (long long)sequences);
    TSR_TRY(agree(tr, restart_reports(tr)));
    TSR_TRY(agree(tr, tsr_training_save(tr, TSR_SAVE_AGAIN, true)));
    if (t->step == anchor || !tsr_is_rank0(tr))
        return agree(tr, 0);
    // The anchor wasn't good today; a later resume must not find that it is.
    return agree(tr, tsr_checkpoint_discard(tr->job.run.run.dir, t->step, anchor));
}

static int stop(struct tsr_training *tr, const struct tsr_judgement *j, const char *what) {
    const struct tsr_trainer *t = &tr->trainer;
    char why[160];
    TSR_TRY(agree(tr, tsr_training_save(tr, TSR_SAVE_PLAIN, true)));
    if (j->worn_out)
        snprintf(why, sizeof why, "%lld %s are all that train.max_skips allows",
                 (long long)j->in_a_row,
                 j->action == TSR_ON_BAD_ROLLBACK ? "rollbacks to one checkpoint"
                                                  : "skipped steps in a row");
    else
        snprintf(why, sizeof why, "%s is stop",
                 j->kind == TSR_STEP_NOT_FINITE ? "train.on_nonfinite" : "train.spike.action");
    return agree(tr,
                 tsr_fail(TSR_EDIVERGED, "%s; %s. The state before it is checkpoint step-%08lld",
                          what, why, (long long)t->step));
}

int tsr_training_bad_step(struct tsr_training *tr, const struct tsr_step_result *s) {
    char what[TSR_GUARD_TEXT];
    tsr_guard_describe(what, &s->judged, tr->trainer.step + 1);
    if (s->judged.action == TSR_ON_BAD_ROLLBACK && !s->judged.worn_out)
        return roll_back(tr, what);
    return stop(tr, &s->judged, what);
}

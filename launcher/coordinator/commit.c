// The last stage of a save: disk steps, one at a time, and how a save ends.
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/control/registry.h"
#include "launcher/coordinator/coordinator_private.h"

// ---- the queue of disk jobs: the first one is in flight

bool tsr_coord_disk(struct tsr_coord *c, enum tsr_disk_step step, struct tsr_save *s) {
    if (c->queued == TSR_COORD_QUEUE)
        return false;
    struct tsr_queued *q = &c->queue[c->queued++];
    *q = (struct tsr_queued){{.id = ++c->next_job, .step = step, .keep = c->opt.keep}, s};
    if (s) {
        s->refs++;
        q->job.save = &s->out;
    }
    if (c->queued == 1)
        c->seam.disk(c->seam.arg, &q->job);
    return true;
}

// ---- outcomes

static void remember(struct tsr_coord *c, const struct tsr_outcome *o) {
    c->outcomes[c->n_outcomes++ % TSR_COORD_OUTCOMES] = *o;
    if (o->attempt > c->newest_attempt)
        c->newest_attempt = o->attempt;
}

const struct tsr_outcome *tsr_coord_outcome(const struct tsr_coord *c, uint64_t step,
                                            uint32_t attempt) {
    for (int i = 0; attempt > 0 && i < TSR_COORD_OUTCOMES && c->rules->remembers(); i++)
        if (c->outcomes[i].attempt == attempt && c->outcomes[i].step == step)
            return &c->outcomes[i];
    return NULL;
}

void tsr_coord_tell_outcome(struct tsr_coord *c, int rank /* -1: all */,
                            const struct tsr_outcome *o) {
    Tessera__Checkpoint__SaveDone done = TESSERA__CHECKPOINT__SAVE_DONE__INIT;
    Tessera__Checkpoint__SaveAbort abort = TESSERA__CHECKPOINT__SAVE_ABORT__INIT;
    done.step = abort.step = o->step;
    done.attempt = abort.attempt = o->attempt;
    done.directory = abort.reason = (char *)o->text;
    abort.exit_code = o->exit_code;
    const ProtobufCMessage *m = o->committed ? &done.base : &abort.base;
    uint16_t type = o->committed ? TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DONE
                                 : TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_ABORT;
    if (rank < 0)
        tsr_coord_tell_ranks(c, type, m);
    else
        tsr_coord_tell_rank(c, rank, type, m);
}

// The save in flight is over.
static void end(struct tsr_coord *c, const struct tsr_outcome *o) {
    struct tsr_save *s = c->save;
    s->ended = true;
    c->save = NULL;
    remember(c, o);
    tsr_coord_tell_outcome(c, -1, o);
    tsr_save_unref(s);
}

static struct tsr_outcome outcome_of(const struct tsr_save *s) {
    return (struct tsr_outcome){.step = s->out.step, .attempt = s->out.attempt};
}

void tsr_coord_abort(struct tsr_coord *c, uint32_t exit_code, const char *fmt, ...) {
    struct tsr_save *s = c->save;
    if (!s || s->renaming)
        return;
    struct tsr_outcome o = outcome_of(s);
    char text[1024];
    va_list args;
    va_start(args, fmt);
    vsnprintf(text, sizeof text, fmt, args);
    va_end(args);
    tsr_frame_text(o.text, sizeof o.text, text);
    o.exit_code = exit_code;
    tsr_warn("the save of step %" PRIu64 " is given up: %s", o.step, o.text);
    if (!tsr_coord_disk(c, TSR_DISK_REMOVE_TEMPORARY, s))
        tsr_warn("%s stays behind", s->out.temporary);
    end(c, &o);
}

static void announce(struct tsr_coord *c, struct tsr_save *s) {
    struct tsr_outcome o = outcome_of(s);
    o.committed = true;
    memcpy(o.text, s->out.directory, sizeof s->out.directory);
    c->committed_step = o.step; // after a rollback a smaller one than before
    tsr_info("checkpoint %s is committed", o.text);
    end(c, &o);
    if (c->opt.keep > 0)
        tsr_coord_disk(c, TSR_DISK_RETAIN, NULL);
}

void tsr_coord_save_heard(struct tsr_coord *c, const struct tsr_outcome *o) {
    if (tsr_coord_outcome(c, o->step, o->attempt))
        return;
    struct tsr_save *s = c->save;
    bool mine = s && s->out.attempt == o->attempt && s->out.step == o->step;
    if (mine && s->stage == TSR_SAVE_COMMIT)
        return; // all ranks take part in it again: it ends by itself
    if (o->committed && o->step > c->committed_step)
        c->committed_step = o->step;
    if (mine) {
        end(c, o);
        return;
    }
    remember(c, o);
    if (s && s->out.attempt < o->attempt)
        tsr_coord_abort(c, 4, "attempt %" PRIu32 " is over already", o->attempt);
}

// ---- disk steps of a commit

void tsr_coord_commit(struct tsr_coord *c) {
    struct tsr_save *s = c->save;
    s->stage = TSR_SAVE_COMMIT;
    s->commit_at = 0;
    if (!tsr_coord_disk(c, c->rules->commit[0], s))
        tsr_coord_abort(c, 3, "too many disk jobs wait");
}

// The rename can't be taken back, but nobody knows whether it is on the disk.
static void end_in_doubt(struct tsr_coord *c, const struct tsr_save *s, int rc, const char *error) {
    struct tsr_outcome o = outcome_of(s);
    o.exit_code = (uint32_t)tsr_exit_code(rc);
    char text[sizeof o.text];
    snprintf(text, sizeof text, "%s is there, but may be lost if the machine fails now: %s",
             s->out.directory, error);
    tsr_frame_text(o.text, sizeof o.text, text);
    tsr_warn("%s", o.text);
    end(c, &o);
}

static void step_failed(struct tsr_coord *c, struct tsr_save *s, enum tsr_disk_step step, int rc,
                        const char *error) {
    if (step == TSR_DISK_RENAME)
        s->renaming = false;
    if (s->renaming)
        end_in_doubt(c, s, rc, error);
    else
        tsr_coord_abort(c, (uint32_t)tsr_exit_code(rc), "%s", error);
}

static void next_step(struct tsr_coord *c, struct tsr_save *s) {
    enum tsr_disk_step step = c->rules->commit[++s->commit_at];
    s->renaming |= step == TSR_DISK_RENAME;
    if (tsr_coord_disk(c, step, s))
        return;
    s->renaming &= step != TSR_DISK_RENAME;
    step_failed(c, s, step, TSR_EIO, "too many disk jobs wait");
}

static void step_done(struct tsr_coord *c, struct tsr_save *s, enum tsr_disk_step step,
                      uint64_t value) {
    if (step == TSR_DISK_CHECK_EPOCH && !c->rules->epoch_holds(c->opt.epoch, value)) {
        char cause[128];
        snprintf(cause, sizeof cause,
                 "epoch %" PRIu64 " of this run has begun, this one is epoch %" PRIu64, value,
                 c->opt.epoch);
        tsr_coord_abort(c, 4, "%s", cause);
        tsr_coord_fail(c, c->members.world, cause);
        return;
    }
    bool last = s->commit_at + 1 == c->rules->n_commit;
    if (!last)
        next_step(c, s);
    if (step == c->rules->announce_after && c->save == s)
        announce(c, s);
}

static void answer(struct tsr_coord *c, const struct tsr_queued *q, int rc, const char *error,
                   uint64_t value) {
    switch (q->job.step) {
    case TSR_DISK_FIND_NEWEST:
        if (rc < 0)
            tsr_warn("cannot tell the newest checkpoint: %s", error);
        else if (value > c->committed_step)
            c->committed_step = value;
        return;
    case TSR_DISK_RETAIN:
        if (rc < 0)
            tsr_warn("old checkpoints stay: %s", error);
        return;
    case TSR_DISK_REMOVE_TEMPORARY:
        if (rc < 0)
            tsr_warn("%s stays behind: %s", q->save->out.temporary, error);
        return;
    default:
        break;
    }
    if (q->save->ended) // given up while the step was under way
        return;
    q->save->progress = c->seam.now(c->seam.arg);
    if (rc < 0)
        step_failed(c, q->save, q->job.step, rc, error);
    else
        step_done(c, q->save, q->job.step, value);
}

void tsr_coord_disk_done(struct tsr_coord *c, uint64_t id, int rc, const char *error,
                         uint64_t value) {
    TSR_ASSERT(c->queued > 0 && c->queue[0].job.id == id);
    struct tsr_queued q = c->queue[0];
    answer(c, &q, rc, error ? error : "no reason given", value);
    c->queued--;
    memmove(c->queue, c->queue + 1, (size_t)c->queued * sizeof *c->queue);
    if (c->queued > 0)
        c->seam.disk(c->seam.arg, &c->queue[0].job);
    tsr_save_unref(q.save);
}

// The rank's side of a checkpoint. What was said is kept until the end is known, so that it can be
// said again to a coordinator that was started anew.
#include "launcher/agent_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

static void send_ready(struct tsr_agent *a) {
    Tessera__Checkpoint__SaveReady r = TESSERA__CHECKPOINT__SAVE_READY__INIT;
    r.step = a->save.step;
    r.attempt = a->save.attempt;
    tsr_agent_send(a, FRAME(SAVE_READY), &r.base);
}

static void send_vote(struct tsr_agent *a) {
    tsr_agent_send(a, FRAME(SAVE_VOTE), &a->save.vote.as_vote.base);
}

static void send_digests(struct tsr_agent *a) {
    tsr_agent_send(a, FRAME(SAVE_DIGESTS), &a->save.digests.as_digests.base);
}

static void free_save(struct tsr_agent_save *s) {
    tsr_said_plan_free(&s->plan);
    tsr_said_vote_free(&s->vote);
    tsr_said_vote_free(&s->digests);
    tsr_save_plan_free(&s->new_plan);
    tsr_save_vote_free(&s->new_vote);
    free(s->spans);
    free(s->work_spans);
    *s = (struct tsr_agent_save){0};
}

// On a worker thread: touches what the running work owns, and nothing else.
static void on_work(uv_work_t *w) {
    struct tsr_agent_save *s = w->data;
    const struct tsr_save_ops *ops = &s->ops;
    s->code = 0;
    if (s->running == TSR_WORK_BEGIN)
        s->code = ops->begin(ops->arg, &s->new_plan);
    else if (s->running == TSR_WORK_WRITE)
        s->code = ops->write(ops->arg, &s->new_vote);
    else if (s->running == TSR_WORK_DIGEST)
        s->code = ops->digest(ops->arg, s->work_spans, s->n_work_spans, &s->new_vote);
    else
        ops->ended(ops->arg, &s->result);
    snprintf(s->error, sizeof s->error, "%s", s->code < 0 ? tsr_error_text() : "");
}

static void next(struct tsr_agent *a);

static void vote_failure(struct tsr_agent *a, int code, const char *error) {
    struct tsr_agent_save *s = &a->save;
    s->own_code = s->own_code ? s->own_code : code;
    tsr_said_vote_set(&s->vote, &s->new_vote, s->step, s->attempt, code, error);
    send_vote(a);
}

static void begun(struct tsr_agent *a) {
    struct tsr_agent_save *s = &a->save;
    if (s->code == 0) {
        s->code = tsr_said_plan_set(&s->plan, &s->new_plan, s->step, s->attempt);
        snprintf(s->error, sizeof s->error, "%s", tsr_error_text());
    }
    if (s->code < 0)
        vote_failure(a, s->code, s->error);
    else
        tsr_agent_send(a, FRAME(SAVE_PLAN), &s->plan.message.base);
}

static void written(struct tsr_agent *a) {
    struct tsr_agent_save *s = &a->save;
    if (s->code < 0)
        s->own_code = s->code;
    tsr_said_vote_set(&s->vote, &s->new_vote, s->step, s->attempt, s->code, s->error);
    s->write_asked = false;
    send_vote(a);
}

static bool same_spans(const struct tsr_agent_save *s) {
    if (s->n_spans != s->n_work_spans)
        return false;
    return s->n_spans == 0 ||
           memcmp(s->spans, s->work_spans, (size_t)s->n_spans * sizeof *s->spans) == 0;
}

static void digested(struct tsr_agent *a) {
    struct tsr_agent_save *s = &a->save;
    if (s->code < 0)
        s->own_code = s->code;
    if (!same_spans(s)) { // asked anew meanwhile, of other ranges
        tsr_save_vote_free(&s->new_vote);
        return;
    }
    tsr_said_vote_set(&s->digests, &s->new_vote, s->step, s->attempt, s->code, s->error);
    s->digest_asked = false;
    send_digests(a);
}

static void ended(struct tsr_agent *a) {
    struct tsr_save_result result = a->save.result;
    free_save(&a->save);
    uv_mutex_lock(&a->lock);
    a->last_result = result;
    a->save_busy = false;
    uv_cond_broadcast(&a->changed);
    uv_mutex_unlock(&a->lock);
}

static void on_worked(uv_work_t *w, int status) {
    struct tsr_agent_save *s = w->data;
    struct tsr_agent *a = w->loop->data;
    enum tsr_save_work was = s->running;
    (void)status; // never cancelled
    s->running = TSR_WORK_NONE;
    if (was == TSR_WORK_ENDED) {
        ended(a);
        return;
    }
    if (s->over) { // what came out is of no use any more
        tsr_save_plan_free(&s->new_plan);
        tsr_save_vote_free(&s->new_vote);
    } else if (was == TSR_WORK_BEGIN) {
        begun(a);
    } else if (was == TSR_WORK_WRITE) {
        written(a);
    } else {
        digested(a);
    }
    next(a);
}

static bool take_spans(struct tsr_agent_save *s) {
    struct tsr_span *copy = malloc(((size_t)s->n_spans + 1) * sizeof *copy);
    if (!copy)
        return false;
    if (s->n_spans > 0)
        memcpy(copy, s->spans, (size_t)s->n_spans * sizeof *copy);
    free(s->work_spans);
    s->work_spans = copy;
    s->n_work_spans = s->n_spans;
    return true;
}

static enum tsr_save_work choose(struct tsr_agent *a) {
    struct tsr_agent_save *s = &a->save;
    if (s->over)
        return TSR_WORK_ENDED;
    if (a->opt.rank == 0 && !s->plan.there && !s->vote.there)
        return TSR_WORK_BEGIN;
    if (s->write_asked && !s->vote.there)
        return TSR_WORK_WRITE;
    if (s->digest_asked)
        return TSR_WORK_DIGEST;
    return TSR_WORK_NONE;
}

// Starts what is to be done now, if anything is and nothing runs.
static void next(struct tsr_agent *a) {
    struct tsr_agent_save *s = &a->save;
    if (!s->active || s->running != TSR_WORK_NONE)
        return;
    enum tsr_save_work work = choose(a);
    if (work == TSR_WORK_DIGEST && !take_spans(s)) {
        s->digest_asked = false;
        vote_failure(a, TSR_ENOMEM, "no memory for a list of ranges");
        return;
    }
    if (work == TSR_WORK_NONE)
        return;
    s->running = work;
    s->work.data = s;
    TSR_ASSERT(uv_queue_work(&a->loop, &s->work, on_work, on_worked) == 0);
}

void tsr_agent_save_begin(struct tsr_agent *a, const struct tsr_agent_save *wanted) {
    TSR_ASSERT(!a->save.active);
    a->save = *wanted;
    a->save.active = true;
    send_ready(a);
    next(a);
}

void tsr_agent_save_repeat(struct tsr_agent *a) {
    if (a->last_end)
        tsr_agent_send(a, a->last_end_type, a->last_end);
    if (!a->save.active || a->save.over)
        return;
    if (a->save.plan.there)
        tsr_agent_send(a, FRAME(SAVE_PLAN), &a->save.plan.message.base);
    send_ready(a);
    if (a->save.vote.there && a->save.own_code < 0) // the coordinator may not have asked for it
        send_vote(a);
}

static void finish(struct tsr_agent *a, int code, const char *error, const char *directory) {
    struct tsr_agent_save *s = &a->save;
    s->over = true;
    s->result.step = s->step;
    s->result.code = code;
    snprintf(s->result.error, sizeof s->result.error, "%s", error);
    snprintf(s->result.directory, sizeof s->result.directory, "%s", directory);
    next(a);
}

void tsr_agent_save_fail(struct tsr_agent *a, int code, const char *reason) {
    if (a->save.active && !a->save.over)
        finish(a, code, reason, "");
}

// The code whose exit code another rank's failure has.
static int code_of_exit(uint32_t exit_code) {
    return exit_code == 2   ? TSR_EDATA
           : exit_code == 3 ? TSR_EIO
           : exit_code == 5 ? TSR_EINTERRUPTED
                            : TSR_EPEER;
}

static int on_digest(struct tsr_agent *a, const Tessera__Checkpoint__SaveDigest *m) {
    struct tsr_agent_save *s = &a->save;
    struct tsr_span *spans = malloc((m->n_spans + 1) * sizeof *spans);
    if (!spans)
        return tsr_fail(TSR_ENOMEM, "no memory for a list of %zu ranges", m->n_spans);
    for (size_t i = 0; i < m->n_spans; i++)
        spans[i] = (struct tsr_span){m->spans[i]->first, m->spans[i]->count};
    free(s->spans);
    s->spans = spans;
    s->n_spans = (int)m->n_spans;
    if (s->digests.there && same_spans(s)) {
        send_digests(a);
        return 0;
    }
    tsr_said_vote_free(&s->digests);
    s->digest_asked = true;
    next(a);
    return 0;
}

static int on_write(struct tsr_agent *a) {
    if (a->save.vote.there) {
        send_vote(a);
        return 0;
    }
    a->save.write_asked = true;
    next(a);
    return 0;
}

// Kept for a coordinator that was started after it had told the end to some ranks only.
static int keep_end(struct tsr_agent *a, uint16_t type, const ProtobufCMessage *m) {
    ProtobufCMessage *copy = tsr_link_copy(m);
    if (!copy)
        return tsr_fail(TSR_ENOMEM, "no memory for a message");
    if (a->last_end)
        protobuf_c_message_free_unpacked(a->last_end, NULL);
    a->last_end = copy;
    a->last_end_type = type;
    return 0;
}

static bool ours(const struct tsr_agent *a, uint64_t step, uint32_t attempt) {
    const struct tsr_agent_save *s = &a->save;
    return s->active && !s->over && s->step == step && s->attempt == attempt;
}

static int on_done(struct tsr_agent *a, const Tessera__Checkpoint__SaveDone *m) {
    if (!ours(a, m->step, m->attempt))
        return 0;
    TSR_TRY(keep_end(a, FRAME(SAVE_DONE), &m->base));
    finish(a, 0, "", m->directory);
    return 0;
}

static int on_abort(struct tsr_agent *a, const Tessera__Checkpoint__SaveAbort *m) {
    if (!ours(a, m->step, m->attempt))
        return 0;
    TSR_TRY(keep_end(a, FRAME(SAVE_ABORT), &m->base));
    finish(a, a->save.own_code ? a->save.own_code : code_of_exit(m->exit_code), m->reason, "");
    return 0;
}

int tsr_agent_save_message(struct tsr_agent *a, uint16_t type, const ProtobufCMessage *m) {
    const Tessera__Checkpoint__SaveWrite *w = (const Tessera__Checkpoint__SaveWrite *)m;
    const Tessera__Checkpoint__SaveDigest *d = (const Tessera__Checkpoint__SaveDigest *)m;
    switch (type) {
    case FRAME(SAVE_WRITE):
        return ours(a, w->step, w->attempt) ? on_write(a) : 0;
    case FRAME(SAVE_DIGEST):
        return ours(a, d->step, d->attempt) ? on_digest(a, d) : 0;
    case FRAME(SAVE_DONE):
        return on_done(a, (const Tessera__Checkpoint__SaveDone *)m);
    case FRAME(SAVE_ABORT):
        return on_abort(a, (const Tessera__Checkpoint__SaveAbort *)m);
    default:
        return tsr_fail(TSR_EREQUEST, "a %s was not expected", tsr_frame_name(type));
    }
}

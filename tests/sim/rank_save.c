// A rank's part of a save: launcher/agent.h and dist/snapshot.h in small.
#include <inttypes.h>
#include <string.h>
#include "core/error.h"
#include "tests/sim/sim.h"

void sim_save_begin(struct sim *s, int rank, uint64_t step, uint32_t attempt) {
    struct sim_rank *r = &s->ranks[rank];
    r->save = (struct sim_save){.active = true, .step = step, .attempt = attempt, .began = s->now};
    r->save.fails = s->now < s->heal_at && sim_chance(s, s->vote_fails);
    TSR_ASSERT(attempt < MAX_ATTEMPTS);
    r->step_of[attempt] = step;
    r->holding = false;
    sim_at(s, s->now + sim_uniform(s, 0.01, 0.1), EV_SNAPSHOT, rank, (int)attempt);
    if (r->index == 0)
        sim_at(s, s->now + sim_uniform(s, 0.02, 0.3), EV_PLAN, rank, (int)attempt);
    sim_rank_train(s, rank);
}

void sim_save_resume(struct sim *s, int rank) {
    const struct sim_save *v = &s->ranks[rank].save;
    sim_say_outcome(s, rank);
    if (!v->active)
        return;
    bool plan_first = sim_chance(s, 0.5);
    if (v->planned && plan_first)
        sim_say_plan(s, rank);
    if (v->ready)
        sim_say_ready(s, rank);
    if (v->planned && !plan_first)
        sim_say_plan(s, rank);
    if (v->voted && (!v->ok || sim_chance(s, 0.5))) // unasked
        sim_say_vote(s, rank, v->step, v->attempt, v->ok);
    if (v->digested && sim_chance(s, 0.5))
        sim_say_digests(s, rank);
}

// What this rank has in its snapshot for a row that it believes to own.
static uint64_t own_value(struct sim *s, const struct sim_rank *r, uint64_t step, int row) {
    const struct sim_epoch *e = &s->epochs[r->epoch];
    uint64_t truth = sim_truth((uint64_t)r->epoch, step, row);
    return e->garbage == row && e->odd == r->index ? ~truth : truth;
}

static int last_row(const struct sim_epoch *e, const struct sim_rank *r) {
    bool lazy = e->fault == MAP_LAZY && e->odd == r->index;
    return e->to[r->index] - (lazy || r->save.fails);
}

// Writes the own rows of an attempt, which may be over by now, and makes digests on the way.
static bool write_rows(struct sim *s, int rank, uint32_t attempt) {
    struct sim_rank *r = &s->ranks[rank];
    const struct sim_epoch *e = &s->epochs[r->epoch];
    uint64_t step = r->step_of[attempt];
    struct sim_dir mine = {.n_rows = s->rows};
    struct sim_dir *d = sim_find(s, step, (uint64_t)r->epoch, attempt);
    for (int row = e->from[r->index]; row < last_row(e, r); row++) {
        mine.seen[row] = own_value(s, r, step, row);
        if (d)
            d->seen[row] = mine.seen[row];
    }
    for (int i = 0; i < MAX_DIGESTS && r->save.attempt == attempt; i++) {
        uint64_t digest = sim_digest(&mine, i, false);
        memcpy(r->save.vote[i].b, &digest, sizeof digest);
    }
    return d != NULL;
}

static bool sync_rows(struct sim *s, int rank, uint32_t attempt) {
    struct sim_rank *r = &s->ranks[rank];
    const struct sim_epoch *e = &s->epochs[r->epoch];
    struct sim_dir *d = sim_find(s, r->step_of[attempt], (uint64_t)r->epoch, attempt);
    if (!d)
        return false;
    for (int row = e->from[r->index]; row < last_row(e, r); row++)
        d->durable[row] = d->seen[row];
    if (r->index == 0)
        d->files_durable = true;
    return true;
}

// An attempt that is over may still be voted for: the writing thread knows nothing of it.
static void vote(struct sim *s, int rank, uint32_t attempt, bool ok) {
    struct sim_rank *r = &s->ranks[rank];
    if (r->save.attempt == attempt) {
        r->save.voted = true;
        r->save.ok = ok;
    }
    sim_say_vote(s, rank, r->step_of[attempt], attempt, ok);
}

static void on_written(struct sim *s, int rank, uint32_t attempt) {
    if (!write_rows(s, rank, attempt)) {
        vote(s, rank, attempt, false);
        return;
    }
    if (s->bug == BUG_VOTE_BEFORE_SYNC)
        vote(s, rank, attempt, true);
    sim_at(s, s->now + sim_uniform(s, 0.01, 0.3), EV_SYNCED, rank, (int)attempt);
}

static void on_synced(struct sim *s, int rank, uint32_t attempt) {
    bool ok = sync_rows(s, rank, attempt) && !s->ranks[rank].save.fails;
    if (s->bug != BUG_VOTE_BEFORE_SYNC)
        vote(s, rank, attempt, ok);
}

static void on_digested(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    struct sim_save *v = &r->save;
    const struct sim_dir *d = sim_find(s, v->step, (uint64_t)r->epoch, v->attempt);
    v->digesting = false;
    v->digested = true;
    v->digest_ok = d != NULL;
    for (size_t i = 0; d && i < v->n_spans; i++)
        for (uint64_t k = 0; k < v->spans[i].count; k++) {
            uint64_t range = v->spans[i].first + k, digest = sim_digest(d, (int)range, false);
            memcpy(v->answer[range].b, &digest, sizeof digest);
        }
    sim_say_digests(s, rank);
}

void sim_save_event(struct sim *s, const struct sim_event *e) {
    struct sim_rank *r = &s->ranks[e->a];
    struct sim_save *v = &r->save;
    uint32_t attempt = (uint32_t)e->b;
    bool current = v->active && v->attempt == attempt;
    if (!r->alive || r->stopped)
        return;
    if (e->kind == EV_SNAPSHOT && current) {
        v->ready = true;
        sim_say_ready(s, e->a);
    } else if (e->kind == EV_PLAN && current && v->fails) {
        vote(s, e->a, attempt, false);
    } else if (e->kind == EV_PLAN && current) {
        sim_make_temporary(s, v->step, (uint64_t)r->epoch, attempt);
        v->planned = true;
        sim_say_plan(s, e->a);
    } else if (e->kind == EV_WRITTEN) {
        on_written(s, e->a, attempt);
    } else if (e->kind == EV_SYNCED) {
        on_synced(s, e->a, attempt);
    } else if (e->kind == EV_DIGESTED && current) {
        on_digested(s, e->a);
    }
}

// ---- what the coordinator says

static void on_save_write(struct sim *s, int rank, const Tessera__Checkpoint__SaveWrite *m) {
    struct sim_save *v = &s->ranks[rank].save;
    if (!v->active || v->step != m->step || v->attempt != m->attempt)
        return;
    if (v->voted) {
        sim_say_vote(s, rank, v->step, v->attempt, v->ok);
    } else if (!v->writing) {
        v->writing = true;
        sim_at(s, s->now + sim_uniform(s, 0.01, 0.4), EV_WRITTEN, rank, (int)v->attempt);
    }
}

static bool same_spans(const struct sim_save *v, const Tessera__Checkpoint__SaveDigest *m) {
    if (v->n_spans != m->n_spans)
        return false;
    for (size_t i = 0; i < m->n_spans; i++)
        if (v->spans[i].first != m->spans[i]->first || v->spans[i].count != m->spans[i]->count)
            return false;
    return true;
}

static void on_save_digest(struct sim *s, int rank, const Tessera__Checkpoint__SaveDigest *m) {
    struct sim_save *v = &s->ranks[rank].save;
    if (!v->active || v->step != m->step || v->attempt != m->attempt)
        return;
    if (same_spans(v, m) && (v->digested || v->digesting)) {
        if (v->digested)
            sim_say_digests(s, rank);
        return;
    }
    TSR_ASSERT(m->n_spans <= MAX_DIGESTS);
    v->n_spans = m->n_spans;
    for (size_t i = 0; i < m->n_spans; i++)
        v->spans[i] = (struct sim_span){m->spans[i]->first, m->spans[i]->count};
    v->digesting = true;
    v->digested = false;
    sim_at(s, s->now + sim_uniform(s, 0.01, 0.2), EV_DIGESTED, rank, (int)v->attempt);
}

static void on_end(struct sim *s, int rank, uint64_t step, uint32_t attempt, bool committed,
                   uint32_t exit_code, const char *text) {
    struct sim_rank *r = &s->ranks[rank];
    struct sim_epoch *e = sim_epoch_of(s, r);
    if (!r->save.active || r->save.step != step || r->save.attempt != attempt)
        return;
    r->save.active = false;
    r->last = (struct tsr_outcome){step, attempt, committed, exit_code, ""};
    snprintf(r->last.text, sizeof r->last.text, "%s", text);
    sim_trace(s, "rank %d of epoch %d: save of step %" PRIu64 ", attempt %u: %s", r->index,
              r->epoch, step, attempt, committed ? "done" : text);
    if (committed && r->save.began >= s->heal_at)
        r->healed = true;
    if (!committed && (!s->keep_going || e->fault != MAP_GOOD))
        sim_give_up(s, r->epoch, sim_uniform(s, 0.1, 0.8), false);
    if (r->holding)
        sim_save_begin(s, rank, e->step, e->saves);
}

void sim_save_message(struct sim *s, int rank, uint16_t type, const ProtobufCMessage *m) {
    const Tessera__Checkpoint__SaveDone *done = (const void *)m;
    const Tessera__Checkpoint__SaveAbort *abort = (const void *)m;
    switch ((Tessera__Control__FrameType)type) {
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_WRITE:
        on_save_write(s, rank, (const void *)m);
        break;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DIGEST:
        on_save_digest(s, rank, (const void *)m);
        break;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DONE:
        on_end(s, rank, done->step, done->attempt, true, 0, done->directory);
        break;
    default:
        TSR_ASSERT(type == TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_ABORT);
        on_end(s, rank, abort->step, abort->attempt, false, abort->exit_code, abort->reason);
        break;
    }
}

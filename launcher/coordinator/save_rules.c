// What a save in flight does with messages: stages ready, write and digest.
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/control/registry.h"
#include "launcher/coordinator/coordinator_private.h"

enum {
    ASKED = 32768, // digests that one rank is asked for at a time: they fit in a frame
    EXIT_PEER = 4,
    EXIT_RESOURCE = 3,
};

static void refuse(struct tsr_coord *c, int rank, uint64_t step, uint32_t attempt,
                   const char *why) {
    struct tsr_outcome o = {.step = step, .attempt = attempt, .exit_code = EXIT_PEER};
    tsr_frame_text(o.text, sizeof o.text, why);
    tsr_coord_tell_outcome(c, rank, &o);
}

// A SaveReady or SavePlan of a save that is neither in flight nor remembered.
static struct tsr_save *begin(struct tsr_coord *c, int rank, uint64_t step, uint32_t attempt) {
    if (c->failed) {
        refuse(c, rank, step, attempt, "the run has failed");
        return NULL;
    }
    if (c->save && c->save->out.attempt == attempt)
        tsr_coord_abort(c, TSR_EXIT_BUG,
                        "rank %d saves step %" PRIu64 " where others save step %" PRIu64, rank,
                        step, c->save->out.step);
    else if (c->save && c->save->out.attempt < attempt)
        tsr_coord_abort(c, EXIT_PEER, "rank %d has begun the next save", rank);
    if (c->save || attempt <= c->newest_attempt) {
        refuse(c, rank, step, attempt, "this attempt is over");
        return NULL;
    }
    c->save = tsr_save_new(c->members.world, c->opt.epoch, step, attempt, c->seam.now(c->seam.arg));
    c->newest_attempt = attempt;
    if (!c->save)
        refuse(c, rank, step, attempt, "the coordinator has no memory for a save");
    return c->save;
}

// The save that a message is of; NULL when it needs no more than the answer it got here.
static struct tsr_save *save_of(struct tsr_coord *c, int rank, uint64_t step, uint32_t attempt,
                                bool begins) {
    if (c->save && c->rules->same_save(&c->save->out, step, attempt)) {
        c->save->progress = c->seam.now(c->seam.arg);
        return c->save;
    }
    const struct tsr_outcome *o = tsr_coord_outcome(c, step, attempt);
    if (o) {
        tsr_coord_tell_outcome(c, rank, o);
        return NULL;
    }
    if (begins)
        return begin(c, rank, step, attempt);
    tsr_info("ignored what rank %d said of the save of step %" PRIu64 ", attempt %" PRIu32, rank,
             step, attempt);
    return NULL;
}

static void ask_to_write(struct tsr_coord *c, const struct tsr_save *s, int rank /* -1: all */) {
    Tessera__Checkpoint__SaveWrite m = TESSERA__CHECKPOINT__SAVE_WRITE__INIT;
    m.step = s->out.step;
    m.attempt = s->out.attempt;
    if (rank < 0)
        tsr_coord_tell_ranks(c, TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_WRITE, &m.base);
    else
        tsr_coord_tell_rank(c, rank, TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_WRITE, &m.base);
}

// The spans that a rank is asked for, as they come together.
struct asked {
    int rank;
    Tessera__Checkpoint__RangeSpan *spans; // (ASKED)
    Tessera__Checkpoint__RangeSpan **list;
    size_t n;
};

static int asked_init(struct asked *a) {
    *a = (struct asked){.rank = -1, .spans = malloc(ASKED * sizeof *a->spans)};
    a->list = malloc(ASKED * sizeof *a->list);
    if (a->spans && a->list)
        return 0;
    free(a->spans);
    free(a->list);
    return tsr_fail(TSR_ENOMEM, "no memory to deal out digests");
}

static void asked_send(struct tsr_coord *c, const struct tsr_save *s, struct asked *a) {
    Tessera__Checkpoint__SaveDigest m = TESSERA__CHECKPOINT__SAVE_DIGEST__INIT;
    m.step = s->out.step;
    m.attempt = s->out.attempt;
    m.n_spans = a->n;
    m.spans = a->list;
    if (a->n > 0)
        tsr_coord_tell_rank(c, a->rank, TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DIGEST, &m.base);
    a->n = 0;
}

static void asked_add(struct tsr_coord *c, const struct tsr_save *s, struct asked *a, int rank,
                      uint64_t range) {
    if (rank != a->rank) {
        asked_send(c, s, a);
        a->rank = rank;
    }
    if (a->n > 0 && a->spans[a->n - 1].first + a->spans[a->n - 1].count == range) {
        a->spans[a->n - 1].count++;
        return;
    }
    TSR_ASSERT(a->n < ASKED);
    tessera__checkpoint__range_span__init(&a->spans[a->n]);
    a->spans[a->n].first = range;
    a->spans[a->n].count = 1;
    a->list[a->n] = &a->spans[a->n];
    a->n++;
}

static void asked_free(struct asked *a) {
    free(a->spans);
    free(a->list);
}

// Asks a rank again for what it owes.
static void ask_again(struct tsr_coord *c, struct tsr_save *s, int rank) {
    struct asked a;
    if (asked_init(&a) < 0) {
        tsr_coord_abort(c, EXIT_RESOURCE, "%s", tsr_error_text());
        return;
    }
    for (uint64_t r = 0; r < s->out.n_ranges; r++)
        if (!s->known[r] && s->digester[r] == (uint32_t)rank + 1)
            asked_add(c, s, &a, rank, r);
    asked_send(c, s, &a);
    asked_free(&a);
}

// Deals out the ranges that have no digest, consecutive ones to each rank.
static void deal(struct tsr_coord *c, struct tsr_save *s) {
    struct asked a;
    if (asked_init(&a) < 0) {
        tsr_coord_abort(c, EXIT_RESOURCE, "%s", tsr_error_text());
        return;
    }
    uint64_t most = (uint64_t)s->world * ASKED, missing = s->out.n_ranges - s->n_known;
    uint64_t n = missing < most ? missing : most;
    s->stage = TSR_SAVE_DIGEST;
    for (uint64_t r = 0, i = 0; r < s->out.n_ranges && i < n; r++) {
        if (s->known[r])
            continue;
        int rank = c->rules->digester(i++, n, s->world);
        s->digester[r] = (uint32_t)rank + 1;
        if (s->ranks[rank].owes++ == 0)
            s->n_owing++;
        asked_add(c, s, &a, rank, r);
    }
    asked_send(c, s, &a);
    asked_free(&a);
}

static void deal_or_commit(struct tsr_coord *c, struct tsr_save *s) {
    if (c->rules->digests_known(s))
        tsr_coord_commit(c);
    else
        deal(c, s);
}

// What the ranks wrote is the whole model, each element once.
static bool whole(struct tsr_coord *c, const struct tsr_save *s) {
    enum tsr_cover found = tsr_shard_maps_check(&c->maps);
    if (!c->rules->covers(found)) {
        tsr_coord_abort(c, found == TSR_COVER_FAILED ? EXIT_RESOURCE : TSR_EXIT_BUG,
                        "the ranks' shards are not the model: %s", c->maps.text);
        return false;
    }
    uint64_t sum = 0;
    for (int r = 0; r < s->world; r++) {
        uint64_t owned = tsr_shard_maps_elements(&c->maps, r);
        sum += owned;
        if (c->rules->adds_up(owned, s->ranks[r].elements))
            continue;
        tsr_coord_abort(c, TSR_EXIT_BUG,
                        "rank %d owns %" PRIu64 " elements and has written %" PRIu64, r, owned,
                        s->ranks[r].elements);
        return false;
    }
    if (!c->rules->adds_up(s->elements, sum)) {
        tsr_coord_abort(c, TSR_EXIT_BUG,
                        "the plan has %" PRIu64 " elements, the ranks' shards %" PRIu64,
                        s->elements, sum);
        return false;
    }
    return true;
}

static void all_ready(struct tsr_coord *c, struct tsr_save *s) {
    if (s->stage != TSR_SAVE_READY || !s->planned || s->n_ready < s->world)
        return;
    s->stage = TSR_SAVE_WRITE;
    ask_to_write(c, s, -1);
}

int tsr_coord_save_plan(struct tsr_coord *c, int rank, const Tessera__Checkpoint__SavePlan *m) {
    if (rank != 0 || m->attempt == 0)
        return tsr_fail(TSR_EREQUEST, "a plan of attempt %" PRIu32 " from rank %d", m->attempt,
                        rank);
    struct tsr_save *s = save_of(c, rank, m->step, m->attempt, true);
    if (!s || s->planned)
        return 0;
    int rc = tsr_save_plan(s, m);
    if (rc < 0)
        tsr_coord_abort(c, rc == TSR_ENOMEM ? EXIT_RESOURCE : TSR_EXIT_BUG, "%s", tsr_error_text());
    else
        all_ready(c, s);
    return 0;
}

int tsr_coord_save_ready(struct tsr_coord *c, int rank, const Tessera__Checkpoint__SaveReady *m) {
    if (m->attempt == 0)
        return tsr_fail(TSR_EREQUEST, "a save's attempt 0 from rank %d", rank);
    struct tsr_save *s = save_of(c, rank, m->step, m->attempt, true);
    if (!s)
        return 0;
    if (!s->ranks[rank].ready) {
        s->ranks[rank].ready = true;
        s->n_ready++;
        all_ready(c, s);
    } else if (s->stage == TSR_SAVE_WRITE && !s->ranks[rank].voted) {
        ask_to_write(c, s, rank); // it is back: did it hear the first time?
    } else if (s->stage == TSR_SAVE_DIGEST && s->ranks[rank].owes > 0) {
        ask_again(c, s, rank);
    }
    return 0;
}

// A rank couldn't do its part.
static void unable(struct tsr_coord *c, int rank, uint32_t exit_code, const char *error) {
    char text[400];
    tsr_frame_text(text, sizeof text, error);
    tsr_coord_abort(c, exit_code ? exit_code : EXIT_RESOURCE, "rank %d (%s): %s", rank,
                    c->members.v[rank].host, text);
}

int tsr_coord_save_vote(struct tsr_coord *c, int rank, const Tessera__Checkpoint__SaveVote *m) {
    bool counts = c->rules->vote_counts(m->ok);
    struct tsr_save *s = save_of(c, rank, m->step, m->attempt, !counts);
    if (!s || s->stage == TSR_SAVE_COMMIT)
        return 0;
    if (!counts) { // perhaps unasked: rank 0 could not make the directory
        unable(c, rank, m->exit_code, m->error);
        return 0;
    }
    if (s->stage != TSR_SAVE_WRITE || s->ranks[rank].voted)
        return 0; // not asked yet, or said again
    if (tsr_save_take_digests(s, rank, m->n_ranges, m->ranges, false) < 0) {
        tsr_coord_abort(c, TSR_EXIT_BUG, "vote of rank %d: %s", rank, tsr_error_text());
        return 0;
    }
    s->ranks[rank].voted = true;
    s->ranks[rank].elements = m->elements;
    s->n_voted++;
    if (c->rules->all_voted(s, &c->members) && whole(c, s))
        deal_or_commit(c, s);
    return 0;
}

int tsr_coord_save_digests(struct tsr_coord *c, int rank,
                           const Tessera__Checkpoint__SaveDigests *m) {
    struct tsr_save *s = save_of(c, rank, m->step, m->attempt, false);
    if (!s || s->stage != TSR_SAVE_DIGEST || s->ranks[rank].owes == 0)
        return 0;
    if (!c->rules->vote_counts(m->ok)) {
        unable(c, rank, m->exit_code, m->error);
    } else if (tsr_save_take_digests(s, rank, m->n_ranges, m->ranges, true) < 0) {
        tsr_coord_abort(c, TSR_EXIT_BUG, "digests of rank %d: %s", rank, tsr_error_text());
    } else if (s->ranks[rank].owes > 0) {
        tsr_coord_abort(c, TSR_EXIT_BUG, "rank %d left out %" PRIu64 " digests", rank,
                        s->ranks[rank].owes);
    } else if (s->n_owing == 0) {
        deal_or_commit(c, s);
    }
    return 0;
}

void tsr_coord_save_without(struct tsr_coord *c, int rank, const char *why) {
    const struct tsr_save *s = c->save;
    if (!s || (s->ranks[rank].voted && s->ranks[rank].owes == 0 && s->stage != TSR_SAVE_WRITE))
        return;
    tsr_coord_abort(c, EXIT_PEER, "%s", why);
}

int tsr_save_waiting_for(const struct tsr_save *s) {
    switch (s->stage) {
    case TSR_SAVE_READY:
        return s->world - s->n_ready;
    case TSR_SAVE_WRITE:
        return s->world - s->n_voted;
    case TSR_SAVE_DIGEST:
        return s->n_owing;
    default:
        return 0;
    }
}

static int first_awaited(const struct tsr_save *s) {
    for (int r = 0; r < s->world; r++)
        if (s->stage == TSR_SAVE_READY   ? !s->ranks[r].ready
            : s->stage == TSR_SAVE_WRITE ? !s->ranks[r].voted
                                         : s->ranks[r].owes > 0)
            return r;
    return 0; // rank 0's plan
}

void tsr_coord_save_tick(struct tsr_coord *c, double now) {
    const struct tsr_save *s = c->save;
    if (!s || s->stage == TSR_SAVE_COMMIT || now - s->progress < c->opt.save_s)
        return;
    tsr_coord_abort(c, EXIT_PEER,
                    "nothing was heard of the save of step %" PRIu64
                    " for %.0f s; it waits for rank %d",
                    s->out.step, now - s->progress, first_awaited(s));
}

#include "launcher/coordinator/status.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "launcher/coordinator/coordinator_private.h"

#define X(name, word, words)                                                                       \
    _Static_assert(TSR_PHASE_##name == (int)TESSERA__CONTROL__PHASE__PHASE_##name, "phase " word);
TSR_PHASE_MAP(X)
#undef X

static void fill_rank(const struct tsr_member *m, int rank, double now,
                      Tessera__Control__RankStatus *out) {
    tessera__control__rank_status__init(out);
    out->rank = (uint32_t)rank;
    out->host = (char *)m->host;
    out->pid = m->pid;
    out->alive = m->state == TSR_MEMBER_PRESENT || m->state == TSR_MEMBER_LOST;
    out->step = m->step;
    out->phase = m->phase < TSR_N_PHASES ? (Tessera__Control__Phase)m->phase
                                         : TESSERA__CONTROL__PHASE__PHASE_START;
    out->collective = m->collective;
    out->micro_batch = m->micro_batch;
    out->silence_s = m->state == TSR_MEMBER_ABSENT || now < m->heard ? 0 : now - m->heard;
}

static int fill_ranks(const struct tsr_coord *c, double now, Tessera__Control__Status *out) {
    size_t n = (size_t)c->members.world;
    if (n > TSR_COORD_STATUS_RANKS)
        n = TSR_COORD_STATUS_RANKS;
    if (n == 0)
        return 0;
    // One block: the list, then what it points to.
    Tessera__Control__RankStatus **list = malloc(n * (sizeof *list + sizeof **list));
    if (!list)
        return tsr_fail(TSR_ENOMEM, "no memory for the status of %zu ranks", n);
    Tessera__Control__RankStatus *ranks = (Tessera__Control__RankStatus *)(list + n);
    for (size_t i = 0; i < n; i++) {
        fill_rank(&c->members.v[i], (int)i, now, &ranks[i]);
        list[i] = &ranks[i];
    }
    out->ranks = list;
    out->n_ranks = n;
    return 0;
}

static Tessera__Control__SaveStatus *save_status(const struct tsr_coord *c) {
    static const char *const stages[] = {"ready", "write", "digest", "commit"};
    Tessera__Control__SaveStatus *s = malloc(sizeof *s);
    if (!s)
        return NULL;
    tessera__control__save_status__init(s);
    if (c->save) {
        s->in_flight = 1;
        s->step = c->save->out.step;
        s->stage = (char *)stages[c->save->stage];
        s->waiting_for = (uint32_t)tsr_save_waiting_for(c->save);
    }
    return s;
}

int tsr_coord_status(const struct tsr_coord *c, Tessera__Control__Status *out) {
    double now = c->seam.now(c->seam.arg);
    out->epoch = c->opt.epoch;
    out->run_name = (char *)c->opt.run_name;
    out->run_dir = (char *)c->opt.run_dir;
    out->tp = (uint32_t)c->members.tp;
    out->pp = (uint32_t)c->members.pp;
    out->dp = (uint32_t)c->members.dp;
    out->steps = c->members.steps;
    out->committed_step = c->committed_step;
    out->restarts = c->opt.restarts;
    out->uptime_s = now - c->opened;
    out->has_last = c->has_last;
    out->last = c->has_last ? (Tessera__Control__StepReport *)&c->last : NULL;
    out->save = save_status(c);
    if (!out->save || fill_ranks(c, now, out) < 0) {
        tsr_coord_status_free(out);
        return tsr_fail(TSR_ENOMEM, "no memory for a status");
    }
    return 0;
}

void tsr_coord_status_free(Tessera__Control__Status *s) {
    free(s->ranks);
    free(s->save);
    s->ranks = NULL;
    s->n_ranks = 0;
    s->save = NULL;
    s->last = NULL;
}

int tsr_coord_send_status(struct tsr_coord *c, int conn) {
    Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
    TSR_TRY(tsr_coord_status(c, &s));
    c->seam.send(c->seam.arg, conn, TESSERA__CONTROL__FRAME_TYPE__FRAME_STATUS, &s.base);
    tsr_coord_status_free(&s);
    return 0;
}

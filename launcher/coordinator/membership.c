#include "launcher/coordinator/membership.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "launcher/coordinator/coordinator.h"

void tsr_members_free(struct tsr_members *ms) {
    free(ms->v);
    free(ms->stage_collective);
    *ms = (struct tsr_members){0};
}

static int check_layout(const struct tsr_members *ms, const Tessera__Control__Hello *h) {
    if (h->world == 0 || h->world > TSR_COORD_MAX_RANKS)
        return tsr_fail(TSR_EREQUEST, "expected 1 to %d ranks, found %" PRIu32, TSR_COORD_MAX_RANKS,
                        h->world);
    uint64_t w = h->world;
    if (h->tp == 0 || h->pp == 0 || h->dp == 0 || h->tp > w || h->pp > w || h->dp > w ||
        (uint64_t)h->tp * h->pp > w || (uint64_t)h->tp * h->pp * h->dp != w)
        return tsr_fail(TSR_EREQUEST,
                        "%" PRIu32 " ranks are not tp %" PRIu32 " x pp %" PRIu32 " x dp %" PRIu32,
                        h->world, h->tp, h->pp, h->dp);
    if (h->rank >= h->world)
        return tsr_fail(TSR_EREQUEST, "rank %" PRIu32 " of %" PRIu32, h->rank, h->world);
    if (ms->world && ((int)h->world != ms->world || (int)h->tp != ms->tp || (int)h->pp != ms->pp))
        return tsr_fail(TSR_EREQUEST,
                        "expected a rank of %d (tp %d, pp %d), found one of %" PRIu32
                        " (tp %" PRIu32 ", pp %" PRIu32 ")",
                        ms->world, ms->tp, ms->pp, h->world, h->tp, h->pp);
    if (strlen(h->host) > TSR_MEMBER_HOST)
        return tsr_fail(TSR_EREQUEST, "a host's name of %zu bytes, at most %d", strlen(h->host),
                        TSR_MEMBER_HOST);
    return 0;
}

static int begin(struct tsr_members *ms, const Tessera__Control__Hello *h, double now) {
    ms->v = calloc(h->world, sizeof *ms->v);
    ms->stage_collective = calloc(h->pp, sizeof *ms->stage_collective);
    if (!ms->v || !ms->stage_collective) {
        tsr_members_free(ms);
        return tsr_fail(TSR_ENOMEM, "no memory for %" PRIu32 " ranks", h->world);
    }
    ms->world = (int)h->world;
    ms->tp = (int)h->tp;
    ms->pp = (int)h->pp;
    ms->dp = (int)h->dp;
    ms->steps = h->steps;
    ms->began = now;
    return 0;
}

static int check_same(const struct tsr_member *m, const Tessera__Control__Hello *h) {
    if (m->state == TSR_MEMBER_ABSENT)
        return 0;
    if (m->pid != h->pid || strcmp(m->host, h->host) != 0)
        return tsr_fail(TSR_EREQUEST,
                        "rank %" PRIu32 " is process %" PRIu64
                        " on %s already, found process %" PRIu64 " on %s",
                        h->rank, m->pid, m->host, h->pid, h->host);
    if (m->state == TSR_MEMBER_LEFT || m->state == TSR_MEMBER_DEAD)
        return tsr_fail(TSR_EREQUEST, "rank %" PRIu32 " %s", h->rank,
                        m->state == TSR_MEMBER_LEFT ? "has left the run" : "was declared dead");
    return 0;
}

int tsr_members_hello(struct tsr_members *ms, const Tessera__Control__Hello *h, int conn,
                      double now, int *old) {
    *old = -1;
    TSR_TRY(check_layout(ms, h));
    if (!ms->world)
        TSR_TRY(begin(ms, h, now));
    struct tsr_member *m = &ms->v[h->rank];
    TSR_TRY(check_same(m, h));
    if (m->state == TSR_MEMBER_PRESENT) {
        *old = m->conn;
    } else {
        ms->n_present++;
    }
    if (m->state == TSR_MEMBER_ABSENT) {
        snprintf(m->host, sizeof m->host, "%s", h->host);
        m->pid = h->pid;
        m->step = m->first_step = h->step;
        m->since = now;
    }
    m->state = TSR_MEMBER_PRESENT;
    m->conn = conn;
    m->heard = now;
    return 0;
}

void tsr_members_heartbeat(struct tsr_members *ms, int rank, const Tessera__Control__Heartbeat *h,
                           double now) {
    struct tsr_member *m = &ms->v[rank];
    uint32_t phase = (uint32_t)h->phase;
    m->heard = now;
    if (m->step == h->step && m->phase == phase && m->collective == h->collective &&
        m->micro_batch == h->micro_batch)
        return;
    double took = now - m->since;
    if (m->phase < TSR_N_PHASES && took > ms->longest[m->phase])
        ms->longest[m->phase] = took;
    m->step = h->step;
    m->phase = phase;
    m->collective = h->collective;
    m->micro_batch = h->micro_batch;
    m->since = now;
}

void tsr_members_lost(struct tsr_members *ms, int rank, double now) {
    struct tsr_member *m = &ms->v[rank];
    if (m->state != TSR_MEMBER_PRESENT)
        return;
    m->state = TSR_MEMBER_LOST;
    m->lost_at = now;
    ms->n_present--;
}

static void gone(struct tsr_members *ms, int rank, enum tsr_member_state how) {
    struct tsr_member *m = &ms->v[rank];
    if (m->state == TSR_MEMBER_LEFT || m->state == TSR_MEMBER_DEAD)
        return;
    if (m->state == TSR_MEMBER_PRESENT)
        ms->n_present--;
    m->state = how;
    ms->n_gone++;
}

void tsr_members_bye(struct tsr_members *ms, int rank) {
    gone(ms, rank, TSR_MEMBER_LEFT);
}

void tsr_members_dead(struct tsr_members *ms, int rank) {
    gone(ms, rank, TSR_MEMBER_DEAD);
}

static double later(double t, double by_s, double now) {
    return t + by_s < now ? t + by_s : now;
}

void tsr_members_forgive(struct tsr_members *ms, double pause_s, double now) {
    ms->began = later(ms->began, pause_s, now);
    for (int r = 0; r < ms->world; r++) {
        struct tsr_member *m = &ms->v[r];
        m->heard = later(m->heard, pause_s, now);
        m->since = later(m->since, pause_s, now);
        m->lost_at = later(m->lost_at, pause_s, now);
    }
}

// The rank whose connection ended first of those that have not come back, or -1.
static int first_lost(const struct tsr_members *ms) {
    int first = -1;
    for (int r = 0; r < ms->world; r++)
        if (ms->v[r].state == TSR_MEMBER_LOST &&
            (first < 0 || ms->v[r].lost_at < ms->v[first].lost_at))
            first = r;
    return first;
}

bool tsr_members_ended(const struct tsr_members *ms,
                       bool (*ended)(void *arg, const char *host, uint64_t pid), void *arg,
                       struct tsr_culprit *out) {
    int first = ended ? first_lost(ms) : -1;
    if (first < 0 || !ended(arg, ms->v[first].host, ms->v[first].pid))
        return false;
    out->rank = first;
    snprintf(out->cause, sizeof out->cause, "its process ended");
    return true;
}

static bool check_lost(const struct tsr_members *ms, double grace_s, double now,
                       struct tsr_culprit *out) {
    int first = first_lost(ms);
    if (first < 0 || now - ms->v[first].lost_at < grace_s)
        return false;
    out->rank = first;
    snprintf(out->cause, sizeof out->cause, "its connection ended");
    return true;
}

static bool check_silent(const struct tsr_members *ms, double lost_s, double now,
                         struct tsr_culprit *out) {
    int first = -1;
    for (int r = 0; r < ms->world; r++)
        if (ms->v[r].state == TSR_MEMBER_PRESENT &&
            (first < 0 || ms->v[r].heard < ms->v[first].heard))
            first = r;
    if (first < 0 || now - ms->v[first].heard < lost_s)
        return false;
    out->rank = first;
    snprintf(out->cause, sizeof out->cause, "no heartbeat for %.1f s", now - ms->v[first].heard);
    return true;
}

// Ranks that left before this coordinator was started won't come: it is a failure only while
// others wait for them.
static bool check_joined(const struct tsr_members *ms, double join_s, double now,
                         struct tsr_culprit *out) {
    if (ms->n_present == 0 || now - ms->began < join_s)
        return false;
    for (int r = 0; r < ms->world; r++) {
        if (ms->v[r].state != TSR_MEMBER_ABSENT)
            continue;
        out->rank = r;
        snprintf(out->cause, sizeof out->cause, "it did not join within %.0f s", join_s);
        return true;
    }
    return false;
}

bool tsr_members_check(struct tsr_members *ms, const struct tsr_limits *l, double now, bool saving,
                       struct tsr_culprit *out) {
    return check_lost(ms, l->grace_s, now, out) || check_silent(ms, l->lost_s, now, out) ||
           check_joined(ms, l->join_s, now, out) || tsr_members_stalled(ms, l, now, saving, out);
}

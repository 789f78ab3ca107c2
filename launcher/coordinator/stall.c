// The stall rule: under live heartbeats, when does standing still mean hanging, and who hangs?
//
// A hang of one rank soon stops all others, in their collectives. So it is a hang when every rank
// that has completed the fewest steps stands still for longer than its own phase allows: a rank
// that is merely slow in a phase without a measure (it tokenizes, loads, compiles) excuses those
// that wait for it. The culprit is the one that stopped first.
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include "launcher/coordinator/membership.h"

static const double TIE_S = 0.4; // heartbeats tell when a rank stopped no better than this

static double larger(double a, double b) {
    return a > b ? a : b;
}

// How long a rank may stand still where it is.
static double limit_of(const struct tsr_members *ms, const struct tsr_member *m,
                       const struct tsr_limits *l, bool saving) {
    if (m->phase >= TSR_N_PHASES)
        return INFINITY;
    double longest = l->stall_factor * ms->longest[m->phase];
    switch ((enum tsr_phase)m->phase) {
    case TSR_PHASE_START:
    case TSR_PHASE_LOAD:
    case TSR_PHASE_DONE:
        return INFINITY;
    case TSR_PHASE_DATA: // text may be tokenized before the first step
        if (m->step == m->first_step)
            return INFINITY;
        break;
    case TSR_PHASE_EVAL: // one pass over all validation data, perhaps without a collective
        if (longest == 0)
            return INFINITY;
        break;
    case TSR_PHASE_CHECKPOINT: // it may wait for the save, which has a limit of its own
        return saving ? INFINITY : larger(longest, l->first_s);
    default:
        break;
    }
    return larger(longest, longest == 0 ? larger(l->first_s, l->stall_s) : l->stall_s);
}

// How long a rank stands still. One that waited for a save learns only now that it is over.
static double standing(const struct tsr_members *ms, const struct tsr_member *m, double now) {
    bool waited = m->phase == TSR_PHASE_CHECKPOINT && ms->saved_at > m->since;
    return now - (waited ? ms->saved_at : m->since);
}

static int stage_of(const struct tsr_members *ms, int rank) {
    return rank / ms->tp % ms->pp;
}

// Collectives by which a rank is behind the others of its pipeline stage. Other stages do other
// things: their numbers can't be compared.
static uint64_t behind(const struct tsr_members *ms, int rank) {
    return ms->stage_collective[stage_of(ms, rank)] - ms->v[rank].collective;
}

// True when rank a fell behind before rank b; both have completed the fewest steps.
static bool earlier(const struct tsr_members *ms, int a, int b) {
    uint64_t da = behind(ms, a), db = behind(ms, b);
    if (da != db)
        return da > db;
    double dt = ms->v[a].since - ms->v[b].since;
    if (fabs(dt) > TIE_S)
        return dt < 0;
    return ms->v[a].collective < ms->v[b].collective;
}

bool tsr_members_stalled(struct tsr_members *ms, const struct tsr_limits *l, double now,
                         bool saving, struct tsr_culprit *out) {
    uint64_t fewest = UINT64_MAX;
    if (saving)
        ms->saved_at = now;
    for (int s = 0; s < ms->pp; s++)
        ms->stage_collective[s] = 0;
    for (int r = 0; r < ms->world; r++) {
        const struct tsr_member *m = &ms->v[r];
        if (m->state == TSR_MEMBER_LOST || m->state == TSR_MEMBER_ABSENT)
            return false; // to be judged first
        if (m->state != TSR_MEMBER_PRESENT)
            continue;
        if (m->step < fewest)
            fewest = m->step;
        uint64_t *most = &ms->stage_collective[stage_of(ms, r)];
        if (m->collective > *most)
            *most = m->collective;
    }
    int culprit = -1;
    for (int r = 0; r < ms->world; r++) {
        const struct tsr_member *m = &ms->v[r];
        if (m->state != TSR_MEMBER_PRESENT || m->step != fewest)
            continue;
        if (standing(ms, m, now) < limit_of(ms, m, l, saving))
            return false;
        if (culprit < 0 || earlier(ms, r, culprit))
            culprit = r;
    }
    if (culprit < 0)
        return false;
    out->rank = culprit;
    snprintf(out->cause, sizeof out->cause, "stalled for %.1f s",
             standing(ms, &ms->v[culprit], now));
    return true;
}

void tsr_member_operation(const struct tsr_member *m, char *out, int n_bytes) {
    const char *phase = tsr_phase_words(m->phase);
    bool micro = m->phase == TSR_PHASE_FORWARD || m->phase == TSR_PHASE_BACKWARD;
    if (micro)
        snprintf(out, (size_t)n_bytes, "%s of micro-batch %" PRIu32 ", collective %" PRIu64, phase,
                 m->micro_batch, m->collective);
    else
        snprintf(out, (size_t)n_bytes, "%s, collective %" PRIu64, phase, m->collective);
}

#include "tests/sim/sim.h"

#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

// ---- chance: splitmix64

static uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    x = (x ^ (x >> 27)) * UINT64_C(0x94D049BB133111EB);
    return x ^ (x >> 31);
}

uint64_t sim_random(struct sim *s, uint64_t n) {
    s->rng += UINT64_C(0x9E3779B97F4A7C15);
    return mix(s->rng) % n;
}

double sim_uniform(struct sim *s, double lo, double hi) {
    return lo + (hi - lo) * (double)sim_random(s, 1 << 20) / (1 << 20);
}

bool sim_chance(struct sim *s, double p) {
    return sim_uniform(s, 0, 1) < p;
}

// Each incarnation's training gives something else, so that a mixture can be told.
uint64_t sim_truth(uint64_t epoch, uint64_t step, int row) {
    return mix(epoch * 1000003 + step * 4099 + (uint64_t)row + 1) | 1;
}

// ---- events: a heap by time, then by order of creation

static bool before(const struct sim_event *a, const struct sim_event *b) {
    return a->at != b->at ? a->at < b->at : a->order < b->order;
}

void sim_push(struct sim *s, const struct sim_event *e) {
    if (s->n_heap == s->cap_heap) {
        s->cap_heap = s->cap_heap ? 2 * s->cap_heap : 256;
        s->heap = realloc(s->heap, (size_t)s->cap_heap * sizeof *s->heap);
        TSR_ASSERT(s->heap);
    }
    int i = s->n_heap++;
    struct sim_event new = *e;
    new.order = s->order++;
    for (; i > 0 && before(&new, &s->heap[(i - 1) / 2]); i = (i - 1) / 2)
        s->heap[i] = s->heap[(i - 1) / 2];
    s->heap[i] = new;
}

static struct sim_event pop(struct sim *s) {
    struct sim_event top = s->heap[0], last = s->heap[--s->n_heap];
    int i = 0;
    for (;;) {
        int child = 2 * i + 1;
        if (child >= s->n_heap)
            break;
        if (child + 1 < s->n_heap && before(&s->heap[child + 1], &s->heap[child]))
            child++;
        if (before(&last, &s->heap[child]))
            break;
        s->heap[i] = s->heap[child];
        i = child;
    }
    s->heap[i] = last;
    return top;
}

void sim_at(struct sim *s, double at, enum sim_kind kind, int a, int b) {
    struct sim_event e = {.at = at, .kind = kind, .a = a, .b = b};
    sim_push(s, &e);
}

// ---- findings

void sim_violation(struct sim *s, const char *fmt, ...) {
    va_list args;
    if (s->over)
        return;
    va_start(args, fmt);
    vsnprintf(s->violation, sizeof s->violation, fmt, args);
    va_end(args);
    s->over = true;
    sim_trace(s, "VIOLATION: %s", s->violation);
}

void sim_trace(struct sim *s, const char *fmt, ...) {
    va_list args;
    if (!s->trace)
        return;
    printf("%9.3f  ", s->now);
    va_start(args, fmt);
    vprintf(fmt, args);
    va_end(args);
    printf("\n");
}

// ---- a run

static void dispatch(struct sim *s, const struct sim_event *e) {
    switch (e->kind) {
    case EV_DELIVER:
        sim_deliver(s, e);
        break;
    case EV_CLOSE:
        sim_closed(s, e);
        break;
    case EV_TICK:
    case EV_DISK:
    case EV_UNPAUSE:
        sim_proc_event(s, e);
        break;
    case EV_PULSE:
    case EV_CONNECT:
    case EV_STEP:
        sim_rank_event(s, e);
        break;
    case EV_SNAPSHOT:
    case EV_PLAN:
    case EV_WRITTEN:
    case EV_SYNCED:
    case EV_DIGESTED:
        sim_save_event(s, e);
        break;
    default:
        sim_fault_event(s, e);
        break;
    }
}

// All ranks of the newest incarnation have heard of a checkpoint that was begun after the network
// had healed.
static bool healthy(const struct sim *s) {
    const struct sim_epoch *e = &s->epochs[s->epoch];
    for (int r = 0; r < e->world; r++)
        if (!s->ranks[e->first_rank + r].healed)
            return false;
    return e->launched;
}

static void check_end(struct sim *s) {
    if (s->now >= s->heal_at && healthy(s))
        s->over = true;
    else if (s->now > s->end_at)
        sim_violation(s, "stuck: no new checkpoint %.0f s after the network healed",
                      s->now - s->heal_at);
}

static void set_up(struct sim *s) {
    s->every = 2 + (int)sim_random(s, 4);
    s->keep_going = sim_chance(s, 0.5);
    s->delay = sim_chance(s, 0.3) ? 0.3 : 0.02;
    s->vote_fails = sim_chance(s, 0.2) ? 0.1 : 0;
    s->disk_fails = sim_chance(s, 0.2) ? 0.1 : 0;
    s->bad_steps = sim_chance(s, 0.3) ? 0.05 : 0;
    s->heal_at = 10;
    s->last_cut = -10;
    s->end_at = s->heal_at + 40;
    s->rows = 12 + (int)sim_random(s, MAX_ROWS - 11);
    sim_plan_faults(s);
    sim_at(s, 0, EV_NEXT, 0, 0);
}

static void tear_down(struct sim *s) {
    for (int i = 0; i < s->n_procs; i++)
        if (s->procs[i].alive)
            tsr_coord_close(s->procs[i].core);
    for (int i = 0; i < s->n_heap; i++)
        free(s->heap[i].data);
    free(s->heap);
}

void sim_run(uint64_t seed, enum sim_bug bug, bool trace, struct sim_result *out) {
    struct sim *s = calloc(1, sizeof *s);
    TSR_ASSERT(s);
    s->seed = seed;
    s->rng = mix(seed + 1);
    s->bug = bug;
    s->trace = trace;
    set_up(s);
    while (!s->over && s->n_heap > 0) {
        struct sim_event e = pop(s);
        s->now = e.at;
        s->n_events++;
        dispatch(s, &e);
        free(e.data);
        if (!s->over)
            check_end(s);
    }
    out->n_events = s->n_events;
    out->n_commits = s->n_commits;
    snprintf(out->violation, sizeof out->violation, "%s", s->violation);
    tear_down(s);
    free(s);
}

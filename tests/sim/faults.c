// What goes wrong, and the supervisor that starts over.
#include <string.h>
#include "core/error.h"
#include "tests/sim/sim.h"

void sim_plan_faults(struct sim *s) {
    s->n_faults = (int)sim_random(s, MAX_FAULTS + 1);
    for (int i = 0; i < s->n_faults; i++) {
        struct sim_fault *f = &s->faults[i];
        f->kind = (enum sim_fault_kind)sim_random(s, N_FAULTS);
        f->at = sim_uniform(s, 0.5, s->heal_at - 1);
        f->at_step = sim_chance(s, 0.5) ? (int)sim_random(s, TSR_DISK_RETAIN) : -1;
        if (f->at_step < 0)
            sim_at(s, f->at, EV_FAULT, i, 0);
    }
}

// Some faults wait for a commit, to come in the middle of it.
void sim_disk_starts(struct sim *s, int proc, enum tsr_disk_step step) {
    for (int i = 0; i < s->n_faults && s->procs[proc].epoch == s->epoch; i++) {
        struct sim_fault *f = &s->faults[i];
        if (f->fired || f->at_step != (int)step || s->now < f->at || s->now > s->heal_at - 1)
            continue;
        f->fired = true;
        sim_at(s, s->now + sim_uniform(s, 0, 0.15), EV_FAULT, i, 0);
        return;
    }
}

// ---- the supervisor

void sim_give_up(struct sim *s, int epoch, double in_s, bool orphan) {
    struct sim_epoch *e = &s->epochs[epoch];
    e->hurt = true;
    if (epoch != s->epoch || e->restarting)
        return;
    e->restarting = true;
    e->orphan = orphan;
    sim_at(s, s->now + in_s, EV_NEXT, epoch, 0);
}

static void kill_epoch(struct sim *s, int epoch) {
    s->epochs[epoch].hurt = true;
    for (int i = 0; i < s->n_ranks; i++)
        if (s->ranks[i].epoch == epoch)
            sim_rank_kill(s, i);
    for (int i = 0; i < s->n_procs; i++)
        if (s->procs[i].epoch == epoch)
            sim_proc_kill(s, i);
}

static void on_next(struct sim *s, int epoch) {
    if (epoch != s->epoch)
        return;
    if (s->epochs[epoch].orphan)
        sim_at(s, s->now + sim_uniform(s, 1, 8), EV_KILL, epoch, 0);
    else
        kill_epoch(s, epoch);
    TSR_ASSERT(epoch + 1 < MAX_EPOCHS);
    s->epoch = epoch + 1;
    s->epochs[s->epoch] = (struct sim_epoch){.proc = -1};
    s->disk.epoch = (uint64_t)s->epoch;
    sim_trace(s, "epoch %d begins", s->epoch);
    sim_at(s, s->now + sim_uniform(s, 0.001, 0.1), EV_FENCE, s->epoch, 0);
}

static void on_fence(struct sim *s, int epoch) {
    sim_fence(s, (uint64_t)epoch);
    sim_at(s, s->now + sim_uniform(s, 0.01, 0.3), EV_START, epoch, 0);
    sim_at(s, s->now + sim_uniform(s, 0.01, 0.3), EV_LAUNCH, epoch, 0);
}

// Rows are cut at random; sometimes a rank is wrong about its own.
static void deal_rows(struct sim *s, struct sim_epoch *e) {
    int at = 0;
    e->garbage = -1;
    for (int i = 0; i < e->world; i++) {
        int left = s->rows - at - 2 * (e->world - i - 1);
        e->from[i] = at;
        at += i == e->world - 1 ? left : 2 + (int)sim_random(s, (uint64_t)(left - 1));
        e->to[i] = at;
    }
    if (s->now > s->heal_at - 4 || !sim_chance(s, 0.15))
        return;
    e->odd = (int)sim_random(s, (uint64_t)e->world);
    e->fault = sim_chance(s, 0.3) || e->world == 1 ? MAP_LAZY : MAP_SHIFTED;
    if (e->fault == MAP_LAZY)
        return;
    int by = e->odd == e->world - 1 || (e->odd > 0 && sim_chance(s, 0.5)) ? -1 : 1;
    e->garbage = by > 0 ? e->to[e->odd] : e->from[e->odd] - 1;
    e->from[e->odd] += by;
    e->to[e->odd] += by;
}

static void on_launch(struct sim *s, int epoch) {
    struct sim_epoch *e = &s->epochs[epoch];
    e->launched = true;
    e->world = 1 + (int)sim_random(s, MAX_WORLD);
    e->step = sim_newest(s);
    e->first_rank = s->n_ranks;
    deal_rows(s, e);
    sim_trace(s, "epoch %d: %d ranks go on from step %d", epoch, e->world, (int)e->step);
    for (int i = 0; i < e->world; i++) {
        s->ranks[s->n_ranks] = (struct sim_rank){.epoch = epoch, .index = i};
        sim_rank_start(s, s->n_ranks++);
    }
}

static void on_start(struct sim *s, int epoch) {
    int proc = s->epochs[epoch].proc;
    if (proc < 0 || !s->procs[proc].alive)
        sim_proc_start(s, epoch);
}

// ---- faults

static void power_loss(struct sim *s) {
    for (int i = 0; i <= s->epoch; i++) {
        kill_epoch(s, i);
        s->epochs[i].restarting = true;
    }
    sim_power_loss(s);
    s->epochs[s->epoch].orphan = false;
    sim_at(s, s->now + 0.5, EV_NEXT, s->epoch, 0);
}

// A rank that is cut off again before it is back may be late for its grace.
static void note_cut(struct sim *s) {
    s->epochs[s->epoch].hurt |= s->now - s->last_cut < 2;
    s->last_cut = s->now;
}

static void hit_rank(struct sim *s, enum sim_fault_kind kind) {
    struct sim_epoch *e = &s->epochs[s->epoch];
    if (!e->launched)
        return;
    int rank = e->first_rank + (int)sim_random(s, (uint64_t)e->world);
    struct sim_rank *r = &s->ranks[rank];
    sim_trace(s, "rank %d of epoch %d: fault %d", r->index, r->epoch, (int)kind);
    e->hurt |= kind != FAULT_CUT;
    if (kind == FAULT_KILL_RANK)
        sim_rank_kill(s, rank);
    else if (kind == FAULT_STOP_RANK)
        r->stopped = true;
    else if (kind == FAULT_STALL_RANK)
        r->stalled = true;
    else if (kind == FAULT_PARTITION)
        r->partition_until = s->now + sim_uniform(s, 0.2, 6);
    else if (r->conn >= 0) {
        note_cut(s);
        sim_cut(s, r->conn);
    }
}

static void hit_coordinator(struct sim *s, enum sim_fault_kind kind) {
    int proc = s->epochs[s->epoch].proc;
    if (proc < 0 || !s->procs[proc].alive)
        return;
    if (kind == FAULT_PAUSE_COORDINATOR) {
        double until = s->now + sim_uniform(s, 0.1, 5);
        if (until > s->procs[proc].paused_until)
            s->procs[proc].paused_until = until;
        sim_trace(s, "epoch %d: the coordinator stands still", s->epoch);
        return;
    }
    sim_proc_kill(s, proc);
    sim_at(s, s->now + sim_uniform(s, 0.1, 1.5), EV_START, s->epoch, 0);
}

static void cut_all(struct sim *s) {
    sim_trace(s, "all connections are cut");
    note_cut(s);
    for (int i = 0; i < s->n_ranks; i++)
        if (s->ranks[i].alive && s->ranks[i].conn >= 0)
            sim_cut(s, s->ranks[i].conn);
}

static void orphan(struct sim *s) {
    struct sim_epoch *e = &s->epochs[s->epoch];
    if (!e->launched || e->restarting)
        return;
    sim_trace(s, "epoch %d is given up and doesn't know", s->epoch);
    if (sim_chance(s, 0.4) && e->proc >= 0)
        sim_proc_kill(s, e->proc); // its ranks will find the next one's address
    sim_give_up(s, s->epoch, sim_uniform(s, 0, 0.1), true);
}

static void on_fault(struct sim *s, enum sim_fault_kind kind) {
    switch (kind) {
    case FAULT_KILL_COORDINATOR:
    case FAULT_PAUSE_COORDINATOR:
        hit_coordinator(s, kind);
        break;
    case FAULT_CUT_ALL:
        cut_all(s);
        break;
    case FAULT_ORPHAN:
        orphan(s);
        break;
    case FAULT_POWER:
        sim_trace(s, "power fails");
        power_loss(s);
        break;
    default:
        hit_rank(s, kind);
        break;
    }
}

void sim_fault_event(struct sim *s, const struct sim_event *e) {
    if (e->kind == EV_FAULT) {
        on_fault(s, s->faults[e->a].kind);
        return;
    }
    if (e->kind == EV_KILL)
        kill_epoch(s, e->a);
    else if (e->kind == EV_NEXT)
        on_next(s, e->a);
    else if (s->epochs[e->a].restarting)
        return; // given up before it was there
    else if (e->kind == EV_FENCE)
        on_fence(s, e->a);
    else if (e->kind == EV_LAUNCH)
        on_launch(s, e->a);
    else
        on_start(s, e->a);
}

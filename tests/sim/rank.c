// A rank: its agent's connection, and training that goes on when all have done their part.
#include <inttypes.h>
#include "core/error.h"
#include "tests/sim/sim.h"

static const double BEAT_S = 0.25, LOST_S = 3, PATIENCE_S = 8;

void sim_rank_start(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    r->alive = true;
    r->conn = -1;
    r->cut_at = r->told = s->now;
    sim_at(s, s->now + sim_uniform(s, 0, 0.2), EV_CONNECT, rank, 0);
    sim_at(s, s->now + BEAT_S, EV_PULSE, rank, 0);
    sim_rank_train(s, rank);
}

void sim_rank_train(struct sim *s, int rank) {
    sim_at(s, s->now + sim_uniform(s, 0.02, 0.25), EV_STEP, rank, 0);
}

void sim_rank_kill(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    if (!r->alive)
        return;
    sim_trace(s, "rank %d of epoch %d is gone", r->index, r->epoch);
    r->alive = false;
    if (r->conn >= 0)
        sim_close(s, r->conn, 0);
    r->conn = -1;
    sim_give_up(s, r->epoch, 2.5, false); // mpirun ends sooner or later
}

void sim_rank_lost(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    r->conn = -1;
    r->welcome = false;
    r->cut_at = s->now;
    sim_at(s, s->now + sim_uniform(s, 0.01, 0.15), EV_CONNECT, rank, 0);
}

// The coordinator of its own epoch, else whoever the address file names.
static int find_coordinator(struct sim *s, const struct sim_rank *r) {
    int own = s->epochs[r->epoch].proc, newest = s->epochs[s->epoch].proc;
    if (own >= 0 && s->procs[own].alive)
        return own;
    return newest >= 0 && s->procs[newest].alive ? newest : -1;
}

static void on_connect(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    if (r->conn >= 0)
        return;
    int proc = find_coordinator(s, r);
    if (proc < 0 || s->now < r->partition_until) {
        sim_at(s, s->now + 0.2, EV_CONNECT, rank, 0);
        return;
    }
    r->conn = sim_connect(s, rank, proc);
    r->told = s->now;
    sim_say_hello(s, rank);
}

static void on_pulse(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    if (r->welcome)
        sim_say_heartbeat(s, rank);
    if (r->conn >= 0 && s->now - r->told > LOST_S) {
        sim_trace(s, "rank %d of epoch %d hears nothing", r->index, r->epoch);
        sim_close(s, r->conn, 0);
        sim_rank_lost(s, rank);
    }
    if (!r->welcome && s->now - r->cut_at > PATIENCE_S) {
        sim_rank_kill(s, rank);
        return;
    }
    sim_at(s, s->now + BEAT_S, EV_PULSE, rank, 0);
}

// A bad step: back to the newest checkpoint, which is then written again (launcher/bad_step.c).
static bool rolls_back(struct sim *s, struct sim_epoch *e) {
    if (!sim_chance(s, s->bad_steps))
        return false;
    for (int i = 0; i < e->world; i++)
        if (s->ranks[e->first_rank + i].save.active)
            return false; // no new chance while it waits: the same in the end
    uint64_t newest = sim_newest(s);
    if (newest == 0 || newest > e->step) // an orphan may see a later epoch's
        return false;
    sim_trace(s, "rolled back from step %" PRIu64 " to %" PRIu64, e->step, newest);
    e->step = e->again = newest;
    return true;
}

static void next_step(struct sim *s, struct sim_epoch *e) {
    e->n_waiting = 0;
    bool back = rolls_back(s, e);
    e->step += !back;
    bool save = back || e->step % (uint64_t)s->every == 0;
    e->saves += save;
    for (int i = 0; i < e->world; i++) {
        int rank = e->first_rank + i;
        struct sim_rank *r = &s->ranks[rank];
        r->waiting = false;
        if (!save)
            sim_rank_train(s, rank);
        else if (r->save.active)
            r->holding = true; // until the last one ends
        else
            sim_save_begin(s, rank, e->step, e->saves);
    }
}

static void on_step(struct sim *s, int rank) {
    struct sim_rank *r = &s->ranks[rank];
    struct sim_epoch *e = sim_epoch_of(s, r);
    if (r->stalled)
        return;
    r->waiting = true;
    r->collective++;
    if (++e->n_waiting == e->world)
        next_step(s, e);
}

void sim_rank_event(struct sim *s, const struct sim_event *e) {
    const struct sim_rank *r = &s->ranks[e->a];
    if (!r->alive || r->stopped)
        return;
    if (e->kind == EV_CONNECT)
        on_connect(s, e->a);
    else if (e->kind == EV_PULSE)
        on_pulse(s, e->a);
    else
        on_step(s, e->a);
}

static void on_welcome(struct sim *s, int rank, const Tessera__Control__Welcome *m) {
    struct sim_rank *r = &s->ranks[rank];
    if (m->epoch != (uint64_t)r->epoch && s->bug != BUG_STALE_EPOCH) {
        sim_rank_kill(s, rank);
        return;
    }
    r->welcome = true;
    sim_say_map(s, rank);
    sim_save_resume(s, rank);
}

void sim_rank_message(struct sim *s, int rank, uint16_t type, const ProtobufCMessage *m) {
    struct sim_rank *r = &s->ranks[rank];
    r->told = s->now;
    switch ((Tessera__Control__FrameType)type) {
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_WELCOME:
        on_welcome(s, rank, (const void *)m);
        break;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_REFUSED:
        sim_trace(s, "rank %d of epoch %d is refused: %s", r->index, r->epoch,
                  ((const Tessera__Control__Refused *)(const void *)m)->reason);
        sim_rank_kill(s, rank);
        break;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP:
        sim_rank_kill(s, rank);
        break;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_PULSE:
        break;
    default:
        sim_save_message(s, rank, type, m);
        break;
    }
}

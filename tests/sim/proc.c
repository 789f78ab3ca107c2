// Processes of the coordinator, and the seam of the one under test.
#include <inttypes.h>
#include <string.h>
#include "core/error.h"
#include "launcher/control/registry.h"
#include "tests/sim/sim.h"

static const double TICK_S = 0.05;
static struct sim *world_of; // the seam's argument is the process, which doesn't know its world

static double seam_now(void *arg) {
    (void)arg;
    return world_of->now;
}

// One save has one end. Not so, but harmless, in three cases: the run is failing; a coordinator
// that was started anew meets a failing disk; or it hears only of a later save's end.
static void check_abort(struct sim *s, const struct sim_proc *p,
                        const Tessera__Checkpoint__SaveAbort *m) {
    if (!s->epochs[p->epoch].hurt && s->disk_fails == 0 && p->core->newest_attempt == m->attempt &&
        sim_announced(s, p->epoch, m->step, m->attempt))
        sim_violation(s, "epoch %d calls step %" PRIu64 " aborted, which it has announced",
                      p->epoch, m->step);
}

static void seam_send(void *arg, int conn, uint16_t type, const ProtobufCMessage *m) {
    struct sim_proc *p = arg;
    struct sim *s = world_of;
    const struct sim_conn *c = p->slots[conn];
    TSR_ASSERT(c);
    if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DONE) {
        const Tessera__Checkpoint__SaveDone *done = (const void *)m;
        sim_announce(s, p, done->step, done->attempt);
    }
    if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_ABORT)
        check_abort(s, p, (const void *)m);
    const struct sim_rank *r = &s->ranks[c->rank];
    if (s->bug == BUG_DIGEST_TO_NOBODY && type == TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DIGEST &&
        r->index == s->epochs[r->epoch].world - 1)
        return;
    sim_send(s, (int)(c - s->conns), 0, type, m);
}

static void seam_drop(void *arg, int conn) {
    struct sim_proc *p = arg;
    sim_close(world_of, (int)(p->slots[conn] - world_of->conns), 1);
    p->slots[conn] = NULL;
}

static void seam_disk(void *arg, const struct tsr_disk_job *job) {
    struct sim_proc *p = arg;
    struct sim *s = world_of;
    TSR_ASSERT(!p->busy);
    p->busy = true;
    p->job = *job;
    if (job->save) {
        p->save = *job->save;
        TSR_ASSERT(job->save->n_ranges <= MAX_DIGESTS);
        memset(p->digests, 0, sizeof p->digests);
        if (job->save->digests)
            memcpy(p->digests, job->save->digests, job->save->n_ranges * sizeof *p->digests);
        p->save.digests = p->digests;
        p->save.files = NULL;
    }
    int proc = (int)(p - s->procs);
    double takes = sim_chance(s, 0.05) ? sim_uniform(s, 0.5, 3) : sim_uniform(s, 0.002, 0.08);
    sim_at(s, s->now + takes, EV_DISK, proc, 0);
    sim_disk_starts(s, proc, job->step);
}

static void seam_failed(void *arg, const Tessera__Control__Failed *f) {
    struct sim_proc *p = arg;
    struct sim *s = world_of;
    p->failed = true;
    sim_trace(s, "epoch %d: rank %" PRIu32 " failed: %s", p->epoch, f->rank, f->cause);
    if (!s->epochs[p->epoch].hurt && !s->epochs[p->epoch].orphan)
        sim_violation(s, "false alarm in epoch %d: rank %" PRIu32 ": %s", p->epoch, f->rank,
                      f->cause);
    sim_give_up(s, p->epoch, sim_uniform(s, 0.1, 1.5), sim_chance(s, 0.2));
}

void sim_proc_start(struct sim *s, int epoch) {
    TSR_ASSERT(s->n_procs < MAX_PROCS);
    struct sim_proc *p = &s->procs[s->n_procs];
    world_of = s;
    *p = (struct sim_proc){.alive = true, .epoch = epoch};
    const struct tsr_coord_opt opt = {.run_name = "sim",
                                      .run_dir = "run",
                                      .epoch = (uint64_t)epoch,
                                      .join_s = 8,
                                      .nobody_s = 8,
                                      .first_s = 10,
                                      .save_s = 60,
                                      .keep = 2};
    const struct tsr_coord_seam seam = {.arg = p,
                                        .now = seam_now,
                                        .send = seam_send,
                                        .drop = seam_drop,
                                        .disk = seam_disk,
                                        .failed = seam_failed};
    sim_trace(s, "epoch %d: a coordinator starts", epoch);
    s->epochs[epoch].proc = s->n_procs;
    int rc = tsr_coord_open_with(&p->core, &opt, &seam, sim_rules(s->bug));
    TSR_ASSERT(rc == 0);
    sim_at(s, s->now + TICK_S, EV_TICK, s->n_procs++, 0);
}

static void apply_disk(struct sim *s, struct sim_proc *p, int *rc, uint64_t *value) {
    static const char *const names[] = {"write manifest", "sync manifest", "sync directories",
                                        "check epoch",    "rename",        "sync parent",
                                        "retain",         "remove",        "find newest"};
    *value = 0;
    bool fails =
        s->now < s->heal_at && p->job.step != TSR_DISK_CHECK_EPOCH && sim_chance(s, s->disk_fails);
    *rc =
        fails ? tsr_fail(TSR_EIO, "simulated: %s", names[p->job.step]) : sim_disk_step(s, p, value);
    sim_trace(s, "epoch %d: disk: %s of step %" PRIu64 ": %s", p->epoch, names[p->job.step],
              p->job.save ? p->save.step : 0, *rc < 0 ? tsr_error_text() : "done");
}

void sim_proc_kill(struct sim *s, int proc) {
    struct sim_proc *p = &s->procs[proc];
    if (!p->alive)
        return;
    sim_trace(s, "epoch %d: the coordinator is killed", p->epoch);
    p->alive = false;
    if (p->busy && sim_chance(s, 0.5)) { // its system call went through
        uint64_t value;
        int rc;
        apply_disk(s, p, &rc, &value);
    }
    tsr_coord_close(p->core);
    for (int i = 0; i < MAX_SLOTS; i++)
        if (p->slots[i])
            sim_close(s, (int)(p->slots[i] - s->conns), 1);
    for (int i = 0; i < s->n_conns; i++) // those that never said Hello
        if (s->conns[i].proc == proc)
            sim_close(s, i, 1);
}

static void on_disk(struct sim *s, struct sim_proc *p) {
    uint64_t value;
    int rc;
    if (s->now < p->paused_until) {
        sim_at(s, p->paused_until, EV_DISK, (int)(p - s->procs), 0);
        return;
    }
    apply_disk(s, p, &rc, &value);
    p->busy = false;
    tsr_coord_disk_done(p->core, p->job.id, rc, rc < 0 ? tsr_error_text() : NULL, value);
}

void sim_proc_event(struct sim *s, const struct sim_event *e) {
    struct sim_proc *p = &s->procs[e->a];
    world_of = s;
    if (!p->alive)
        return;
    if (e->kind == EV_DISK) {
        on_disk(s, p);
    } else if (s->now < p->paused_until) {
        sim_at(s, p->paused_until, EV_TICK, e->a, 0);
    } else {
        tsr_coord_tick(p->core);
        sim_at(s, s->now + TICK_S, EV_TICK, e->a, 0);
    }
}

int sim_proc_message(struct sim *s, int conn, uint16_t type, const ProtobufCMessage *m) {
    struct sim_conn *c = &s->conns[conn];
    struct sim_proc *p = &s->procs[c->proc];
    int slot = -1;
    world_of = s;
    for (int i = MAX_SLOTS - 1; i >= 0; i--)
        if (p->slots[i] == c || (!p->slots[i] && (slot < 0 || p->slots[slot] != c)))
            slot = i;
    TSR_ASSERT(slot >= 0);
    p->slots[slot] = c;
    int rc = tsr_coord_message(p->core, slot, type, m);
    if (rc < 0)
        p->slots[slot] = NULL;
    return rc;
}

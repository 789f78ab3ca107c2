#include "launcher/coordinator/coordinator.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/control/registry.h"
#include "launcher/coordinator/coordinator_private.h"
#include "launcher/coordinator/status.h"

enum { VERSION = 1, EXIT_PEER = 4 };
static const double PAUSE_S = 0.5; // a longer gap between ticks is a pause of this process

// ---- opening and closing

static double or_default(double value, double instead) {
    return value > 0 ? value : instead;
}

int tsr_coord_open_with(struct tsr_coord **out, const struct tsr_coord_opt *opt,
                        const struct tsr_coord_seam *seam, const struct tsr_coord_rules *rules) {
    struct tsr_coord *c = calloc(1, sizeof *c);
    *out = c;
    if (!c)
        return tsr_fail(TSR_ENOMEM, "no memory for the coordinator");
    c->opt = *opt;
    c->opt.run_name = strdup(opt->run_name ? opt->run_name : "");
    c->opt.run_dir = strdup(opt->run_dir ? opt->run_dir : "");
    if (!c->opt.run_name || !c->opt.run_dir) {
        tsr_coord_close(c);
        *out = NULL;
        return tsr_fail(TSR_ENOMEM, "no memory for the coordinator");
    }
    c->opt.heartbeat_s = or_default(opt->heartbeat_s, 0.25);
    c->opt.lost_s = or_default(opt->lost_s, 3);
    c->opt.grace_s = or_default(opt->grace_s, 1);
    c->opt.join_s = or_default(opt->join_s, 60);
    c->opt.nobody_s = or_default(opt->nobody_s, 300);
    c->opt.stall_s = or_default(opt->stall_s, 3);
    c->opt.stall_factor = or_default(opt->stall_factor, 5);
    c->opt.first_s = or_default(opt->first_s, 120);
    c->opt.save_s = or_default(opt->save_s, 1800);
    c->seam = *seam;
    c->rules = rules;
    c->opened = c->waiting_since = c->last_tick = c->next_pulse = seam->now(seam->arg);
    tsr_coord_disk(c, TSR_DISK_FIND_NEWEST, NULL);
    return 0;
}

int tsr_coord_open(struct tsr_coord **out, const struct tsr_coord_opt *opt,
                   const struct tsr_coord_seam *seam) {
    return tsr_coord_open_with(out, opt, seam, &tsr_coord_rules);
}

void tsr_coord_close(struct tsr_coord *c) {
    if (!c)
        return;
    for (int i = 0; i < c->queued; i++)
        tsr_save_unref(c->queue[i].save);
    tsr_save_unref(c->save);
    tsr_shard_maps_free(&c->maps);
    tsr_members_free(&c->members);
    free(c->conns);
    free((char *)c->opt.run_name);
    free((char *)c->opt.run_dir);
    free(c);
}

// Ranks were told to end at once: that they are gone is no news.
static bool ending(const struct tsr_coord *c) {
    return c->failed || (c->stopping && !c->stop.save);
}

bool tsr_coord_over(const struct tsr_coord *c) {
    if (c->members.world == 0 || c->members.n_present > 0 || c->queued > 0)
        return false;
    for (int r = 0; r < c->members.world && !ending(c); r++)
        if (c->members.v[r].state == TSR_MEMBER_LOST)
            return false;
    return true;
}

// ---- sending

static double now_of(const struct tsr_coord *c) {
    return c->seam.now(c->seam.arg);
}

void tsr_coord_tell_rank(struct tsr_coord *c, int rank, uint16_t type, const ProtobufCMessage *m) {
    const struct tsr_member *to = &c->members.v[rank];
    if (to->state == TSR_MEMBER_PRESENT)
        c->seam.send(c->seam.arg, to->conn, type, m);
}

void tsr_coord_tell_ranks(struct tsr_coord *c, uint16_t type, const ProtobufCMessage *m) {
    for (int r = 0; r < c->members.world; r++)
        tsr_coord_tell_rank(c, r, type, m);
}

// ---- failures and stops

static void tell_watchers(struct tsr_coord *c, uint16_t type, const ProtobufCMessage *m) {
    for (int i = 0; i < c->n_conns; i++)
        if (c->conns[i].used && c->conns[i].role != TESSERA__CONTROL__ROLE__ROLE_RANK)
            c->seam.send(c->seam.arg, i, type, m);
}

static void stop_ranks(struct tsr_coord *c, bool save, uint32_t exit_code, const char *reason) {
    tsr_frame_text(c->stop_reason, sizeof c->stop_reason, reason);
    tessera__control__stop__init(&c->stop);
    c->stop.save = save;
    c->stop.exit_code = exit_code;
    c->stop.reason = c->stop_reason;
    c->stopping = true;
    tsr_coord_tell_ranks(c, TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP, &c->stop.base);
}

void tsr_coord_fail(struct tsr_coord *c, int rank, const char *cause) {
    if (c->failed)
        return;
    char operation[128] = "", reason[512];
    Tessera__Control__Failed f = TESSERA__CONTROL__FAILED__INIT;
    f.rank = (uint32_t)rank;
    f.cause = (char *)cause;
    f.operation = operation;
    if (rank < c->members.world) {
        const struct tsr_member *m = &c->members.v[rank];
        tsr_member_operation(m, operation, sizeof operation);
        f.host = (char *)m->host;
        f.step = m->step;
        snprintf(reason, sizeof reason, "rank %d (%s): %s during %s, after step %" PRIu64, rank,
                 m->host, cause, operation, m->step);
        tsr_members_dead(&c->members, rank);
    } else {
        snprintf(reason, sizeof reason, "%s", cause);
    }
    c->failed = true;
    if (c->save && c->rules->death_aborts(c->save))
        tsr_coord_abort(c, EXIT_PEER, "%s", reason);
    stop_ranks(c, false, EXIT_PEER, reason);
    tell_watchers(c, TESSERA__CONTROL__FRAME_TYPE__FRAME_FAILED, &f.base);
    c->seam.failed(c->seam.arg, &f);
}

// ---- connections

// This process stood still (SIGSTOP, a loaded machine): nobody is to blame for the time. Before
// anything that came meanwhile is judged.
static void notice_pause(struct tsr_coord *c) {
    double now = now_of(c), gap = now - c->last_tick;
    c->last_tick = now;
    if (gap < PAUSE_S)
        return;
    c->waiting_since += gap;
    if (c->save)
        c->save->progress += gap;
    tsr_members_forgive(&c->members, gap, now);
}

static void forget(struct tsr_coord *c, int conn) {
    if (conn < 0 || conn >= c->n_conns || !c->conns[conn].used)
        return;
    struct tsr_conn was = c->conns[conn];
    c->conns[conn] = (struct tsr_conn){0};
    if (was.role == TESSERA__CONTROL__ROLE__ROLE_RANK && c->members.v[was.rank].conn == conn)
        tsr_members_lost(&c->members, was.rank, now_of(c));
}

void tsr_coord_closed(struct tsr_coord *c, int conn) {
    notice_pause(c);
    forget(c, conn);
}

static int grow_conns(struct tsr_coord *c, int conn) {
    if (conn < c->n_conns)
        return 0;
    int n = 2 * c->n_conns > 64 ? 2 * c->n_conns : 64;
    if (n <= conn)
        n = conn + 1;
    struct tsr_conn *v = realloc(c->conns, (size_t)n * sizeof *v);
    if (!v)
        return tsr_fail(TSR_ENOMEM, "no memory for connection %d", conn);
    memset(v + c->n_conns, 0, (size_t)(n - c->n_conns) * sizeof *v);
    c->conns = v;
    c->n_conns = n;
    return 0;
}

static int join(struct tsr_coord *c, int conn, const Tessera__Control__Hello *h) {
    int old;
    if (c->failed)
        return tsr_fail(TSR_EREQUEST, "the run has failed: %.400s", c->stop_reason);
    TSR_TRY(tsr_members_hello(&c->members, h, conn, now_of(c), &old));
    if (!c->maps.ranks) {
        int rc = tsr_shard_maps_init(&c->maps, c->members.world);
        if (rc < 0) { // the first rank: as if it had not come
            tsr_members_free(&c->members);
            return rc;
        }
    }
    if (old >= 0) {
        c->conns[old] = (struct tsr_conn){0};
        c->seam.drop(c->seam.arg, old);
    }
    return 0;
}

static const char *const role_names[] = {"rank", "observer", "supervisor"};

static int say_hello(struct tsr_coord *c, int conn, const Tessera__Control__Hello *h) {
    if (h->version != VERSION)
        return tsr_fail(TSR_EREQUEST, "expected protocol version %d, found %" PRIu32, VERSION,
                        h->version);
    if (h->role != TESSERA__CONTROL__ROLE__ROLE_RANK &&
        h->role != TESSERA__CONTROL__ROLE__ROLE_OBSERVER &&
        h->role != TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR)
        return tsr_fail(TSR_EREQUEST, "no such role: %d", (int)h->role);
    // A supervisor that was stopped for a while must not end what another one has started since.
    bool observer = h->role == TESSERA__CONTROL__ROLE__ROLE_OBSERVER;
    if (!observer && !c->rules->welcome(c->opt.epoch, h->epoch))
        return tsr_fail(TSR_EREQUEST,
                        "this is epoch %" PRIu64 " of the run, found a %s of epoch %" PRIu64,
                        c->opt.epoch, role_names[h->role], h->epoch);
    TSR_TRY(grow_conns(c, conn));
    bool rank = h->role == TESSERA__CONTROL__ROLE__ROLE_RANK;
    if (rank)
        TSR_TRY(join(c, conn, h));
    c->conns[conn] = (struct tsr_conn){true, h->role, rank ? (int)h->rank : -1};
    return 0;
}

static int on_hello(struct tsr_coord *c, int conn, const Tessera__Control__Hello *h) {
    int rc = say_hello(c, conn, h);
    if (rc < 0) {
        Tessera__Control__Refused m = TESSERA__CONTROL__REFUSED__INIT;
        char reason[512];
        tsr_frame_text(reason, sizeof reason, tsr_error_text());
        m.reason = reason;
        c->seam.send(c->seam.arg, conn, TESSERA__CONTROL__FRAME_TYPE__FRAME_REFUSED, &m.base);
        return rc;
    }
    Tessera__Control__Welcome m = TESSERA__CONTROL__WELCOME__INIT;
    m.epoch = c->opt.epoch;
    m.heartbeat_ms = (uint32_t)(c->opt.heartbeat_s * 1000 + 0.5);
    m.lost_ms = (uint32_t)(c->opt.lost_s * 1000 + 0.5);
    c->seam.send(c->seam.arg, conn, TESSERA__CONTROL__FRAME_TYPE__FRAME_WELCOME, &m.base);
    if (c->stopping && c->conns[conn].role == TESSERA__CONTROL__ROLE__ROLE_RANK)
        c->seam.send(c->seam.arg, conn, TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP, &c->stop.base);
    return 0;
}

// ---- messages

static int on_step(struct tsr_coord *c, int rank, const Tessera__Control__StepReport *m) {
    if (rank != 0)
        return tsr_fail(TSR_EREQUEST, "a report of a step from rank %d", rank);
    c->last = *m; // it has no pointers
    c->has_last = true;
    return 0;
}

static void on_bye(struct tsr_coord *c, int conn, int rank) {
    char why[64];
    snprintf(why, sizeof why, "rank %d has left the run", rank);
    tsr_members_bye(&c->members, rank);
    forget(c, conn);
    tsr_coord_save_without(c, rank, why);
}

static void on_outcome(struct tsr_coord *c, uint64_t step, uint32_t attempt, bool committed,
                       uint32_t exit_code, const char *text) {
    struct tsr_outcome o = {step, attempt, committed, exit_code, ""};
    tsr_frame_text(o.text, sizeof o.text, text);
    if (attempt > 0)
        tsr_coord_save_heard(c, &o);
}

static int of_rank(struct tsr_coord *c, int conn, int rank, uint16_t type, const void *m) {
    const Tessera__Checkpoint__SaveDone *done = m;
    const Tessera__Checkpoint__SaveAbort *abort = m;
    c->members.v[rank].heard = now_of(c);
    switch ((Tessera__Control__FrameType)type) {
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_HEARTBEAT:
        tsr_members_heartbeat(&c->members, rank, m, now_of(c));
        return 0;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_STEP:
        return on_step(c, rank, m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_BYE:
        on_bye(c, conn, rank);
        return 0;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SHARD_MAP:
        return tsr_shard_maps_put(&c->maps, rank, m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_PLAN:
        return tsr_coord_save_plan(c, rank, m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_READY:
        return tsr_coord_save_ready(c, rank, m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_VOTE:
        return tsr_coord_save_vote(c, rank, m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DIGESTS:
        return tsr_coord_save_digests(c, rank, m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_DONE:
        on_outcome(c, done->step, done->attempt, true, 0, done->directory);
        return 0;
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_SAVE_ABORT:
        on_outcome(c, abort->step, abort->attempt, false, abort->exit_code, abort->reason);
        return 0;
    default:
        return tsr_fail(TSR_EREQUEST, "rank %d sent a message of type %u", rank, type);
    }
}

static int of_watcher(struct tsr_coord *c, int conn, uint16_t type, const void *m) {
    const Tessera__Control__Stop *stop = m;
    bool supervisor = c->conns[conn].role == TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR;
    if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_BYE) {
        forget(c, conn);
        return 0;
    }
    if (type != TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP || !supervisor)
        return tsr_fail(TSR_EREQUEST, "an observer or supervisor sent a message of type %u", type);
    if (!c->failed)
        stop_ranks(c, stop->save, stop->exit_code, stop->reason);
    return 0;
}

int tsr_coord_message(struct tsr_coord *c, int conn, uint16_t type, const ProtobufCMessage *m) {
    TSR_ASSERT(conn >= 0 && conn < TSR_COORD_MAX_CONNS);
    notice_pause(c);
    bool known = conn < c->n_conns && c->conns[conn].used;
    if (!known && type == TESSERA__CONTROL__FRAME_TYPE__FRAME_HELLO)
        return on_hello(c, conn, (const Tessera__Control__Hello *)m);
    if (!known || type == TESSERA__CONTROL__FRAME_TYPE__FRAME_HELLO) {
        forget(c, conn);
        return tsr_fail(TSR_EREQUEST, "connection %d: a message of type %u %s its Hello", conn,
                        type, known ? "after" : "before");
    }
    const struct tsr_conn *from = &c->conns[conn];
    int rc =
        type == TESSERA__CONTROL__FRAME_TYPE__FRAME_STATUS_REQUEST ? tsr_coord_send_status(c, conn)
        : from->role == TESSERA__CONTROL__ROLE__ROLE_RANK ? of_rank(c, conn, from->rank, type, m)
                                                          : of_watcher(c, conn, type, m);
    if (rc < 0)
        forget(c, conn);
    return rc;
}

// ---- time

static void pulse(struct tsr_coord *c, double now) {
    if (now < c->next_pulse)
        return;
    Tessera__Control__Pulse m = TESSERA__CONTROL__PULSE__INIT;
    m.committed_step = c->committed_step;
    tsr_coord_tell_ranks(c, TESSERA__CONTROL__FRAME_TYPE__FRAME_PULSE, &m.base);
    c->next_pulse = now + c->opt.heartbeat_s;
}

void tsr_coord_tick(struct tsr_coord *c) {
    double now = now_of(c);
    const struct tsr_limits l = {c->opt.lost_s,  c->opt.grace_s,      c->opt.join_s,
                                 c->opt.stall_s, c->opt.stall_factor, c->opt.first_s};
    struct tsr_culprit who;
    notice_pause(c);
    pulse(c, now);
    if (c->members.world && !ending(c) &&
        (tsr_members_ended(&c->members, c->seam.ended, c->seam.arg, &who) ||
         tsr_members_check(&c->members, &l, now, c->save != NULL, &who)))
        tsr_coord_fail(c, who.rank, who.cause);
    if (!c->members.world && !ending(c) && now - c->waiting_since > c->opt.nobody_s)
        tsr_coord_fail(c, 0, "no rank has joined");
    tsr_coord_save_tick(c, now);
}

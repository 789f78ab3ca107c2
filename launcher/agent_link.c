// The agent's connection: made again when it breaks, silent coordinators given up, heartbeats.
#include "launcher/agent_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "launcher/supervise_spawn.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name

// A round of the loop that comes later than this was a pause of this process (a loaded machine, a
// stopped process): what the coordinator sent meanwhile may not be read yet.
static const double LONGEST_PASS_S = 0.2;
static const double FIRST_RETRY_S = 0.05, LAST_RETRY_S = 1.0, CONNECT_S = 2.0;
static const double POLL_S = 0.25;

void tsr_agent_send(struct tsr_agent *a, uint16_t type, const ProtobufCMessage *m) {
    if (a->link && a->welcomed)
        tsr_link_send(a->link, type, m);
}

static void settle_open(struct tsr_agent *a, enum tsr_agent_state state, int code) {
    uv_mutex_lock(&a->lock);
    if (a->state == TSR_AGENT_OPENING) {
        a->state = state;
        a->open_code = code;
        snprintf(a->open_error, sizeof a->open_error, "%s", code < 0 ? tsr_error_text() : "");
    } else if (state == TSR_AGENT_ENDED) {
        a->state = state;
    }
    uv_cond_broadcast(&a->changed);
    uv_mutex_unlock(&a->lock);
}

static void end_run(struct tsr_agent *a, int exit_code, const char *reason) {
    if (!a->opt.end) {
        tsr_error("%s", reason);
        _exit(exit_code);
    }
    settle_open(a, TSR_AGENT_ENDED, 0);
    tsr_agent_save_fail(a, TSR_EPEER, reason);
    if (a->link)
        tsr_link_abort(a->link);
    a->opt.end(a->opt.arg, exit_code, reason);
}

static bool is_over(struct tsr_agent *a) {
    uv_mutex_lock(&a->lock);
    bool over = a->state == TSR_AGENT_ENDED || a->state == TSR_AGENT_FAILED;
    uv_mutex_unlock(&a->lock);
    return over;
}

static int on_welcome(void *arg, const Tessera__Control__Welcome *w) {
    struct tsr_agent *a = arg;
    a->heartbeat_s = w->heartbeat_ms / 1e3;
    a->lost_s = w->lost_ms / 1e3;
    if (a->heartbeat_s <= 0 || a->lost_s <= a->heartbeat_s)
        return tsr_fail(TSR_EREQUEST, "a Welcome with heartbeats every %u ms and lost after %u ms",
                        w->heartbeat_ms, w->lost_ms);
    if (a->ever_welcomed)
        tsr_info("rank %d is connected to the coordinator again", a->opt.rank);
    a->welcomed = a->ever_welcomed = true;
    a->silence_s = a->down_s = a->back_off_s = a->beat_at = 0;
    for (int i = 0; i < a->n_map; i++)
        tsr_agent_send(a, FRAME(SHARD_MAP), &a->map[i]->base);
    tsr_agent_save_repeat(a);
    a->report_news = a->has_report;
    settle_open(a, TSR_AGENT_UP, 0);
    return 0;
}

static void on_stop(struct tsr_agent *a, const Tessera__Control__Stop *m) {
    if (m->save) { // may be said again
        if (atomic_exchange(&a->opt.progress->stop, 1) == 0 && a->opt.rank == 0)
            tsr_info("stopping after this step: %s", m->reason);
    } else if (a->opt.end) {
        end_run(a, (int)m->exit_code, m->reason);
    } else {
        tsr_debug("stopping: %s", m->reason);
        _exit((int)m->exit_code); // whoever found the failure has said why
    }
}

static int on_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_agent *a = arg;
    a->silence_s = 0;
    if (type == FRAME(STOP))
        on_stop(a, (const Tessera__Control__Stop *)m);
    else if (type != FRAME(PULSE))
        return tsr_agent_save_message(a, type, m);
    return 0;
}

// A coordinator of a newer epoch: this rank is an orphan of an earlier incarnation.
static bool superseded(struct tsr_agent *a) {
    return a->link && tsr_link_epoch(a->link) > a->opt.epoch;
}

static void on_ended(void *arg, int code) {
    struct tsr_agent *a = arg;
    char reason[1024];
    bool orphan = superseded(a), first = !a->ever_welcomed;
    uint64_t epoch = a->link ? tsr_link_epoch(a->link) : 0;
    if (a->silence_s > a->lost_s) // it was us who hung up
        tsr_fail(TSR_EPEER, "no word from it for %.1f s", a->silence_s);
    else if (code == 0)
        tsr_fail(TSR_EPEER, "it closed the connection");
    snprintf(reason, sizeof reason, "%s", tsr_error_text());
    if (a->welcomed && !a->leaving)
        tsr_warn("rank %d lost the coordinator: %s", a->opt.rank, reason);
    a->link = NULL;
    a->welcomed = false;
    a->silence_s = 0;
    snprintf(a->last_reason, sizeof a->last_reason, "%s", reason);
    double wait = a->back_off_s > 0 ? a->back_off_s : FIRST_RETRY_S;
    a->back_off_s = 2 * wait < LAST_RETRY_S ? 2 * wait : LAST_RETRY_S;
    a->retry_at = tsr_now() + wait * (1 + (a->opt.rank % 16) / 32.0); // not all ranks at once
    if (a->leaving || is_over(a))
        return;
    if (orphan && !first) {
        snprintf(reason, sizeof reason,
                 "rank %d is of incarnation %" PRIu64 " of the run, and incarnation %" PRIu64
                 " has taken over",
                 a->opt.rank, a->opt.epoch, epoch);
        end_run(a, tsr_exit_code(TSR_EPEER), reason);
    } else if (first && (orphan || code == TSR_EREQUEST)) {
        tsr_fail(TSR_EPEER, "rank %d: %s", a->opt.rank, reason);
        settle_open(a, TSR_AGENT_FAILED, TSR_EPEER);
    }
}

// The address that was given, or the one in the run directory: after a restart of the coordinator
// they may differ. They take turns.
static int choose_address(struct tsr_agent *a, struct tsr_address *at) {
    if (a->attempts++ % 2 == 1 && tsr_address_read(a->run_dir, at) == 1 &&
        at->epoch == a->opt.epoch)
        return 0;
    return tsr_address_parse(a->address, at);
}

static void connect_again(struct tsr_agent *a) {
    struct tsr_address at;
    struct tsr_link_opt opt = {.loop = &a->loop,
                               .secret = a->secret,
                               .address = &at,
                               .hello = &a->hello,
                               .timeout_s = CONNECT_S,
                               .welcome = on_welcome,
                               .message = on_message,
                               .ended = on_ended,
                               .arg = a};
    a->hello.step = atomic_load(&a->opt.progress->step);
    int rc = choose_address(a, &at);
    if (rc == 0)
        rc = tsr_link_open(&a->link, &opt);
    if (rc < 0)
        on_ended(a, rc);
}

void tsr_agent_beat(struct tsr_agent *a) {
    const struct tsr_progress *p = a->opt.progress;
    Tessera__Control__Heartbeat h = TESSERA__CONTROL__HEARTBEAT__INIT;
    h.step = atomic_load(&p->step);
    h.phase = (Tessera__Control__Phase)atomic_load(&p->phase);
    h.collective = atomic_load(&p->collective);
    h.micro_batch = atomic_load(&p->micro_batch);
    tsr_agent_send(a, FRAME(HEARTBEAT), &h.base);
    if (a->report_news)
        tsr_agent_send(a, FRAME(STEP), &a->report.base);
    a->report_news = false;
}

static void pass_without(struct tsr_agent *a, double now, double dt) {
    char reason[1400];
    a->down_s += dt;
    if (!a->ever_welcomed && a->down_s > a->opt.open_s) {
        int rc = tsr_fail(TSR_ETIMEOUT,
                          "rank %d waited %.0f s for the coordinator at %s; the last attempt: %s",
                          a->opt.rank, a->opt.open_s, a->address, a->last_reason);
        settle_open(a, TSR_AGENT_FAILED, rc);
    } else if (a->ever_welcomed && a->down_s > a->lost_s + a->opt.gone_s) {
        snprintf(reason, sizeof reason, "rank %d found no coordinator for %.1f s, giving up: %s",
                 a->opt.rank, a->down_s, a->last_reason);
        tsr_end_daemon();
        end_run(a, tsr_exit_code(TSR_EPEER), reason);
    } else if (!a->link && now >= a->retry_at) {
        connect_again(a);
    }
}

// The main thread, whose wait has ended, says more about the failure than is known here, unless it
// waits for something else from that peer.
static void ask_transport(struct tsr_agent *a, double now) {
    if (!a->opt.poll || now < a->poll_at)
        return;
    a->poll_at = now + POLL_S;
    int rc = a->opt.poll(a->opt.poll_arg);
    if (rc < 0 && a->peer_failed_at == 0)
        a->peer_failed_at = now;
    else if (rc < 0 && now - a->peer_failed_at > a->opt.peer_s)
        end_run(a, tsr_exit_code(rc), tsr_error_text());
}

void tsr_agent_link_pass(struct tsr_agent *a) {
    double now = tsr_now(), dt = now - a->passed;
    a->passed = now;
    dt = dt < LONGEST_PASS_S ? dt : LONGEST_PASS_S;
    if (a->leaving || is_over(a))
        return;
    ask_transport(a, now);
    if (is_over(a))
        return;
    if (!a->welcomed) {
        pass_without(a, now, dt);
        return;
    }
    a->silence_s += dt;
    if (a->silence_s > a->lost_s) {
        tsr_link_abort(a->link); // and on_ended begins anew
    } else if (now >= a->beat_at) {
        tsr_agent_beat(a);
        a->beat_at = now + a->heartbeat_s;
    }
}

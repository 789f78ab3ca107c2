// The coordinator process of an incarnation, and the supervisor's connection to it.
#include "launcher/supervise_private.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "launcher/supervise_spawn.h"

enum { MAX_QUICK_DEATHS = 5 };
#define START_S     15.0 // until it says where it listens
#define RECONNECT_S 0.2
#define ASK_S       1.0 // between questions for the status
#define JOIN_ASK_S  0.2 // the same, until all ranks have joined
#define SILENT_S    3.0 // beyond lost_ms
#define END_S       3.0 // for it to end
#define ALONE_S     2.0 // for the ranks to end after a coordinator that did in order
#define QUICK_S     30.0

// ---- what it says

static void tell_failure(struct tsr_super *s, const Tessera__Control__Failed *f) {
    if (s->failed)
        return; // the others follow the first
    s->failed = s->joined = true;
    s->failed_s = tsr_now();
    s->failed_rank = f->rank;
    if (f->rank >= s->world) // the coordinator's own: a newer incarnation took over
        snprintf(s->cause, sizeof s->cause, "the run ends: %s", f->cause);
    else
        snprintf(s->cause, sizeof s->cause, "rank %" PRIu32 " on %s failed: %s; %s, step %" PRIu64,
                 f->rank, f->host, f->cause, f->operation, f->step);
}

static void take_status(struct tsr_super *s, const Tessera__Control__Status *m) {
    size_t alive = 0;
    tsr_super_ranks_status(s, m);
    for (size_t i = 0; i < m->n_ranks; i++)
        alive += m->ranks[i]->alive != 0;
    bool all_left = s->joined && m->n_ranks > 0 && alive == 0;
    if (all_left && !s->all_left)
        s->all_left_s = tsr_now();
    s->all_left = all_left;
    s->joined |= alive > 0;
}

static int on_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_super *s = arg;
    s->heard_s = tsr_now();
    if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_FAILED)
        tell_failure(s, (const Tessera__Control__Failed *)m);
    if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_STATUS)
        take_status(s, (const Tessera__Control__Status *)m);
    return 0;
}

// What was said before was dropped.
static int on_welcome(void *arg, const Tessera__Control__Welcome *w) {
    struct tsr_super *s = arg;
    (void)w;
    s->heard_s = tsr_now();
    s->stop_said_s = s->asked_s = 0.0;
    return 0;
}

static void on_ended(void *arg, int code) {
    struct tsr_super *s = arg;
    if (code < 0)
        tsr_debug("connection to the coordinator: %s", tsr_error_text());
    s->link = NULL;
}

static void connect_link(struct tsr_super *s) {
    struct tsr_link_opt opt = {.loop = &s->loop,
                               .secret = s->secret,
                               .address = &s->address,
                               .hello = &s->hello,
                               .timeout_s = START_S,
                               .welcome = on_welcome,
                               .message = on_message,
                               .ended = on_ended,
                               .arg = s};
    s->link_s = tsr_now();
    s->stop_said_s = s->asked_s = 0.0;
    if (tsr_link_open(&s->link, &opt) < 0) {
        tsr_debug("connection to the coordinator: %s", tsr_error_text());
        s->link = NULL;
    }
}

static void say(struct tsr_super *s, double ask_s) {
    double now = tsr_now();
    if (s->n_signals > 0 && now - s->stop_said_s > ASK_S) { // again: ranks may join later
        Tessera__Control__Stop stop = TESSERA__CONTROL__STOP__INIT;
        stop.save = 1;
        stop.exit_code = TSR_EXIT_INTERRUPTED;
        stop.reason = (char *)"the supervisor was asked to stop";
        tsr_link_send(s->link, TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP, &stop.base);
        s->stop_said_s = now;
    }
    if (now - s->asked_s > ask_s) {
        Tessera__Control__StatusRequest ask = TESSERA__CONTROL__STATUS_REQUEST__INIT;
        tsr_link_send(s->link, TESSERA__CONTROL__FRAME_TYPE__FRAME_STATUS_REQUEST, &ask.base);
        s->asked_s = now;
    }
}

// ---- its process

// One that is started again asks for the port that the ranks know.
static int command(const struct tsr_super *s, const char *host, struct tsr_strings *argv) {
    const struct tsr_run *r = s->opt->run;
    TSR_TRY(tsr_strings_add(argv, "%s", s->program));
    TSR_TRY(tsr_strings_add(argv, "coordinator"));
    TSR_TRY(tsr_strings_add(argv, "--name=%s", r->run.name));
    TSR_TRY(tsr_strings_add(argv, "--epoch=%" PRIu64, s->epoch));
    TSR_TRY(tsr_strings_add(argv, "--restarts=%" PRIu64, s->restarts));
    TSR_TRY(tsr_strings_add(argv, "--host=%s", host));
    TSR_TRY(tsr_strings_add(argv, "--port=%d", s->address.port));
    TSR_TRY(tsr_strings_add(argv, "--heartbeat=%g", (double)r->supervise.heartbeat_ms * 1e-3));
    TSR_TRY(tsr_strings_add(argv, "--lost=%g", (double)r->supervise.lost_ms * 1e-3));
    TSR_TRY(tsr_strings_add(argv, "--stall=%g", (double)r->supervise.stall_ms * 1e-3));
    TSR_TRY(tsr_strings_add(argv, "--first=%g", (double)r->supervise.first_ms * 1e-3));
    TSR_TRY(tsr_strings_add(argv, "--metrics-port=%" PRId64,
                            r->supervise.metrics_port ? r->supervise.metrics_port : -1));
    TSR_TRY(tsr_strings_add(argv, "--keep=%" PRId64, r->checkpoint.keep));
    TSR_TRY(tsr_strings_add(argv, "--"));
    return tsr_strings_add(argv, "%s", r->run.dir);
}

static int spawn(struct tsr_super *s) {
    struct tsr_strings argv = {0};
    char host[TSR_HOST_MAX];
    int out[2];
    TSR_TRY(tsr_super_own_address(s, host));
    if (pipe2(out, O_CLOEXEC) < 0)
        return tsr_fail(TSR_EIO, "cannot open a pipe for the coordinator");
    s->coordinator = (struct tsr_process){0};
    int rc = command(s, host, &argv);
    struct tsr_spawn child = {
        .argv = (const char *const *)argv.items, .in = -1, .out = out[1], .err = -1};
    if (rc == 0)
        rc = tsr_spawn(&child, &s->coordinator.pid);
    tsr_strings_free(&argv);
    close(out[1]);
    if (rc == 0)
        s->ready_pipe = out[0];
    else
        close(out[0]);
    s->n_coordinators++;
    s->coordinator_s = tsr_now();
    s->alone_s = 0.0;
    return rc;
}

static void close_pipe(struct tsr_super *s) {
    if (s->ready_pipe >= 0)
        close(s->ready_pipe);
    s->ready_pipe = -1;
}

// It writes a line once its address is in the address file.
static bool has_spoken(struct tsr_super *s) {
    char line[512];
    return s->coordinator.ended || read(s->ready_pipe, line, sizeof line) > 0;
}

static bool spoke_or_stop(struct tsr_super *s) {
    return has_spoken(s) || tsr_super_must_end(s);
}

static int find_address(struct tsr_super *s) {
    struct tsr_address a;
    int rc = tsr_address_read(s->opt->run->run.dir, &a);
    TSR_TRY(rc);
    if (rc == 0 || a.pid != s->coordinator.pid || a.epoch != s->epoch)
        return tsr_fail(TSR_EPEER, "the coordinator did not say where it listens");
    s->address = a;
    return 0;
}

// The code of an end at start, with a sentence. Its own message went to standard error already.
static int start_failed(struct tsr_super *s) {
    int code = tsr_process_code(&s->coordinator);
    s->told = code == 2 || code == 3;
    return tsr_fail(code == 2   ? TSR_EUSAGE
                    : code == 3 ? TSR_EIO
                                : TSR_EPEER,
                    "the coordinator ended at its start with exit code %d", code);
}

static int start(struct tsr_super *s) {
    TSR_TRY(spawn(s));
    fcntl(s->ready_pipe, F_SETFL, O_NONBLOCK);
    if (!tsr_super_wait(s, spoke_or_stop, START_S))
        return tsr_fail(TSR_EPEER, "the coordinator said nothing for %.0f s", START_S);
    if (tsr_super_must_end(s))
        return tsr_fail(TSR_EINTERRUPTED, "interrupted");
    if (s->coordinator.ended)
        return start_failed(s);
    TSR_TRY(find_address(s));
    s->heard_s = s->tended_s = tsr_now();
    s->is_silent = false;
    connect_link(s);
    return 0;
}

int tsr_super_coordinator_start(struct tsr_super *s) {
    s->n_coordinators = 0;
    s->address = (struct tsr_address){0};
    s->failed = s->joined = s->all_left = false;
    s->hello = (Tessera__Control__Hello)TESSERA__CONTROL__HELLO__INIT;
    s->hello.role = TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR;
    s->hello.epoch = s->epoch;
    return start(s);
}

static void drain(struct tsr_super *s) {
    char text[512];
    while (s->ready_pipe >= 0 && read(s->ready_pipe, text, sizeof text) > 0)
        ;
}

// It got a SIGTERM too and has seen all ranks leave: they will end in a moment.
static bool has_finished(struct tsr_super *s, double now) {
    if (tsr_process_code(&s->coordinator) != 0 || !s->joined)
        return false;
    if (s->alone_s == 0.0)
        s->alone_s = now;
    return now - s->alone_s < ALONE_S;
}

// One that is stopped or hangs must go before the ranks give it up (lost_ms + 5 s). Checkpoints are
// its threads' work, so a sound one answers within a moment. While we slept nobody was heard.
static void end_silent(struct tsr_super *s, double now) {
    double limit_s = (double)s->opt->run->supervise.lost_ms * 1e-3 + SILENT_S;
    if (now - s->tended_s > ASK_S)
        s->heard_s += now - s->tended_s;
    s->tended_s = now;
    if (s->is_silent || now - s->heard_s < limit_s)
        return;
    kill(s->coordinator.pid, SIGKILL); // first: what stopped it may stop us, too, when we write
    s->is_silent = true;
    tsr_warn("the coordinator did not answer for %.1f s: it was killed", now - s->heard_s);
}

int tsr_super_coordinator_tend(struct tsr_super *s) {
    double now = tsr_now();
    drain(s);
    if (s->coordinator.ended && has_finished(s, now))
        return 0;
    if (s->coordinator.ended) {
        if (now - s->coordinator_s > QUICK_S)
            s->n_coordinators = 0;
        if (s->n_coordinators >= MAX_QUICK_DEATHS)
            return tsr_fail(TSR_EPEER, "the coordinator ended %d times in a row",
                            s->n_coordinators);
        tsr_warn("the coordinator ended with exit code %d and is started again; the ranks go on",
                 tsr_process_code(&s->coordinator));
        close_pipe(s);
        if (s->link)
            tsr_link_abort(s->link);
        return start(s);
    }
    end_silent(s, now);
    if (s->link)
        say(s, s->all_joined ? ASK_S : JOIN_ASK_S);
    else if (now - s->link_s > RECONNECT_S)
        connect_link(s);
    return 0;
}

static bool has_ended(struct tsr_super *s) {
    return s->coordinator.ended;
}

static bool has_no_link(struct tsr_super *s) {
    return !s->link;
}

void tsr_super_coordinator_end(struct tsr_super *s, bool in_order) {
    struct tsr_process *c = &s->coordinator;
    if (c->pid > 0 && !c->ended) {
        if (in_order) {
            kill(c->pid, SIGTERM); // it first ends what it has to do
            tsr_super_wait(s, has_ended, END_S);
        }
        if (!c->ended) // a commit under way is whole or nothing
            kill(c->pid, SIGKILL);
        tsr_super_wait(s, has_ended, END_S);
    }
    if (s->link)
        tsr_link_abort(s->link);
    tsr_super_wait(s, has_no_link, END_S);
    close_pipe(s);
    *c = (struct tsr_process){0};
}

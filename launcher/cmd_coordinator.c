// `tessera coordinator`: the coordinator as a process of its own. The supervisor starts it; nobody
// types it.
#include <inttypes.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/commands.h"
#include "launcher/coordinator/loop.h"
#include "launcher/options.h"

enum { END_WATCH_MS = 10 };

struct process {
    uv_loop_t loop;
    uv_signal_t term;
    uv_timer_t parent_watch, end_watch;
    pid_t parent;
    struct tsr_coordinator *coordinator;
};

static void on_end_watch(uv_timer_t *t) {
    const struct process *p = t->data;
    if (!tsr_coordinator_needed(p->coordinator))
        uv_stop(t->loop);
}

// A SIGTERM that is meant for the whole job comes here too, and the last checkpoint needs us: the
// end comes once nobody does.
static void on_term(uv_signal_t *s, int number) {
    struct process *p = s->data;
    (void)number;
    if (!uv_is_active((uv_handle_t *)&p->end_watch))
        uv_timer_start(&p->end_watch, on_end_watch, 0, END_WATCH_MS);
}

// PR_SET_PDEATHSIG tells of the thread that started us; this one, of the process.
static void on_parent_watch(uv_timer_t *t) {
    const struct process *p = t->data;
    if (getppid() != p->parent)
        _exit(tsr_exit_code(TSR_EPEER));
}

static void watch(struct process *p) {
    TSR_ASSERT(uv_signal_init(&p->loop, &p->term) == 0);
    TSR_ASSERT(uv_timer_init(&p->loop, &p->parent_watch) == 0);
    TSR_ASSERT(uv_timer_init(&p->loop, &p->end_watch) == 0);
    p->term.data = p->parent_watch.data = p->end_watch.data = p;
    uv_signal_start(&p->term, on_term, SIGTERM);
    uv_timer_start(&p->parent_watch, on_parent_watch, 500, 500);
    uv_unref((uv_handle_t *)&p->term);
    uv_unref((uv_handle_t *)&p->parent_watch);
}

static int serve(struct process *p, const struct tsr_coordinator_opt *opt) {
    char where[TSR_HOST_MAX + 16];
    TSR_ASSERT(uv_loop_init(&p->loop) == 0);
    watch(p);
    int rc = tsr_coordinator_open(&p->coordinator, &p->loop, opt);
    if (rc == 0) {
        const struct tsr_address *a = tsr_coordinator_address(p->coordinator);
        tsr_address_text(where, a->host, a->port);
        printf("%s\n", where);
        fflush(stdout);
        uv_run(&p->loop, UV_RUN_DEFAULT); // until on_term
    }
    uv_close((uv_handle_t *)&p->term, NULL);
    uv_close((uv_handle_t *)&p->parent_watch, NULL);
    uv_close((uv_handle_t *)&p->end_watch, NULL);
    tsr_coordinator_close(p->coordinator);
    uv_run(&p->loop, UV_RUN_DEFAULT);
    TSR_ASSERT(uv_loop_close(&p->loop) == 0);
    return rc;
}

struct arguments {
    const char *name, *host;
    int64_t epoch, keep, port, restarts, metrics_port;
    double heartbeat_s, lost_s, stall_s, stall_factor, first_s;
};

static int parse(struct arguments *a, int argc, char **argv, const char **run_dir) {
    const struct tsr_option options[] = {
        {"epoch", 0, TSR_OPT_INT, &a->epoch, "N", 1, 1e15, "incarnation that it serves; needed"},
        {"name", 0, TSR_OPT_STRING, &a->name, "NAME", 0, 0, "of the run"},
        {"keep", 0, TSR_OPT_INT, &a->keep, "K", 0, 1e9, "checkpoints to keep (0: all)"},
        {"host", 0, TSR_OPT_STRING, &a->host, "H", 0, 0, "address to listen on (127.0.0.1)"},
        {"port", 0, TSR_OPT_INT, &a->port, "P", 0, 65535, "port to listen on (0: any)"},
        {"restarts", 0, TSR_OPT_INT, &a->restarts, "N", 0, 1e9, "earlier incarnations"},
        {"metrics-port", 0, TSR_OPT_INT, &a->metrics_port, "P", -1, 65535,
         "Prometheus metrics on 127.0.0.1 (0: any, -1: none)"},
        {"heartbeat", 0, TSR_OPT_REAL, &a->heartbeat_s, "S", 0, 60, "seconds between (0.25)"},
        {"lost", 0, TSR_OPT_REAL, &a->lost_s, "S", 0, 3600, "silence that is death (3)"},
        {"stall", 0, TSR_OPT_REAL, &a->stall_s, "S", 0, 86400, "least stall that is a hang (3)"},
        {"stall-factor", 0, TSR_OPT_REAL, &a->stall_factor, "X", 0, 1e6,
         "times the longest a phase took (5)"},
        {"first", 0, TSR_OPT_REAL, &a->first_s, "S", 0, 86400,
         "stall in a phase that was never completed (120)"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera coordinator",
        .usage = "RUN_DIR --epoch N [options]",
        .about =
            "Watches the ranks of a run and commits its checkpoints. `tessera train` starts it.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = 1};
    int n, rc = tsr_options_parse(&cl, argc, argv, run_dir, &n);
    if (rc == 0 && a->epoch == 0)
        return tsr_fail(TSR_EUSAGE, "--epoch is missing; usage: %s %s", cl.command, cl.usage);
    return rc;
}

int tsr_cmd_coordinator(int argc, char **argv) {
    struct process p = {.parent = getppid()};
    struct arguments a = {.name = "run", .metrics_port = TSR_METRICS_NONE};
    const char *run_dir;
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    signal(SIGPIPE, SIG_IGN);
    signal(SIGINT, SIG_IGN); // of the terminal's whole group: the supervisor decides
    signal(SIGHUP, SIG_IGN);
    int rc = parse(&a, argc, argv, &run_dir);
    if (rc == 1)
        return 0;
    if (rc == 0) {
        const struct tsr_coordinator_opt opt = {.core = {.run_name = a.name,
                                                         .run_dir = run_dir,
                                                         .epoch = (uint64_t)a.epoch,
                                                         .keep = a.keep,
                                                         .restarts = (uint64_t)a.restarts,
                                                         .heartbeat_s = a.heartbeat_s,
                                                         .lost_s = a.lost_s,
                                                         .stall_s = a.stall_s,
                                                         .stall_factor = a.stall_factor,
                                                         .first_s = a.first_s},
                                                .host = a.host,
                                                .port = (int)a.port,
                                                .metrics_port = (int)a.metrics_port};
        if (tsr_log_open(run_dir) < 0) // the run's log; without it, standard error has to do
            tsr_warn("coordinator: %s", tsr_error_text());
        rc = serve(&p, &opt);
    }
    tsr_log_close();
    return tsr_report("tessera coordinator", rc);
}

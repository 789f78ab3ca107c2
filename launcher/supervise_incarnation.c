// One incarnation of a run: coordinator, ranks, their end, and the end of everything they started.
#include "launcher/supervise_private.h"

#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "launcher/supervise_spawn.h"

#define JOIN_S   120.0 // until the first rank has said Hello
#define GRACE_S  0.3   // a failure and its cause come on two ways; also for mpirun in a hurry
#define LEAVE_S  10.0  // for mpirun to end when the coordinator says that all ranks have
#define ITSELF_S 1.5   // for mpirun to end by itself when its ranks are gone
#define DYING_S  30.0  // for killed processes to be gone

// ---- start

static int open_null(void) {
    int fd = open("/dev/null", O_RDWR | O_CLOEXEC);
    return fd >= 0 ? fd : tsr_fail(TSR_EIO, "cannot open /dev/null");
}

// A single rank has the terminal itself. mpirun gets no standard input, and a pipe for its standard
// error; standard output isn't touched by anybody.
static int spawn_ranks(struct tsr_super *s, bool direct, const struct tsr_strings *argv,
                       const struct tsr_strings *env) {
    int err[2] = {-1, -1}, null = -1, rc = 0;
    if (!direct && pipe2(err, O_CLOEXEC) < 0)
        return tsr_fail(TSR_EIO, "cannot open a pipe for the ranks");
    if (!direct)
        rc = null = open_null();
    struct tsr_spawn child = {.argv = (const char *const *)argv->items,
                              .env = (const char *const *)env->items,
                              .in = null,
                              .out = -1,
                              .err = err[1]};
    s->ranks = (struct tsr_process){0};
    if (rc >= 0)
        rc = tsr_spawn(&child, &s->ranks.pid);
    if (null >= 0)
        close(null);
    if (direct)
        return rc;
    close(err[1]);
    if (rc == 0)
        return tsr_super_forward(s, err[0]);
    close(err[0]);
    return rc;
}

static int start_ranks(struct tsr_super *s, const struct tsr_layout3 *l) {
    char address[TSR_HOST_MAX + 16];
    tsr_address_text(address, s->address.host, s->address.port);
    struct tsr_rank_command c = {.program = s->program,
                                 .run_file = s->opt->run_file,
                                 .overrides = s->opt->overrides,
                                 .n_overrides = s->opt->n_overrides,
                                 .layout = *l,
                                 .hosts = &s->hosts,
                                 .host_lost = s->host_lost,
                                 .scratch = s->scratch[0] ? s->scratch : NULL,
                                 .coordinator = address,
                                 .token = s->token,
                                 .epoch = s->epoch};
    struct tsr_strings argv = {0}, env = {0};
    int rc = tsr_command_ranks(&c, &argv, &env);
    if (rc == 0)
        rc = spawn_ranks(s, tsr_command_is_direct(&c), &argv, &env);
    tsr_strings_free(&argv);
    tsr_strings_free(&env);
    s->ranks_s = tsr_now();
    return rc;
}

// ---- end

// Seconds since t, or 0 when it hasn't come.
static double since(bool has_come, double t) {
    return has_come ? tsr_now() - t : 0.0;
}

static bool is_over(struct tsr_super *s) {
    return s->ranks.ended || s->failed || tsr_super_must_end(s) ||
           (!s->joined && tsr_now() - s->ranks_s > JOIN_S) ||
           since(s->all_left, s->all_left_s) > LEAVE_S;
}

static bool ranks_ended(struct tsr_super *s) {
    return s->ranks.pid == 0 || s->ranks.ended;
}

// mpirun kills its other ranks after a second's sleep, which any signal cuts short: this one only
// tells it once more to look at its children.
static bool nudged_end(struct tsr_super *s) {
    if (!ranks_ended(s))
        kill(s->ranks.pid, SIGCHLD);
    return ranks_ended(s);
}

// Kills what is left of the ranks. mpirun ends a little later by itself: with the exit code of the
// rank that ended before we knew. It isn't asked to end: on a signal while it ends its job already
// it may crash. Its daemons on other hosts end with it, and it must go before the logins that it
// reaches them by, or it complains of those.
static void kill_ranks(struct tsr_super *s, bool at_once) {
    const pid_t keep[] = {s->coordinator.pid, s->ranks.pid};
    bool direct = s->err_pipe < 0;
    if (tsr_hosts_are_here(&s->hosts))
        tsr_signal_descendants(SIGKILL, keep, direct ? 1 : 2);
    if (!direct)
        tsr_super_wait(s, nudged_end, at_once ? GRACE_S : ITSELF_S);
    if (!ranks_ended(s))
        kill(s->ranks.pid, SIGKILL);
    tsr_super_wait(s, ranks_ended, GRACE_S);
}

static bool none_left(struct tsr_super *s) {
    pid_t keep = s->coordinator.pid;
    return tsr_signal_descendants(SIGKILL, &keep, 1) == 0;
}

// Ends what is left of the incarnation; `in_order`: the ranks ended as they should.
static void end_all(struct tsr_super *s, bool in_order) {
    bool at_once = tsr_super_must_end(s);
    if (!ranks_ended(s))
        kill_ranks(s, at_once);
    for (int i = 1; !tsr_super_wait(s, none_left, DYING_S); i++) {
        tsr_warn("processes of the run do not die on SIGKILL (%.0f s so far)", DYING_S * i);
        if (at_once || i == 2)
            break; // the epoch keeps them from doing harm
    }
    tsr_super_forward_end(s);
    tsr_log_bar(""); // of a rank that was killed
    tsr_super_coordinator_end(s, in_order);
}

// How the ranks ended by themselves, or why they are killed now.
static int code_of_end(struct tsr_super *s) {
    if (s->ranks.ended)
        return tsr_process_code(&s->ranks);
    if (tsr_super_must_end(s))
        return 128 + s->signal;
    if (!s->failed && s->all_left)
        tsr_warn("all ranks have ended, but mpirun hasn't: it is killed");
    else if (!s->failed)
        tsr_warn("no rank reached the coordinator within %.0f s", JOIN_S);
    return TSR_EXIT_PEER;
}

// After a failure that the coordinator saw first: one of a peer, unless the rank ended by itself
// and its exit code says better.
static int code_of_failure(const struct tsr_super *s) {
    int code = s->ranks.ended ? tsr_process_code(&s->ranks) : TSR_EXIT_PEER;
    return code == 0 || code == TSR_EXIT_INTERRUPTED || code > 128 ? TSR_EXIT_PEER : code;
}

static bool has_failed(struct tsr_super *s) {
    return s->failed;
}

// Or nothing more will be said by mpirun.
static bool is_known(struct tsr_super *s) {
    return tsr_super_ranks_is_sure(s) || s->err_pipe < 0 || s->err_ended;
}

// Whether a rank that ended with this code has said why: it is one of ours.
static bool explained(int code) {
    return code == 0 || (code >= 2 && code <= TSR_EXIT_INTERRUPTED) || code == TSR_EXIT_BUG;
}

// Its ranks die with mpirun, and the coordinator may have missed one of them before we hear of
// mpirun's end: it is a zombie already then.
static bool mpirun_died(struct tsr_super *s) {
    const struct tsr_process *r = &s->ranks;
    if (s->err_pipe >= 0 && !r->ended && !tsr_process_lives(r->pid))
        tsr_super_wait(s, ranks_ended, GRACE_S);
    return s->err_pipe >= 0 && r->ended && WIFSIGNALED(r->status);
}

// One line that names the culprit.
static void tell_cause(struct tsr_super *s) {
    const struct tsr_process *r = &s->ranks;
    bool mpirun = mpirun_died(s);
    bool unclear = r->ended && tsr_process_code(r) > TSR_EXIT_INTERRUPTED;
    if (unclear && !mpirun)
        tsr_super_wait(s, has_failed, GRACE_S);
    if (unclear && !mpirun && !s->failed)
        tsr_super_wait(s, is_known, GRACE_S);
    bool silent = r->ended && explained(tsr_process_code(r)); // what failed has said so itself
    if (mpirun)
        tsr_warn("mpirun was ended by signal %d (%s)", WTERMSIG(r->status),
                 strsignal(WTERMSIG(r->status)));
    else if (silent ? s->failed : tsr_super_ranks_name(s))
        tsr_warn("%s", s->cause);
    else if (!s->joined && r->ended && !silent)
        tsr_warn("the ranks ended before one of them reached the coordinator");
}

static int watch(struct tsr_super *s, const struct tsr_layout3 *l) {
    TSR_TRY(tsr_super_ranks_open(s));
    TSR_TRY(tsr_super_coordinator_start(s));
    TSR_TRY(start_ranks(s, l));
    while (!is_over(s)) {
        TSR_TRY(tsr_super_coordinator_tend(s));
        tsr_super_turn(s);
        tsr_super_ranks_look(s);
    }
    tell_cause(s);
    return 0;
}

int tsr_super_incarnation(struct tsr_super *s, const struct tsr_layout3 *l, int *code) {
    char why[512] = "";
    s->world = tsr_layout_ranks(l);
    s->ranks = (struct tsr_process){0};
    int rc = watch(s, l);
    if (rc == 0)
        *code = code_of_end(s);
    else
        snprintf(why, sizeof why, "%s", tsr_error_text());
    bool ended = s->ranks.ended;
    tsr_super_ranks_close(s);
    end_all(s, rc == 0 && ended && (*code == 0 || *code == TSR_EXIT_INTERRUPTED));
    if (rc == 0 && s->failed && !ended)
        *code = code_of_failure(s);
    return rc == 0 ? 0 : tsr_fail((enum tsr_code)rc, "%s", why);
}

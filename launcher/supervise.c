#include "launcher/supervise_private.h"

#include <errno.h>
#include <inttypes.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/log.h"
#include "launcher/control/hkdf.h"
#include "launcher/options.h"
#include "launcher/supervise_spawn.h"

static const char command[] = "tessera train";

// ---- preparation

// Each layout must suit the run and its model: a mistake in parallel.elastic is to be found now,
// not in the night when it is needed.
static int check_layouts(const struct tsr_super *s) {
    for (int i = 0; i < s->policy.n_layouts; i++) {
        const struct tsr_layout3 *l = &s->policy.layouts[i];
        struct tsr_run r = *s->opt->run; // shares what it points to
        r.parallel.tp = l->tp;
        r.parallel.pp = l->pp;
        r.parallel.dp = l->dp;
        int64_t dp;
        int rc = tsr_run_check_world(&r, tsr_layout_ranks(l), &dp);
        if (rc == 0)
            rc = tsr_run_check_model(&r, s->opt->model, l->tp, l->pp);
        if (rc < 0 && i > 0)
            return tsr_fail_prefix(rc, "parallel.elastic[%d]", i - 1);
        TSR_TRY(rc);
    }
    return 0;
}

static int find_program(struct tsr_super *s) {
    ssize_t n = readlink("/proc/self/exe", s->program, sizeof s->program - 1);
    if (n <= 0)
        return tsr_fail_errno(errno, "cannot read", "/proc/self/exe");
    s->program[n] = 0;
    return 0;
}

static int make_token(struct tsr_super *s) {
    uint8_t mac[TSR_SHA256];
    TSR_TRY(tsr_hmac_sha256(mac, s->secret, sizeof s->secret, "token", 5));
    for (int i = 0; i < 8; i++)
        snprintf(s->token + 2 * i, 3, "%02x", mac[i]);
    return 0;
}

static int open_hosts(struct tsr_super *s) {
    if (s->opt->hosts) {
        int rc = tsr_hosts_parse(&s->hosts, s->opt->hosts);
        if (rc == 0)
            rc = tsr_super_check_names(s);
        TSR_TRY(rc < 0 ? tsr_fail_prefix(rc, "--hosts") : 0);
    } else {
        TSR_TRY(tsr_hosts_from_slurm(&s->hosts));
    }
    s->host_lost = calloc((size_t)s->hosts.n + 1, sizeof *s->host_lost);
    return s->host_lost ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a list of hosts");
}

static int open_run_dir(struct tsr_super *s) {
    const char *run_dir = s->opt->run->run.dir;
    char key[TSR_PATH_MAX];
    TSR_TRY(tsr_mkdir_p(run_dir));
    TSR_TRY(tsr_super_lock(s));
    TSR_TRY(tsr_log_open(run_dir));
    TSR_TRY(tsr_path_join(key, run_dir, "coordinator/key"));
    TSR_TRY(tsr_secret_create(key));
    TSR_TRY(tsr_run_key(run_dir, s->secret));
    TSR_TRY(make_token(s));
    s->policy.committed = tsr_super_committed(s);
    return tsr_super_scratch(s);
}

static int prepare(struct tsr_super *s) {
    TSR_TRY(tsr_policy_init(&s->policy, s->opt->run, 0));
    TSR_TRY(check_layouts(s));
    TSR_TRY(find_program(s));
    TSR_TRY(open_hosts(s));
    tsr_adopt_orphans();
    TSR_TRY(tsr_super_loop_open(s));
    return open_run_dir(s);
}

// ---- one after the other

// Ranks that may run on the hosts that answer. Where the user asked for more ranks than slots, the
// remaining hosts take their share of that.
static int64_t ranks_that_fit(const struct tsr_super *s) {
    int64_t slots = tsr_hosts_slots(&s->hosts), lost = 0;
    int64_t asked = tsr_layout_ranks(&s->policy.layouts[0]);
    for (int i = 0; i < s->hosts.n; i++)
        lost += s->host_lost[i] ? s->hosts.items[i].slots : 0;
    if (lost == 0)
        return INT64_MAX;
    return asked > slots ? (slots - lost) * asked / slots : slots - lost;
}

static void tell_start(const struct tsr_super *s, const struct tsr_layout3 *l) {
    int64_t n = tsr_layout_ranks(l);
    tsr_log(s->restarts > 0 ? TSR_LOG_INFO : TSR_LOG_DEBUG,
            "incarnation %" PRIu64 ": %" PRId64 " rank%s (tp %" PRId64 ", pp %" PRId64
            ", dp %" PRId64 ")",
            s->epoch, n, n == 1 ? "" : "s", l->tp, l->pp, l->dp);
}

// The exit code of one incarnation; a negative code when it could not be started at all.
static int run_once(struct tsr_super *s, int *code) {
    const char *run_dir = s->opt->run->run.dir;
    int rc = s->restarts > 0 ? tsr_epoch_check(run_dir, s->epoch) : 0;
    s->is_superseded = rc < 0; // somebody else has taken the run over since
    TSR_TRY(rc);
    TSR_TRY(tsr_super_probe_hosts(s));
    int i = tsr_policy_choose(&s->policy, ranks_that_fit(s));
    if (i < 0) {
        *code = TSR_EXIT_PEER;
        if (s->restarts == 0)
            return tsr_fail(TSR_EPEER, "no layout fits the hosts that answer");
        tsr_warn("no layout fits the hosts that answer");
        return 0;
    }
    TSR_TRY(tsr_epoch_take(run_dir, &s->epoch));
    tell_start(s, &s->policy.layouts[i]);
    return tsr_super_incarnation(s, &s->policy.layouts[i], code);
}

static bool is_asked_to_stop(struct tsr_super *s) {
    return s->n_signals > 0;
}

static void tell_restart(const struct tsr_super *s, int code, double delay_s) {
    char from[64] = "the beginning";
    if (s->policy.committed > 0)
        snprintf(from, sizeof from, "step %" PRId64, s->policy.committed);
    tsr_warn("exit code %d: restart %" PRId64 " of at most %" PRId64
             " without a new checkpoint, from %s, in %.1f s",
             code, s->policy.restarts, s->policy.max_restarts, from, delay_s);
}

static int give_up(const struct tsr_super *s, int code, int exit_code) {
    if (exit_code == TSR_EXIT_PEER)
        tsr_error("exit code %d; gave up after %" PRId64 " restarts without a new checkpoint", code,
                  s->policy.restarts);
    return exit_code;
}

// Until a verdict is final: the exit code, or a negative code with a sentence.
static int run_all(struct tsr_super *s) {
    for (;;) {
        int code = TSR_EXIT_PEER;
        int rc = run_once(s, &code);
        if (tsr_super_must_end(s))
            return 128 + s->signal;
        if (rc < 0 && s->n_signals > 0)
            return TSR_EXIT_INTERRUPTED;
        // What the environment does may pass; a user's mistake, a full disk or another supervisor,
        // whose checkpoints are not our progress, won't.
        if (rc < 0 && (s->is_superseded || tsr_exit_code(rc) != TSR_EXIT_PEER))
            return rc;
        struct tsr_end end = {code, s->n_signals > 0, s->joined, tsr_super_committed(s)};
        struct tsr_verdict v = tsr_policy_after(&s->policy, &end);
        if (!v.restart)
            return rc < 0 ? rc : give_up(s, code, v.exit_code);
        if (rc < 0)
            tsr_warn("%s", tsr_error_text());
        tell_restart(s, code, v.delay_s);
        if (tsr_super_wait(s, is_asked_to_stop, v.delay_s))
            return TSR_EXIT_INTERRUPTED; // nothing that was trained is unsaved
        s->restarts++;
    }
}

int tsr_supervise(const struct tsr_supervise_opt *opt) {
    struct tsr_super *s = calloc(1, sizeof *s);
    if (!s) {
        tsr_fail(TSR_ENOMEM, "no memory for the supervisor");
        return tsr_report(command, TSR_ENOMEM);
    }
    s->opt = opt;
    s->lock = s->err_pipe = s->ready_pipe = -1;
    signal(SIGPIPE, SIG_IGN);
    tsr_log_share();
    int rc = prepare(s);
    if (rc == 0)
        rc = run_all(s);
    if (rc < 0)
        rc = s->told ? tsr_exit_code(rc) : tsr_report(command, rc);
    if (s->scratch[0])
        (void)tsr_remove_tree(s->scratch);
    tsr_super_loop_close(s);
    tsr_hosts_free(&s->hosts);
    free(s->host_lost);
    explicit_bzero(s->secret, sizeof s->secret);
    if (s->lock >= 0)
        close(s->lock);
    tsr_log_close();
    free(s);
    return rc;
}

// `tessera status`: what a run is doing, asked of its coordinator.
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>
#include "core/checkpoint.h"
#include "core/error.h"
#include "core/run.h"
#include "launcher/commands.h"
#include "launcher/epoch.h"
#include "launcher/options.h"
#include "launcher/status_view.h"

enum { TAIL_BYTES = 1 << 16 };

// ---- what the directory tells

// Null stands for what is not finite.
static double number(const json_t *o, const char *key) {
    const json_t *v = json_object_get(o, key);
    return json_is_null(v) ? NAN : json_number_value(v);
}

static bool parse_metrics(const char *line, size_t n, Tessera__Control__StepReport *r) {
    json_t *o = json_loadb(line, n, 0, NULL);
    json_int_t step = json_integer_value(json_object_get(o, "step"));
    tessera__control__step_report__init(r);
    r->step = step > 0 ? (uint64_t)step : 0;
    r->loss = number(o, "loss");
    r->grad_norm = number(o, "grad_norm");
    r->lr = number(o, "lr");
    r->tokens = (uint64_t)json_integer_value(json_object_get(o, "tokens"));
    r->tokens_per_s = number(o, "tokens_per_s");
    r->mfu = number(o, "mfu");
    r->step_ms = number(o, "step_ms");
    r->skipped = (uint64_t)json_integer_value(json_object_get(o, "skipped"));
    r->rollbacks = (uint64_t)json_integer_value(json_object_get(o, "rollbacks"));
    r->dropped_sequences = (uint64_t)json_integer_value(json_object_get(o, "dropped_sequences"));
    r->has_valid_loss = json_is_number(json_object_get(o, "valid_loss"));
    r->valid_loss = number(o, "valid_loss");
    json_decref(o);
    return step > 0;
}

// The beginning of the line that ends at `end`.
static const char *line_before(const char *text, const char *end) {
    const char *before = memrchr(text, '\n', (size_t)(end - text));
    return before ? before + 1 : text;
}

// The last whole line of metrics.jsonl, and the loss of the last evaluation; of a large file only
// the end is read.
static int last_metrics(struct tsr_status_view *v) {
    char path[TSR_PATH_MAX], tail[TAIL_BYTES];
    TSR_TRY(tsr_path_join(path, v->run_dir, "metrics.jsonl"));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return errno == ENOENT ? 0 : tsr_fail_errno(errno, "cannot open", path);
    off_t size = lseek(fd, 0, SEEK_END), at = size > TAIL_BYTES ? size - TAIL_BYTES : 0;
    int rc = size < 0 ? tsr_fail_errno(errno, "cannot read", path)
                      : tsr_pread_all(fd, tail, (size_t)(size - at), (uint64_t)at, path);
    close(fd);
    TSR_TRY(rc);
    const char *end = memrchr(tail, '\n', (size_t)(size - at));
    if (!end)
        return 0;
    const char *line = line_before(tail, end);
    v->has_metrics = parse_metrics(line, (size_t)(end - line), &v->metrics);
    Tessera__Control__StepReport r = v->metrics;
    while (!r.has_valid_loss && line > tail) { // the last evaluation is some steps ago
        end = line - 1;
        line = line_before(tail, end);
        parse_metrics(line, (size_t)(end - line), &r);
    }
    v->metrics.has_valid_loss = r.has_valid_loss;
    v->metrics.valid_loss = r.valid_loss;
    return 0;
}

// How far the run is to go, when its resolved run file is there and whole.
static void read_steps(struct tsr_status_view *v) {
    struct tsr_run r;
    char path[TSR_PATH_MAX];
    if (tsr_path_join(path, v->run_dir, "config.yaml") < 0 || !tsr_path_exists(path) ||
        tsr_run_load(&r, path, NULL, 0) < 0)
        return;
    v->steps = r.train.steps;
    tsr_run_free(&r);
}

static bool holds(const char *dir, const char *name) {
    char path[TSR_PATH_MAX];
    return tsr_path_join(path, dir, name) == 0 && tsr_path_exists(path);
}

static int check_run_dir(const char *dir) {
    if (!tsr_path_is_dir(dir))
        return tsr_fail(TSR_EUSAGE, "%s: expected a run directory, found %s", dir,
                        tsr_path_exists(dir) ? "a file" : "nothing");
    if (!holds(dir, "coordinator") && !holds(dir, "metrics.jsonl") && !holds(dir, "config.yaml"))
        return tsr_fail(TSR_EUSAGE,
                        "%s: expected a run directory (run.dir of a run file), found a folder "
                        "without config.yaml, metrics.jsonl and coordinator",
                        dir);
    return 0;
}

// Fills v and *status, which v shows and the caller frees.
static int look(struct tsr_status_view *v, char why[static 600],
                Tessera__Control__Status **status) {
    struct tsr_address at;
    uint8_t secret[TSR_SECRET];
    char path[TSR_PATH_MAX];
    int found;
    *status = NULL;
    v->why = why;
    snprintf(why, 600, "no coordinator was started in it");
    TSR_TRY(found = tsr_address_read(v->run_dir, &at));
    if (found) {
        TSR_TRY(tsr_run_key(v->run_dir, secret));
        int rc = tsr_status_ask(&at, secret, status);
        if (rc == TSR_EREQUEST)
            return rc;
        snprintf(why, 600, "%s", rc < 0 ? tsr_error_text() : "");
    }
    v->live = *status;
    TSR_TRY(last_metrics(v));
    read_steps(v);
    TSR_TRY(found = tsr_checkpoint_latest(v->run_dir, INT64_MAX, &v->committed_step, path));
    v->committed_step = found ? v->committed_step : 0;
    return 0;
}

// ---- the command

struct wish {
    bool json, watch, terminal;
};

static int show_once(const char *run_dir, const struct wish *w, bool *running) {
    struct tsr_status_view v = {.run_dir = run_dir};
    char why[600];
    Tessera__Control__Status *status;
    struct tsr_buf out = {0};
    int rc = look(&v, why, &status);
    if (rc == 0 && w->watch && w->terminal)
        rc = tsr_buf_printf(&out, "\033[H\033[J"); // home, and clear from there
    if (rc == 0)
        rc = w->json ? tsr_status_json(&out, &v) : tsr_status_text(&out, &v, w->terminal);
    if (rc == 0 && (fwrite(out.data, 1, out.len, stdout) != out.len || fflush(stdout) != 0))
        rc = tsr_fail_errno(errno, "cannot write", "standard output");
    *running = v.live != NULL;
    if (status)
        tessera__control__status__free_unpacked(status, NULL);
    tsr_buf_free(&out);
    return rc;
}

static int show(const char *run_dir, const struct wish *w) {
    const struct timespec second = {.tv_sec = 1};
    bool running = true;
    TSR_TRY(check_run_dir(run_dir));
    do {
        TSR_TRY(show_once(run_dir, w, &running));
    } while (w->watch && running && nanosleep(&second, NULL) == 0);
    return 0;
}

int tsr_cmd_status(int argc, char **argv) {
    struct wish w = {0};
    const struct tsr_option options[] = {
        {"json", 0, TSR_OPT_FLAG, &w.json, NULL, 0, 0, "one object"},
        {"watch", 'w', TSR_OPT_FLAG, &w.watch, NULL, 0, 0, "every second, until the run ends"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera status",
        .usage = "RUN_DIR [--json] [--watch]",
        .about =
            "Shows what a run is doing: step, loss, speed, checkpoint in flight, each rank; or\n"
            "where it stopped.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = 1};
    const char *run_dir, *no_colour = getenv("NO_COLOR");
    int n, rc = tsr_options_parse(&cl, argc, argv, &run_dir, &n);
    if (rc == 1)
        return 0;
    signal(SIGPIPE, SIG_IGN);
    w.terminal = isatty(STDOUT_FILENO) == 1 && !(no_colour && no_colour[0]);
    if (rc == 0)
        rc = show(run_dir, &w);
    return tsr_report(cl.command, rc);
}

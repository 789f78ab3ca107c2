// `tessera ckpt ls|verify|diff|reshard`
#include "launcher/ckpt.h"

#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "core/progress_bar.h"
#include "core/run_stamp.h"
#include "launcher/commands.h"
#include "launcher/options.h"

// ---- one checkpoint

enum { MAX_LINES = 20 };

struct checking {
    struct tsr_bar bar;
    bool bar_open;
    json_t *problems;
    const char *dir;
    int n_lines;
    bool no_memory;
};

static void on_problem(void *arg, const char *file, uint64_t first, uint64_t end,
                       const char *text) {
    struct checking *c = arg;
    if (c->problems) {
        json_t *o = json_object();
        bool ok = tsr_json_set(o, "file", tsr_json_text(file)) &&
                  tsr_json_set(o, "first", json_integer((json_int_t)first)) &&
                  tsr_json_set(o, "end", json_integer((json_int_t)end)) &&
                  tsr_json_set(o, "what", tsr_json_text(text));
        c->no_memory |= json_array_append_new(c->problems, o) < 0 || !ok;
        return;
    }
    if (c->bar_open)
        tsr_bar_stop(&c->bar);
    const char *slash = file[0] ? "/" : "";
    const size_t n = strlen(c->dir); // what the system said has the path
    bool named = strncmp(text, c->dir, n) == 0 && (text[n] == '/' || text[n] == ':');
    if (c->n_lines++ >= MAX_LINES)
        return;
    if (named)
        printf("%s\n", text);
    else if (end > first)
        printf("%s%s%s: bytes %llu to %llu: %s\n", c->dir, slash, file, (unsigned long long)first,
               (unsigned long long)end, text);
    else
        printf("%s%s%s: %s\n", c->dir, slash, file, text);
}

static void on_progress(void *arg, uint64_t n_bytes, uint64_t total) {
    struct checking *c = arg;
    if (!c->bar_open)
        tsr_bar_begin(&c->bar, "verify", "B", 0, total);
    c->bar_open = true;
    tsr_bar_update(&c->bar, n_bytes, NULL);
}

int tsr_ckpt_check(const char *dir, json_t *problems, struct tsr_audit *a) {
    struct checking c = {.problems = problems, .dir = dir};
    *a = (struct tsr_audit){.arg = &c, .problem = on_problem, .progress = on_progress};
    int rc = tsr_checkpoint_audit(dir, a);
    if (c.bar_open)
        tsr_bar_stop(&c.bar);
    if (c.n_lines > MAX_LINES)
        printf("%s: and %d more\n", dir, c.n_lines - MAX_LINES);
    if (rc == 0 && c.no_memory)
        rc = tsr_fail(TSR_ENOMEM, "no memory for the report");
    return rc;
}

bool tsr_ckpt_trained_by(const char *dir, struct tsr_layout3 *layout) {
    struct tsr_state s;
    struct tsr_run run;
    if (tsr_state_read(&s, dir) < 0)
        return false;
    bool ok = tsr_run_read_stamp(&run, s.run_yaml, dir) == 0;
    if (ok) {
        *layout = (struct tsr_layout3){run.parallel.tp, run.parallel.pp,
                                       run.parallel.dp ? run.parallel.dp : 1};
        tsr_run_free(&run);
    }
    tsr_state_free(&s);
    return ok;
}

// ---- the command

static const struct tsr_part parts[] = {
    {"ls", "the checkpoints of a run", tsr_ckpt_ls},
    {"verify", "read a checkpoint, or all of a run, and compare each byte with its digests",
     tsr_ckpt_verify},
    {"diff", "compare two checkpoints: configuration, state, every tensor", tsr_ckpt_diff},
    {"reshard", "what each rank of another layout would read", tsr_ckpt_reshard},
};

int tsr_cmd_ckpt(int argc, char **argv) {
    return tsr_parts_run("tessera ckpt", "Looks at checkpoints and changes nothing.", parts,
                         sizeof parts / sizeof *parts, argc, argv);
}

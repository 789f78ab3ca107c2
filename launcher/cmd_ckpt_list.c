// `tessera ckpt ls` and `tessera ckpt verify`: one checkpoint, or all of a run.
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "launcher/ckpt.h"
#include "launcher/options.h"

struct listing {
    bool json, verify;
    json_t *checkpoints, *unfinished; // with --json
    int n, n_unfinished, n_bad;
    uint64_t n_bytes;
    int64_t newest_good; // step; -1: none
    bool no_memory;
};

// ---- ls

static json_t *describe(const struct tsr_checkpoint_item *item) {
    json_t *o = json_object();
    bool ok = tsr_json_set(o, "name", tsr_json_text(item->name)) &&
              tsr_json_set(o, "step", item->step < 0 ? json_null() : json_integer(item->step)) &&
              tsr_json_set(o, "bytes", json_integer((json_int_t)item->n_bytes)) &&
              tsr_json_set(o, "files", json_integer(item->n_files));
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

static int list_unfinished(struct listing *l, const struct tsr_checkpoint_item *item) {
    char size[32];
    l->n_unfinished++;
    if (l->json) {
        l->no_memory |= json_array_append_new(l->unfinished, describe(item)) < 0;
        return 0;
    }
    printf("%10s  %9s  %5d  %-11s  unfinished  %s\n", "-", tsr_bytes_text(size, item->n_bytes),
           item->n_files, "-", item->name);
    return 0;
}

// "verified" and "damaged" after reading everything; "complete" when manifest, files and sizes fit.
static int judge(struct listing *l, const struct tsr_checkpoint_item *item, json_t *problems,
                 const char **status) {
    struct tsr_audit a;
    bool good;
    if (l->verify) {
        TSR_TRY(tsr_ckpt_check(item->path, problems, &a));
        good = a.n_problems == 0;
        *status = good ? "verified" : "damaged";
    } else {
        int rc = tsr_checkpoint_verify_quick(item->path);
        if (rc == TSR_ENOMEM)
            return rc;
        good = rc == 0;
        *status = good ? "complete" : "damaged";
        if (!good && !l->json)
            printf("%s\n", tsr_error_text());
    }
    l->n_bad += !good;
    if (good && item->step > l->newest_good)
        l->newest_good = item->step;
    return 0;
}

static int list_one(void *arg, const struct tsr_checkpoint_item *item) {
    struct listing *l = arg;
    struct tsr_layout3 layout = {0, 0, 0};
    const char *status = "damaged";
    char size[32], by[64] = "?";
    if (item->unfinished)
        return list_unfinished(l, item);
    json_t *problems = l->json ? json_array() : NULL;
    int rc = judge(l, item, problems, &status);
    l->n++;
    l->n_bytes += item->n_bytes;
    bool known = tsr_ckpt_trained_by(item->path, &layout);
    if (known)
        snprintf(by, sizeof by, "%" PRId64 "x%" PRId64 "x%" PRId64, layout.tp, layout.pp,
                 layout.dp);
    if (!l->json && rc == 0)
        printf("%10" PRId64 "  %9s  %5d  %-11s  %-10s  %s\n", item->step,
               tsr_bytes_text(size, item->n_bytes), item->n_files, by, status, item->name);
    if (!l->json || rc < 0) {
        json_decref(problems);
        return rc;
    }
    json_t *o = describe(item);
    json_t *trained = known ? json_pack("{s:I, s:I, s:I}", "tp", (json_int_t)layout.tp, "pp",
                                        (json_int_t)layout.pp, "dp", (json_int_t)layout.dp)
                            : json_null();
    bool ok = tsr_json_set(o, "layout", trained);
    ok = tsr_json_set(o, "status", json_string(status)) && ok;
    ok = tsr_json_set(o, "problems", problems) && ok;
    l->no_memory |= json_array_append_new(l->checkpoints, o) < 0 || !ok;
    return 0;
}

static int list_run(struct listing *l, const char *dir) {
    char size[32], parent[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(parent, dir, "checkpoints"));
    if (!l->json && tsr_path_is_dir(parent))
        printf("%10s  %9s  %5s  %-11s  %-10s  %s\n", "step", "size", "files", "tp x pp x dp",
               "state", "name");
    TSR_TRY(tsr_checkpoint_each(dir, list_one, l));
    if (!l->json) {
        printf("%d checkpoint%s, %s", l->n, l->n == 1 ? "" : "s", tsr_bytes_text(size, l->n_bytes));
        if (l->n_unfinished)
            printf("; %d unfinished", l->n_unfinished);
        printf("\n");
        return 0;
    }
    json_t *root = json_object();
    bool ok = tsr_json_set(root, "run_dir", tsr_json_text(dir));
    ok = tsr_json_set(root, "checkpoints", json_incref(l->checkpoints)) && ok;
    ok = tsr_json_set(root, "unfinished", json_incref(l->unfinished)) && ok;
    ok = tsr_json_set(root, "newest_good",
                      l->newest_good < 0 ? json_null() : json_integer(l->newest_good)) &&
         ok;
    if (ok && !l->no_memory)
        return tsr_print_json(root);
    json_decref(root);
    return tsr_fail(TSR_ENOMEM, "no memory for the report");
}

// Damage that reading found is a failure of the command; the reports stand before it.
static int conclude(const struct listing *l, const char *dir) {
    if (l->n_bad == 0)
        return 0;
    if (l->newest_good >= 0)
        return tsr_fail(TSR_EMODEL,
                        "%s: %d of %d checkpoints damaged; a run would resume after step %" PRId64,
                        dir, l->n_bad, l->n, l->newest_good);
    return tsr_fail(TSR_EMODEL, "%s: %d of %d checkpoints damaged; there is none to resume from",
                    dir, l->n_bad, l->n);
}

static int open_listing(struct listing *l) {
    l->newest_good = -1;
    l->checkpoints = json_array();
    l->unfinished = json_array();
    return l->checkpoints && l->unfinished ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the report");
}

static void close_listing(struct listing *l) {
    json_decref(l->checkpoints);
    json_decref(l->unfinished);
}

static int list(struct listing *l, const char *dir) {
    int rc = open_listing(l);
    if (rc == 0)
        rc = list_run(l, dir);
    if (rc == 0 && l->verify)
        rc = conclude(l, dir);
    close_listing(l);
    return rc;
}

int tsr_ckpt_ls(int argc, char **argv) {
    struct listing l = {0};
    const char *args[1];
    const struct tsr_option options[] = {
        {"verify", 0, TSR_OPT_FLAG, &l.verify, NULL, 0, 0,
         "read everything and compare it with its digests"},
        {"json", 0, TSR_OPT_FLAG, &l.json, NULL, 0, 0, "one object: checkpoints, unfinished"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera ckpt ls",
        .usage = "RUN_DIR [--verify] [--json]",
        .about = "Lists a run's checkpoints: step, size, files, the layout that trained it, and\n"
                 "whether its manifest, files and sizes fit (complete). With --verify all of it\n"
                 "is read (verified), and damage is exit code 2. Temporaries of a save that is\n"
                 "under way or was cut off are shown as unfinished: no run loads them.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 1,
        .max_args = 1,
    };
    int n_args, rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    return list(&l, args[0]);
}

// ---- verify

static int verify_one(const char *dir, bool json) {
    struct tsr_audit a;
    char size[32];
    json_t *problems = json ? json_array() : NULL;
    int rc = tsr_ckpt_check(dir, problems, &a);
    if (rc == 0 && json) {
        json_t *root =
            json_pack("{s:o, s:b, s:o, s:I, s:i, s:I, s:O}", "dir", tsr_json_text(dir), "good",
                      a.n_problems == 0, "step", a.step < 0 ? json_null() : json_integer(a.step),
                      "bytes", (json_int_t)a.n_bytes, "files", a.n_files, "ranges",
                      (json_int_t)a.n_ranges, "problems", problems);
        rc = tsr_print_json(root);
    } else if (rc == 0 && a.n_problems == 0) {
        printf("%s: good: step %" PRId64 ", %d files, %s\n", dir, a.step, a.n_files,
               tsr_bytes_text(size, a.n_bytes));
    }
    json_decref(problems);
    if (rc == 0 && a.n_problems > 0)
        rc = tsr_fail(TSR_EMODEL, "%s: damaged: %" PRId64 " problem%s", dir, a.n_problems,
                      a.n_problems == 1 ? "" : "s");
    return rc;
}

// A folder without any of a checkpoint's files isn't a damaged checkpoint, but something else.
static int check_is_checkpoint(const char *dir) {
    static const char *const files[] = {"manifest.json", "state.json", "config.json"};
    char path[TSR_PATH_MAX];
    for (size_t i = 0; i < sizeof files / sizeof *files; i++) {
        TSR_TRY(tsr_path_join(path, dir, files[i]));
        if (tsr_path_exists(path))
            return 0;
    }
    return tsr_fail(TSR_EMODEL, "%s: expected a checkpoint's or a run's directory, found %s", dir,
                    tsr_path_is_dir(dir)   ? "neither manifest.json nor checkpoints/ in it"
                    : tsr_path_exists(dir) ? "a file"
                                           : "nothing");
}

int tsr_ckpt_verify(int argc, char **argv) {
    struct listing l = {.verify = true};
    const char *args[1];
    char sub[TSR_PATH_MAX];
    const struct tsr_option options[] = {
        {"json", 0, TSR_OPT_FLAG, &l.json, NULL, 0, 0, "one object, with every problem"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera ckpt verify",
        .usage = "CHECKPOINT_DIR|RUN_DIR [--json]",
        .about = "Reads a checkpoint, or all checkpoints of a run, and compares every byte with\n"
                 "the digests of its manifest. Each fault is named: the file, the range of bytes,\n"
                 "what was expected and found. Exit code 2 when anything is wrong.",
        .options = options,
        .n_options = sizeof options / sizeof options[0],
        .min_args = 1,
        .max_args = 1,
    };
    int n_args, rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc < 0 ? rc : 0;
    TSR_TRY(tsr_path_join(sub, args[0], "checkpoints"));
    if (tsr_path_is_dir(sub))
        return list(&l, args[0]);
    TSR_TRY(check_is_checkpoint(args[0]));
    return verify_one(args[0], l.json);
}

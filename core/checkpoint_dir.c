// The folder of checkpoints: which there are, which may go, and what one consists of.
#include "core/checkpoint_private.h"

#include <dirent.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"

static int add_name(struct tsr_ckpt_names *names, const char *prefix, const char *name) {
    char **v = realloc(names->v, (size_t)(names->n + 1) * sizeof *v);
    if (v) {
        names->v = v;
        size_t n = strlen(prefix) + strlen(name) + 1;
        v[names->n] = malloc(n);
        if (v[names->n]) {
            snprintf(v[names->n++], n, "%s%s", prefix, name);
            return 0;
        }
    }
    return tsr_fail(TSR_ENOMEM, "no memory for a list of files");
}

static int order_of_strings(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// Every entry of a folder but "." and ".."; a folder that isn't there has none.
static int list_folder(struct tsr_ckpt_names *out, const char *dir, const char *prefix) {
    DIR *d = opendir(dir);
    if (!d && errno == ENOENT)
        return 0;
    if (!d)
        return tsr_fail_errno(errno, "cannot list", dir);
    int rc = 0;
    for (;;) {
        errno = 0;
        const struct dirent *e = readdir(d);
        if (!e && errno != 0)
            rc = tsr_fail_errno(errno, "cannot list", dir);
        if (!e || rc < 0)
            break;
        if (strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0)
            rc = add_name(out, prefix, e->d_name);
    }
    closedir(d);
    return rc;
}

static int list_files(struct tsr_ckpt_names *out, const char *dir, const char *prefix) {
    struct tsr_ckpt_names here = {0};
    char path[TSR_PATH_MAX];
    struct stat st;
    int rc = tsr_path_join(path, dir, prefix);
    if (rc == 0)
        rc = list_folder(&here, path, prefix);
    for (int i = 0; rc == 0 && i < here.n; i++) {
        rc = tsr_path_join(path, dir, here.v[i]);
        if (rc == 0 && lstat(path, &st) < 0)
            rc = tsr_fail_errno(errno, "cannot read", path);
        if (rc < 0)
            break;
        if (S_ISDIR(st.st_mode) && strcmp(here.v[i], "optimizer") == 0)
            rc = list_files(out, dir, "optimizer/");
        else if (S_ISREG(st.st_mode))
            rc = add_name(out, "", here.v[i]);
        else
            rc = tsr_fail(TSR_EMODEL, "%s: a checkpoint holds regular files only", path);
    }
    tsr_ckpt_names_free(&here);
    return rc;
}

int tsr_ckpt_list(struct tsr_ckpt_names *out, const char *dir) {
    *out = (struct tsr_ckpt_names){0};
    int rc = list_files(out, dir, "");
    if (rc < 0)
        tsr_ckpt_names_free(out);
    else if (out->n > 0)
        qsort(out->v, (size_t)out->n, sizeof *out->v, order_of_strings);
    return rc;
}

void tsr_ckpt_names_free(struct tsr_ckpt_names *names) {
    for (int i = 0; i < names->n; i++)
        free(names->v[i]);
    free(names->v);
    *names = (struct tsr_ckpt_names){0};
}

// The number in the digits that follow `prefix`, as commit writes them; *rest is what follows.
static bool parse_step(const char *name, const char *prefix, int64_t *step, const char **rest) {
    const size_t n = strlen(prefix);
    if (strncmp(name, prefix, n) != 0)
        return false;
    const size_t digits = strspn(name + n, "0123456789");
    if (digits < 8 || digits > 18 || (digits > 8 && name[n] == '0'))
        return false;
    *step = strtoll(name + n, NULL, 10);
    *rest = name + n + digits;
    return true;
}

static bool is_checkpoint(const char *name, int64_t *step) {
    const char *rest;
    return parse_step(name, "step-", step, &rest) && *rest == 0;
}

static int list_checkpoints(struct tsr_ckpt_names *out, char parent[static TSR_PATH_MAX],
                            const char *run_dir) {
    *out = (struct tsr_ckpt_names){0};
    TSR_TRY(tsr_path_join(parent, run_dir, "checkpoints"));
    int rc = list_folder(out, parent, "");
    if (rc < 0)
        tsr_ckpt_names_free(out);
    return rc;
}

int tsr_checkpoint_latest(const char *run_dir, int64_t below, int64_t *step,
                          char out[static TSR_PATH_MAX]) {
    struct tsr_ckpt_names names;
    char parent[TSR_PATH_MAX], path[TSR_PATH_MAX];
    int64_t best = -1, s;
    TSR_TRY(list_checkpoints(&names, parent, run_dir));
    int rc = 0;
    for (int i = 0; rc == 0 && i < names.n; i++) {
        if (!is_checkpoint(names.v[i], &s) || s <= best || s >= below)
            continue;
        rc = tsr_path_join(path, parent, names.v[i]);
        if (rc == 0 && tsr_path_is_dir(path))
            best = s;
    }
    tsr_ckpt_names_free(&names);
    if (rc < 0 || best < 0)
        return rc;
    *step = best;
    TSR_TRY(tsr_checkpoint_path(out, run_dir, best));
    return 1;
}

// First out of sight, then away: a crash in between leaves no half checkpoint.
static int remove_checkpoint(const char *run_dir, const char *parent, int64_t step) {
    char path[TSR_PATH_MAX], gone[TSR_PATH_MAX], name[64];
    TSR_TRY(tsr_checkpoint_path(path, run_dir, step));
    snprintf(name, sizeof name, ".tmp-gone-%08" PRId64 "-%016" PRIx64, step,
             tsr_checkpoint_nonce());
    TSR_TRY(tsr_path_join(gone, parent, name));
    if (rename(path, gone) < 0)
        return tsr_fail_errno(errno, "cannot rename", path);
    return tsr_remove_tree(gone);
}

int tsr_checkpoint_retain(const char *run_dir, int64_t keep) {
    char parent[TSR_PATH_MAX], path[TSR_PATH_MAX];
    int64_t below = INT64_MAX, step;
    TSR_TRY(tsr_path_join(parent, run_dir, "checkpoints"));
    for (int64_t n = 0; keep > 0; n++) {
        int found = tsr_checkpoint_latest(run_dir, below, &step, path);
        if (found <= 0)
            return found;
        if (n >= 2 && n >= keep)
            TSR_TRY(remove_checkpoint(run_dir, parent, step));
        below = step;
    }
    return 0;
}

// ".old-step-N-…" is a checkpoint that was being replaced by rename, rename: it goes back to its
// name unless its successor has taken it.
static int put_back_or_remove(const char *run_dir, const char *old, int64_t step) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_checkpoint_path(path, run_dir, step));
    if (tsr_path_exists(path))
        return tsr_remove_tree(old);
    return rename(old, path) < 0 ? tsr_fail_errno(errno, "cannot rename to", path) : 0;
}

int tsr_checkpoint_clean_temps(const char *run_dir) {
    struct tsr_ckpt_names names;
    char parent[TSR_PATH_MAX], path[TSR_PATH_MAX];
    const char *rest;
    int64_t step;
    TSR_TRY(list_checkpoints(&names, parent, run_dir));
    int rc = 0;
    for (int i = 0; rc == 0 && i < names.n; i++) {
        rc = tsr_path_join(path, parent, names.v[i]);
        if (rc == 0 && parse_step(names.v[i], ".old-step-", &step, &rest))
            rc = put_back_or_remove(run_dir, path, step);
        else if (rc == 0 && strncmp(names.v[i], ".tmp-", 5) == 0)
            rc = tsr_remove_tree(path);
    }
    tsr_ckpt_names_free(&names);
    return rc;
}

// The folder of checkpoints: which there are, and what one consists of.
#include "core/checkpoint_private.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
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

bool tsr_ckpt_parse_step(const char *name, const char *prefix, int64_t *step, const char **rest) {
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
    return tsr_ckpt_parse_step(name, "step-", step, &rest) && *rest == 0;
}

int tsr_ckpt_list_parent(struct tsr_ckpt_names *out, char parent[static TSR_PATH_MAX],
                         const char *run_dir) {
    *out = (struct tsr_ckpt_names){0};
    TSR_TRY(tsr_path_join(parent, run_dir, "checkpoints"));
    int rc = list_folder(out, parent, "");
    if (rc < 0)
        tsr_ckpt_names_free(out);
    return rc;
}

// 1 or 0; what can't be told is a failure, and no reason to pass over the newest checkpoint.
static int is_folder(const char *path) {
    struct stat st;
    if (stat(path, &st) == 0)
        return S_ISDIR(st.st_mode);
    return errno == ENOENT || errno == ELOOP ? 0 : tsr_fail_errno(errno, "cannot look at", path);
}

int tsr_checkpoint_latest(const char *run_dir, int64_t below, int64_t *step,
                          char out[static TSR_PATH_MAX]) {
    struct tsr_ckpt_names names;
    char parent[TSR_PATH_MAX], path[TSR_PATH_MAX];
    int64_t best = -1, s;
    TSR_TRY(tsr_ckpt_list_parent(&names, parent, run_dir));
    int rc = 0;
    for (int i = 0; rc == 0 && i < names.n; i++) {
        if (!is_checkpoint(names.v[i], &s) || s <= best || s >= below)
            continue;
        rc = tsr_path_join(path, parent, names.v[i]);
        if (rc == 0)
            rc = is_folder(path);
        best = rc == 1 ? s : best;
        rc = rc < 0 ? rc : 0;
    }
    tsr_ckpt_names_free(&names);
    if (rc < 0 || best < 0)
        return rc;
    *step = best;
    TSR_TRY(tsr_checkpoint_path(out, run_dir, best));
    return 1;
}

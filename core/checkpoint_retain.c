// Which checkpoints may go, and which leftovers must.
#include "core/checkpoint_private.h"
#include "core/checkpoint_publish.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"
#include "core/log.h"

// ---- retention

enum { N_KNOWN = sizeof((struct tsr_known_good *)0)->v / sizeof((struct tsr_known_good *)0)->v[0] };

static bool is_known(const struct tsr_known_good *known, int64_t step, uint64_t inode,
                     const struct tsr_digest *manifest) {
    for (int i = 0; i < known->n; i++)
        if (known->v[i].step == step && known->v[i].inode == inode &&
            memcmp(known->v[i].manifest.b, manifest->b, sizeof manifest->b) == 0)
            return true;
    return false;
}

static void remember(struct tsr_known_good *known, int64_t step, uint64_t inode,
                     const struct tsr_digest *manifest) {
    if (known->n == N_KNOWN) // the oldest makes room
        memmove(&known->v[0], &known->v[1], (size_t)(--known->n) * sizeof known->v[0]);
    known->v[known->n].step = step;
    known->v[known->n].inode = inode;
    known->v[known->n++].manifest = *manifest;
}

// Returns 1 when the checkpoint is good, 0 when it isn't (also: can't be read), TSR_ENOMEM.
static int is_good(const char *dir, int64_t step, struct tsr_known_good *known) {
    struct stat st;
    struct tsr_digest manifest;
    int rc = stat(dir, &st) < 0 ? TSR_EIO : tsr_ckpt_manifest_digest(dir, &manifest);
    bool seen = rc == 0 && is_known(known, step, (uint64_t)st.st_ino, &manifest);
    if (rc == 0)
        rc = seen ? tsr_checkpoint_verify_quick(dir) : tsr_checkpoint_verify(dir, 0, 1);
    if (rc == TSR_ENOMEM)
        return rc;
    if (rc == 0 && !seen)
        remember(known, step, (uint64_t)st.st_ino, &manifest);
    return rc == 0;
}

// Out of sight, so that a crash while it is removed leaves no half checkpoint; `gone` is its name.
static int rename_away(const char *parent, const char *path, char gone[static TSR_PATH_MAX]) {
    char name[300];
    const char *base = tsr_path_base(path);
    snprintf(name, sizeof name, ".tmp-gone-%s", base + strspn(base, "."));
    TSR_TRY(tsr_path_join(gone, parent, name));
    TSR_TRY(tsr_remove_tree(gone)); // of an earlier try
    return rename(path, gone) == 0 || errno == ENOENT
               ? 0
               : tsr_fail_errno(errno, "cannot rename", path);
}

// What is out of the way may stay for now: neither a run that goes on nor one that starts must fail
// because of it.
static void remove_leftover(const char *path) {
    if (tsr_remove_tree(path) < 0)
        tsr_warn("a leftover stays behind: %s", tsr_error_text());
}

// Only the renaming has to succeed: after it nobody takes it for a checkpoint, and an orphan that
// still writes or renames finds nothing.
static int rename_and_remove(const char *parent, const char *path) {
    char gone[TSR_PATH_MAX];
    TSR_TRY(rename_away(parent, path, gone));
    remove_leftover(gone);
    return 0;
}

static int n_checkpoints(const char *run_dir, int64_t *n) {
    char path[TSR_PATH_MAX];
    int64_t step = INT64_MAX;
    int found;
    for (*n = 0; (found = tsr_checkpoint_latest(run_dir, step, &step, path)) > 0;)
        ++*n;
    return found;
}

// Where a rollback of the run whose newest good checkpoint is `dir` would go; -1: nowhere.
static int64_t anchor_of(const char *dir) {
    struct tsr_state s;
    if (tsr_state_read(&s, dir) < 0)
        return -1;
    int64_t anchor = s.guard.anchored ? s.guard.anchor : -1;
    tsr_state_free(&s);
    return anchor;
}

int tsr_checkpoint_retain(const char *run_dir, int64_t keep, struct tsr_known_good *known) {
    char parent[TSR_PATH_MAX], path[TSR_PATH_MAX];
    int64_t below = INT64_MAX, step, there, anchor = -1;
    int n_good = 0;
    TSR_TRY(tsr_path_join(parent, run_dir, "checkpoints"));
    TSR_TRY(n_checkpoints(run_dir, &there));
    if (keep <= 0 || there <= keep || there <= 2)
        return 0;
    for (int64_t n = 0; n < there; n++) {
        int found = tsr_checkpoint_latest(run_dir, below, &step, path);
        if (found <= 0)
            return found;
        if (n_good < 2) {
            int good = is_good(path, step, known);
            if (good < 0)
                return good;
            if (good && n_good == 0)
                anchor = anchor_of(path);
            n_good += good;
        } else if (n >= keep && step != anchor) {
            TSR_TRY(rename_and_remove(parent, path));
        }
        below = step;
    }
    return 0;
}

int tsr_checkpoint_discard(const char *run_dir, int64_t anchor, int64_t last) {
    char parent[TSR_PATH_MAX], path[TSR_PATH_MAX];
    int64_t step = last < INT64_MAX ? last + 1 : last;
    int found, n = 0;
    TSR_TRY(tsr_path_join(parent, run_dir, "checkpoints"));
    while ((found = tsr_checkpoint_latest(run_dir, step, &step, path)) > 0 && step > anchor) {
        TSR_TRY(rename_and_remove(parent, path));
        n++;
    }
    if (found < 0)
        return found;
    return n > 0 ? tsr_fsync_path(parent) : 0;
}

// ---- leftovers

// The epoch in a temporary's name, or -1: not of this form.
static int64_t epoch_of(const char *name, const char *prefix) {
    const char *rest;
    char *end;
    int64_t step;
    if (!tsr_ckpt_parse_step(name, prefix, &step, &rest) || strncmp(rest, "-e", 2) != 0 ||
        rest[2] < '0' || rest[2] > '9')
        return -1;
    errno = 0;
    long long epoch = strtoll(rest + 2, &end, 10);
    return errno == 0 && strncmp(end, "-a", 2) == 0 ? epoch : -1;
}

static bool is_older(const char *name, const char *prefix, uint64_t epoch) {
    int64_t e = epoch_of(name, prefix);
    return e < 0 || (uint64_t)e < epoch;
}

// ".old-step-N-…" is a checkpoint that was being replaced by rename, rename: it goes back to its
// name unless its successor has taken it.
static int put_back_or_remove(const char *run_dir, const char *parent, const char *name,
                              int64_t step) {
    char path[TSR_PATH_MAX], old[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(old, parent, name));
    TSR_TRY(tsr_checkpoint_path(path, run_dir, step));
    if (!tsr_path_exists(path))
        return rename(old, path) < 0 ? tsr_fail_errno(errno, "cannot rename to", path) : 0;
    remove_leftover(old);
    return 0;
}

static int fence_one(const char *run_dir, const char *parent, const char *name, uint64_t epoch) {
    char path[TSR_PATH_MAX];
    const char *rest;
    int64_t step;
    TSR_TRY(tsr_path_join(path, parent, name));
    if (tsr_ckpt_parse_step(name, ".old-step-", &step, &rest))
        return is_older(name, ".old-step-", epoch) ? put_back_or_remove(run_dir, parent, name, step)
                                                   : 0;
    bool note = strncmp(name, ".tmp-swap-", 10) == 0; // of core/checkpoint_publish.c
    if (strncmp(name, ".tmp-gone-", 10) == 0 || (note && is_older(name, ".tmp-swap-step-", epoch)))
        remove_leftover(path);
    else if (!note && strncmp(name, ".tmp-", 5) == 0 && is_older(name, ".tmp-step-", epoch))
        return rename_and_remove(parent, path);
    return 0;
}

int tsr_checkpoint_fence(const char *run_dir, uint64_t epoch) {
    struct tsr_ckpt_names names;
    char parent[TSR_PATH_MAX];
    TSR_TRY(tsr_ckpt_list_parent(&names, parent, run_dir));
    int rc = 0;
    for (int i = 0; rc == 0 && i < names.n; i++)
        rc = fence_one(run_dir, parent, names.v[i], epoch);
    if (rc == 0 && names.n > 0)
        rc = tsr_fsync_path(parent);
    tsr_ckpt_names_free(&names);
    return rc;
}

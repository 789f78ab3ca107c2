// From a temporary directory to a checkpoint.
#include "core/checkpoint_publish.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/checkpoint_private.h"
#include "core/error.h"
#include "core/log.h"

// ---- the plan

static bool is_temporary(const char *name) {
    return strncmp(name, ".tmp-step-", 10) == 0 && !strchr(name, '/') &&
           strlen(name) < TSR_CKPT_NAME;
}

static int bad_plan(const struct tsr_publish *p, const char *what) {
    return tsr_fail(TSR_EIO, "%s: the plan of this save is wrong: %s", p->temporary, what);
}

int tsr_publish_n_ranges(const struct tsr_publish *p, uint64_t *n_ranges) {
    *n_ranges = 0;
    if (!is_temporary(p->temporary))
        return bad_plan(p, "the name of its directory");
    if (p->range_bytes == 0 || (p->range_bytes & (p->range_bytes - 1)) != 0)
        return bad_plan(p, "its ranges are not a power of two bytes long");
    for (int i = 0; i < p->n_files; i++) {
        const struct tsr_planned_file *f = &p->files[i];
        if (!tsr_ckpt_is_plain_path(f->path) ||
            (i > 0 && strcmp(p->files[i - 1].path, f->path) >= 0))
            return bad_plan(p, "the names of its files");
        if (f->size > INT64_MAX)
            return bad_plan(p, "the sizes of its files");
        *n_ranges += (uint64_t)tsr_ckpt_n_ranges(f->size, p->range_bytes);
        if (*n_ranges > INT64_MAX / sizeof(struct tsr_digest))
            return bad_plan(p, "the sizes of its files");
    }
    return 0;
}

static int manifest_text(const struct tsr_publish *p, struct tsr_buf *out) {
    struct tsr_ckpt_manifest m = {.step = p->step, .range_bytes = p->range_bytes, .n = p->n_files};
    uint64_t n_ranges, first = 0;
    TSR_TRY(tsr_publish_n_ranges(p, &n_ranges));
    m.files = calloc((size_t)p->n_files + 1, sizeof *m.files);
    if (!m.files)
        return tsr_fail(TSR_ENOMEM, "no memory for the manifest of a checkpoint");
    for (int i = 0; i < p->n_files; i++) {
        int64_t n = tsr_ckpt_n_ranges(p->files[i].size, p->range_bytes);
        m.files[i] = (struct tsr_ckpt_listed){.path = p->files[i].path,
                                              .size = p->files[i].size,
                                              // only read
                                              .digests = (struct tsr_digest *)p->digests + first,
                                              .n_ranges = n};
        first += (uint64_t)n;
    }
    int rc = tsr_ckpt_manifest_text(&m, out);
    free(m.files);
    return rc;
}

// ---- where the save stands

struct place {
    char run_dir[TSR_PATH_MAX], parent[TSR_PATH_MAX];
    char tmp[TSR_PATH_MAX], dir[TSR_PATH_MAX]; // before and after the rename
    char swap[TSR_PATH_MAX];                   // a note, see note_swap
    char old[TSR_PATH_MAX];                    // what is replaced, where there is no exchange
};

static int sibling(char out[static TSR_PATH_MAX], const struct place *at, const char *prefix,
                   const char *temporary) {
    char name[TSR_CKPT_NAME + 16];
    snprintf(name, sizeof name, "%s%s", prefix, temporary + strlen(".tmp-"));
    return tsr_path_join(out, at->parent, name);
}

static int find_place(struct place *at, const struct tsr_publish *p) {
    uint64_t n_ranges;
    TSR_TRY(tsr_publish_n_ranges(p, &n_ranges));
    TSR_TRY(tsr_path_join(at->run_dir, p->run_dir, ""));
    TSR_TRY(tsr_path_join(at->parent, p->run_dir, "checkpoints"));
    TSR_TRY(tsr_path_join(at->tmp, at->parent, p->temporary));
    TSR_TRY(tsr_checkpoint_path(at->dir, p->run_dir, p->step));
    TSR_TRY(sibling(at->swap, at, ".tmp-swap-", p->temporary));
    return sibling(at->old, at, ".old-", p->temporary);
}

// An exchange leaves the names as they were: whether it has happened is known by the inode that
// the temporary directory had, noted before. (Manifests don't tell: a run that repeats a step
// writes the same bytes, and what it replaces may be a damaged copy of them.)
static int note_swap(const struct place *at) {
    struct stat st;
    char text[32];
    if (stat(at->tmp, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", at->tmp);
    int n = snprintf(text, sizeof text, "%" PRIu64 "\n", (uint64_t)st.st_ino);
    return tsr_write_file_durable(at->swap, text, (size_t)n);
}

// Returns 1, 0, or a code: a note that can't be read must not pass for none.
static int is_swapped(const struct place *at) {
    struct stat st;
    char *text;
    if (!tsr_path_exists(at->dir) || !tsr_path_exists(at->swap))
        return 0;
    if (stat(at->dir, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", at->dir);
    TSR_TRY(tsr_read_file(at->swap, 64, TSR_EIO, &text, NULL));
    bool same = strtoull(text, NULL, 10) == (uint64_t)st.st_ino;
    free(text);
    return same;
}

// Returns 1 when the rename has happened, 0 when it hasn't, or a code: the directory is gone.
static int is_published(const struct place *at, const struct tsr_publish *p) {
    struct tsr_digest found, want;
    struct tsr_buf text = {0};
    struct stat st;
    if (lstat(at->tmp, &st) == 0)
        return is_swapped(at);
    if (errno != ENOENT)
        return tsr_fail_errno(errno, "cannot read", at->tmp);
    TSR_TRY(manifest_text(p, &text));
    want = tsr_ckpt_digest_bytes(text.data, text.len);
    tsr_buf_free(&text);
    int rc = tsr_ckpt_manifest_digest(at->dir, &found);
    if (rc < 0 && rc != TSR_EMODEL)
        return rc; // it may well be there
    if (rc == 0 && memcmp(found.b, want.b, sizeof want.b) == 0)
        return 1;
    return tsr_fail(TSR_EIO,
                    "%s: the directory of this save is gone: another incarnation of the "
                    "run has taken over",
                    at->tmp);
}

// ---- the steps

static int check_files(const struct place *at, const struct tsr_publish *p) {
    struct tsr_ckpt_names there;
    struct stat st;
    char path[TSR_PATH_MAX];
    int i = 0, rc = 0;
    TSR_TRY(tsr_ckpt_list(&there, at->tmp));
    for (int k = 0; rc == 0 && k < there.n; k++) {
        if (strcmp(there.v[k], TSR_CKPT_MANIFEST) == 0)
            continue; // of an earlier try
        rc = tsr_path_join(path, at->tmp, there.v[k]);
        if (rc == 0 && stat(path, &st) < 0)
            rc = tsr_fail_errno(errno, "cannot read", path);
        else if (rc == 0 && (i == p->n_files || strcmp(p->files[i].path, there.v[k]) != 0))
            rc = tsr_fail(TSR_EIO, "%s: not the file that the plan of this save has here", path);
        else if (rc == 0 && (uint64_t)st.st_size != p->files[i].size)
            rc = tsr_fail(TSR_EIO, "%s: expected %" PRIu64 " bytes, found %" PRId64, path,
                          p->files[i].size, (int64_t)st.st_size);
        i++;
    }
    tsr_ckpt_names_free(&there);
    if (rc == 0 && i < p->n_files)
        rc = tsr_fail(TSR_EIO, "%s/%s: the file is missing", at->tmp, p->files[i].path);
    return rc;
}

static int write_text(const char *path, const struct tsr_buf *text) {
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0666);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot create", path);
    int rc = tsr_write_all(fd, text->data, text->len, path);
    if (close(fd) < 0 && rc == 0)
        rc = tsr_fail_errno(errno, "cannot write", path);
    return rc;
}

int tsr_publish_write_manifest(const struct tsr_publish *p) {
    struct place at;
    struct tsr_buf text = {0};
    char path[TSR_PATH_MAX];
    TSR_TRY(find_place(&at, p));
    int done = is_published(&at, p);
    if (done != 0)
        return done < 0 ? done : 0;
    TSR_TRY(check_files(&at, p));
    TSR_TRY(tsr_path_join(path, at.tmp, TSR_CKPT_MANIFEST));
    int rc = manifest_text(p, &text);
    if (rc == 0)
        rc = write_text(path, &text);
    tsr_buf_free(&text);
    return rc;
}

static int sync_below(const struct tsr_publish *p, const char *const *names, int n) {
    struct place at;
    char path[TSR_PATH_MAX];
    TSR_TRY(find_place(&at, p));
    int done = is_published(&at, p);
    if (done != 0)
        return done < 0 ? done : 0;
    for (int i = 0; i < n; i++) {
        TSR_TRY(tsr_path_join(path, at.tmp, names[i]));
        TSR_TRY(tsr_fsync_path(path));
    }
    return 0;
}

int tsr_publish_sync_manifest(const struct tsr_publish *p) {
    static const char *const names[] = {TSR_CKPT_MANIFEST};
    return sync_below(p, names, 1);
}

int tsr_publish_sync_dirs(const struct tsr_publish *p) {
    static const char *const names[] = {"optimizer", ""};
    return sync_below(p, names, 2);
}

// Without RENAME_EXCHANGE (some network file systems) there is a moment without either; should we
// die in it, tsr_checkpoint_fence puts the old one back.
static int replace_in_two(const struct place *at) {
    if (rename(at->dir, at->old) < 0)
        return tsr_fail_errno(errno, "cannot rename", at->dir);
    if (rename(at->tmp, at->dir) == 0)
        return 0;
    int err = errno;
    rename(at->old, at->dir);
    return tsr_fail_errno(err, "cannot rename to", at->dir);
}

int tsr_publish_rename(const struct tsr_publish *p) {
    struct place at;
    TSR_TRY(find_place(&at, p));
    int done = is_published(&at, p);
    if (done != 0)
        return done < 0 ? done : 0;
    if (rename(at.tmp, at.dir) == 0)
        return 0;
    // ENOTDIR: a link (somebody has moved the old one to another disk) or a file. It is exchanged,
    // too: what a link points to stays.
    if (errno != EEXIST && errno != ENOTEMPTY && errno != ENOTDIR)
        return tsr_fail_errno(errno, "cannot rename to", at.dir);
    TSR_TRY(note_swap(&at));
    if (renameat2(AT_FDCWD, at.tmp, AT_FDCWD, at.dir, RENAME_EXCHANGE) == 0)
        return 0;
    if (errno == EINVAL || errno == ENOSYS || errno == EOPNOTSUPP)
        return replace_in_two(&at);
    return tsr_fail_errno(errno, "cannot rename to", at.dir);
}

// RUN_DIR/LATEST, for people and scripts: nothing of ours reads it, so that it may fail.
static void leave_hint(const struct place *at) {
    char path[TSR_PATH_MAX], text[64];
    int n = snprintf(text, sizeof text, "%s\n", tsr_path_base(at->dir));
    if (tsr_path_join(path, at->run_dir, "LATEST") == 0)
        tsr_write_file_durable(path, text, (size_t)n);
}

// What was replaced. The new one is there whatever becomes of it: a folder that can't be removed
// (its permissions, a file that somebody on NFS still holds open) waits for the next epoch. The
// note goes last: as long as the temporary is there, it says what that is.
static void remove_replaced(const struct place *at) {
    if (tsr_remove_tree(at->tmp) < 0 || tsr_remove_tree(at->old) < 0 ||
        tsr_remove_tree(at->swap) < 0)
        tsr_warn("what %s has replaced stays behind: %s", at->dir, tsr_error_text());
}

int tsr_publish_sync_parent(const struct tsr_publish *p) {
    struct place at;
    TSR_TRY(find_place(&at, p));
    int done = is_published(&at, p);
    if (done < 0)
        return done;
    TSR_ASSERT(done == 1); // what is at its temporary name is not yet a checkpoint
    TSR_TRY(tsr_fsync_path(at.parent));
    TSR_TRY(tsr_fsync_path(at.run_dir)); // `checkpoints` itself may be new
    leave_hint(&at);
    remove_replaced(&at);
    return 0;
}

int tsr_publish_remove_temporary(const char *run_dir, const char *temporary) {
    struct place at;
    if (!is_temporary(temporary))
        return tsr_fail(TSR_EIO, "%.200s: not the name of a checkpoint's temporary directory",
                        temporary);
    TSR_TRY(tsr_path_join(at.parent, run_dir, "checkpoints"));
    TSR_TRY(tsr_path_join(at.tmp, at.parent, temporary));
    TSR_TRY(sibling(at.swap, &at, ".tmp-swap-", temporary));
    TSR_TRY(tsr_remove_tree(at.tmp));
    return tsr_remove_tree(at.swap);
}

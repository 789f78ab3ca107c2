#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"

// Both lists are sorted; the manifest itself is on the disk only.
static int compare_lists(const char *dir, const struct tsr_ckpt_manifest *m,
                         const struct tsr_ckpt_names *there) {
    int i = 0, j = 0;
    while (i < m->n || j < there->n) {
        if (j < there->n && strcmp(there->v[j], TSR_CKPT_MANIFEST) == 0) {
            j++;
            continue;
        }
        int order = i == m->n ? 1 : j == there->n ? -1 : strcmp(m->files[i].path, there->v[j]);
        if (order < 0)
            return tsr_fail(TSR_EMODEL, "%s/%s: the file is missing", dir, m->files[i].path);
        if (order > 0)
            return tsr_fail(TSR_EMODEL, "%s/%s: the manifest doesn't list this file", dir,
                            there->v[j]);
        i++;
        j++;
    }
    return 0;
}

static int check_file_list(const char *dir, const struct tsr_ckpt_manifest *m) {
    struct tsr_ckpt_names there;
    TSR_TRY(tsr_ckpt_list(&there, dir));
    int rc = compare_lists(dir, m, &there);
    tsr_ckpt_names_free(&there);
    return rc;
}

struct choice {
    tsr_range_fn wanted;
    void *arg;
};

// Checks the ranges of one file that are wanted; `r` is the number of its first.
static int check_ranges(const struct tsr_ckpt_listed *f, uint64_t range_bytes, int fd,
                        const char *path, int64_t r, const struct choice *c) {
    for (int64_t i = 0; i < f->n_ranges; i++) {
        if (!c->wanted(c->arg, f->path, i, r + i))
            continue;
        struct tsr_digest found;
        uint64_t at = (uint64_t)i * range_bytes, left = f->size - at;
        uint64_t n_bytes = left < range_bytes ? left : range_bytes;
        TSR_TRY(tsr_ckpt_digest_range(fd, path, at, n_bytes, &found));
        if (memcmp(found.b, f->digests[i].b, sizeof found.b) == 0)
            continue;
        char want[TSR_CKPT_HEX + 1], have[TSR_CKPT_HEX + 1];
        tsr_ckpt_hex(want, &f->digests[i]);
        tsr_ckpt_hex(have, &found);
        return tsr_fail(TSR_EMODEL,
                        "%s: damaged: bytes %" PRIu64 " to %" PRIu64
                        ": expected XXH3-128 %s, found %s",
                        path, at, at + n_bytes, want, have);
    }
    return 0;
}

static int check_size(int fd, const char *path, uint64_t size) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", path);
    if ((uint64_t)st.st_size != size)
        return tsr_fail(TSR_EMODEL, "%s: expected %" PRIu64 " bytes, found %" PRId64, path, size,
                        (int64_t)st.st_size);
    return 0;
}

static int check_file(const char *dir, const struct tsr_ckpt_manifest *m,
                      const struct tsr_ckpt_listed *f, int64_t r, const struct choice *c) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, dir, f->path));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc = check_size(fd, path, f->size);
    if (rc == 0)
        rc = check_ranges(f, m->range_bytes, fd, path, r, c);
    close(fd);
    return rc;
}

static int check_name(const char *dir, const char *name, int64_t step) {
    const char *rest;
    int64_t named;
    if (!tsr_ckpt_parse_step(name, "step-", &named, &rest) || *rest || named == step)
        return 0;
    return tsr_fail(TSR_EMODEL,
                    "%s: expected the manifest of step %" PRId64 ", found that of step %" PRId64,
                    dir, named, step);
}

// A directory that is named as a checkpoint of a step holds one of that step: a copy of another
// under its name, or a link to another, would be taken for the newest. Where the name says nothing
// (".", a link of the user's own) that of the directory itself does.
int tsr_ckpt_check_step(const char *dir, int64_t step) {
    char whole[TSR_PATH_MAX];
    TSR_TRY(check_name(dir, tsr_path_base(dir), step));
    if (!realpath(dir, whole))
        return tsr_fail_errno(errno, "cannot open", dir);
    return check_name(dir, tsr_path_base(whole), step);
}

bool tsr_checkpoint_is_tensors(const char *file) {
    static const char suffix[] = ".safetensors";
    const size_t n = strlen(file), k = sizeof suffix - 1;
    return n >= k && strcmp(file + n - k, suffix) == 0;
}

int tsr_checkpoint_verify_some(const char *dir, tsr_range_fn wanted, void *arg) {
    const struct choice c = {wanted, arg};
    struct tsr_ckpt_manifest m;
    TSR_TRY(tsr_ckpt_manifest_read(&m, dir));
    int rc = check_file_list(dir, &m);
    if (rc == 0)
        rc = tsr_ckpt_check_step(dir, m.step);
    int64_t r = 0;
    for (int i = 0; rc == 0 && i < m.n; i++) {
        rc = check_file(dir, &m, &m.files[i], r, &c);
        r += m.files[i].n_ranges;
    }
    tsr_ckpt_manifest_free(&m);
    return rc;
}

struct share {
    int rank, n_ranks;
};

static bool is_mine(void *arg, const char *file, int64_t range, int64_t r) {
    const struct share *s = arg;
    (void)file;
    (void)range;
    return r % s->n_ranks == s->rank;
}

int tsr_checkpoint_verify(const char *dir, int rank, int n_ranks) {
    struct share s = {rank, n_ranks};
    TSR_ASSERT(n_ranks >= 1 && rank >= 0 && rank < n_ranks);
    return tsr_checkpoint_verify_some(dir, is_mine, &s);
}

static bool is_wanted_by_none(void *arg, const char *file, int64_t range, int64_t r) {
    (void)arg;
    (void)file;
    (void)range;
    (void)r;
    return false;
}

int tsr_checkpoint_verify_quick(const char *dir) {
    return tsr_checkpoint_verify_some(dir, is_wanted_by_none, NULL);
}

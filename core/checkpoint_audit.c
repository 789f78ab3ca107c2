#include "core/checkpoint_audit.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/checkpoint_private.h"
#include "core/error.h"

struct auditing {
    struct tsr_audit *a;
    const char *dir;
    struct tsr_ckpt_manifest m;
    uint64_t done, total; // bytes
};

__attribute__((format(printf, 5, 6))) static void
tell(struct auditing *x, const char *file, uint64_t first, uint64_t end, const char *fmt, ...) {
    char text[1024];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    x->a->n_problems++;
    x->a->problem(x->a->arg, file, first, end, text);
}

static void advance(struct auditing *x, uint64_t n_bytes) {
    x->done += n_bytes;
    if (x->a->progress)
        x->a->progress(x->a->arg, x->done, x->total);
}

// ---- the list of files

static void compare_lists(struct auditing *x, const struct tsr_ckpt_names *there) {
    int i = 0, j = 0;
    while (i < x->m.n || j < there->n) {
        if (j < there->n && strcmp(there->v[j], TSR_CKPT_MANIFEST) == 0) {
            j++;
            continue;
        }
        int order = i == x->m.n ? 1 : j == there->n ? -1 : strcmp(x->m.files[i].path, there->v[j]);
        if (order > 0)
            tell(x, there->v[j], 0, 0, "the manifest doesn't list this file");
        i += order <= 0; // a file that is missing is told when it can't be opened
        j += order >= 0;
    }
}

// ---- contents

static int audit_range(struct auditing *x, const struct tsr_ckpt_listed *f, int fd,
                       const char *path, int64_t i) {
    struct tsr_digest found;
    char want[TSR_CKPT_HEX + 1], have[TSR_CKPT_HEX + 1];
    uint64_t at = (uint64_t)i * x->m.range_bytes, left = f->size - at;
    uint64_t n_bytes = left < x->m.range_bytes ? left : x->m.range_bytes;
    int rc = tsr_ckpt_digest_range(fd, path, at, n_bytes, &found);
    if (rc == TSR_ENOMEM)
        return rc;
    x->a->n_ranges++;
    advance(x, n_bytes);
    if (rc < 0) {
        tell(x, f->path, at, at + n_bytes, "%s", tsr_error_text());
    } else if (memcmp(found.b, f->digests[i].b, sizeof found.b) != 0) {
        tsr_ckpt_hex(want, &f->digests[i]);
        tsr_ckpt_hex(have, &found);
        tell(x, f->path, at, at + n_bytes, "damaged: expected XXH3-128 %s, found %s", want, have);
    }
    return 0;
}

static int audit_file(struct auditing *x, const struct tsr_ckpt_listed *f) {
    char path[TSR_PATH_MAX];
    struct stat st;
    TSR_TRY(tsr_path_join(path, x->dir, f->path));
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_NOFOLLOW), rc = 0;
    if (fd < 0 || fstat(fd, &st) < 0) {
        tell(x, f->path, 0, 0, errno == ENOENT ? "the file is missing" : "cannot open: %s",
             strerror(errno));
    } else if (!S_ISREG(st.st_mode)) {
        tell(x, f->path, 0, 0, "a checkpoint holds regular files only");
    } else if ((uint64_t)st.st_size != f->size) {
        tell(x, f->path, 0, 0, "expected %" PRIu64 " bytes, found %" PRId64, f->size,
             (int64_t)st.st_size);
    } else {
        for (int64_t i = 0; rc == 0 && i < f->n_ranges; i++)
            rc = audit_range(x, f, fd, path, i);
    }
    if (fd >= 0)
        close(fd);
    return rc;
}

static int audit_files(struct auditing *x) {
    struct tsr_ckpt_names there;
    int rc = tsr_ckpt_list(&there, x->dir);
    if (rc == TSR_ENOMEM)
        return rc;
    if (rc < 0) {
        tell(x, "", 0, 0, "%s", tsr_error_text());
    } else {
        compare_lists(x, &there);
        tsr_ckpt_names_free(&there);
    }
    if (tsr_ckpt_check_step(x->dir, x->m.step) < 0)
        tell(x, TSR_CKPT_MANIFEST, 0, 0, "%s", tsr_error_text());
    for (int i = 0; i < x->m.n; i++)
        x->total += x->m.files[i].size;
    rc = 0;
    for (int i = 0; rc == 0 && i < x->m.n; i++)
        rc = audit_file(x, &x->m.files[i]);
    x->a->n_bytes = x->total;
    x->a->n_files = x->m.n;
    return rc;
}

int tsr_checkpoint_audit(const char *dir, struct tsr_audit *a) {
    struct auditing x = {.a = a, .dir = dir};
    a->step = -1;
    a->n_bytes = 0;
    a->n_files = 0;
    a->n_ranges = a->n_problems = 0;
    if (!tsr_path_is_dir(dir))
        return tsr_fail(TSR_EMODEL, "%s: expected a checkpoint's directory, found %s", dir,
                        tsr_path_exists(dir) ? "a file" : "nothing");
    int rc = tsr_ckpt_manifest_read(&x.m, dir);
    if (rc == TSR_ENOMEM)
        return rc;
    if (rc < 0) {
        tell(&x, TSR_CKPT_MANIFEST, 0, 0, "%s", tsr_error_text());
        return 0;
    }
    a->step = x.m.step;
    rc = audit_files(&x);
    tsr_ckpt_manifest_free(&x.m);
    return rc;
}

// ---- which there are

static int measure(const char *dir, uint64_t *n_bytes, int *n_files) {
    struct tsr_ckpt_names names;
    struct stat st;
    char path[TSR_PATH_MAX];
    *n_bytes = 0;
    *n_files = 0;
    int rc = tsr_ckpt_list(&names, dir);
    if (rc < 0) // something strange in it: nothing to count, and the audit tells
        return rc == TSR_ENOMEM ? rc : 0;
    for (int i = 0; rc == 0 && i < names.n; i++) {
        rc = tsr_path_join(path, dir, names.v[i]);
        if (rc == 0 && stat(path, &st) == 0) {
            *n_bytes += (uint64_t)st.st_size;
            ++*n_files;
        }
    }
    tsr_ckpt_names_free(&names);
    return rc;
}

static int order_of_items(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

// Checkpoints on the first pass, temporaries on the second.
static int each_of(const struct tsr_ckpt_names *names, const char *parent, bool unfinished,
                   int (*fn)(void *, const struct tsr_checkpoint_item *), void *arg) {
    char path[TSR_PATH_MAX];
    const char *rest = "";
    for (int i = 0; i < names->n; i++) {
        struct tsr_checkpoint_item item = {.name = names->v[i], .path = path, .step = -1};
        bool whole = tsr_ckpt_parse_step(item.name, "step-", &item.step, &rest) && *rest == 0;
        item.unfinished = item.name[0] == '.';
        if (item.unfinished)
            whole = tsr_ckpt_parse_step(item.name, ".tmp-step-", &item.step, &rest) ||
                    tsr_ckpt_parse_step(item.name, ".old-step-", &item.step, &rest) ||
                    strncmp(item.name, ".tmp-", 5) == 0;
        TSR_TRY(tsr_path_join(path, parent, item.name));
        if (!whole || item.unfinished != unfinished || !tsr_path_is_dir(path))
            continue;
        TSR_TRY(measure(path, &item.n_bytes, &item.n_files));
        TSR_TRY(fn(arg, &item));
    }
    return 0;
}

int tsr_checkpoint_each(const char *run_dir, int (*fn)(void *, const struct tsr_checkpoint_item *),
                        void *arg) {
    struct tsr_ckpt_names names;
    char parent[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(parent, run_dir, "checkpoints"));
    if (!tsr_path_is_dir(parent))
        return tsr_fail(TSR_EMODEL, "%s: expected a run directory, found no checkpoints/ in it",
                        run_dir);
    TSR_TRY(tsr_ckpt_list_parent(&names, parent, run_dir));
    if (names.n > 0)
        qsort(names.v, (size_t)names.n, sizeof *names.v, order_of_items);
    int rc = each_of(&names, parent, false, fn, arg);
    if (rc == 0)
        rc = each_of(&names, parent, true, fn, arg);
    tsr_ckpt_names_free(&names);
    return rc;
}

// ---- digests

struct tsr_checkpoint_digests {
    struct tsr_ckpt_manifest m;
};

int tsr_checkpoint_digests_open(struct tsr_checkpoint_digests **out, const char *dir) {
    struct tsr_checkpoint_digests *d = calloc(1, sizeof *d);
    if (!d)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for its manifest", dir);
    int rc = tsr_ckpt_manifest_read(&d->m, dir);
    if (rc < 0) {
        free(d);
        return rc;
    }
    *out = d;
    return 0;
}

void tsr_checkpoint_digests_close(struct tsr_checkpoint_digests *d) {
    if (d)
        tsr_ckpt_manifest_free(&d->m);
    free(d);
}

static const struct tsr_ckpt_listed *listed(const struct tsr_checkpoint_digests *d,
                                            const char *file) {
    for (int i = 0; i < d->m.n; i++)
        if (strcmp(d->m.files[i].path, file) == 0)
            return &d->m.files[i];
    return NULL;
}

uint64_t tsr_checkpoint_digests_range_bytes(const struct tsr_checkpoint_digests *d) {
    return d->m.range_bytes;
}

const struct tsr_digest *tsr_checkpoint_digests_of(const struct tsr_checkpoint_digests *d,
                                                   const char *file, int64_t range) {
    const struct tsr_ckpt_listed *f = listed(d, file);
    return f && range >= 0 && range < f->n_ranges ? &f->digests[range] : NULL;
}

bool tsr_checkpoint_digests_equal(const struct tsr_checkpoint_digests *a,
                                  const struct tsr_checkpoint_digests *b, const char *file,
                                  uint64_t first, uint64_t end) {
    const struct tsr_ckpt_listed *f = listed(a, file), *g = listed(b, file);
    if (!f || !g || a->m.range_bytes != b->m.range_bytes || f->size != g->size || end > f->size)
        return false;
    for (uint64_t i = first / a->m.range_bytes; i * a->m.range_bytes < end; i++)
        if (memcmp(&f->digests[i], &g->digests[i], sizeof *f->digests) != 0)
            return false;
    return true;
}

uint64_t tsr_checkpoint_digests_share(const struct tsr_checkpoint_digests *d, int rank,
                                      int n_ranks) {
    uint64_t n_bytes = 0;
    int64_t r = 0;
    for (int i = 0; i < d->m.n; i++)
        for (int64_t k = 0; k < d->m.files[i].n_ranges; k++, r++) {
            uint64_t left = d->m.files[i].size - (uint64_t)k * d->m.range_bytes;
            if (r % n_ranks == rank)
                n_bytes += left < d->m.range_bytes ? left : d->m.range_bytes;
        }
    return n_bytes;
}

// The steps of writing a checkpoint up to the digests' inputs: open, begin, write, fsync, abort.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>
#include "core/error.h"

uint64_t tsr_checkpoint_nonce(void) {
    uint64_t n;
    if (getrandom(&n, sizeof n, 0) == sizeof n)
        return n;
    struct timespec now; // an old kernel in early boot: unlikely twice is enough
    clock_gettime(CLOCK_REALTIME, &now);
    return (uint64_t)now.tv_sec << 32 ^ (uint64_t)now.tv_nsec << 8 ^ (uint64_t)getpid();
}

int tsr_checkpoint_path(char out[static TSR_PATH_MAX], const char *run_dir, int64_t step) {
    char name[64];
    snprintf(name, sizeof name, "checkpoints/step-%08" PRId64, step);
    return tsr_path_join(out, run_dir, name);
}

static int set_paths(struct tsr_checkpoint *c, const char *run_dir) {
    char name[64];
    snprintf(name, sizeof name, ".tmp-step-%08" PRId64 "-%016" PRIx64, c->opt.step, c->opt.nonce);
    TSR_TRY(tsr_path_join(c->parent, run_dir, "checkpoints"));
    TSR_TRY(tsr_path_join(c->tmp, c->parent, name));
    return tsr_checkpoint_path(c->dir, run_dir, c->opt.step);
}

int tsr_checkpoint_open(struct tsr_checkpoint **out, const struct tsr_checkpoint_opt *opt) {
    TSR_ASSERT(opt->step >= 0 && opt->table->n > 0);
    struct tsr_checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint");
    c->opt = *opt;
    c->opt.run_dir = NULL;
    c->block = malloc(TSR_CKPT_BLOCK * sizeof *c->block);
    c->narrow = opt->dtype == TSR_DT_F32 ? NULL : malloc(TSR_CKPT_BLOCK * sizeof *c->narrow);
    int rc = 0;
    if (!c->block || (opt->dtype != TSR_DT_F32 && !c->narrow))
        rc = tsr_fail(TSR_ENOMEM, "no memory for a checkpoint");
    if (rc == 0)
        rc = set_paths(c, opt->run_dir);
    if (rc == 0)
        rc = tsr_ckpt_layout(c);
    if (rc < 0) {
        tsr_checkpoint_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

static void close_fds(struct tsr_checkpoint *c) {
    for (int i = 0; i < c->n_sets; i++) {
        if (c->sets[i].fd >= 0)
            close(c->sets[i].fd);
        c->sets[i].fd = -1;
    }
}

void tsr_checkpoint_close(struct tsr_checkpoint *c) {
    if (!c)
        return;
    close_fds(c);
    tsr_ckpt_layout_free(c);
    free(c->block);
    free(c->narrow);
    free(c);
}

const char *tsr_checkpoint_dir(const struct tsr_checkpoint *c) {
    return c->dir;
}

static int create_file(const struct tsr_checkpoint *c, const struct tsr_ckpt_file *f) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, c->tmp, f->path));
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot create", path);
    int rc = 0;
    if (f->size > INT64_MAX || ftruncate(fd, (off_t)f->size) < 0)
        rc = tsr_fail_errno(f->size > INT64_MAX ? EFBIG : errno, "cannot enlarge", path);
    if (rc == 0)
        rc = tsr_pwrite_all(fd, f->header.data, f->header.len, 0, path);
    if (close(fd) < 0 && rc == 0)
        rc = tsr_fail_errno(errno, "cannot write", path);
    return rc;
}

static int create_all(const struct tsr_checkpoint *c) {
    char optimizer[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(optimizer, c->tmp, "optimizer"));
    if (mkdir(optimizer, 0777) < 0)
        return tsr_fail_errno(errno, "cannot make the folder", optimizer);
    for (int i = 0; i < c->n_files; i++)
        TSR_TRY(create_file(c, &c->files[i]));
    return 0;
}

int tsr_checkpoint_begin(struct tsr_checkpoint *c) {
    TSR_TRY(tsr_mkdir_p(c->parent));
    if (mkdir(c->tmp, 0777) < 0) // one that is there already is another writer's
        return tsr_fail_errno(errno, "cannot make the folder", c->tmp);
    int rc = create_all(c);
    if (rc < 0) {
        char why[2048];
        snprintf(why, sizeof why, "%s", tsr_error_text());
        tsr_checkpoint_abort(c); // the first failure is the one to tell
        return tsr_fail((enum tsr_code)rc, "%s", why);
    }
    return 0;
}

int tsr_checkpoint_abort(struct tsr_checkpoint *c) {
    close_fds(c);
    return tsr_remove_tree(c->tmp);
}

struct target {
    int fd;
    char path[TSR_PATH_MAX];
    uint64_t base; // of the tensor in the file
    enum tsr_dtype dtype;
    size_t elem;  // bytes
    int64_t cols; // of the tensor in the file
};

// Writes rows of the file's matrix; they lie one after another at `rows`, in the file's dtype.
static int put_rows(const struct target *t, struct tsr_region r, const void *rows) {
    const char *p = rows;
    const size_t row_bytes = (size_t)(r.c1 - r.c0) * t->elem;
    int64_t at_once = r.c1 - r.c0 == t->cols ? r.r1 - r.r0 : 1; // whole rows are one run
    for (int64_t i = r.r0; i < r.r1; i += at_once) {
        uint64_t offset = t->base + (uint64_t)(i * t->cols + r.c0) * t->elem;
        TSR_TRY(tsr_pwrite_all(t->fd, p, row_bytes * (size_t)at_once, offset, t->path));
        p += row_bytes * (size_t)at_once;
    }
    return 0;
}

// Brings blocks of the file's region `r` together (row-major in the file's orientation and dtype)
// and writes each: `data` is canonical, with `ld` floats from row to row.
static int put_blocks(struct tsr_checkpoint *c, const struct target *t, bool transposed,
                      struct tsr_region r, const float *data, int64_t ld) {
    const int64_t width = r.c1 - r.c0 < TSR_CKPT_BLOCK ? r.c1 - r.c0 : TSR_CKPT_BLOCK;
    const int64_t height = TSR_CKPT_BLOCK / width;
    for (int64_t i = r.r0; i < r.r1; i += height)
        for (int64_t j = r.c0; j < r.c1; j += width) {
            struct tsr_region b = {i, i + height < r.r1 ? i + height : r.r1, j,
                                   j + width < r.c1 ? j + width : r.c1};
            const int64_t h = b.r1 - b.r0, w = b.c1 - b.c0;
            if (transposed)
                tsr_transpose(c->block, w, data + (j - r.c0) * ld + (i - r.r0), ld, w, h);
            else
                for (int64_t k = 0; k < h; k++)
                    memcpy(c->block + k * w, data + (i - r.r0 + k) * ld + (j - r.c0),
                           (size_t)w * sizeof *data);
            if (t->dtype != TSR_DT_F32)
                tsr_dtype_from_f32(t->dtype, c->narrow, c->block, (size_t)(h * w));
            TSR_TRY(put_rows(t, b, t->dtype == TSR_DT_F32 ? (void *)c->block : c->narrow));
        }
    return 0;
}

// Network file systems may report a failed write only here.
static int close_set(const struct tsr_checkpoint *c, struct tsr_ckpt_set *s) {
    int fd = s->fd;
    s->fd = -1;
    if (fd < 0 || close(fd) == 0)
        return 0;
    int err = errno;
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, c->tmp, c->files[s->fd_file].path));
    return tsr_fail_errno(err, "cannot write", path);
}

static int open_target(struct tsr_checkpoint *c, struct tsr_ckpt_set *s, int entry,
                       struct target *t) {
    int k = s->first_file;
    while (&s->entries[entry] >= c->files[k].entries + c->files[k].n_entries)
        k++;
    struct tsr_ckpt_file *f = &c->files[k];
    TSR_TRY(tsr_path_join(t->path, c->tmp, f->path));
    if (s->fd < 0 || s->fd_file != k) {
        TSR_TRY(close_set(c, s));
        s->fd = open(t->path, O_WRONLY | O_CLOEXEC);
        s->fd_file = k;
        if (s->fd < 0)
            return tsr_fail_errno(errno, "cannot open", t->path);
    }
    f->dirty = true;
    t->fd = s->fd;
    t->base = f->header.len + s->entries[entry].begin;
    t->dtype = s->dtype;
    t->elem = tsr_dtype_size(s->dtype);
    return 0;
}

static int write_to_set(struct tsr_checkpoint *c, struct tsr_ckpt_set *s,
                        const struct tsr_tensor *t, struct tsr_region region, const float *data,
                        int64_t ld) {
    struct target target;
    const struct tsr_place p = s->hf ? tsr_place_hf(t) : tsr_place_canonical(t);
    const struct tsr_region r = tsr_place_region(&p, t, region);
    TSR_TRY(open_target(c, s, s->entry_of[t - c->opt.table->t], &target));
    target.cols = p.cols;
    const bool as_it_is = !p.transposed && s->dtype == TSR_DT_F32;
    if (as_it_is && ld == r.c1 - r.c0)
        return put_rows(&target, r, data);
    if (as_it_is && r.c1 - r.c0 < p.cols) { // rows with gaps on both sides
        for (int64_t i = r.r0; i < r.r1; i++)
            TSR_TRY(put_rows(&target, (struct tsr_region){i, i + 1, r.c0, r.c1},
                             data + (i - r.r0) * ld));
        return 0;
    }
    return put_blocks(c, &target, p.transposed, r, data, ld);
}

int tsr_checkpoint_write(struct tsr_checkpoint *c, enum tsr_checkpoint_part part,
                         const struct tsr_tensor *t, struct tsr_region region, const float *data,
                         int64_t ld) {
    TSR_ASSERT(t >= c->opt.table->t && t < c->opt.table->t + c->opt.table->n);
    TSR_ASSERT(ld >= region.c1 - region.c0);
    if (tsr_region_elems(region) == 0 || (t->frozen && part != TSR_CKPT_WEIGHTS))
        return 0;
    for (int i = 0; i < c->n_sets; i++)
        if (c->sets[i].part == part)
            TSR_TRY(write_to_set(c, &c->sets[i], t, region, data, ld));
    c->elems_written += tsr_region_elems(region);
    return 0;
}

int tsr_checkpoint_fsync(struct tsr_checkpoint *c) {
    char path[TSR_PATH_MAX];
    for (int i = 0; i < c->n_sets; i++)
        TSR_TRY(close_set(c, &c->sets[i]));
    for (int i = 0; i < c->n_files; i++) {
        if (!c->files[i].dirty)
            continue;
        TSR_TRY(tsr_path_join(path, c->tmp, c->files[i].path));
        TSR_TRY(tsr_fsync_path(path));
        c->files[i].dirty = false;
    }
    return 0;
}

int64_t tsr_checkpoint_elems_written(const struct tsr_checkpoint *c) {
    return c->elems_written;
}

int64_t tsr_checkpoint_elems(const struct tsr_checkpoint *c) {
    int64_t n = 0;
    for (int i = 0; i < c->opt.table->n; i++) {
        const struct tsr_tensor *t = &c->opt.table->t[i];
        n += t->rows * t->cols * (t->frozen ? 1 : 3);
    }
    return n;
}

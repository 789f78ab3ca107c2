// The first step of a save, and the last one of a save that failed.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"

// All of the file's blocks, so that a full disk is told before anything is written, and several can
// write to it at once. File systems that can't make a long hole instead.
static int enlarge(int fd, uint64_t size, const char *path) {
    if (size > INT64_MAX)
        return tsr_fail_errno(EFBIG, "cannot enlarge", path);
    int rc;
    do
        rc = size > 0 ? fallocate(fd, 0, 0, (off_t)size) : 0;
    while (rc < 0 && errno == EINTR);
    if (rc < 0 && (errno == EOPNOTSUPP || errno == ENOSYS || errno == EINVAL))
        rc = ftruncate(fd, (off_t)size);
    return rc < 0 ? tsr_fail_errno(errno, "cannot enlarge", path) : 0;
}

static int create_file(const struct tsr_checkpoint *c, const struct tsr_ckpt_file *f) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, c->tmp, f->path));
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot create", path);
    int rc = enlarge(fd, f->size, path);
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

int tsr_checkpoint_begin(struct tsr_checkpoint *c, const struct tsr_state *state,
                         const char *source_dir, const char *tokenizer_dir) {
    TSR_TRY(tsr_mkdir_p(c->parent));
    if (mkdir(c->tmp, 0777) < 0) // one that is there already is another writer's
        return tsr_fail_errno(errno, "cannot make the folder", c->tmp);
    int rc = create_all(c);
    if (rc == 0)
        rc = tsr_ckpt_put_small(c, state, source_dir, tokenizer_dir);
    if (rc < 0) {
        char why[2048];
        snprintf(why, sizeof why, "%s", tsr_error_text());
        tsr_checkpoint_abort(c); // the first failure is the one to tell
        return tsr_fail((enum tsr_code)rc, "%s", why);
    }
    c->began = true;
    for (int i = 0; i < c->n_files; i++)
        c->files[i].dirty = true;
    return 0;
}

int tsr_checkpoint_abort(struct tsr_checkpoint *c) {
    tsr_ckpt_runs_free(c);
    return tsr_remove_tree(c->tmp);
}

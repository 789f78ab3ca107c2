#include "core/io.h"
#include "core/error.h"

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

// One call moves at most this much: Linux caps a read or write just below 2 GiB anyway.
static const size_t MAX_MOVE = (size_t)1 << 30;

static size_t at_most(size_t n, size_t limit) {
    return n < limit ? n : limit;
}

int tsr_write_all(int fd, const void *buf, size_t n_bytes, const char *path) {
    const char *p = buf;
    while (n_bytes > 0) {
        ssize_t n = write(fd, p, at_most(n_bytes, MAX_MOVE));
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return tsr_fail_errno(n < 0 ? errno : EIO, "cannot write", path);
        p += n;
        n_bytes -= (size_t)n;
    }
    return 0;
}

int tsr_pwrite_all(int fd, const void *buf, size_t n_bytes, uint64_t offset, const char *path) {
    const char *p = buf;
    if (offset > (uint64_t)INT64_MAX || n_bytes > (uint64_t)INT64_MAX - offset)
        return tsr_fail_errno(EFBIG, "cannot write", path);
    while (n_bytes > 0) {
        ssize_t n = pwrite(fd, p, at_most(n_bytes, MAX_MOVE), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return tsr_fail_errno(n < 0 ? errno : EIO, "cannot write", path);
        p += n;
        n_bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

int tsr_pread_all(int fd, void *buf, size_t n_bytes, uint64_t offset, const char *path) {
    char *p = buf;
    if (offset > (uint64_t)INT64_MAX || n_bytes > (uint64_t)INT64_MAX - offset)
        return tsr_fail_errno(EFBIG, "cannot read", path);
    while (n_bytes > 0) {
        ssize_t n = pread(fd, p, at_most(n_bytes, MAX_MOVE), (off_t)offset);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return tsr_fail_errno(errno, "cannot read", path);
        if (n == 0)
            return tsr_fail(TSR_EIO, "%s: expected %zu more bytes at offset %llu, found the end",
                            path, n_bytes, (unsigned long long)offset);
        p += n;
        n_bytes -= (size_t)n;
        offset += (uint64_t)n;
    }
    return 0;
}

static int fail_too_big(const char *path, size_t max_bytes, int missing_code) {
    return tsr_fail((enum tsr_code)missing_code, "%s: expected at most %zu bytes, found more", path,
                    max_bytes);
}

// Reads to the end of the file: its size is a hint only, as a pipe or a file of /proc has none.
static int read_to_end(int fd, const char *path, size_t max_bytes, int missing_code,
                       struct tsr_buf *b) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", path);
    if (S_ISDIR(st.st_mode))
        return tsr_fail((enum tsr_code)missing_code, "%s: expected a file, found a folder", path);
    if (st.st_size > 0 && (uint64_t)st.st_size > max_bytes)
        return fail_too_big(path, max_bytes, missing_code);
    size_t room = st.st_size > 0 ? (size_t)st.st_size + 1 : 4096;
    for (;;) {
        if (b->cap - b->len < 2) {
            size_t cap = b->cap == 0 ? room + 1 : b->cap * 2;
            char *data = realloc(b->data, cap);
            if (!data)
                return tsr_fail(TSR_ENOMEM, "%s: out of memory: %zu bytes", path, cap);
            b->data = data;
            b->cap = cap;
        }
        ssize_t n = read(fd, b->data + b->len, at_most(b->cap - b->len - 1, MAX_MOVE));
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return tsr_fail_errno(errno, "cannot read", path);
        b->len += (size_t)n;
        if (b->len > max_bytes)
            return fail_too_big(path, max_bytes, missing_code);
        b->data[b->len] = 0;
        if (n == 0)
            return 0;
    }
}

static int open_to_read(const char *path, int flags, int missing_code, int *fd) {
    *fd = open(path, O_RDONLY | O_CLOEXEC | flags);
    if (*fd >= 0)
        return 0;
    static const int others[] = {EMFILE,    ENFILE,   ENOMEM,    EIO,       ESTALE,
                                 ETIMEDOUT, ENOTCONN, ESHUTDOWN, EREMOTEIO, EHOSTDOWN};
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        if (errno == others[i]) // the file is not to blame
            return tsr_fail_errno(errno, "cannot open", path);
    return tsr_fail((enum tsr_code)missing_code, "%s: cannot open: %s", path, strerror(errno));
}

// Takes the descriptor.
static int read_opened(int fd, const char *path, size_t max_bytes, int missing_code, char **out,
                       size_t *n_out) {
    struct tsr_buf b = {0};
    int rc = read_to_end(fd, path, max_bytes, missing_code, &b);
    close(fd);
    if (rc < 0) {
        tsr_buf_free(&b);
        return rc;
    }
    *out = b.data;
    if (n_out)
        *n_out = b.len;
    return 0;
}

int tsr_read_file(const char *path, size_t max_bytes, int missing_code, char **out, size_t *n_out) {
    int fd;
    TSR_TRY(open_to_read(path, 0, missing_code, &fd));
    return read_opened(fd, path, max_bytes, missing_code, out, n_out);
}

int tsr_read_regular_file(const char *path, size_t max_bytes, int missing_code, char **out,
                          size_t *n_out) {
    struct stat st;
    int fd;
    TSR_TRY(open_to_read(path, O_NONBLOCK, missing_code, &fd)); // a pipe must not block
    if (fstat(fd, &st) == 0 && !S_ISREG(st.st_mode)) {
        close(fd);
        return tsr_fail((enum tsr_code)missing_code, "%s: expected a regular file, found %s", path,
                        S_ISDIR(st.st_mode) ? "a folder" : "a pipe or device");
    }
    return read_opened(fd, path, max_bytes, missing_code, out, n_out);
}

int tsr_fsync_path(const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc;
    do
        rc = fsync(fd);
    while (rc < 0 && errno == EINTR);
    int err = errno;
    bool dir = tsr_path_is_dir(path);
    close(fd);
    if (rc < 0 && !(dir && err == EINVAL)) // some network file systems cannot sync a folder
        return tsr_fail_errno(err, "cannot sync", path);
    return 0;
}

void *tsr_io_memory(size_t n_bytes) {
    const size_t huge = (size_t)2 << 20, n = (n_bytes / huge + 1) * huge;
    void *p = n_bytes < n ? aligned_alloc(huge, n) : NULL;
    if (p)
        madvise(p, n, MADV_HUGEPAGE); // advice only
    return p;
}

// A fresh file beside `path`; the name is unlike that of any other process or host.
static int create_temporary(char tmp[static TSR_PATH_MAX], const char *path, int *fd) {
    static atomic_uint counter;
    struct timespec now;
    do {
        clock_gettime(CLOCK_REALTIME, &now);
        int n = snprintf(tmp, TSR_PATH_MAX, "%s.tmp-%d-%x-%x", path, (int)getpid(),
                         (unsigned)now.tv_nsec, atomic_fetch_add(&counter, 1));
        if (n >= TSR_PATH_MAX)
            return tsr_fail(TSR_EUSAGE, "path is too long: %.200s…", path);
        *fd = open(tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    } while (*fd < 0 && (errno == EEXIST || errno == EINTR));
    return *fd < 0 ? tsr_fail_errno(errno, "cannot create", tmp) : 0;
}

static int write_and_sync(int fd, const void *buf, size_t n_bytes, const char *path) {
    int rc = tsr_write_all(fd, buf, n_bytes, path);
    if (rc == 0 && fsync(fd) < 0)
        rc = tsr_fail_errno(errno, "cannot sync", path);
    if (close(fd) < 0 && rc == 0) // network file systems report a full disk here
        rc = tsr_fail_errno(errno, "cannot write", path);
    return rc;
}

int tsr_write_file_durable(const char *path, const void *buf, size_t n_bytes) {
    char tmp[TSR_PATH_MAX], dir[TSR_PATH_MAX];
    int fd = -1;
    TSR_TRY(tsr_path_dir(dir, path));
    TSR_TRY(create_temporary(tmp, path, &fd));
    int rc = write_and_sync(fd, buf, n_bytes, tmp);
    if (rc == 0 && rename(tmp, path) < 0)
        rc = tsr_fail_errno(errno, "cannot rename to", path);
    if (rc < 0) {
        unlink(tmp);
        return rc;
    }
    return tsr_fsync_path(dir);
}

// Records every change that a program makes to files below a folder, for LD_PRELOAD.
//
//   TESSERA_RECORD        file that the records are appended to (record.h)
//   TESSERA_RECORD_BELOW  absolute path of the folder, without links
//   TESSERA_RECORD_KILL   number, from 1, of the record after which its process kills itself
//
// Several processes may share the file. A call and its record are one step under a lock that all
// of them take, so the order of records is the order of effects. Calls that fail leave no record.
// Changes by calls that are not wrapped here (stdio's own, mmap) pass unseen: the test compares the
// record with strace's list of the same run.
#include "tests/crash/record.h"

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) (*(__typeof__(&name))dlsym(RTLD_NEXT, #name))

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static int log_fd = -1;
static pid_t owner; // of log_fd: a forked child opens its own, or the lock wouldn't part them

static const char *below(void) {
    const char *folder = getenv("TESSERA_RECORD_BELOW");
    return folder && getenv("TESSERA_RECORD") ? folder : NULL;
}

static bool is_below(const char *path) {
    const char *folder = below();
    size_t n = folder ? strlen(folder) : 0;
    return n > 0 && strncmp(path, folder, n) == 0 && (path[n] == '/' || path[n] == 0);
}

static _Noreturn void give_up(const char *what) {
    fprintf(stderr, "recorder: %s: %s\n", what, strerror(errno));
    abort();
}

// False: this call isn't recorded, and nothing is locked.
static bool lock_if(bool wanted) {
    if (!wanted)
        return false;
    int err = errno;
    pthread_mutex_lock(&mutex);
    if (owner != getpid()) {
        log_fd =
            REAL(open)(getenv("TESSERA_RECORD"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
        owner = getpid();
    }
    if (log_fd < 0)
        give_up("cannot open the record");
    while (flock(log_fd, LOCK_EX) < 0)
        if (errno != EINTR)
            give_up("cannot lock the record");
    errno = err;
    return true;
}

static void unlock(void) {
    int err = errno;
    flock(log_fd, LOCK_UN);
    pthread_mutex_unlock(&mutex);
    errno = err;
}

// Records are counted over all processes by a byte each in a file beside the record.
static void kill_at(const char *number) {
    char path[4096];
    struct stat st;
    snprintf(path, sizeof path, "%s.count", getenv("TESSERA_RECORD"));
    int fd = REAL(open)(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 || REAL(write)(fd, "", 1) != 1 || fstat(fd, &st) < 0)
        give_up("cannot count the records");
    close(fd);
    if (st.st_size == atol(number))
        raise(SIGKILL);
}

static void record(enum crash_kind kind, const char *path, const char *other, uint64_t offset,
                   const void *data, size_t n_data) {
    int err = errno;
    struct crash_record r = {.kind = kind,
                             .pid = (uint32_t)getpid(),
                             .n_path = (uint32_t)strlen(path),
                             .n_other = other ? (uint32_t)strlen(other) : 0,
                             .offset = offset,
                             .n_data = n_data};
    const struct iovec parts[4] = {{&r, sizeof r},
                                   {(void *)path, r.n_path},
                                   {(void *)other, r.n_other},
                                   {(void *)data, n_data}};
    size_t total = sizeof r + r.n_path + r.n_other + n_data;
    if (REAL(writev)(log_fd, parts, 4) != (ssize_t)total)
        give_up("cannot write the record");
    if (getenv("TESSERA_RECORD_KILL"))
        kill_at(getenv("TESSERA_RECORD_KILL"));
    errno = err;
}

// The path of an open file, or of a name below a folder's descriptor: absolute, without links in
// the folder part. False when it isn't below the folder that is recorded.
static bool path_of_fd(int fd, char out[static 4096]) {
    int err = errno;
    char link[64];
    if (!below())
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, out, 4095);
    errno = err;
    if (n <= 0)
        return false;
    out[n] = 0;
    return is_below(out);
}

static bool path_at(int dir, const char *path, char out[static 4096]) {
    if (!below())
        return false;
    int err = errno;
    char folder[4096], real[4096], whole[8192];
    if (path[0] == '/')
        snprintf(whole, sizeof whole, "%s", path);
    else if (dir == AT_FDCWD && getcwd(folder, sizeof folder))
        snprintf(whole, sizeof whole, "%s/%s", folder, path);
    else if (dir != AT_FDCWD && path_of_fd(dir, folder))
        snprintf(whole, sizeof whole, "%s/%s", folder, path);
    else
        return false;
    while (strlen(whole) > 1 && whole[strlen(whole) - 1] == '/')
        whole[strlen(whole) - 1] = 0;
    char *slash = strrchr(whole, '/');
    *slash = 0;
    bool found = realpath(whole[0] ? whole : "/", real) != NULL;
    errno = err;
    if (!found)
        return false;
    return snprintf(out, 4096, "%s/%s", strcmp(real, "/") == 0 ? "" : real, slash + 1) < 4096 &&
           is_below(out);
}

// ---- making and opening files

static int finish_open(int fd, const char *path, bool recorded, bool existed, int flags) {
    if (recorded) {
        if (fd >= 0 && !existed)
            record(CRASH_CREATE, path, NULL, 0, NULL, 0);
        else if (fd >= 0 && (flags & O_TRUNC))
            record(CRASH_TRUNCATE, path, NULL, 0, NULL, 0);
        unlock();
    }
    return fd;
}

static int open_at(int dir, const char *name, int flags, mode_t mode) {
    char path[4096];
    struct stat st;
    bool recorded = lock_if((flags & (O_CREAT | O_TRUNC)) && path_at(dir, name, path));
    bool existed = !recorded || lstat(path, &st) == 0;
    return finish_open(REAL(openat)(dir, name, flags, mode), path, recorded, existed, flags);
}

#define MODE_OF(flags, mode)                                                                       \
    mode_t mode = 0;                                                                               \
    if ((flags) & (O_CREAT | O_TMPFILE)) {                                                         \
        va_list ap;                                                                                \
        va_start(ap, flags);                                                                       \
        mode = va_arg(ap, mode_t);                                                                 \
        va_end(ap);                                                                                \
    }

int open(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(AT_FDCWD, path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(AT_FDCWD, path, flags, mode);
}

int openat(int dir, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(dir, path, flags, mode);
}

int openat64(int dir, const char *path, int flags, ...) {
    MODE_OF(flags, mode)
    return open_at(dir, path, flags, mode);
}

int creat(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

int creat64(const char *path, mode_t mode) {
    return open_at(AT_FDCWD, path, O_CREAT | O_WRONLY | O_TRUNC, mode);
}

// ---- calls on open files: real call, then a record of what it did

// One step on a descriptor. `n` is the real call's result: a count for writes, else 0. The path is
// taken again under the lock: another process may have renamed a folder of it.
#define ON_FD(fd, call, what)                                                                      \
    do {                                                                                           \
        char path[4096];                                                                           \
        bool recorded = lock_if(path_of_fd(fd, path)) && path_of_fd(fd, path);                     \
        __typeof__(call) n = (call);                                                               \
        if (recorded) {                                                                            \
            if (n >= 0)                                                                            \
                what;                                                                              \
            unlock();                                                                              \
        }                                                                                          \
        return n;                                                                                  \
    } while (0)

static uint64_t before_cursor(int fd, ssize_t n) {
    return (uint64_t)(lseek(fd, 0, SEEK_CUR) - n);
}

ssize_t write(int fd, const void *buf, size_t size) {
    ON_FD(fd, REAL(write)(fd, buf, size),
          record(CRASH_WRITE, path, NULL, before_cursor(fd, n), buf, (size_t)n));
}

ssize_t pwrite(int fd, const void *buf, size_t size, off_t at) {
    ON_FD(fd, REAL(pwrite)(fd, buf, size, at),
          record(CRASH_WRITE, path, NULL, (uint64_t)at, buf, (size_t)n));
}

ssize_t pwrite64(int fd, const void *buf, size_t size, off64_t at) {
    ON_FD(fd, REAL(pwrite64)(fd, buf, size, at),
          record(CRASH_WRITE, path, NULL, (uint64_t)at, buf, (size_t)n));
}

static void record_parts(const char *path, uint64_t at, const struct iovec *parts, size_t n) {
    for (int i = 0; n > 0; i++) {
        size_t part = parts[i].iov_len < n ? parts[i].iov_len : n;
        record(CRASH_WRITE, path, NULL, at, parts[i].iov_base, part);
        at += part;
        n -= part;
    }
}

ssize_t writev(int fd, const struct iovec *parts, int n_parts) {
    ON_FD(fd, REAL(writev)(fd, parts, n_parts),
          record_parts(path, before_cursor(fd, n), parts, (size_t)n));
}

ssize_t pwritev(int fd, const struct iovec *parts, int n_parts, off_t at) {
    ON_FD(fd, REAL(pwritev)(fd, parts, n_parts, at),
          record_parts(path, (uint64_t)at, parts, (size_t)n));
}

int ftruncate(int fd, off_t size) {
    ON_FD(fd, REAL(ftruncate)(fd, size),
          record(CRASH_TRUNCATE, path, NULL, (uint64_t)size, NULL, 0));
}

int ftruncate64(int fd, off64_t size) {
    ON_FD(fd, REAL(ftruncate64)(fd, size),
          record(CRASH_TRUNCATE, path, NULL, (uint64_t)size, NULL, 0));
}

static void record_fallocate(const char *path, int mode, uint64_t end) {
    if (mode & ~FALLOC_FL_KEEP_SIZE)
        record(CRASH_UNKNOWN, path, "fallocate", 0, NULL, 0);
    else
        record(mode ? CRASH_HINT : CRASH_EXTEND, path, NULL, end, NULL, 0);
}

int fallocate(int fd, int mode, off_t at, off_t size) {
    ON_FD(fd, REAL(fallocate)(fd, mode, at, size),
          record_fallocate(path, mode, (uint64_t)(at + size)));
}

int fallocate64(int fd, int mode, off64_t at, off64_t size) {
    ON_FD(fd, REAL(fallocate64)(fd, mode, at, size),
          record_fallocate(path, mode, (uint64_t)(at + size)));
}

int fsync(int fd) {
    ON_FD(fd, REAL(fsync)(fd), record(CRASH_SYNC, path, NULL, 0, NULL, 0));
}

int fdatasync(int fd) {
    ON_FD(fd, REAL(fdatasync)(fd), record(CRASH_SYNC, path, NULL, 0, NULL, 0));
}

int syncfs(int fd) {
    ON_FD(fd, REAL(syncfs)(fd), record(CRASH_SYNC_ALL, path, NULL, 0, NULL, 0));
}

int sync_file_range(int fd, off64_t at, off64_t size, unsigned flags) {
    ON_FD(fd, REAL(sync_file_range)(fd, at, size, flags),
          record(CRASH_HINT, path, NULL, 0, NULL, 0));
}

// ---- calls on names

#define ON_NAME(dir, name, call, what)                                                             \
    do {                                                                                           \
        char path[4096];                                                                           \
        bool recorded = lock_if(path_at(dir, name, path));                                         \
        int n = (call);                                                                            \
        if (recorded) {                                                                            \
            if (n >= 0)                                                                            \
                what;                                                                              \
            unlock();                                                                              \
        }                                                                                          \
        return n;                                                                                  \
    } while (0)

// A name that comes from or goes to outside of the folder is a change that can't be described.
#define ON_NAMES(dir, name, to_dir, to_name, call, kind)                                           \
    do {                                                                                           \
        char path[4096], other[4096];                                                              \
        bool from_here = path_at(dir, name, path), to_here = path_at(to_dir, to_name, other);      \
        bool recorded = lock_if(from_here || to_here);                                             \
        int n = (call);                                                                            \
        if (recorded) {                                                                            \
            if (n >= 0 && from_here && to_here)                                                    \
                record(kind, path, other, 0, NULL, 0);                                             \
            else if (n >= 0)                                                                       \
                record(CRASH_UNKNOWN, from_here ? path : other, #call, 0, NULL, 0);                \
            unlock();                                                                              \
        }                                                                                          \
        return n;                                                                                  \
    } while (0)

int truncate(const char *name, off_t size) {
    ON_NAME(AT_FDCWD, name, REAL(truncate)(name, size),
            record(CRASH_TRUNCATE, path, NULL, (uint64_t)size, NULL, 0));
}

int mkdir(const char *name, mode_t mode) {
    ON_NAME(AT_FDCWD, name, REAL(mkdir)(name, mode), record(CRASH_MKDIR, path, NULL, 0, NULL, 0));
}

int mkdirat(int dir, const char *name, mode_t mode) {
    ON_NAME(dir, name, REAL(mkdirat)(dir, name, mode), record(CRASH_MKDIR, path, NULL, 0, NULL, 0));
}

int unlink(const char *name) {
    ON_NAME(AT_FDCWD, name, REAL(unlink)(name), record(CRASH_UNLINK, path, NULL, 0, NULL, 0));
}

int unlinkat(int dir, const char *name, int flags) {
    ON_NAME(dir, name, REAL(unlinkat)(dir, name, flags),
            record(flags & AT_REMOVEDIR ? CRASH_RMDIR : CRASH_UNLINK, path, NULL, 0, NULL, 0));
}

int rmdir(const char *name) {
    ON_NAME(AT_FDCWD, name, REAL(rmdir)(name), record(CRASH_RMDIR, path, NULL, 0, NULL, 0));
}

int remove(const char *name) {
    struct stat st;
    return lstat(name, &st) == 0 && S_ISDIR(st.st_mode) ? rmdir(name) : unlink(name);
}

int rename(const char *from, const char *to) {
    ON_NAMES(AT_FDCWD, from, AT_FDCWD, to, REAL(rename)(from, to), CRASH_RENAME);
}

int renameat(int from_dir, const char *from, int to_dir, const char *to) {
    ON_NAMES(from_dir, from, to_dir, to, REAL(renameat)(from_dir, from, to_dir, to), CRASH_RENAME);
}

int renameat2(int from_dir, const char *from, int to_dir, const char *to, unsigned flags) {
    ON_NAMES(from_dir, from, to_dir, to, REAL(renameat2)(from_dir, from, to_dir, to, flags),
             flags & RENAME_EXCHANGE ? CRASH_EXCHANGE : CRASH_RENAME);
}

int link(const char *from, const char *to) {
    ON_NAMES(AT_FDCWD, from, AT_FDCWD, to, REAL(link)(from, to), CRASH_LINK);
}

int linkat(int from_dir, const char *from, int to_dir, const char *to, int flags) {
    ON_NAMES(from_dir, from, to_dir, to, REAL(linkat)(from_dir, from, to_dir, to, flags),
             CRASH_LINK);
}

int symlink(const char *target, const char *name) {
    ON_NAME(AT_FDCWD, name, REAL(symlink)(target, name),
            record(CRASH_UNKNOWN, path, "symlink", 0, NULL, 0));
}

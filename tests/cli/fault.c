// A failing disk, for LD_PRELOAD: the Nth call that changes files below a path fails.
//
//   TESSERA_FAULT_PATH   calls on files whose absolute path begins with this are counted
//   TESSERA_FAULT_AT     the number, from 1, of the call that fails; 0: none
//   TESSERA_FAULT_KIND   an errno value: the call fails with it; -N: it and all later ones fail
//                        with N (a full disk stays full); "short": a write moves a byte only
//   TESSERA_FAULT_RANK   only in this rank of an MPI job
//   TESSERA_FAULT_READ   read and pread of files whose path has this in it fail with EIO, always
//   TESSERA_FAULT_DENIED open and access of files whose path has this in it fail with EACCES,
//   always TESSERA_FAULT_COUNT  file that gets the number of calls counted when the process ends
//
// Counted: open (for writing or creating), write, pwrite, fsync, ftruncate, fallocate, rename,
// renameat2, mkdir of a folder that isn't there. Calls that glibc makes inside itself (stdio) pass
// by.
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static atomic_long calls;

static const char *setting(const char *name) {
    const char *value = getenv(name);
    return value ? value : "";
}

static bool other_rank(void) {
    const char *want = setting("TESSERA_FAULT_RANK"), *rank = setting("OMPI_COMM_WORLD_RANK");
    return want[0] && strcmp(want, rank) != 0;
}

// Counts a call on `path`. Returns 0 or the error that it fails with; -1 asks for a short write.
static int judge(const char *path) {
    const char *below = setting("TESSERA_FAULT_PATH"), *kind = setting("TESSERA_FAULT_KIND");
    if (!below[0] || strncmp(path, below, strlen(below)) != 0 || other_rank())
        return 0;
    long n = atomic_fetch_add(&calls, 1) + 1, at = atol(setting("TESSERA_FAULT_AT"));
    int error = atoi(kind);
    if (at == 0 || n < at || (n > at && error >= 0))
        return 0;
    return strcmp(kind, "short") == 0 ? -1 : abs(error);
}

static bool path_of(int fd, char path[4096]) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, 4095);
    path[n > 0 ? n : 0] = 0;
    return n > 0;
}

static int judge_fd(int fd) {
    char path[4096];
    return path_of(fd, path) ? judge(path) : 0;
}

static int judge_read(int fd) {
    const char *what = setting("TESSERA_FAULT_READ");
    char path[4096];
    return what[0] && !other_rank() && path_of(fd, path) && strstr(path, what) ? EIO : 0;
}

static int judge_right(const char *path) {
    const char *what = setting("TESSERA_FAULT_DENIED");
    return what[0] && !other_rank() && strstr(path, what) ? EACCES : 0;
}

#define REAL(name) (*(__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FAIL_IF(error)                                                                             \
    do {                                                                                           \
        int error_ = (error);                                                                      \
        if (error_ > 0) {                                                                          \
            errno = error_;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)

int open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    mode_t mode = flags & O_CREAT ? va_arg(ap, mode_t) : 0;
    va_end(ap);
    if (flags & (O_WRONLY | O_RDWR | O_CREAT))
        FAIL_IF(judge(path));
    FAIL_IF(judge_right(path));
    return REAL(open)(path, flags, mode);
}

int access(const char *path, int mode) {
    FAIL_IF(judge_right(path));
    return REAL(access)(path, mode);
}

ssize_t write(int fd, const void *buf, size_t n) {
    int error = n ? judge_fd(fd) : 0;
    FAIL_IF(error);
    return REAL(write)(fd, buf, error < 0 ? 1 : n);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t offset) {
    int error = n ? judge_fd(fd) : 0;
    FAIL_IF(error);
    return REAL(pwrite)(fd, buf, error < 0 ? 1 : n, offset);
}

ssize_t read(int fd, void *buf, size_t n) {
    FAIL_IF(judge_read(fd));
    return REAL(read)(fd, buf, n);
}

ssize_t pread(int fd, void *buf, size_t n, off_t offset) {
    FAIL_IF(judge_read(fd));
    return REAL(pread)(fd, buf, n, offset);
}

int fsync(int fd) {
    FAIL_IF(judge_fd(fd));
    return REAL(fsync)(fd);
}

int ftruncate(int fd, off_t length) {
    FAIL_IF(judge_fd(fd));
    return REAL(ftruncate)(fd, length);
}

int fallocate(int fd, int mode, off_t at, off_t length) {
    FAIL_IF(judge_fd(fd));
    return REAL(fallocate)(fd, mode, at, length);
}

int rename(const char *from, const char *to) {
    FAIL_IF(judge(to));
    return REAL(rename)(from, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    FAIL_IF(judge(to));
    return REAL(renameat2)(from_fd, from, to_fd, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    if (access(path, F_OK) != 0)
        FAIL_IF(judge(path));
    return REAL(mkdir)(path, mode);
}

__attribute__((destructor)) static void report(void) {
    const char *to = setting("TESSERA_FAULT_COUNT");
    FILE *f = to[0] && !other_rank() && atomic_load(&calls) > 0 ? fopen(to, "w") : NULL;
    if (!f)
        return;
    fprintf(f, "%ld\n", atomic_load(&calls));
    fclose(f);
}

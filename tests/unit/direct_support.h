// For tests that stand between a reader or a writer and the kernel: a file system with or without
// O_DIRECT, calls that are interrupted or move less than was asked for, and what a disk asks of
// direct ones. Include it once, in the test's source: open() here takes the place of libc's.
#ifndef TSR_TESTS_DIRECT_SUPPORT_H
#define TSR_TESTS_DIRECT_SUPPORT_H

#include "tests/unit/files_support.h"

#include <errno.h>
#include <sys/syscall.h>

enum { DISK_BLOCK = 4096 };

static struct {
    bool no_direct_open;      // EINVAL, as file systems without O_DIRECT answer
    int short_every;          // every n-th transfer moves less; 0: never
    int interrupted_every;    // every n-th one is interrupted first; 0: never
    _Atomic long n_calls;     // transfers seen
    _Atomic long n_direct;    // direct ones that succeeded
    _Atomic long n_unaligned; // direct ones that no disk would take
} kernel;

int open(const char *path, int flags, ...) {
    va_list ap;
    va_start(ap, flags);
    int mode = flags & O_CREAT ? va_arg(ap, int) : 0;
    va_end(ap);
    if ((flags & O_DIRECT) && kernel.no_direct_open) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_openat, AT_FDCWD, path, flags, mode);
}

static inline bool is_direct(int fd) {
    return (fcntl(fd, F_GETFL) & O_DIRECT) != 0;
}

// The number of a transfer, from 1.
static inline long count_call(bool direct, const void *buf, size_t n, off_t offset) {
    if (direct &&
        ((uintptr_t)buf % DISK_BLOCK != 0 || n % DISK_BLOCK != 0 || offset % DISK_BLOCK != 0))
        kernel.n_unaligned++;
    return ++kernel.n_calls;
}

static inline bool is_due(long call, int every) {
    return every > 0 && call % every == 0;
}

#endif

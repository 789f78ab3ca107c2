// What a plain sequential file reaches on a disk, for programs that compare themselves with it.
#ifndef TSR_TESTS_PLAIN_FILE_H
#define TSR_TESTS_PLAIN_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/io.h"

enum { PLAIN_BLOCK = 4 << 20 };

static inline int plain_move(int fd, const char *path, uint64_t n_bytes, bool writes,
                             double *seconds) {
    char *block = tsr_io_memory(PLAIN_BLOCK); // scattered pages would make the disk look slow
    if (!block)
        return tsr_fail(TSR_ENOMEM, "no memory");
    memset(block, 1, PLAIN_BLOCK);
    double begun = tsr_now();
    int rc = 0;
    for (uint64_t at = 0; rc == 0 && at < n_bytes / PLAIN_BLOCK * PLAIN_BLOCK; at += PLAIN_BLOCK)
        rc = writes ? tsr_pwrite_all(fd, block, PLAIN_BLOCK, at, path)
                    : tsr_pread_all(fd, block, PLAIN_BLOCK, at, path);
    if (rc == 0 && writes && fsync(fd) < 0)
        rc = tsr_fail_errno(errno, "cannot sync", path);
    *seconds = tsr_now() - begun;
    free(block);
    return rc;
}

// Writes a fresh file of n_bytes, in whole blocks, and syncs it. `flags`: 0 or O_DIRECT.
static inline int plain_write(const char *path, uint64_t n_bytes, int flags, double *seconds) {
    unlink(path);
    sync(); // what the disk still does for others isn't timed
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | flags, 0666);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc = plain_move(fd, path, n_bytes, true, seconds);
    close(fd);
    return rc;
}

// Reads it from the disk, not from memory.
static inline int plain_read(const char *path, uint64_t n_bytes, int flags, double *seconds) {
    int fd = open(path, O_RDONLY | flags);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    int rc = plain_move(fd, path, n_bytes, false, seconds);
    close(fd);
    return rc;
}

// What of a folder's files is in memory is dropped: the next who reads them reads the disk.
static inline int plain_drop_cache(const char *dir) {
    char command[TSR_PATH_MAX + 128];
    snprintf(command, sizeof command,
             "find '%s' -type f -exec dd if={} iflag=nocache count=0 status=none ';'", dir);
    return system(command) == 0 ? 0 : tsr_fail(TSR_EIO, "cannot drop the cache of %s", dir);
}

#endif

// What a plain sequential file reaches on a disk, for programs that compare themselves with it.
#ifndef TSR_TESTS_PLAIN_FILE_H
#define TSR_TESTS_PLAIN_FILE_H

#include <errno.h>
#include <fcntl.h>
#include <fts.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/io.h"

enum { PLAIN_BLOCK = 4 << 20 };

// Scattered pages would make the disk look slow.
static inline char *plain_block(void) {
    char *block = tsr_io_memory(PLAIN_BLOCK);
    if (block)
        memset(block, 1, PLAIN_BLOCK);
    else
        tsr_fail(TSR_ENOMEM, "no memory");
    return block;
}

// Writes a fresh file of n_bytes, in whole blocks, and syncs it. `flags`: 0 or O_DIRECT.
static inline int plain_write(const char *path, uint64_t n_bytes, int flags, double *seconds) {
    unlink(path);
    sync(); // what the disk still does for others isn't timed
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | flags, 0666);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    char *block = plain_block();
    int rc = block ? 0 : TSR_ENOMEM;
    double begun = tsr_now();
    for (uint64_t at = 0; rc == 0 && at < n_bytes / PLAIN_BLOCK * PLAIN_BLOCK; at += PLAIN_BLOCK)
        rc = tsr_pwrite_all(fd, block, PLAIN_BLOCK, at, path);
    if (rc == 0 && fsync(fd) < 0)
        rc = tsr_fail_errno(errno, "cannot sync", path);
    *seconds = tsr_now() - begun;
    free(block);
    close(fd);
    return rc;
}

// Reads a file from its beginning to its end, from the disk and not from memory; adds the time.
static inline int plain_read(const char *path, int flags, double *seconds) {
    int fd = open(path, O_RDONLY | flags);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
    char *block = plain_block();
    int rc = block ? 0 : TSR_ENOMEM;
    double begun = tsr_now();
    for (ssize_t n = 1; rc == 0 && n > 0;) {
        n = read(fd, block, PLAIN_BLOCK);
        if (n < 0)
            rc = tsr_fail_errno(errno, "cannot read", path);
    }
    *seconds += tsr_now() - begun;
    free(block);
    close(fd);
    return rc;
}

// All files of a folder, one after the other.
static inline int plain_read_all(char *dir, int flags, double *seconds) {
    char *dirs[] = {dir, NULL};
    FTS *tree = fts_open(dirs, FTS_PHYSICAL | FTS_NOCHDIR, NULL);
    int rc = tree ? 0 : tsr_fail(TSR_EIO, "cannot list %s", dir);
    for (FTSENT *e; rc == 0 && (e = fts_read(tree));)
        if (e->fts_info == FTS_F)
            rc = plain_read(e->fts_path, flags, seconds);
    if (tree)
        fts_close(tree);
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

// The record of a run's changes to a folder: what the recorder writes and the replayer reads.
#ifndef TSR_TESTS_CRASH_RECORD_H
#define TSR_TESTS_CRASH_RECORD_H

#include <stdint.h>

enum crash_kind {
    CRASH_CREATE,   // path: an empty regular file
    CRASH_MKDIR,    // path
    CRASH_WRITE,    // path, offset, data
    CRASH_TRUNCATE, // path, offset: the new size
    CRASH_EXTEND,   // path, offset: the size is at least this
    CRASH_SYNC,     // path: a file or a folder is on the disk
    CRASH_SYNC_ALL, // everything is
    CRASH_RENAME,   // path to other
    CRASH_EXCHANGE, // path with other
    CRASH_LINK,     // other is a new name of path
    CRASH_UNLINK,   // path: a file
    CRASH_RMDIR,    // path
    CRASH_HINT,     // path: a call that promises nothing (sync_file_range, posix_fadvise)
    CRASH_UNKNOWN,  // path: a change that this record cannot describe; `other` names the call
    CRASH_N_KINDS
};

// One record; after it stand n_path bytes of path, n_other of other and n_data of data. Records lie
// in the order in which the calls took effect, whatever process made them.
struct crash_record {
    uint32_t kind, pid;
    uint32_t n_path, n_other;
    uint64_t offset, n_data;
};

#endif

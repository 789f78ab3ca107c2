// A record as operations on objects: files and folders by number, whatever they are called by then.
#ifndef TSR_TESTS_CRASH_TRACE_H
#define TSR_TESTS_CRASH_TRACE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "tests/crash/record.h"

// A name of a folder that now stands for another object, or for none (-1).
struct crash_change {
    int dir, name, target;
};

struct crash_op {
    enum crash_kind kind;
    int obj; // of writes and syncs, else -1
    uint64_t offset;
    const uint8_t *data;
    size_t n_data;
    struct crash_change changes[2]; // both or none reach the disk
    int n_changes;
    int covered_at; // the first later operation after which it is on the disk; n_ops: none
    char *path;     // for messages
};

struct crash_object {
    bool is_dir;
    int *ops; // that change it, ascending
    int n_ops;
    struct crash_change *now; // entries while the record is being read
    int n_now;
};

struct crash_trace {
    uint8_t *bytes;
    struct crash_op *ops;
    int n_ops;
    struct crash_object *objs; // 0: the run directory
    int n_objs;
    char **names;
    int n_names;
    int checkpoints; // the object of RUN_DIR/checkpoints, or -1
};

// Reads the record of changes below `run_dir`, of which only `checkpoints` and what is in it are
// kept. Exits with a message when there is something that the record can't describe.
void crash_trace_read(struct crash_trace *t, const char *path, const char *run_dir);
void crash_trace_free(struct crash_trace *t);

// Finds covered_at of all operations, as if the syncs of object `forgotten` (-1: none) did nothing.
void crash_trace_cover(struct crash_trace *t, int forgotten);

// Allocates or ends the program.
void *crash_more(void *p, size_t n_bytes);

#endif

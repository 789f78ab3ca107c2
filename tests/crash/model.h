// What the disk holds after a crash: the operations before the crash, less a few that were dropped.
#ifndef TSR_TESTS_CRASH_MODEL_H
#define TSR_TESTS_CRASH_MODEL_H

#include "core/io.h"
#include "tests/crash/trace.h"

enum { CRASH_MAX_DROPPED = 3 };

// The first k operations were made; `dropped` (ascending) of them never reached the disk.
struct crash_state {
    int k, n_dropped, dropped[CRASH_MAX_DROPPED];
};

// From 64-bit keys to numbers; a key is a hash and is taken for what it was made of.
struct crash_map {
    uint64_t *keys; // 0: free
    int *values;
    size_t cap, n;
};
int *crash_map_at(struct crash_map *m, uint64_t key); // a new key's value is -1
void crash_map_free(struct crash_map *m);

struct crash_list { // of a folder, by name
    struct crash_change *entries;
    int n;
};

struct crash_model {
    const struct crash_trace *t;
    char store[TSR_PATH_MAX]; // a folder with one file per content, named by its number
    struct crash_map seen, contents;
    int n_contents;
    struct crash_list *lists;
    int n_lists;
};

void crash_model_open(struct crash_model *m, const struct crash_trace *t, const char *store);
void crash_model_close(struct crash_model *m);

// The number of a file's content, and of a folder's list, in a state.
int crash_content(struct crash_model *m, int obj, const struct crash_state *s);
const struct crash_list *crash_entries(struct crash_model *m, int obj, const struct crash_state *s);

// A hash of the run directory; `all`: with unfinished temporaries, which recovery doesn't open.
uint64_t crash_tree_hash(struct crash_model *m, const struct crash_state *s, bool all);

#endif

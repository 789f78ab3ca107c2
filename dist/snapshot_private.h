// What the files of the snapshot share; not for other modules.
#ifndef TSR_DIST_SNAPSHOT_PRIVATE_H
#define TSR_DIST_SNAPSHOT_PRIVATE_H

#include "dist/host_memory.h"
#include "dist/snapshot.h"

// Consecutive rows of a parameter that this rank owns, and where they lie in the buffer.
struct tsr_owned {
    const struct tsr_param *p;
    const struct tsr_tensor *t;
    struct tsr_region region;
    int n_parts;          // 1: weights only
    size_t at[3];         // bytes, by enum tsr_checkpoint_part
    const float *from[3]; // the net's own
};

// One copy from the device: neighbours there stay neighbours here, so that there are few.
struct tsr_owned_copy {
    const char *from;
    size_t at, n_bytes;
};

// What stands in front of the copied bytes, for the other ranks of this host.
struct tsr_snapshot_entry {
    int64_t tensor; // of the table
    struct tsr_region region;
    int64_t n_parts;
    uint64_t at[3]; // from the segment's start
};
struct tsr_snapshot_head {
    int64_t n_entries;
    struct tsr_snapshot_entry entries[];
};

struct tsr_snapshot {
    struct tsr_net *net;
    bool direct; // there is no second buffer: what is written is the net's own
    char *stage; // direct, of a device: rows on their way
    size_t n_stage;
    struct tsr_host_memory memory;
    uint32_t n_takes;
    char *host; // of the copied bytes, in the own segment
    size_t n_bytes;
    struct tsr_owned *owned; // in order of the tensor table, then rows
    int n_owned;
    struct tsr_owned_copy *copies;
    int n_copies;
};

// The counter of shares: which take they are of, and how many have been given away.
static inline uint64_t tsr_snapshot_count(const struct tsr_snapshot *s, uint64_t n) {
    return (uint64_t)s->n_takes << 32 | n;
}

// Whether a device's memory is another than the host's.
static inline bool tsr_snapshot_is_apart(const struct tsr_ctx *ctx) {
    return ctx->ops->memory != NULL;
}

#endif

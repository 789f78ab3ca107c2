// The AdamW shard map of a run: which rank owns which region of which canonical tensor. A
// checkpoint is complete when the regions cover each tensor once.
#ifndef TSR_LAUNCHER_COORDINATOR_SHARD_MAP_H
#define TSR_LAUNCHER_COORDINATOR_SHARD_MAP_H

#include <stdbool.h>
#include <stdint.h>
#include "core/strmap.h"
#include "checkpoint.pb-c.h"

enum tsr_cover {
    TSR_COVER_WHOLE,
    TSR_COVER_HOLE,    // nobody owns some region
    TSR_COVER_OVERLAP, // two do
    TSR_COVER_NO_MAP,  // a rank has said nothing, or not all
    TSR_COVER_DIFFER,  // ranks don't agree on a tensor's shape
    TSR_COVER_FAILED,  // no memory to tell, or cut too finely
};

struct tsr_shard_tensor {
    uint64_t rows, cols;
    bool frozen;
    uint32_t rank; // that named it first
};

struct tsr_shard_region {
    uint64_t r0, r1, c0, c1;
    uint32_t tensor, rank;
};

struct tsr_rank_shards {
    struct tsr_shard_region *v;
    size_t n, cap;
    uint32_t parts, n_parts; // received, in all; n_parts 0: nothing yet
    uint64_t elements;       // of weights and moments
    bool differs;
    struct tsr_shard_region shape; // then: tensor, and the rows and columns that this rank gave
};

struct tsr_shard_maps {
    int world;
    struct tsr_strmap names;
    struct tsr_shard_tensor *tensors; // one per name
    size_t tensors_cap;
    struct tsr_rank_shards *ranks; // (world)
    size_t n_regions;
    bool changed; // since the last check
    enum tsr_cover found;
    char text[512]; // what is wrong, when found isn't TSR_COVER_WHOLE
};

int tsr_shard_maps_init(struct tsr_shard_maps *m, int world); // TSR_ENOMEM
void tsr_shard_maps_free(struct tsr_shard_maps *m);

// Takes one part; part 0 replaces all that the rank said before. TSR_EREQUEST for a message that
// no rank sends (numbers out of bounds, parts out of order); then the rank's map is empty.
// TSR_ENOMEM.
int tsr_shard_maps_put(struct tsr_shard_maps *m, int rank, const Tessera__Checkpoint__ShardMap *p);

// What all maps together cover; m->text has the sentence. O(n log n) of all regions after a
// change, else what was found before.
enum tsr_cover tsr_shard_maps_check(struct tsr_shard_maps *m);

// What a rank owns, in elements of weights and moments; a save's votes must say the same.
uint64_t tsr_shard_maps_elements(const struct tsr_shard_maps *m, int rank);

#endif

// The AdamW shard map of this rank as a message (proto/checkpoint.proto).
#ifndef TSR_LAUNCHER_SAVER_MAP_H
#define TSR_LAUNCHER_SAVER_MAP_H

#include "checkpoint.pb-c.h"
#include "dist/snapshot.h"

// The whole map, in one part. Free it by tessera__checkpoint__shard_map__free_unpacked(map, NULL).
// NULL: no memory.
Tessera__Checkpoint__ShardMap *tsr_saver_map(const struct tsr_snapshot *s);

#endif

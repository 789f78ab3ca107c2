// What turns a temporary directory whose files are all written and synced into a checkpoint, and
// keeps the folder of checkpoints in order. One process of a run does this: its coordinator.
//
// Each step can be repeated, by the same process or by one that took over in the same epoch, and
// does nothing when an earlier call has done it. Up to the rename a failure leaves the folder's
// checkpoints as they were; from the rename on the new one counts. Failures are TSR_ENOSPC or
// TSR_EIO with path. No call keeps state between calls, but what the caller holds in its structs.
#ifndef TSR_CORE_CHECKPOINT_PUBLISH_H
#define TSR_CORE_CHECKPOINT_PUBLISH_H

#include "core/checkpoint.h"

struct tsr_publish {
    const char *run_dir;
    int64_t step;
    const char *temporary; // base name: from the plan
    uint64_t range_bytes;
    const struct tsr_planned_file *files; // sorted by path
    int n_files;
    const struct tsr_digest *digests; // of all ranges, in order: tsr_publish_n_ranges
};

// How many ranges the files of a plan have. TSR_EIO when the plan is none: range_bytes not a power
// of two, a path that no checkpoint has, paths out of order, or sizes that overflow.
int tsr_publish_n_ranges(const struct tsr_publish *p, uint64_t *n_ranges);

// In this order:
int tsr_publish_write_manifest(
    const struct tsr_publish *p); // checks that all files have their size
int tsr_publish_sync_manifest(const struct tsr_publish *p);
int tsr_publish_sync_dirs(const struct tsr_publish *p);
// (Here the caller checks that its epoch is still the run's.)
int tsr_publish_rename(const struct tsr_publish *p); // an older one of the same step is exchanged
// Also removes the one that was replaced and writes RUN_DIR/LATEST, which is a hint only.
int tsr_publish_sync_parent(const struct tsr_publish *p);
// Instead: removes the temporary directory. One that is not there is fine.
int tsr_publish_remove_temporary(const char *run_dir, const char *temporary);

// Checkpoints that were found good by reading all of them, so that each is read once only.
struct tsr_known_good {
    struct {
        int64_t step;
        uint64_t inode;
        struct tsr_digest manifest;
    } v[4];
    int n; // 0 at first
};

// Removes all but the newest `keep` checkpoints (0: keeps all), and never the last two that verify;
// one that doesn't verify is no reason to remove another. Nor the one that a rollback would go to:
// the anchor in the newest good one's state. Nothing is read when nothing is to go.
int tsr_checkpoint_retain(const char *run_dir, int64_t keep, struct tsr_known_good *known);

// Removes the checkpoints of steps after `anchor` up to `last`, for good when it returns: a
// rollback gives up what came after its anchor, and no later resume may find it. By any process,
// while no save is in flight.
int tsr_checkpoint_discard(const char *run_dir, int64_t anchor, int64_t last);

// First thing of a new epoch: temporaries of older epochs are renamed away, so that whoever still
// works on one fails, and then removed; a checkpoint that was being replaced on a file system
// without atomic exchange is put back. Temporaries of `epoch` itself stay: they may be of a save in
// flight when a coordinator is started again.
int tsr_checkpoint_fence(const char *run_dir, uint64_t epoch);

#endif

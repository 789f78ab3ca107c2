// One save: from the first rank's SaveReady to SaveDone or SaveAbort (proto/checkpoint.proto has
// the messages in their order).
//
//   ready    until rank 0's plan and everyone's SaveReady are there     -> SaveWrite to all
//   write    until all have voted; coverage and sums are checked        -> SaveDigest to some
//   digest   until every range has a digest
//   commit   disk steps, one after another; from the rename on there is no way back
#ifndef TSR_LAUNCHER_COORDINATOR_SAVE_H
#define TSR_LAUNCHER_COORDINATOR_SAVE_H

#include <stdbool.h>
#include <stdint.h>
#include "launcher/coordinator/coordinator.h"

enum tsr_save_stage { TSR_SAVE_READY, TSR_SAVE_WRITE, TSR_SAVE_DIGEST, TSR_SAVE_COMMIT };

struct tsr_save_rank {
    bool ready, voted;
    uint64_t elements; // of its vote
    uint64_t owes;     // digests that it was asked for and hasn't given
};

struct tsr_save {
    struct tsr_coord_save out; // what the disk steps get
    int refs;                  // the coordinator's own, and one for each disk job
    int world;
    enum tsr_save_stage stage;
    bool planned, renaming, ended; // renaming: from the rename on there is no way back
    uint64_t elements;             // of the plan
    struct tsr_save_rank *ranks;   // (world)
    int n_ready, n_voted, n_owing;
    uint32_t *digester; // (n_ranges) rank + 1 that gave or owes the digest; 0: nobody
    uint8_t *known;     // (n_ranges)
    uint64_t n_known;
    int commit_at;   // place in the order of disk steps
    double progress; // when something was last heard of it
};

// How a save ended, to be told again to a rank that missed it.
struct tsr_outcome {
    uint64_t step;
    uint32_t attempt; // 0: none
    bool committed;
    uint32_t exit_code;
    char text[512]; // directory or reason
};

struct tsr_save *tsr_save_new(int world, uint64_t epoch, uint64_t step, uint32_t attempt,
                              double now); // NULL: no memory
void tsr_save_unref(struct tsr_save *s);   // NULL is fine

// The base name of the temporary directory, as SavePlan must give it.
void tsr_save_temporary(char out[static 128], uint64_t step, uint64_t epoch, uint32_t attempt);

// Checks a plan against what a checkpoint may consist of and takes it. TSR_EREQUEST, TSR_ENOMEM.
int tsr_save_plan(struct tsr_save *s, const Tessera__Checkpoint__SavePlan *p);

// Takes digests that a rank gave; those in its vote are of ranges that nobody gave before, those
// in SaveDigests of ranges that it owes. TSR_EDATA.
int tsr_save_take_digests(struct tsr_save *s, int rank, size_t n,
                          Tessera__Checkpoint__RangeDigests *const *ranges, bool owed);

#endif

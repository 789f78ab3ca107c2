// Weights and optimizer state from the directories of core/weights.h and core/checkpoint.h into a
// net. Every rank calls these together; each takes only the regions that it holds. The way back is
// dist/snapshot.h.
#ifndef TSR_DIST_STORE_H
#define TSR_DIST_STORE_H

#include "core/checkpoint.h"
#include "dist/net.h"

// Reads the weights of an HF directory into the net. The ranks' codes may differ.
int tsr_store_load_weights(struct tsr_net *net, const char *dir);
// Reads weights (the fp32 master) and, when training, moments of a checkpoint. `verify`: the files
// of tensors, too, on the way: TSR_EMODEL when one is damaged, and the net's state is rubbish. The
// ranks' codes may differ.
int tsr_store_load_checkpoint(struct tsr_net *net, const char *dir, bool verify);

// Verifies one checkpoint with all ranks, but for what load verifies: the manifest, which files
// there are, and those that hold no tensors.
int tsr_store_verify(struct tsr_net *net, const char *dir);

// Loads the newest checkpoint of run_dir, of a step below `below`, that verifies, warning about
// those that don't and those that can't be read; `check`, once the files without tensors have been
// verified and before others are read, says whether this run may go on from it: its failure is the
// end. Returns 1 and fills dir on every rank, or 0: there is none, and the moments are zero.
// TSR_EIO: none is good, and one could not be read.
typedef int (*tsr_resume_fn)(void *arg, const char *dir);
int tsr_store_resume(struct tsr_net *net, const char *run_dir, int64_t below, tsr_resume_fn check,
                     void *arg, char dir[static TSR_PATH_MAX]);

#endif

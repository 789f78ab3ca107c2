// Weights and optimizer state from the directories of core/weights.h and core/checkpoint.h into a
// net. Every rank calls these together; each reads only the regions that it holds. The way back is
// dist/snapshot.h.
#ifndef TSR_DIST_STORE_H
#define TSR_DIST_STORE_H

#include "core/checkpoint.h"
#include "dist/net.h"

// Reads the weights of an HF directory into the net.
int tsr_store_load_weights(struct tsr_net *net, const char *dir);
// Reads weights (the fp32 master) and, when training, moments of a checkpoint.
int tsr_store_load_checkpoint(struct tsr_net *net, const char *dir);

// Finds the newest checkpoint of run_dir that verifies, warning about those that don't. Returns 1
// and fills dir on every rank, or 0.
int tsr_store_find(struct tsr_net *net, const char *run_dir, char dir[static TSR_PATH_MAX]);
// Verifies one checkpoint with all ranks.
int tsr_store_verify(struct tsr_net *net, const char *dir);

#endif

// From a micro-batch's gradients to the sum over the global batch (docs/exactness.md).
#ifndef TSR_DIST_GRADS_H
#define TSR_DIST_GRADS_H

#include "dist/batch.h"

// Levels of gradient buffers that `n_leaves` leaves need: the nodes of the tree that can be open.
int tsr_grads_levels(int n_leaves);

// After a micro-batch's backward on a chunk (or its head's part of forward): when it completes its
// leaf, joins the finished subtrees.
int tsr_grads_merge(struct tsr_net *net, int chunk, const struct tsr_batch *b);
int tsr_grads_merge_head(struct tsr_net *net, const struct tsr_batch *b);

// Empties the accumulators at the start of a step.
int tsr_grads_begin(struct tsr_net *net);

// At the end of a step: sums over token pieces, over virtual replicas and over data-parallel
// ranks, and of tied embeddings. Then each rank's own slices of level 0 hold the gradient.
int tsr_grads_finish(struct tsr_net *net);

#endif

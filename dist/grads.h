// From a micro-batch's gradients to the sum over the global batch (docs/exactness.md).
#ifndef TSR_DIST_GRADS_H
#define TSR_DIST_GRADS_H

#include "dist/batch.h"

// Levels of gradient buffers that `n_leaves` leaves need: the nodes of the tree that can be open.
int tsr_grads_levels(int n_leaves);

// Empties the accumulators at the start of a step and begins the exchange of gradients.
int tsr_grads_begin(struct tsr_net *net);

// A micro-batch has added all that it will to a parameter (NULL: the rank has no such): when it
// completes its leaf, joins the finished subtrees. When it is the `last` of the step, also sums
// over token pieces and virtual replicas; then the gradient may travel to its owners, while the
// backward goes on with other parameters.
int tsr_grads_done(struct tsr_net *net, struct tsr_param *p, const struct tsr_batch *b, bool last);

// At the end of a step: all gradients are there, tied embeddings' are added. Then each rank's own
// slices of level 0 hold the gradient.
int tsr_grads_finish(struct tsr_net *net);

#endif

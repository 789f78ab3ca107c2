// Data parallelism with a sharded optimizer, ZeRO stage 1 (Rajbhandari et al. 2020, section 5.1):
// gradients are reduce-scattered onto the owners of row blocks, owners update, weights are
// all-gathered.
//
// Both exchanges take parameters one by one, as they become ready, and collect them in two buckets:
// while one is on its way the other is filled, and the backward or the update goes on. All ranks of
// the group call in the same order.
#ifndef TSR_DIST_ZERO_H
#define TSR_DIST_ZERO_H

#include "dist/net.h"

enum tsr_zero_kind {
    TSR_ZERO_GRADIENTS, // own slices of level 0 become the tree over data-parallel ranks
    TSR_ZERO_WEIGHTS,   // weights of all slices come from their owners
};

// Begins an exchange. One at a time; begun again after a failure, it starts anew.
int tsr_zero_begin(struct tsr_net *net, enum tsr_zero_kind kind);
// A parameter's level 0 is complete on this rank, or its own slices are updated: nobody writes or
// reads it until end. Each parameter once; those that take no part may be given, too.
int tsr_zero_ready(struct tsr_net *net, const struct tsr_param *p);
// The rest travels, and everything is in its place for what the stream is asked for next.
int tsr_zero_end(struct tsr_net *net);

// The two buckets and the maps. TSR_ENOMEM.
int tsr_zero_open(struct tsr_net *net);
void tsr_zero_close(struct tsr_net *net);

#endif

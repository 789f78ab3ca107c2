// Data parallelism with a sharded optimizer, ZeRO stage 1 (Rajbhandari et al. 2020, section 5.1):
// gradients are reduce-scattered onto the owners of row blocks, owners update, weights are
// all-gathered.
#ifndef TSR_DIST_ZERO_H
#define TSR_DIST_ZERO_H

#include "core/run.h"
#include "dist/net.h"

// What all ranks agree on at the end of a step.
struct tsr_step_sums {
    double loss;      // sum over target tokens of the global batch
    double grad_norm; // of the whole model, before clipping
    bool stop;        // in: this rank was asked to stop; out: some rank was
};

// Own slices of gradient level 0 become the tree over data-parallel ranks.
int tsr_zero_reduce(struct tsr_net *net);
// Weights of all slices come from their owners.
int tsr_zero_gather(struct tsr_net *net);

// `loss` (Wl): this rank's sums per virtual replica (read on the last stage only).
int tsr_step_agree(struct tsr_net *net, const double *loss, struct tsr_step_sums *out);

// AdamW on own slices; `t` counts updates from 1.
int tsr_zero_update(struct tsr_net *net, const struct tsr_adamw *p);

// Elements of the two exchange buckets; open allocates them.
int tsr_zero_open(struct tsr_net *net);
void tsr_zero_close(struct tsr_net *net);

#endif

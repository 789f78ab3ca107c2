// The end of a step: what all ranks agree on, and the optimizer on each rank's own slices.
#ifndef TSR_DIST_UPDATE_H
#define TSR_DIST_UPDATE_H

#include "core/run.h"
#include "dist/net.h"

// What all ranks agree on at the end of a step.
struct tsr_step_sums {
    double loss;      // sum over target tokens of the global batch
    double grad_norm; // of the whole model, before clipping
    bool stop;        // in: this rank was asked to stop; out: some rank was
};

// `loss` (Wl): this rank's sums per virtual replica (read on the last stage only).
int tsr_step_agree(struct tsr_net *net, const double *loss, struct tsr_step_sums *out);
// The host's memory for it, which a net opens and closes. TSR_ENOMEM.
int tsr_step_sums_open(struct tsr_net *net);
void tsr_step_sums_close(struct tsr_net *net);

// AdamW (Loshchilov and Hutter 2019, algorithm 2) on own slices of all parameters, whose new
// weights then are on all data-parallel ranks: those of one bucket travel while the next ones are
// updated. Returns when it is done. hyper->rounding NULL: to nearest; else only its `update`
// counts, each element having its own draws.
int tsr_update(struct tsr_net *net, const struct tsr_adamw *hyper);

// Weights from their bf16 run's masters, rounded by the draws that belong to so many updates: what
// tsr_update left, whatever the layout. Collective.
int tsr_update_round(struct tsr_net *net, uint64_t update);

#endif

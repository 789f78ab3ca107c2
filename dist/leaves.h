// Numbers with a global place, contributed by whichever rank has them: the sum over them is taken
// in order of place on every rank, so it doesn't depend on the layout. Also how ranks agree on
// whether something failed.
#ifndef TSR_DIST_LEAVES_H
#define TSR_DIST_LEAVES_H

#include "dist/comm.h"

struct tsr_leaf {
    int64_t place;
    double value;
};

struct tsr_leaves {
    struct tsr_leaf *v;
    size_t n, cap;
};

int tsr_leaves_push(struct tsr_leaves *l, int64_t place, double value); // TSR_ENOMEM
// All ranks' leaves, as one array by place (places that no rank filled are 0). Collective over the
// world. Frees *l; the caller frees *all.
int tsr_leaves_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_leaves *l,
                      int64_t n_places, double **all);

// Every rank passes its own code; all get the worst, and c->culprit names the first rank that has
// it. On the other ranks the recorded sentence says only that another rank failed. Collective.
int tsr_agree(struct tsr_ctx *ctx, struct tsr_comm *c, int rc);

#endif

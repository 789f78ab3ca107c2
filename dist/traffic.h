// What a training step sends, by the formulas of docs/parallelism.md ("Bytes per step").
#ifndef TSR_DIST_TRAFFIC_H
#define TSR_DIST_TRAFFIC_H

#include "core/run.h"
#include "dist/mesh.h"

struct tsr_step_bytes {
    uint64_t tp, pp, dp; // bytes of one step, summed over all ranks
};

// `mesh` says the layout with its V, W and chunks; which rank it stands for doesn't matter.
// TSR_ENOMEM.
int tsr_traffic_of(struct tsr_step_bytes *out, const struct tsr_run *run, const struct tsr_model *m,
                   const struct tsr_mesh *mesh);

// Share of a step that a pipeline stands idle when all stages take the same time:
// (p - 1) / (v m + p - 1) (docs/parallelism.md, "Pipeline schedules").
double tsr_bubble_share(const struct tsr_run *run, const struct tsr_mesh *mesh);

#endif

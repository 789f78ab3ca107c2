// Where a rank stands: pure arithmetic. Order of ranks, fastest first: tp, then pp, then dp, so
// that the ranks of a tensor-parallel group are neighbours on one host.
#ifndef TSR_DIST_MESH_H
#define TSR_DIST_MESH_H

#include "core/pieces.h"

struct tsr_mesh {
    int tp, pp, dp;                // sizes
    int tp_rank, pp_rank, dp_rank; // this rank's place
    int rank, world;
    int chunks; // virtual stages per rank (interleaved), else 1
    int V, W;   // virtual shards and replicas
};

// rank = (dp_rank * pp + pp_rank) * tp + tp_rank. Sets chunks = 1, V = tp, W = dp: the caller
// overwrites them with what the run says.
void tsr_mesh_place(struct tsr_mesh *m, int tp, int pp, int dp, int rank);
int tsr_mesh_rank(const struct tsr_mesh *m, int tp_rank, int pp_rank, int dp_rank);

// Virtual stage of (pp_rank, chunk): chunk * pp + pp_rank, of pp * chunks.
int tsr_mesh_stage(const struct tsr_mesh *m, int pp_rank, int chunk);
// Layers of a virtual stage: nearly equal consecutive ranges.
struct tsr_range tsr_mesh_layers(const struct tsr_mesh *m, int64_t n_layers, int stage);

#endif

#include "dist/mesh.h"
#include "core/error.h"

void tsr_mesh_place(struct tsr_mesh *m, int tp, int pp, int dp, int rank) {
    TSR_ASSERT(tp >= 1 && pp >= 1 && dp >= 1);
    int64_t world = 0;
    TSR_ASSERT(!__builtin_mul_overflow((int64_t)tp * pp, (int64_t)dp, &world));
    TSR_ASSERT(world <= INT32_MAX && rank >= 0 && rank < world);
    *m = (struct tsr_mesh){
        .tp = tp,
        .pp = pp,
        .dp = dp,
        .tp_rank = rank % tp,
        .pp_rank = rank / tp % pp,
        .dp_rank = rank / tp / pp,
        .rank = rank,
        .world = (int)world,
        .chunks = 1,
        .V = tp,
        .W = dp,
    };
}

int tsr_mesh_rank(const struct tsr_mesh *m, int tp_rank, int pp_rank, int dp_rank) {
    TSR_ASSERT(tp_rank >= 0 && tp_rank < m->tp);
    TSR_ASSERT(pp_rank >= 0 && pp_rank < m->pp);
    TSR_ASSERT(dp_rank >= 0 && dp_rank < m->dp);
    return (dp_rank * m->pp + pp_rank) * m->tp + tp_rank;
}

int tsr_mesh_stage(const struct tsr_mesh *m, int pp_rank, int chunk) {
    TSR_ASSERT(pp_rank >= 0 && pp_rank < m->pp);
    TSR_ASSERT(chunk >= 0 && chunk < m->chunks);
    return chunk * m->pp + pp_rank;
}

struct tsr_range tsr_mesh_layers(const struct tsr_mesh *m, int64_t n_layers, int stage) {
    int n_stages = m->pp * m->chunks;
    TSR_ASSERT(stage >= 0 && stage < n_stages);
    return tsr_piece(n_layers, stage, n_stages);
}

// Pipeline schedules as data: a pure function fills each stage's list of actions, one executor
// (dist/executor.c) runs any of them, and a test simulates all stages at once.
#ifndef TSR_DIST_SCHEDULE_H
#define TSR_DIST_SCHEDULE_H

#include "core/run.h"

enum tsr_action_kind { TSR_FORWARD, TSR_BACKWARD };

struct tsr_action {
    int16_t kind;  // enum tsr_action_kind
    int16_t chunk; // virtual stage on this rank: chunk * pp + pp_rank
    int32_t micro_batch;
};

// Number of actions of one rank: 2 m chunks.
int tsr_schedule_size(int n_micro_batches, int chunks);

// Fills `out` for pp_rank. GPipe (Huang et al. 2019), 1F1B (PipeDream-flush, Narayanan et al.
// 2021 section 2.2.1), interleaved 1F1B (ibid. 2.2.2). Within a chunk both forwards and backwards
// take micro-batches in ascending order: gradient chains depend on it. Interleaved needs pp to
// divide n_micro_batches (TSR_ECONFIG).
int tsr_schedule_fill(enum tsr_pipeline kind, int pp, int pp_rank, int chunks, int n_micro_batches,
                      struct tsr_action *out);

// Most micro-batches of one chunk whose forward ran and whose backward didn't, over the list:
// how many sets of activations that chunk needs.
int tsr_schedule_in_flight(const struct tsr_action *a, int n_actions, int chunk);

#endif

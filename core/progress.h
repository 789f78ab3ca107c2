// What a rank is doing, published without locks for whoever watches it (a supervising thread of
// the launcher, a status command). dist writes, launcher reads; no field guards another.
#ifndef TSR_CORE_PROGRESS_H
#define TSR_CORE_PROGRESS_H

#include <stdatomic.h>
#include <stdint.h>

enum tsr_phase {
    TSR_PHASE_START,
    TSR_PHASE_LOAD,
    TSR_PHASE_DATA,
    TSR_PHASE_FORWARD,
    TSR_PHASE_BACKWARD,
    TSR_PHASE_REDUCE,
    TSR_PHASE_OPTIMIZER,
    TSR_PHASE_EVAL,
    TSR_PHASE_CHECKPOINT,
    TSR_PHASE_DONE,
};

struct tsr_progress {
    _Atomic uint64_t step;        // steps completed
    _Atomic uint64_t collective;  // collectives begun since start
    _Atomic uint32_t micro_batch; // within the step
    _Atomic uint32_t phase;       // enum tsr_phase
    _Atomic uint32_t stop;        // set from outside: save and leave at the end of this step
};

#endif

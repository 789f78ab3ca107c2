// What a rank is doing, published without locks for whoever watches it (a supervising thread of
// the launcher, a status command). dist writes, launcher reads; no field guards another.
#ifndef TSR_CORE_PROGRESS_H
#define TSR_CORE_PROGRESS_H

#include <stdatomic.h>
#include <stdint.h>

// name, one word for it, words for a sentence; numbered as in proto/control.proto
#define TSR_PHASE_MAP(X)                                                                           \
    X(START, "start", "start")                                                                     \
    X(LOAD, "load", "load")                                                                        \
    X(DATA, "data", "data")                                                                        \
    X(FORWARD, "forward", "forward")                                                               \
    X(BACKWARD, "backward", "backward")                                                            \
    X(REDUCE, "reduce", "gradient reduction")                                                      \
    X(OPTIMIZER, "optimizer", "optimizer step")                                                    \
    X(EVAL, "eval", "evaluation")                                                                  \
    X(CHECKPOINT, "checkpoint", "checkpoint")                                                      \
    X(DONE, "done", "end")

enum tsr_phase {
#define X(name, word, words) TSR_PHASE_##name,
    TSR_PHASE_MAP(X)
#undef X
        TSR_N_PHASES
};

// "optimizer" and "optimizer step"; "unknown" and "an unknown phase" for other numbers.
const char *tsr_phase_word(uint32_t phase);
const char *tsr_phase_words(uint32_t phase);

struct tsr_progress {
    _Atomic uint64_t step;        // steps completed
    _Atomic uint64_t collective;  // collectives begun since start
    _Atomic uint32_t micro_batch; // within the step
    _Atomic uint32_t phase;       // enum tsr_phase
    _Atomic uint32_t stop;        // set from outside: save and leave at the end of this step
};

#endif

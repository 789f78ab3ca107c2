// What one rank of a training run holds, in bytes by purpose. The run reports it after it has
// opened everything, planning after it has gone through the motions: the same function reads both.
#ifndef TSR_DIST_MEMORY_H
#define TSR_DIST_MEMORY_H

#include "dist/train.h"

// name, what it is
#define TSR_MEMORY_MAP(X)                                                                          \
    X(weights, "weights")                                                                          \
    X(gradients, "gradients")                                                                      \
    X(accumulators, "sums of vectors")                                                             \
    X(moments, "AdamW moments")                                                                    \
    X(masters, "master weights")                                                                   \
    X(activations, "activations")                                                                  \
    X(scratch, "scratch of blocks")                                                                \
    X(logits, "logits")                                                                            \
    X(kernels, "packing, attention")                                                               \
    X(communication, "communication")                                                              \
    X(data, "micro-batches")                                                                       \
    X(snapshot, "checkpoint copy")

struct tsr_memory {
#define X(name, text) size_t name;
    TSR_MEMORY_MAP(X)
#undef X
    size_t slabs; // of all these, what comes from ops->alloc: it lies on the device
};

enum {
#define X(name, text) TSR_MEMORY_##name,
    TSR_MEMORY_MAP(X)
#undef X
        TSR_N_MEMORY
};
extern const char *const tsr_memory_names[TSR_N_MEMORY];
extern const char *const tsr_memory_texts[TSR_N_MEMORY];

// Fills everything but `kernels` (the device knows it: ops->scratch) and `snapshot`.
void tsr_memory_of(const struct tsr_trainer *t, struct tsr_memory *out);

size_t tsr_memory_get(const struct tsr_memory *m, int purpose);
size_t tsr_memory_total(const struct tsr_memory *m);

#endif

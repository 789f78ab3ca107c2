// A net's state on the CPU, to see that what is loaded is what was saved.
#ifndef TSR_TESTS_STATE_SUPPORT_H
#define TSR_TESTS_STATE_SUPPORT_H

#include <string.h>
#include <xxhash.h>
#include "dist/net.h"

// Calls back with everything that a checkpoint brings to this rank: rows of a tensor's shard.
typedef void (*state_fn)(void *arg, const struct tsr_param *p, int part, int64_t row, float *at,
                         int64_t n_rows);

static inline void state_each(struct tsr_net *net, state_fn fn, void *arg) {
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        int64_t at = 0;
        if (p->alias)
            continue;
        fn(arg, p, 0, p->held.r0, p->w, p->rows);
        for (int k = 0; k < p->n_slices && p->sum != TSR_GRAD_NONE; k++) {
            const struct tsr_range rows = p->slices[k];
            fn(arg, p, 1, p->held.r0 + rows.lo, p->m + at, tsr_range_len(rows));
            fn(arg, p, 2, p->held.r0 + rows.lo, p->v + at, tsr_range_len(rows));
            at += tsr_range_len(rows) * p->cols;
        }
    }
}

static inline void state_add(void *arg, const struct tsr_param *p, int part, int64_t row, float *at,
                             int64_t n_rows) {
    uint64_t *sum = arg;
    (void)part;
    (void)row;
    *sum = XXH3_64bits_withSeed(at, (size_t)(n_rows * p->cols) * sizeof *at, *sum);
}

static inline uint64_t state_hash(struct tsr_net *net) {
    uint64_t sum = 0;
    state_each(net, state_add, &sum);
    return sum;
}

static inline void state_spoil_part(void *arg, const struct tsr_param *p, int part, int64_t row,
                                    float *at, int64_t n_rows) {
    (void)arg;
    (void)part;
    (void)row;
    memset(at, 0x55, (size_t)(n_rows * p->cols) * sizeof *at);
}

static inline void state_spoil(struct tsr_net *net) {
    state_each(net, state_spoil_part, NULL);
}

// Another value for each element, the same one on each rank that holds it.
static inline void state_fill_part(void *arg, const struct tsr_param *p, int part, int64_t row,
                                   float *at, int64_t n_rows) {
    const struct tsr_net *net = arg;
    const uint64_t tensor = (uint64_t)(p->t - net->tensors.t) * 3 + (uint64_t)part;
    for (int64_t r = 0; r < n_rows; r++)
        for (int64_t c = 0; c < p->cols; c++) {
            uint64_t x = tensor << 40 ^ (uint64_t)((row + r) * p->t->cols + p->held.c0 + c);
            x *= 0x9e3779b97f4a7c15u;
            at[r * p->cols + c] = (float)(x >> 40);
        }
}

static inline void state_fill(struct tsr_net *net) {
    state_each(net, state_fill_part, net);
}

#endif

// Dropout of attention weights: which keys of a block a query keeps.
#ifndef TSR_KERNELS_CPU_ISA_ATTENTION_DROP_H
#define TSR_KERNELS_CPU_ISA_ATTENTION_DROP_H

#include "kernels/cpu/isa/attention_tile.h"
#include "kernels/cpu/isa/philox16.h"

struct attn_drop {
    bool on;
    struct tsr_rng_key key;
    uint32_t threshold, sequence;
    float divisor; // 1 - p
};

static inline struct attn_drop attn_drop_of(const struct tsr_dropout *d, uint64_t sequence) {
    return (struct attn_drop){.on = d->p > 0.0f,
                              .key = d->key,
                              .threshold = tsr_drop_threshold(d->p),
                              .sequence = (uint32_t)sequence,
                              .divisor = 1.0f - d->p};
}

// keep[g] lane i: the query keeps key base + 16 g + i. Key j reads word j % 4 of the counter
// {j / 4, position, sequence, global query head}.
V16_FN void attn_kept(v16m keep[ATTN_KEYS / 16], const struct attn_drop *d, int base, int pos,
                      int head) {
    v16i draws[4];
    v16_draws(d->key, (uint32_t)base / 4, (uint32_t)pos, d->sequence, (uint32_t)head, draws);
    for (int g = 0; g < 4; g++)
        keep[g] = v16i_geu(draws[g], v16i_set1(d->threshold));
}

// A kept value divided by 1 - p, a dropped one +0.
V16_FN v16 attn_dropped(v16m keep, v16 x, v16 divisor) {
    return v16_select(keep, v16_div(x, divisor), v16_zero());
}

#endif

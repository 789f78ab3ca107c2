// Which source each sequence comes from, by weight, as a pure function of the global index.
#ifndef TSR_CORE_MIX_H
#define TSR_CORE_MIX_H

#include <stdint.h>

struct tsr_mix {
    int n;         // sources
    int64_t P;     // picks in a period
    int64_t *c;    // (n) picks of each source in a period, at least 1; their sum is P
    int32_t *pick; // (P) the source
    int32_t *rank; // (P) earlier picks of the same source in the period
};

// Lays out one period. Weights are positive and finite. P is the smallest period in which every
// weight is a whole number of picks, when there is one up to 8192; else P is 8192 and each share
// is off by less than one pick in a period (a weight too small for a pick takes one of the
// largest). 0 or TSR_ENOMEM.
int tsr_mix_init(struct tsr_mix *m, const double *weights, int n);
void tsr_mix_free(struct tsr_mix *m);

struct tsr_pick {
    int source;
    uint64_t index; // how many earlier sequences came from that source
};
struct tsr_pick tsr_mix_at(const struct tsr_mix *m, uint64_t g);

#endif

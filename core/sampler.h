// Picks the next token from logits.
#ifndef TSR_CORE_SAMPLER_H
#define TSR_CORE_SAMPLER_H

#include <stdint.h>

struct tsr_sampling {
    double temperature; // 0: greedy
    double top_p;       // 1: off (Holtzman et al. 2020)
    double min_p;       // 0: off (Nguyen et al. 2024)
    int64_t top_k;      // 0: off
    uint64_t seed;
};

// The next token out of logits (vocab), vocab from 1 to 2^22. Greedy: the largest, the lowest id
// among equals. Otherwise logits / temperature, then the top_k largest, then the smallest set of
// largest whose probability reaches top_p, then those of at least min_p times the largest
// probability; the draw is a pure function of (seed, position), and a small draw is a large logit.
//
// Probabilities are whole multiples of 2^-40 of the largest one, so that their sums are exact and
// a device, which adds in another order, picks the same token (kernels/cuda/sample.cu). A NaN
// counts as less than every number.
int32_t tsr_sample(const struct tsr_sampling *s, const float *logits, int64_t vocab,
                   uint64_t position);

#endif

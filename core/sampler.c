#include "core/sampler.h"

#include <math.h>
#include <stdlib.h>
#include "core/philox.h"

static int by_logit(const void *a, const void *b) {
    const struct tsr_candidate *x = a, *y = b;
    if (x->logit != y->logit)
        return x->logit < y->logit ? 1 : -1;
    return x->id < y->id ? -1 : x->id > y->id;
}

static int32_t greedy(const float *logits, int64_t vocab) {
    int64_t best = 0;
    for (int64_t i = 1; i < vocab; i++)
        if (logits[i] > logits[best])
            best = i;
    return (int32_t)best;
}

// A number in [0, 1) with 53 bits.
static double uniform(uint64_t seed, uint64_t position) {
    struct tsr_rng_key key = tsr_rng_key(seed, TSR_RNG_SAMPLE, 0, 0);
    struct tsr_u32x4 r = tsr_philox(key, (uint32_t)position, (uint32_t)(position >> 32), 0, 0);
    return (double)(((uint64_t)r.v[0] << 21) ^ (r.v[1] >> 11)) * 0x1p-53;
}

int32_t tsr_sample(const struct tsr_sampling *s, const float *logits, int64_t vocab,
                   uint64_t position, struct tsr_candidate *scratch) {
    if (s->temperature == 0.0)
        return greedy(logits, vocab);
    for (int64_t i = 0; i < vocab; i++)
        scratch[i] = (struct tsr_candidate){logits[i], (int32_t)i};
    qsort(scratch, (size_t)vocab, sizeof *scratch, by_logit);
    int64_t n = s->top_k > 0 && s->top_k < vocab ? s->top_k : vocab;
    double max = (double)scratch[0].logit / s->temperature, all = 0.0, sum = 0.0;
    for (int64_t i = 0; i < n; i++)
        all += exp((double)scratch[i].logit / s->temperature - max);
    int64_t kept = 0;
    while (kept < n) {
        double weight = exp((double)scratch[kept].logit / s->temperature - max);
        if (kept > 0 && (sum >= s->top_p * all || weight < s->min_p))
            break;
        sum += weight;
        kept++;
    }
    double at = uniform(s->seed, position) * sum;
    for (int64_t i = 0; i < kept; i++) {
        at -= exp((double)scratch[i].logit / s->temperature - max);
        if (at < 0.0)
            return scratch[i].id;
    }
    return scratch[kept - 1].id;
}

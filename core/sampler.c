#include "core/sampler.h"

#include "core/philox.h"
#include "core/sampler_math.h"

struct row {
    const float *logits;
    int64_t vocab;
    float max, scale;
};

static uint64_t place_at(const struct row *r, int64_t i) {
    return tsr_place_of(r->logits[i], (uint32_t)i);
}

static uint64_t weight_at(const struct row *r, int64_t i) {
    return tsr_weight_of(r->logits[i], r->max, r->scale);
}

static uint64_t first_place(const struct row *r) {
    uint64_t best = place_at(r, 0);
    for (int64_t i = 1; i < r->vocab; i++)
        best = place_at(r, i) > best ? place_at(r, i) : best;
    return best;
}

// The place at which the sum of weights (or the count of tokens), from the first place on, reaches
// `need`, which is from 1 to the sum of all; *before: the sum up to there. Its digits are found
// from the highest down, each by the sums of the tokens that have it.
static uint64_t place_reaching(const struct row *r, uint64_t need, bool weighted,
                               uint64_t *before) {
    enum { BITS = 8, DIGITS = 1 << BITS };
    uint64_t prefix = 0;
    *before = 0;
    for (int shift = 64 - BITS; shift >= 0; shift -= BITS) {
        uint64_t sums[DIGITS] = {0};
        for (int64_t i = 0; i < r->vocab; i++) {
            uint64_t place = place_at(r, i);
            if (shift == 64 - BITS || place >> (shift + BITS) == prefix)
                sums[place >> shift & (DIGITS - 1)] += weighted ? weight_at(r, i) : 1;
        }
        uint64_t digit = DIGITS - 1;
        for (; digit > 0 && *before + sums[digit] < need; digit--)
            *before += sums[digit];
        prefix = prefix << BITS | digit;
    }
    return prefix;
}

// The sum of weights at or before `place` that are at least `least`.
static uint64_t sum_until(const struct row *r, uint64_t place, uint64_t least) {
    uint64_t sum = 0;
    for (int64_t i = 0; i < r->vocab; i++) {
        uint64_t w = weight_at(r, i);
        sum += place_at(r, i) >= place && w >= least ? w : 0;
    }
    return sum;
}

// The sum of the weights that top_k, top_p and min_p leave: those of the first places.
static uint64_t kept_sum(const struct tsr_sampling *s, const struct row *r) {
    uint64_t last = 0, before, kept;
    if (s->top_k > 0 && s->top_k < r->vocab)
        last = place_reaching(r, (uint64_t)s->top_k, false, &before);
    kept = sum_until(r, last, 0);
    if (s->top_p < 1.0) {
        last = place_reaching(r, tsr_share_of(kept, s->top_p), true, &before);
        kept = before + weight_at(r, tsr_id_of(last));
    }
    if (s->min_p > 0.0) {
        uint64_t likely = sum_until(r, 0, tsr_least_weight(s->min_p));
        kept = likely < kept ? likely : kept;
    }
    return kept;
}

int32_t tsr_sample(const struct tsr_sampling *s, const float *logits, int64_t vocab,
                   uint64_t position) {
    struct row r = {.logits = logits, .vocab = vocab};
    int32_t first = tsr_id_of(first_place(&r));
    r.max = logits[first];
    if (s->temperature == 0.0 || r.max != r.max)
        return first;
    r.scale = tsr_sampling_scale(s->temperature);
    struct tsr_rng_key key = tsr_rng_key(s->seed, TSR_RNG_SAMPLE, 0, 0);
    struct tsr_u32x4 u = tsr_philox(key, (uint32_t)position, (uint32_t)(position >> 32), 0, 0);
    uint64_t drawn = tsr_draw_below(kept_sum(s, &r), u.v[0], u.v[1]), before;
    return tsr_id_of(place_reaching(&r, drawn + 1, true, &before));
}

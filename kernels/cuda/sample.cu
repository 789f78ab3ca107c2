// Picks tokens from logits, a block for each row. Twin: core/sampler.c, whose definitions these
// are; weights are integers, so sums don't depend on the order of threads, and the token is the
// same one.
//
// A token's place among all is a 64-bit number. The place at which a sum reaches some amount is
// found digit by digit: each thread adds the measure of its tokens that have the digits found so
// far by their next digit, then a warp joins what the threads have for one value of that digit.
#define TSR_SAMPLER_FN static DEVICE
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

#include "core/sampler_math.h"

enum { BITS = 4, DIGITS = 1 << BITS, THREADS = 32 * DIGITS };

struct sample_args {
    int32_t *next;
    const float *logits;          // (rows, V)
    const struct tsr_sampling *s; // (rows)
    const uint64_t *index;        // (rows)
    int64_t v;
    bool wide;
};

// What a block works on.
struct sample_row {
    const float *logits;
    int64_t v;
    bool wide;
    float max, scale;
    smem<uint64_t> counts; // (DIGITS, THREADS)
    smem<uint64_t> totals; // (DIGITS)
};

DEVICE uint64_t shfl_xor64(uint64_t x, int mask) {
    uint32_t lo = shfl_xor((uint32_t)x, mask), hi = shfl_xor((uint32_t)(x >> 32), mask);
    return (uint64_t)hi << 32 | lo;
}

// Calls see(logit, id) for each token that this thread has.
template <class See> DEVICE void each_token(const sample_row &r, See see) {
    for (int64_t j = (int64_t)threadIdx.x * 4; j < r.v; j += THREADS * 4) {
        chunk<float> c = load_chunk(r.logits + j, r.v - j, r.wide);
        for (int i = 0; i < 4; i++)
            if (j + i < r.v)
                see(c.v[i], (uint32_t)(j + i));
    }
}

// The sum, or the largest, of all threads' x.
template <bool LARGEST> DEVICE uint64_t over_block(const sample_row &r, uint64_t x) {
    for (int w = 16; w > 0; w /= 2) {
        uint64_t y = shfl_xor64(x, w);
        x = LARGEST ? max_of(x, y) : x + y;
    }
    __syncthreads(); // everyone is done with older totals
    if (threadIdx.x % 32 == 0)
        r.totals[threadIdx.x / 32] = x;
    __syncthreads();
    x = r.totals[0];
    for (int i = 1; i < DIGITS; i++) {
        uint64_t y = r.totals[i];
        x = LARGEST ? max_of(x, y) : x + y;
    }
    return x;
}

// totals[d] = the sum of the threads' counts of digit d.
DEVICE void join_counts(const sample_row &r) {
    int lane = threadIdx.x % 32, digit = threadIdx.x / 32;
    uint64_t sum = 0;
    __syncthreads();
    for (int i = lane; i < THREADS; i += 32)
        sum += r.counts[digit * THREADS + i];
    for (int w = 16; w > 0; w /= 2)
        sum += shfl_xor64(sum, w);
    if (lane == 0)
        r.totals[digit] = sum;
    __syncthreads();
}

template <bool WEIGHTED>
DEVICE uint64_t place_reaching(const sample_row &r, uint64_t need, uint64_t *before) {
    uint64_t prefix = 0;
    *before = 0;
    for (int shift = 64 - BITS; shift >= 0; shift -= BITS) {
        if (shift < 32 && (r.v - 1) >> shift == 0) { // ids have no bits here
            prefix = prefix << BITS | (DIGITS - 1);
            continue;
        }
        for (int d = 0; d < DIGITS; d++)
            r.counts[d * THREADS + threadIdx.x] = 0;
        each_token(r, [&](float logit, uint32_t id) {
            uint64_t place = tsr_place_of(logit, id);
            if (shift == 64 - BITS || place >> (shift + BITS) == prefix)
                r.counts[(int)(place >> shift & (DIGITS - 1)) * THREADS + threadIdx.x] +=
                    WEIGHTED ? tsr_weight_of(logit, r.max, r.scale) : 1;
        });
        join_counts(r);
        int digit = DIGITS - 1;
        for (; digit > 0 && *before + r.totals[digit] < need; digit--)
            *before += r.totals[digit];
        prefix = prefix << BITS | (uint64_t)digit;
    }
    return prefix;
}

// The sum of weights at or before `place` that are at least `least`.
DEVICE uint64_t sum_until(const sample_row &r, uint64_t place, uint64_t least) {
    uint64_t sum = 0;
    each_token(r, [&](float logit, uint32_t id) {
        uint64_t w = tsr_weight_of(logit, r.max, r.scale);
        if (w >= least && tsr_place_of(logit, id) >= place)
            sum += w;
    });
    return over_block<false>(r, sum);
}

DEVICE uint64_t kept_sum(const sample_row &r, const struct tsr_sampling &s) {
    uint64_t last = 0, before;
    if (s.top_k > 0 && s.top_k < r.v)
        last = place_reaching<false>(r, (uint64_t)s.top_k, &before);
    uint64_t kept = sum_until(r, last, 0);
    if (s.top_p < 1.0) {
        last = place_reaching<true>(r, tsr_share_of(kept, s.top_p), &before);
        kept = before + tsr_weight_of(r.logits[tsr_id_of(last)], r.max, r.scale);
    }
    if (s.min_p > 0.0)
        kept = min_of(kept, sum_until(r, 0, tsr_least_weight(s.min_p)));
    return kept;
}

// The draw of core/sampler.c: a key of (seed, TSR_RNG_SAMPLE), a counter of the position.
DEVICE uint4 draw_of(uint64_t seed, uint64_t index) {
    struct tsr_rng_key root = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    uint4 k = philox(root, TSR_RNG_SAMPLE, 0, 0, 0x54535352u);
    struct tsr_rng_key key = {k.x, k.y};
    return philox(key, (uint32_t)index, (uint32_t)(index >> 32), 0, 0);
}

__global__ void __launch_bounds__(THREADS) sample_kernel(sample_args q) {
    shared_cursor cursor;
    smem<uint64_t> counts = cursor.take<uint64_t>(DIGITS * THREADS);
    smem<uint64_t> totals = cursor.take<uint64_t>(DIGITS);
    int64_t row = blockIdx.x;
    struct tsr_sampling s = q.s[row];
    sample_row r = {q.logits + row * q.v, q.v, q.wide, 0.0f, 0.0f, counts, totals};
    uint64_t place = 0, before;
    each_token(r,
               [&](float logit, uint32_t id) { place = max_of(place, tsr_place_of(logit, id)); });
    place = over_block<true>(r, place);
    r.max = r.logits[tsr_id_of(place)];
    if (s.temperature != 0.0 && r.max == r.max) {
        r.scale = tsr_sampling_scale(s.temperature);
        uint4 u = draw_of(s.seed, q.index[row]);
        uint64_t drawn = tsr_draw_below(kept_sum(r, s), u.x, u.y);
        place = place_reaching<true>(r, drawn + 1, &before);
    }
    if (threadIdx.x == 0)
        q.next[row] = tsr_id_of(place);
}

int tsr_cuda_sample(void *stream, int32_t *next, const float *logits, const struct tsr_sampling *s,
                    const uint64_t *index, int rows, int64_t v) {
    if (rows == 0)
        return 0;
    sample_args q = {next, logits, s, index, v, aligned16(logits, v)};
    size_t bytes = (size_t)(DIGITS * THREADS + DIGITS) * sizeof(uint64_t);
    return launch_kernel("sample", sample_kernel, dim3((unsigned)rows), THREADS, bytes, stream, q);
}

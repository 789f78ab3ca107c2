// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel Random Numbers: As Easy
// as 1, 2, 3" (SC 2011), section 3. A value is a pure function of (key, counter), so dropout,
// initialisation and sampling never depend on the rank, the thread or the order of evaluation.
#ifndef TSR_CORE_PHILOX_H
#define TSR_CORE_PHILOX_H

#include <stdint.h>

struct tsr_rng_key {
    uint32_t k0, k1;
};

struct tsr_u32x4 {
    uint32_t v[4];
};

static inline struct tsr_u32x4 tsr_philox(struct tsr_rng_key key, uint32_t c0, uint32_t c1,
                                          uint32_t c2, uint32_t c3) {
    for (int round = 0; round < 10; round++) {
        uint64_t p0 = (uint64_t)0xD2511F53u * c0;
        uint64_t p1 = (uint64_t)0xCD9E8D57u * c2;
        uint32_t n0 = (uint32_t)(p1 >> 32) ^ c1 ^ key.k0;
        uint32_t n2 = (uint32_t)(p0 >> 32) ^ c3 ^ key.k1;
        c1 = (uint32_t)p1;
        c3 = (uint32_t)p0;
        c0 = n0;
        c2 = n2;
        key.k0 += 0x9E3779B9u;
        key.k1 += 0xBB67AE85u;
    }
    return (struct tsr_u32x4){{c0, c1, c2, c3}};
}

// What a stream of random numbers is for. Part of the contract of a run: never renumber.
enum tsr_rng_purpose {
    TSR_RNG_INIT = 1,
    TSR_RNG_SHUFFLE = 2,
    TSR_RNG_SAMPLE = 3,
    TSR_RNG_DROP_EMBEDDING = 4,
    TSR_RNG_DROP_ATTENTION = 5,
    TSR_RNG_DROP_ATTN_OUT = 6,
    TSR_RNG_DROP_FFN = 7,
    TSR_RNG_DROP_FFN_OUT = 8,
    TSR_RNG_BENCH = 9,
    TSR_RNG_ROUND = 10,
};

// Derives the key of one stream: `a` and `b` are, for instance, a layer and the high half of a
// sequence number.
static inline struct tsr_rng_key tsr_rng_key(uint64_t seed, enum tsr_rng_purpose purpose,
                                             uint32_t a, uint32_t b) {
    struct tsr_rng_key root = {(uint32_t)seed, (uint32_t)(seed >> 32)};
    struct tsr_u32x4 r = tsr_philox(root, (uint32_t)purpose, a, b, 0x54535352u);
    return (struct tsr_rng_key){r.v[0], r.v[1]};
}

// Dropout keeps an element when its 32-bit draw is at or above this; p in [0, 1).
static inline uint32_t tsr_drop_threshold(double p) {
    return (uint32_t)(p * 4294967296.0);
}

#endif

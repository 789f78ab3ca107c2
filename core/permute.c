#include "core/dataset.h"
#include "core/error.h"
#include "core/philox.h"

// A Feistel network with Philox as its round function is a bijection of [0, 2^bits); walking the
// cycle until it lands below n makes one of [0, n) of it (Black and Rogaway, "Ciphers with
// Arbitrary Finite Domains", CT-RSA 2002, section 4). 2^bits < 4n, so four steps suffice on
// average at worst. Eight rounds, because the halves of a small n are a few bits wide.
enum { N_ROUNDS = 8 };

uint64_t tsr_permute(uint64_t i, uint64_t n, uint64_t seed, uint64_t epoch) {
    TSR_ASSERT(i < n);
    int bits = n <= 4 ? 2 : 64 - __builtin_clzll(n - 1);
    int low_bits = bits / 2, high_bits = bits - low_bits;
    uint32_t low_mask = (uint32_t)((UINT64_C(1) << low_bits) - 1);
    uint32_t high_mask = (uint32_t)((UINT64_C(1) << high_bits) - 1);
    struct tsr_rng_key key =
        tsr_rng_key(seed, TSR_RNG_SHUFFLE, (uint32_t)epoch, (uint32_t)(epoch >> 32));
    do {
        uint32_t low = (uint32_t)i & low_mask, high = (uint32_t)(i >> low_bits);
        for (uint32_t round = 0; round < N_ROUNDS; round += 2) {
            low ^= tsr_philox(key, high, round, (uint32_t)n, (uint32_t)(n >> 32)).v[0] & low_mask;
            high ^=
                tsr_philox(key, low, round + 1, (uint32_t)n, (uint32_t)(n >> 32)).v[0] & high_mask;
        }
        i = (uint64_t)high << low_bits | low;
    } while (i >= n);
    return i;
}

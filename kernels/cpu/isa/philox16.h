// Philox4x32-10 (core/philox.h) on sixteen counters at a time.
#ifndef TSR_KERNELS_CPU_ISA_PHILOX16_H
#define TSR_KERNELS_CPU_ISA_PHILOX16_H

#include "core/philox.h"
#include "kernels/cpu/isa/simd.h"

// c[0..3], the counters' words, become the four outputs: lane i of c[k] is word k of counter i.
V16_FN void v16_philox(struct tsr_rng_key key, v16i c[4]) {
    v16i m0 = v16i_set1(0xD2511F53u), m1 = v16i_set1(0xCD9E8D57u);
    v16i k0 = v16i_set1(key.k0), k1 = v16i_set1(key.k1);
    for (int round = 0; round < 10; round++) {
        v16i hi0, lo0, hi1, lo1;
        v16i_mul_wide(c[0], m0, &hi0, &lo0);
        v16i_mul_wide(c[2], m1, &hi1, &lo1);
        c[0] = v16i_xor(v16i_xor(hi1, c[1]), k0);
        c[2] = v16i_xor(v16i_xor(hi0, c[3]), k1);
        c[1] = lo1;
        c[3] = lo0;
        k0 = v16i_add(k0, v16i_set1(0x9E3779B9u));
        k1 = v16i_add(k1, v16i_set1(0xBB67AE85u));
    }
}

// Lane 4g + j is g + 4j: with counters base + this, four outputs go through v16i_quad (or, made
// into floats, v16_quad) and are then 64 consecutive draws in memory order.
V16_FN v16i v16_quad_order(void) {
    static const uint32_t order[16] = {0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15};
    return v16i_loadu(order);
}

// Draws 4 base .. 4 base + 63 of the stream whose counters are {draw / 4, c1, c2, c3}.
V16_FN void v16_draws(struct tsr_rng_key key, uint32_t base, uint32_t c1, uint32_t c2, uint32_t c3,
                      v16i out[4]) {
    out[0] = v16i_add(v16i_set1(base), v16_quad_order());
    out[1] = v16i_set1(c1);
    out[2] = v16i_set1(c2);
    out[3] = v16i_set1(c3);
    v16_philox(key, out);
    v16i_quad(out);
}

#endif

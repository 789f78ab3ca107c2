// A map from a pair of token ids to 64 bits of the caller's.
#ifndef TSR_CORE_PAIRMAP_H
#define TSR_CORE_PAIRMAP_H

#include <stddef.h>
#include <stdint.h>

struct tsr_pair_entry {
    uint64_t key, value;
};

struct tsr_pairmap {
    struct tsr_pair_entry *slot; // n_slots of them, a power of two
    size_t n_slots, n;
};

#define TSR_PAIR_NONE UINT64_MAX // no key (ids are below 2^31); the value of a fresh entry

static inline uint64_t tsr_pair(int32_t left, int32_t right) {
    return (uint64_t)(uint32_t)left << 32 | (uint32_t)right;
}

static inline size_t tsr_pair_home(const struct tsr_pairmap *m, uint64_t key) {
    uint64_t h = key * 0x9E3779B97F4A7C15u;
    return (size_t)(h ^ h >> 32) & (m->n_slots - 1);
}

// The value of `key`, or TSR_PAIR_NONE.
static inline uint64_t tsr_pairmap_get(const struct tsr_pairmap *m, uint64_t key) {
    if (m->n == 0)
        return TSR_PAIR_NONE;
    size_t i = tsr_pair_home(m, key);
    while (m->slot[i].key != key && m->slot[i].key != TSR_PAIR_NONE)
        i = (i + 1) & (m->n_slots - 1);
    return m->slot[i].key == key ? m->slot[i].value : TSR_PAIR_NONE;
}

// Points *value at the value of `key`, which is added (as TSR_PAIR_NONE) when it isn't there.
// Good until the next put. 0 or TSR_ENOMEM.
int tsr_pairmap_put(struct tsr_pairmap *m, uint64_t key, uint64_t **value);
void tsr_pairmap_free(struct tsr_pairmap *m);

#endif

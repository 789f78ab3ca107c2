#include "core/strmap.h"
#include "core/error.h"

#include <string.h>

// Eight bytes at a time by an odd multiplier, high bits folded down after each step. Speed matters
// here and nothing else: the map is never iterated in hash order.
static uint32_t hash_of(const unsigned char *s, size_t n) {
    const uint64_t k = 0x9E3779B97F4A7C15u;
    uint64_t h = (uint64_t)n * k, w;
    for (; n >= 8; s += 8, n -= 8) {
        memcpy(&w, s, 8);
        h = (h ^ w) * k;
        h ^= h >> 29;
    }
    w = 0;
    memcpy(&w, s, n);
    h = (h ^ w) * k;
    h ^= h >> 32;
    h *= k;
    return (uint32_t)(h >> 32);
}

static int64_t probe(const struct tsr_strmap *m, const void *s, size_t n, uint32_t hash,
                     size_t *slot) {
    size_t mask = m->n_slots - 1;
    for (size_t i = hash & mask;; i = (i + 1) & mask) {
        *slot = i;
        if (m->slot[i] == 0)
            return -1;
        const struct tsr_str_key *k = &m->key[m->slot[i] - 1];
        if (k->hash == hash && k->len == n && memcmp(m->text.data + k->at, s, n) == 0)
            return (int64_t)m->slot[i] - 1;
    }
}

int64_t tsr_strmap_find(const struct tsr_strmap *m, const void *s, size_t n_bytes) {
    size_t slot;
    if (m->n == 0 || n_bytes > UINT32_MAX)
        return -1;
    return probe(m, s, n_bytes, hash_of(s, n_bytes), &slot);
}

// Twice the slots; they stay at most half full, so that runs are short.
static int grow_slots(struct tsr_strmap *m) {
    size_t n_slots = m->n_slots ? 2 * m->n_slots : 64;
    uint32_t *slot = calloc(n_slots, sizeof *slot);
    if (!slot)
        return tsr_fail(TSR_ENOMEM, "no memory for %zu hash slots", n_slots);
    for (size_t k = 0; k < m->n; k++) {
        size_t i = m->key[k].hash & (n_slots - 1);
        while (slot[i])
            i = (i + 1) & (n_slots - 1);
        slot[i] = (uint32_t)k + 1;
    }
    free(m->slot);
    m->slot = slot;
    m->n_slots = n_slots;
    return 0;
}

static int grow_keys(struct tsr_strmap *m) {
    size_t cap = m->cap ? 2 * m->cap : 32;
    struct tsr_str_key *key = realloc(m->key, cap * sizeof *key);
    if (!key)
        return tsr_fail(TSR_ENOMEM, "no memory for %zu strings", cap);
    m->key = key;
    m->cap = cap;
    return 0;
}

int tsr_strmap_add(struct tsr_strmap *m, const void *s, size_t n_bytes, uint32_t *index) {
    if (n_bytes > UINT32_MAX || m->n >= UINT32_MAX - 1)
        return tsr_fail(TSR_ENOMEM, "too many strings, or a string of %zu bytes", n_bytes);
    if (2 * (m->n + 1) > m->n_slots)
        TSR_TRY(grow_slots(m));
    uint32_t hash = hash_of(s, n_bytes);
    size_t slot;
    int64_t found = probe(m, s, n_bytes, hash, &slot);
    if (found >= 0) {
        *index = (uint32_t)found;
        return 0;
    }
    if (m->n == m->cap)
        TSR_TRY(grow_keys(m));
    struct tsr_str_key key = {m->text.len, (uint32_t)n_bytes, hash};
    TSR_TRY(tsr_buf_append(&m->text, s, n_bytes));
    m->key[m->n] = key;
    *index = (uint32_t)m->n++;
    m->slot[slot] = *index + 1;
    return 0;
}

void tsr_strmap_clear(struct tsr_strmap *m) {
    if (m->slot)
        memset(m->slot, 0, m->n_slots * sizeof *m->slot);
    m->n = 0;
    m->text.len = 0;
}

void tsr_strmap_free(struct tsr_strmap *m) {
    free(m->slot);
    free(m->key);
    tsr_buf_free(&m->text);
    *m = (struct tsr_strmap){0};
}

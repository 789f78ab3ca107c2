// Interned byte strings: each different string gets the next index, from 0. Strings may hold NUL.
#ifndef TSR_CORE_STRMAP_H
#define TSR_CORE_STRMAP_H

#include <stddef.h>
#include <stdint.h>
#include "core/io.h"

struct tsr_str_key {
    size_t at; // in `text`
    uint32_t len, hash;
};

struct tsr_strmap {
    uint32_t *slot; // index + 1, or 0; n_slots of them, a power of two
    size_t n_slots;
    struct tsr_str_key *key; // n of them
    size_t n, cap;
    struct tsr_buf text;
};

// The index of s, or -1.
int64_t tsr_strmap_find(const struct tsr_strmap *m, const void *s, size_t n_bytes);

// Sets *index to that of s, which is added when it isn't there. 0 or TSR_ENOMEM.
int tsr_strmap_add(struct tsr_strmap *m, const void *s, size_t n_bytes, uint32_t *index);

// The bytes of string `index`, valid until the next add.
static inline const char *tsr_strmap_at(const struct tsr_strmap *m, size_t index, size_t *n_bytes) {
    *n_bytes = m->key[index].len;
    return m->text.data + m->key[index].at;
}

// Forgets all strings and keeps the memory.
void tsr_strmap_clear(struct tsr_strmap *m);
void tsr_strmap_free(struct tsr_strmap *m);

#endif

#include "core/pairmap.h"
#include "core/error.h"

#include <string.h>

static struct tsr_pair_entry *place(const struct tsr_pairmap *m, uint64_t key) {
    size_t i = tsr_pair_home(m, key);
    while (m->slot[i].key != key && m->slot[i].key != TSR_PAIR_NONE)
        i = (i + 1) & (m->n_slots - 1);
    return &m->slot[i];
}

static int grow(struct tsr_pairmap *m) {
    struct tsr_pairmap wide = {.n_slots = m->n_slots ? 2 * m->n_slots : 256, .n = m->n};
    wide.slot = malloc(wide.n_slots * sizeof *wide.slot);
    if (!wide.slot)
        return tsr_fail(TSR_ENOMEM, "no memory for %zu pairs of tokens", wide.n_slots);
    memset(wide.slot, 0xFF, wide.n_slots * sizeof *wide.slot); // TSR_PAIR_NONE everywhere
    for (size_t i = 0; i < m->n_slots; i++)
        if (m->slot[i].key != TSR_PAIR_NONE)
            *place(&wide, m->slot[i].key) = m->slot[i];
    free(m->slot);
    *m = wide;
    return 0;
}

int tsr_pairmap_put(struct tsr_pairmap *m, uint64_t key, uint64_t **value) {
    TSR_ASSERT(key != TSR_PAIR_NONE);
    if (2 * (m->n + 1) > m->n_slots)
        TSR_TRY(grow(m));
    struct tsr_pair_entry *e = place(m, key);
    if (e->key == TSR_PAIR_NONE) {
        e->key = key;
        m->n++;
    }
    *value = &e->value;
    return 0;
}

void tsr_pairmap_free(struct tsr_pairmap *m) {
    free(m->slot);
    *m = (struct tsr_pairmap){0};
}

#include "launcher/saver_map.h"

#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

// What free_unpacked frees, so everything in it has an allocation of its own.
struct map {
    Tessera__Checkpoint__ShardMap *message;
    const struct tsr_tensor *tensor; // of its last entry
};

// Room for one more pointer, at powers of two.
static bool grow(void *pointers, size_t n) {
    void **p, **old;
    memcpy(&old, pointers, sizeof old); // a pointer to some pointer type
    if (n > 0 && (n & (n - 1)) != 0)
        return true;
    p = realloc(old, (n == 0 ? 1 : 2 * n) * sizeof *p);
    if (p)
        memcpy(pointers, &p, sizeof p);
    return p != NULL;
}

static int add_tensor(struct map *m, const struct tsr_tensor *t) {
    Tessera__Checkpoint__ShardMap *map = m->message;
    if (!grow(&map->tensors, map->n_tensors))
        return TSR_ENOMEM;
    Tessera__Checkpoint__TensorShards *s = malloc(sizeof *s);
    if (!s)
        return TSR_ENOMEM;
    tessera__checkpoint__tensor_shards__init(s);
    map->tensors[map->n_tensors++] = s;
    s->rows = (uint64_t)t->rows;
    s->cols = (uint64_t)t->cols;
    s->frozen = t->frozen;
    m->tensor = t;
    char *name = strdup(t->name);
    if (!name)
        return TSR_ENOMEM;
    s->name = name;
    return 0;
}

static int add_region(void *arg, const struct tsr_tensor *t, struct tsr_region region) {
    struct map *m = arg;
    if (m->tensor != t)
        TSR_TRY(add_tensor(m, t));
    Tessera__Checkpoint__TensorShards *s = m->message->tensors[m->message->n_tensors - 1];
    if (!grow(&s->regions, s->n_regions))
        return TSR_ENOMEM;
    Tessera__Checkpoint__Region *r = malloc(sizeof *r);
    if (!r)
        return TSR_ENOMEM;
    tessera__checkpoint__region__init(r);
    s->regions[s->n_regions++] = r;
    r->r0 = (uint64_t)region.r0;
    r->r1 = (uint64_t)region.r1;
    r->c0 = (uint64_t)region.c0;
    r->c1 = (uint64_t)region.c1;
    return 0;
}

Tessera__Checkpoint__ShardMap *tsr_saver_map(const struct tsr_snapshot *s) {
    struct map m = {.message = malloc(sizeof *m.message)};
    if (!m.message)
        return NULL;
    tessera__checkpoint__shard_map__init(m.message);
    m.message->n_parts = 1;
    if (tsr_snapshot_each(s, add_region, &m) == 0)
        return m.message;
    tessera__checkpoint__shard_map__free_unpacked(m.message, NULL);
    return NULL;
}

#include "launcher/control/alloc.h"

#include <stdlib.h>

// Each block carries its size in front of it. Two words keep malloc's alignment.
struct block {
    size_t n_bytes;
    size_t unused;
};

static void *take(void *arg, size_t n_bytes) {
    struct tsr_unpack_alloc *a = arg;
    if (n_bytes > a->limit - a->used) {
        a->over = true;
        return NULL;
    }
    struct block *b = malloc(sizeof *b + n_bytes);
    if (!b)
        return NULL;
    b->n_bytes = n_bytes;
    a->used += n_bytes;
    a->peak = a->used > a->peak ? a->used : a->peak;
    return b + 1;
}

static void give_back(void *arg, void *p) {
    struct tsr_unpack_alloc *a = arg;
    if (!p)
        return;
    struct block *b = (struct block *)p - 1;
    a->used -= b->n_bytes;
    free(b);
}

void tsr_unpack_alloc_init(struct tsr_unpack_alloc *a, size_t payload_bytes) {
    *a = (struct tsr_unpack_alloc){.base = {.alloc = take, .free = give_back, .allocator_data = a}};
    a->limit = payload_bytes > TSR_UNPACK_MAX / TSR_UNPACK_FACTOR
                   ? TSR_UNPACK_MAX
                   : TSR_UNPACK_BASE + TSR_UNPACK_FACTOR * payload_bytes;
    a->limit = a->limit < TSR_UNPACK_MAX ? a->limit : TSR_UNPACK_MAX;
}

#include "core/arena.h"
#include "core/error.h"

void tsr_arena_init(struct tsr_arena *a, const char *purpose, void *base, size_t size) {
    *a = (struct tsr_arena){purpose, base, size, 0};
}

void *tsr_arena_take(struct tsr_arena *a, size_t n_bytes) {
    size_t at = a->used;
    a->used += tsr_align_up(n_bytes);
    if (!a->base)
        return NULL;
    TSR_ASSERT(a->used <= a->size);
    return a->base + at;
}

// Slabs: one allocation per purpose, made at start-up, handed out in aligned runs and never freed
// piecemeal. `plan` and the memory report read the same numbers.
#ifndef TSR_CORE_ARENA_H
#define TSR_CORE_ARENA_H

#include <stddef.h>
#include <stdint.h>

enum { TSR_ALIGN = 64 };

struct tsr_arena {
    const char *purpose; // "weights", "gradients", "activations", …
    char *base;
    size_t size, used; // bytes
};

// Takes over `size` bytes at `base` (from ops->alloc); base NULL only measures: take() then
// returns NULL and counts, so that one layout function serves planning and running.
void tsr_arena_init(struct tsr_arena *a, const char *purpose, void *base, size_t size);

// The next n_bytes, aligned to TSR_ALIGN. Running over is our bug: sizes come from a measuring
// pass of the same code.
void *tsr_arena_take(struct tsr_arena *a, size_t n_bytes);

static inline size_t tsr_align_up(size_t n) {
    return (n + TSR_ALIGN - 1) / TSR_ALIGN * TSR_ALIGN;
}

#endif

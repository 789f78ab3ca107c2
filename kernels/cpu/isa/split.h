// How an operation is dealt out to the pool: whole items (rows, runs of columns, runs of elements)
// in consecutive ranges. An output element is always computed by one thread, so the split never
// changes a result.
#ifndef TSR_KERNELS_CPU_ISA_SPLIT_H
#define TSR_KERNELS_CPU_ISA_SPLIT_H

#include "core/error.h"
#include "core/pieces.h"
#include "kernels/cpu/isa.h"

enum {
    TSR_GRAIN = 16384,       // elements that are worth waking a thread for
    TSR_RUN = 64,            // elements of one item of an elementwise operation
    TSR_PARTS_PER_THREAD = 4 // so that a late thread holds up little
};

struct tsr_split {
    int64_t n; // items
    int n_parts;
};

// A split of n items that cost about `n_elems` elements of work each.
static inline struct tsr_split tsr_split_of(const struct tsr_ctx *ctx, int64_t n, int64_t n_elems) {
    TSR_ASSERT(tsr_cpu_can(ctx) && n >= 0);
    int threads = tsr_pool_threads(ctx->stream);
    int64_t per = TSR_GRAIN / (n_elems > 0 ? n_elems : 1) + 1;
    int64_t most = threads == 1 ? 1 : (int64_t)threads * TSR_PARTS_PER_THREAD;
    int64_t parts = (n + per - 1) / per;
    return (struct tsr_split){n, (int)(parts < most ? parts : most)};
}

// A split of n elements into runs of TSR_RUN; `cost` elements of work each.
static inline struct tsr_split tsr_split_elems(const struct tsr_ctx *ctx, size_t n, int cost) {
    return tsr_split_of(ctx, ((int64_t)n + TSR_RUN - 1) / TSR_RUN, (int64_t)TSR_RUN * cost);
}

// The items of one part.
static inline struct tsr_range tsr_split_part(struct tsr_split s, int part) {
    return tsr_piece(s.n, part, s.n_parts);
}

// The elements, below n, of one part of tsr_split_elems.
static inline struct tsr_range tsr_split_span(struct tsr_split s, int part, int64_t n) {
    struct tsr_range r = tsr_split_part(s, part);
    return (struct tsr_range){r.lo * TSR_RUN, r.hi * TSR_RUN < n ? r.hi * TSR_RUN : n};
}

#endif

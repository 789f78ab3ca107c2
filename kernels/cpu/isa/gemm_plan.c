// Where a product is cut. Every element's chain visits k in ascending order and every piece's end
// is a step of the plan, so nothing that is decided here shows in the result.
#include "kernels/cpu/isa/gemm.h"

#include "core/error.h"

// Measured on Zen 5 and made to fit a Cascade Lake core, too: both have 1 MiB of L2.
enum {
    KC = 1024,              // terms of a k-block, at most
    B_FLOATS = 96 << 10,    // panels of B that a thread keeps in L2: 384 KiB
    MAX_ITEM_PANELS = 4,    // of B; more would leave the threads unequal work
    A_FLOATS = 1 << 20,     // a packed slice of A: 4 MiB; more would fall out of L3
    MC_MAX = 2048,          // and its rows
    STATE_FLOATS = 4 << 20, // 16 MiB
    SERIAL_TERMS = 1 << 16, // multiply-adds below which waking threads doesn't pay
    TAIL = 2,               // a slice's last panels of B for each thread ...
    TAIL_SPLITS = 3,        // ... are cut by rows as well, into so many items
    MIN_SPLIT = 8,          // of at least so many panels of A
};

// The pieces of k in order: the current one ends at term `end`.
struct pieces {
    const struct tsr_gemm *g;
    int piece, seg; // the current piece, the first segment after it
    ptrdiff_t end;
};

static void next_piece(struct pieces *p) {
    p->piece++;
    while (p->seg < p->g->n_segs && p->g->segs[p->seg].piece == p->piece)
        p->end += p->g->segs[p->seg++].k;
}

// Where the block that begins at term `at` ends: after kc terms, or a little earlier where a piece
// ends, because then no open chain has to be kept for the next block.
static ptrdiff_t block_end(struct pieces p, ptrdiff_t at, int kc, ptrdiff_t k) {
    if (k - at <= kc)
        return k;
    ptrdiff_t end = at + kc;
    for (; p.end <= at + kc && p.piece + 1 < p.g->n_pieces; next_piece(&p)) {
        if (p.end >= at + kc / 4 * 3)
            end = p.end;
    }
    return end;
}

// Writes the blocks and their steps.
static void plan_steps(struct gemm_plan *pl, int kc) {
    struct pieces p = {.g = pl->g, .piece = -1};
    int n_steps = 0, n_nodes = 0;
    ptrdiff_t at = 0;
    bool open = pl->g->mode == TSR_GEMM_CHAIN, ended = true;
    for (pl->n_blocks = 0; pl->n_blocks == 0 || at < pl->k; pl->n_blocks++) {
        ptrdiff_t k1 = block_end(p, at, kc, pl->k);
        struct gemm_block *block = &pl->blocks[pl->n_blocks];
        *block = (struct gemm_block){.k0 = at,
                                     .k = (int)(k1 - at),
                                     .step = n_steps,
                                     .n_nodes = n_nodes,
                                     .open_in = open,
                                     .first = at == 0,
                                     .last = k1 == pl->k};
        while (!ended || p.piece + 1 < pl->g->n_pieces) {
            if (ended)
                next_piece(&p);
            ended = p.end <= k1;
            if (!ended && at == k1)
                break; // it begins with the next block
            struct gemm_step *step = &pl->steps[n_steps++];
            *step = (struct gemm_step){.k = (int)((ended ? p.end : k1) - at)};
            at += step->k;
            open = !ended;
            if (open)
                break;
            *step = gemm_end_piece(step->k, p.piece, pl->g->n_pieces, &n_nodes);
        }
        block->n_steps = n_steps - block->step;
        block->open_out = open;
    }
}

// How much of the product one slice covers, so that scratch stays bounded.
static void plan_slices(struct gemm_plan *pl, int kc) {
    const struct tsr_gemm *g = pl->g;
    int mc = gemm_min(gemm_min(g->m, A_FLOATS / kc), MC_MAX);
    mc = gemm_ceil_div(g->m, gemm_ceil_div(g->m, mc)); // equal ranges
    pl->mc = gemm_ceil_div(mc, MR) * MR;
    int fit = (int)(A_FLOATS / ((ptrdiff_t)pl->mc * kc)); // k-blocks
    fit = fit < 1 ? 1 : fit;
    pl->range_blocks = gemm_ceil_div(pl->n_blocks, gemm_ceil_div(pl->n_blocks, fit));
    pl->nc = gemm_ceil_div(g->n, NR) * NR;
    if (pl->n_blocks > 1) {
        int nc = (int)(STATE_FLOATS / ((ptrdiff_t)pl->mc * pl->slots)) / NR * NR;
        pl->nc = gemm_min(pl->nc, nc > NR ? nc : NR);
    }
    int panels = B_FLOATS / (NR * kc);
    pl->item_panels = panels < 1 ? 1 : gemm_min(panels, MAX_ITEM_PANELS);
}

// Lays the plan's arrays out in the pool's scratch.
static int take_scratch(struct gemm_plan *pl, int kc) {
    int n_panels = pl->nc / NR, threads = tsr_pool_threads(pl->pool);
    ptrdiff_t a = (ptrdiff_t)pl->mc * kc * pl->range_blocks, stack = (ptrdiff_t)pl->slots * TILE;
    ptrdiff_t state = pl->n_blocks > 1 ? (ptrdiff_t)(pl->mc / MR) * n_panels * stack : 0;
    size_t n_steps = (size_t)pl->n_blocks + (size_t)pl->g->n_pieces;
    size_t n_items = (size_t)n_panels + (size_t)threads * TAIL * TAIL_SPLITS;
    size_t n_bytes = (size_t)(a + state) * sizeof(float) +
                     (size_t)pl->n_blocks * sizeof *pl->blocks + n_steps * sizeof *pl->steps +
                     n_items * sizeof *pl->items;
    pl->b_floats = (ptrdiff_t)pl->item_panels * NR * kc;
    pl->thread_bytes = (size_t)(pl->b_floats + stack) * sizeof(float);
    pl->a = tsr_pool_shared(pl->pool, n_bytes);
    bool ok = pl->a != NULL;
    for (int t = 0; t < threads && ok; t++)
        ok = tsr_pool_scratch(pl->pool, t, pl->thread_bytes) != NULL;
    if (!ok)
        return tsr_fail(TSR_ENOMEM, "cannot allocate %zu bytes to pack matrices",
                        n_bytes + (size_t)threads * pl->thread_bytes);
    pl->state = pl->a + a;
    pl->blocks = (struct gemm_block *)(pl->state + state);
    pl->steps = (struct gemm_step *)(pl->blocks + pl->n_blocks);
    pl->items = (struct gemm_item *)(pl->steps + n_steps);
    return 0;
}

int TSR_FN(tsr_gemm_plan)(struct gemm_plan *pl, struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    *pl = (struct gemm_plan){.g = g, .pool = ctx->stream, .slots = 1};
    for (int s = 0; s < g->n_segs; s++)
        pl->k += g->segs[s].k;
    for (int n = g->n_pieces - 1; n > 0; n /= 2)
        pl->slots++;
    int kc = gemm_ceil_div(pl->k, pl->k > KC ? gemm_ceil_div(pl->k, KC) : 1);
    kc = kc > 0 ? gemm_ceil_div(kc, LINE) * LINE : LINE;
    pl->n_blocks = pl->k <= kc ? 1 : gemm_ceil_div(pl->k, kc / 4 * 3); // at most
    double terms = (double)g->m * g->n * (double)(pl->k > 0 ? pl->k : 1);
    pl->threads = terms <= SERIAL_TERMS ? 1 : tsr_pool_threads(pl->pool);
    plan_slices(pl, kc);
    TSR_TRY(take_scratch(pl, kc));
    plan_steps(pl, kc);
    return 0;
}

// Items grow smaller towards the end, so that the threads finish together: fewer panels of B, then
// one panel and a part of the rows.
int TSR_FN(tsr_gemm_cut_items)(const struct gemm_plan *pl, const struct gemm_slice *s) {
    int n_b = gemm_ceil_div(s->cols, NR), n_a = gemm_ceil_div(s->rows, MR), n_items = 0;
    int tail = pl->threads > 1 ? gemm_min(TAIL * pl->threads, n_b) : 0;
    int splits = n_a < MIN_SPLIT ? 1 : gemm_min(n_a / MIN_SPLIT, TAIL_SPLITS);
    for (int at = 0, n; at < n_b - tail; at += n) {
        n = pl->threads == 1 ? pl->item_panels : (n_b - at) / (2 * pl->threads);
        n = gemm_min(gemm_min(n < 1 ? 1 : n, pl->item_panels), n_b - tail - at);
        pl->items[n_items++] = (struct gemm_item){.a1 = n_a, .b0 = at, .b1 = at + n};
    }
    for (int at = n_b - tail; at < n_b; at++) {
        for (int i = 0; i < splits; i++)
            pl->items[n_items++] = (struct gemm_item){
                .a0 = n_a * i / splits, .a1 = n_a * (i + 1) / splits, .b0 = at, .b1 = at + 1};
    }
    return n_items;
}

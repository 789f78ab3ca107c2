// The matrix product: slices, items and threads.
//
//   for each column range nc, row range mc, k range: a slice        (bounded scratch)
//     all threads: pack A(mc, k range) into panels                  (shared, stays in L3)
//     all threads, item by item (a few panels of columns, maybe a part of the rows):
//       for each k-block: pack B(k-block, columns) into own panels  (stay in L2)
//         for each panel of A, for each panel of B: the register tile
#include "kernels/cpu/isa/gemm.h"

#include "core/error.h"

enum { PACK_PANELS = 8 }; // of A packed together: long runs of memory, whatever the strides are

// What the threads work on between two barriers.
struct sweep {
    const struct gemm_plan *plan;
    struct gemm_slice slice;
};

// A k-block of an item in progress.
struct work {
    const struct sweep *s;
    const struct gemm_item *item;
    const struct gemm_block *block;
    float *b, *stack; // panels of B, and the tree's nodes
};

static void pack_part(void *arg, int part, int thread) {
    (void)thread;
    const struct sweep *s = arg;
    const struct gemm_slice *slice = &s->slice;
    const struct gemm_block *first = &s->plan->blocks[slice->block0];
    const struct gemm_block *last = &s->plan->blocks[slice->block1 - 1];
    int i = part * PACK_PANELS * MR, rows = gemm_min(PACK_PANELS * MR, slice->rows - i);
    TSR_FN(tsr_gemm_pack_a)
    (s->plan->a + part * PACK_PANELS * slice->a_panel, s->plan->g, first->k0,
     (int)(last->k0 + last->k - first->k0), slice->i0 + i, rows);
}

// What the tile after t loads first: C in CHAIN mode, or its open chain.
static void look_ahead(struct gemm_tile *t, const struct work *w, int ip, int jp) {
    const struct tsr_gemm *g = t->g;
    bool turn = jp + 1 == w->item->b1; // the next tile is the first of the next row of tiles
    t->ahead = NULL;
    if (!w->block->open_in || (turn && ip + 1 == w->item->a1))
        return;
    const struct gemm_slice *s = &w->s->slice;
    int i = turn ? ip + 1 : ip, j = turn ? w->item->b0 : jp + 1;
    if (w->block->first) {
        t->ahead = (const float *)g->c + (s->i0 + i * MR) * g->ldc + s->j0 + j * NR;
        t->ahead_ld = g->ldc;
    } else {
        ptrdiff_t tiles = (ptrdiff_t)(i - ip) * gemm_ceil_div(s->cols, NR) + j - jp;
        t->ahead = t->state + tiles * w->s->plan->slots * TILE;
        t->ahead_ld = NR;
    }
}

// One panel of A with all of the item's panels of B.
static void tile_row(const struct work *w, int ip) {
    const struct gemm_plan *pl = w->s->plan;
    const struct gemm_slice *s = &w->s->slice;
    ptrdiff_t n_b = gemm_ceil_div(s->cols, NR), k_at = w->block->k0 - pl->blocks[s->block0].k0;
    struct gemm_tile t = {.g = pl->g,
                          .steps = pl->steps + w->block->step,
                          .block = w->block,
                          .a = pl->a + ip * s->a_panel + k_at * MR,
                          .stack = w->stack,
                          .i = s->i0 + ip * MR,
                          .rows = gemm_min(MR, s->rows - ip * MR)};
    for (int jp = w->item->b0; jp < w->item->b1; jp++) {
        t.j = s->j0 + jp * NR;
        t.cols = gemm_min(NR, s->cols - jp * NR);
        t.b = w->b + (ptrdiff_t)(jp - w->item->b0) * NR * w->block->k;
        t.state = pl->state + (ip * n_b + jp) * pl->slots * TILE;
        look_ahead(&t, w, ip, jp);
        TSR_FN(tsr_gemm_tile)(&t);
    }
}

static void item_part(void *arg, int part, int thread) {
    const struct sweep *s = arg;
    const struct gemm_plan *pl = s->plan;
    const struct gemm_item *item = &pl->items[part];
    struct work w = {.s = s, .item = item};
    w.b = tsr_pool_scratch(pl->pool, thread, pl->thread_bytes);
    w.stack = w.b + pl->b_floats;
    int j = item->b0 * NR, cols = gemm_min((item->b1 - item->b0) * NR, s->slice.cols - j);
    for (int k = s->slice.block0; k < s->slice.block1; k++) {
        w.block = &pl->blocks[k];
        TSR_FN(tsr_gemm_pack_b)(w.b, pl->g, w.block->k0, w.block->k, s->slice.j0 + j, cols);
        for (int ip = item->a0; ip < item->a1; ip++)
            tile_row(&w, ip);
    }
}

static void run(const struct gemm_plan *pl, int n_parts, void (*fn)(void *, int, int), void *arg) {
    if (pl->threads > 1) {
        tsr_pool_run(pl->pool, n_parts, fn, arg);
        return;
    }
    for (int i = 0; i < n_parts; i++)
        fn(arg, i, 0);
}

static void do_slice(struct sweep *s) {
    const struct gemm_plan *pl = s->plan;
    struct gemm_slice *slice = &s->slice;
    slice->block1 = gemm_min(slice->block0 + pl->range_blocks, pl->n_blocks);
    const struct gemm_block *last = &pl->blocks[slice->block1 - 1];
    slice->a_panel = (last->k0 + last->k - pl->blocks[slice->block0].k0) * MR;
    run(pl, gemm_ceil_div(slice->rows, PACK_PANELS * MR), pack_part, s);
    run(pl, TSR_FN(tsr_gemm_cut_items)(pl, slice), item_part, s);
}

static void check(const struct tsr_gemm *g) {
    TSR_ASSERT(g->m >= 0 && g->n >= 0 && g->n_pieces >= 0 && g->n_segs >= 0);
    TSR_ASSERT(g->mode != TSR_GEMM_CHAIN || g->n_pieces == 1);
    TSR_ASSERT(g->mode == TSR_GEMM_STORE ||
               (g->bias == NULL && g->pre == NULL && !g->has_act && g->residual == NULL));
    for (int s = 0; s < g->n_segs; s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        TSR_ASSERT(seg->k >= 0 && seg->piece >= 0 && seg->piece < g->n_pieces);
        TSR_ASSERT(s == 0 || seg->piece >= seg[-1].piece);
        TSR_ASSERT(seg->k == 0 ||
                   ((seg->a_i == 1 || seg->a_p == 1) && (seg->b_p == 1 || seg->b_j == 1)));
    }
}

int TSR_FN(tsr_gemm)(struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    check(g);
    if (g->m == 0 || g->n == 0)
        return 0;
    if (TSR_FN(tsr_gemm_is_few_rows)(g))
        return TSR_FN(tsr_gemm_few_rows)(ctx, g);
    struct gemm_plan pl;
    TSR_TRY(TSR_FN(tsr_gemm_plan)(&pl, ctx, g));
    if (tsr_pool_is_dry(pl.pool)) // a small product doesn't go through the pool
        return 0;
    struct sweep s = {.plan = &pl};
    struct gemm_slice *slice = &s.slice;
    for (slice->j0 = 0; slice->j0 < g->n; slice->j0 += pl.nc) {
        slice->cols = gemm_min(pl.nc, g->n - slice->j0);
        for (slice->i0 = 0; slice->i0 < g->m; slice->i0 += pl.mc) {
            slice->rows = gemm_min(pl.mc, g->m - slice->i0);
            for (slice->block0 = 0; slice->block0 < pl.n_blocks; slice->block0 += pl.range_blocks)
                do_slice(&s);
        }
    }
    return 0;
}

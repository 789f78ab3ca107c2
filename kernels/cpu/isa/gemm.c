// The matrix product: slices, items and threads.
//
//   for each column range nc, row range mc, k range: a slice        (bounded scratch)
//     all threads, item by item (a few panels of columns, maybe a part of the rows):
//       for each k-block: pack B(k-block, columns) into own panels  (stay in L2)
//         for each panel of A, for each panel of B: the register tile
//         now and then: pack a panel of the next slice's A          (shared by all threads)
//
// While tiles are computed, lines of what is packed next are fetched, so that packing doesn't wait
// for memory.
#include "kernels/cpu/isa/gemm.h"

#include "core/error.h"

enum { PACK_PANELS = 4 }; // of A packed together: whole lines, whatever the strides are

// A k-block of A's rows or B's columns ("units") in memory. p is NULL when it isn't one matrix.
struct source {
    const float *p;
    ptrdiff_t unit, term; // strides; one of them is 1
};

// What the threads work on between two barriers.
struct sweep {
    const struct gemm_plan *plan;
    struct gemm_slice now, next;
    int n_items;
    int n_next;         // panels of the next slice's A, 0: there is none
    float *a, *a_next;  // packed
    struct source from; // the next slice's A
};

// The lines that an item fetches: a cursor over units.
struct cursor {
    struct source from;
    int k;         // terms of a unit
    int unit, end; // the next one, and how many there are
    int per_tile;
};

// Terms [k0, k0 + k) of A's rows or B's columns from `unit` on.
static struct source find_source(const struct tsr_gemm *g, bool of_a, ptrdiff_t k0, int k,
                                 ptrdiff_t unit) {
    struct source found = {0};
    ptrdiff_t at = 0;
    for (int s = 0; s < g->n_segs && at < k0 + k; at += g->segs[s].k, s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        if (at + seg->k <= k0)
            continue;
        struct source here = of_a ? (struct source){seg->a, seg->a_i, seg->a_p}
                                  : (struct source){seg->b, seg->b_j, seg->b_p};
        here.p += (k0 - at) * here.term + unit * here.unit; // where term k0 is or would be
        if (found.p != NULL &&
            (here.p != found.p || here.unit != found.unit || here.term != found.term))
            return (struct source){0};
        found = here;
    }
    return found;
}

// The lines of unit u. Where terms lie apart, LINE units share lines; unit u takes a LINE-th of
// their terms.
static struct gemm_fetch unit_lines(const struct cursor *c, int u) {
    const struct source *s = &c->from;
    if (s->term == 1)
        return (struct gemm_fetch){s->p + u * s->unit, LINE};
    return (struct gemm_fetch){s->p + u / LINE * LINE + (ptrdiff_t)(u % LINE) * (c->k / LINE) * s->term,
                               s->term};
}

static void add_fetches(struct gemm_tile *t, struct cursor *c, int limit) {
    for (int n = 0; n < c->per_tile && c->unit < limit && t->n_fetch < MAX_FETCH; n++)
        t->fetch[t->n_fetch++] = unit_lines(c, c->unit++);
}

static void pack_panels(const struct sweep *s, float *a, const struct gemm_slice *slice, int p0,
                        int p1) {
    const struct gemm_block *b0 = &s->plan->blocks[slice->block0];
    const struct gemm_block *b1 = &s->plan->blocks[slice->block1 - 1];
    int i = p0 * MR, rows = gemm_min((p1 - p0) * MR, slice->rows - i);
    TSR_FN(tsr_gemm_pack_a)(a + p0 * slice->a_panel, s->plan->g, b0->k0,
                            (int)(b1->k0 + b1->k - b0->k0), slice->i0 + i, rows);
}

static void pack_part(void *arg, int part, int thread) {
    (void)thread;
    const struct sweep *s = arg;
    int n = gemm_ceil_div(s->now.rows, MR), p0 = part * PACK_PANELS;
    pack_panels(s, s->a, &s->now, p0, gemm_min(p0 + PACK_PANELS, n));
}

// One item in progress.
struct work {
    const struct sweep *s;
    const struct gemm_item *item;
    const struct gemm_block *block;
    float *b, *stack;     // panels of B, and the tree's nodes
    struct cursor fa, fb; // lines of the next A and B
    int packed;           // panels of the next A, of this item's share
};

// What a tile that comes after t loads first: C in CHAIN mode, or its open chain.
static void look_ahead(struct gemm_tile *t, const struct work *w, int ip, int jp) {
    const struct tsr_gemm *g = t->g;
    bool turn = jp + 1 == w->item->b1; // the next tile is the first of the next row of tiles
    t->ahead = NULL;
    if (!w->block->open_in || (turn && ip + 1 == w->item->a1))
        return;
    int i = turn ? ip + 1 : ip, j = turn ? w->item->b0 : jp + 1;
    const struct gemm_slice *s = &w->s->now;
    if (w->block->first) {
        t->ahead = (const float *)g->c + (ptrdiff_t)(s->i0 + i * MR) * g->ldc + s->j0 + j * NR;
        t->ahead_ld = g->ldc;
    } else {
        t->ahead = t->state + ((ptrdiff_t)(i - ip) * gemm_ceil_div(s->cols, NR) + j - jp) *
                                  w->s->plan->slots * TILE;
        t->ahead_ld = NR;
    }
}

// A row of tiles: one panel of A, all panels of B of the item.
static void tile_row(struct work *w, int ip) {
    const struct gemm_plan *pl = w->s->plan;
    const struct gemm_slice *s = &w->s->now;
    struct gemm_tile t = {.g = pl->g, .steps = pl->steps + w->block->step, .block = w->block};
    t.a = w->s->a + ip * s->a_panel + (w->block->k0 - pl->blocks[s->block0].k0) * MR;
    t.i = s->i0 + ip * MR;
    t.rows = gemm_min(MR, s->rows - ip * MR);
    t.stack = w->stack;
    ptrdiff_t n_b = gemm_ceil_div(s->cols, NR);
    int share = (w->item->pack0 + w->packed + 2 * PACK_PANELS) * MR; // not too far ahead of packing
    for (int jp = w->item->b0; jp < w->item->b1; jp++) {
        t.j = s->j0 + jp * NR;
        t.cols = gemm_min(NR, s->cols - jp * NR);
        t.b = w->b + (ptrdiff_t)(jp - w->item->b0) * NR * w->block->k;
        t.state = pl->state + (ip * n_b + jp) * pl->slots * TILE;
        t.n_fetch = 0;
        look_ahead(&t, w, ip, jp);
        add_fetches(&t, &w->fa, gemm_min(share, w->fa.end));
        add_fetches(&t, &w->fb, w->fb.end);
        TSR_FN(tsr_gemm_tile)(&t);
    }
}

// Sets the cursor on the columns that this thread most likely packs next.
static void aim_at_b(struct work *w, int part, int k) {
    const struct gemm_plan *pl = w->s->plan;
    const struct gemm_item *now = w->item, *item = now;
    int block = k + 1;
    w->fb = (struct cursor){0};
    if (block == w->s->now.block1) {
        if (part + pl->threads >= w->s->n_items)
            return;
        item = &pl->items[part + pl->threads];
        block = w->s->now.block0;
    }
    const struct gemm_block *next = &pl->blocks[block];
    int j = item->b0 * NR, cols = gemm_min((item->b1 - item->b0) * NR, w->s->now.cols - j);
    int n_tiles = (now->a1 - now->a0) * (now->b1 - now->b0);
    w->fb.from = find_source(pl->g, false, next->k0, next->k, w->s->now.j0 + j);
    w->fb.k = next->k;
    w->fb.end = w->fb.from.p != NULL ? cols : 0;
    w->fb.per_tile = gemm_ceil_div(cols, n_tiles);
}

static void item_part(void *arg, int part, int thread) {
    const struct sweep *s = arg;
    const struct gemm_plan *pl = s->plan;
    const struct gemm_item *item = &pl->items[part];
    int n_blocks = s->now.block1 - s->now.block0, n_a = item->a1 - item->a0, row = 0;
    int n_pack = item->pack1 - item->pack0;
    struct work w = {.s = s, .item = item};
    w.b = tsr_pool_scratch(pl->pool, thread, pl->thread_bytes);
    w.stack = w.b + pl->b_floats;
    w.fa.from = s->from;
    w.fa.k = pl->blocks[s->now.block0].k;
    w.fa.unit = item->pack0 * MR;
    w.fa.end = s->from.p != NULL ? item->pack1 * MR : 0;
    w.fa.per_tile = gemm_ceil_div(n_pack * MR, n_blocks * n_a * (item->b1 - item->b0));
    int j = item->b0 * NR, cols = gemm_min((item->b1 - item->b0) * NR, s->now.cols - j);
    for (int k = s->now.block0; k < s->now.block1; k++) {
        w.block = &pl->blocks[k];
        TSR_FN(tsr_gemm_pack_b)(w.b, pl->g, w.block->k0, w.block->k, s->now.j0 + j, cols);
        aim_at_b(&w, part, k);
        for (int ip = item->a0; ip < item->a1; ip++) {
            tile_row(&w, ip);
            int due = (int)((int64_t)n_pack * ++row / (n_blocks * n_a)) - w.packed;
            if (due >= PACK_PANELS || (due > 0 && row == n_blocks * n_a)) {
                int p0 = item->pack0 + w.packed;
                pack_panels(s, s->a_next, &s->next, p0, p0 + due);
                w.packed += due;
            }
        }
    }
}

static void set_range(const struct gemm_plan *pl, struct gemm_slice *s) {
    s->rows = gemm_min(pl->mc, pl->g->m - s->i0);
    s->cols = gemm_min(pl->nc, pl->g->n - s->j0);
    s->block1 = gemm_min(s->block0 + pl->range_blocks, pl->n_blocks);
    const struct gemm_block *last = &pl->blocks[s->block1 - 1];
    s->a_panel = (last->k0 + last->k - pl->blocks[s->block0].k0) * MR;
}

// The slice after `s`: k, then rows, then columns. False when there is none.
static bool advance(const struct gemm_plan *pl, struct gemm_slice *s) {
    s->block0 = s->block1;
    if (s->block0 == pl->n_blocks) {
        s->block0 = 0;
        s->i0 += pl->mc;
    }
    if (s->i0 >= pl->g->m) {
        s->i0 = 0;
        s->j0 += pl->nc;
    }
    if (s->j0 >= pl->g->n)
        return false;
    set_range(pl, s);
    return true;
}

static void run(const struct gemm_plan *pl, int n_parts, void (*fn)(void *, int, int), void *arg) {
    if (pl->threads > 1) {
        tsr_pool_run(pl->pool, n_parts, fn, arg);
        return;
    }
    for (int i = 0; i < n_parts; i++)
        fn(arg, i, 0);
}

int TSR_FN(tsr_gemm)(struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    if (g->m == 0 || g->n == 0)
        return 0;
    if (TSR_FN(tsr_gemm_is_few_rows)(g))
        return TSR_FN(tsr_gemm_few_rows)(ctx, g);
    struct gemm_plan pl;
    TSR_TRY(TSR_FN(tsr_gemm_plan)(&pl, ctx, g));
    struct sweep s = {.plan = &pl, .a = pl.a[0], .a_next = pl.a[1]};
    set_range(&pl, &s.now);
    run(&pl, gemm_ceil_div(s.now.rows, PACK_PANELS * MR), pack_part, &s);
    for (bool more = true; more;) {
        s.next = s.now;
        more = advance(&pl, &s.next);
        s.n_next = more ? gemm_ceil_div(s.next.rows, MR) : 0;
        s.from = (struct source){0};
        if (more) {
            const struct gemm_block *b = &pl.blocks[s.next.block0];
            s.from = find_source(g, true, b->k0, b->k, s.next.i0);
        }
        s.n_items = TSR_FN(tsr_gemm_cut_items)(&pl, &s.now, s.n_next);
        run(&pl, s.n_items, item_part, &s);
        s.now = s.next;
        float *packed = s.a_next;
        s.a_next = s.a;
        s.a = packed;
    }
    return 0;
}

// The matrix product: plan, blocking and threads.
//
//   for each column range nc, row range mc, k range of a few k-blocks   (bounded scratch)
//     all threads: pack A(mc, k range) into shared panels               (read once by all)
//     all threads, item by item (a few panels of columns, maybe a part of the rows):
//       for each k-block: pack B(k-block, columns) into own panels      (stay in L2)
//         for each panel of A, for each panel of B: the register tile
//
// Every element's chain visits k in ascending order and every piece's end is a step of the plan,
// so blocking, threads and tile sizes never show in the result (docs/exactness.md).
#include "kernels/cpu/isa/gemm.h"

#include "core/error.h"

// Measured on Zen 5 and made to fit a Cascade Lake core: 1 MiB of L2.
#ifndef TKC
#define TKC 768
#endif
#ifndef TBF
#define TBF (96<<10)
#endif
#ifndef TAF
#define TAF (1<<20)
#endif
#ifndef TIP
#define TIP 4
#endif
enum {
    KC = TKC,
    MAX_ITEM_PANELS = TIP,
    B_FLOATS = TBF,
    A_FLOATS = TAF,
    MC_MAX = 2048,               // rows of A packed at once
    STATE_FLOATS = 4 << 20,      // state between k ranges: 16 MiB
    SERIAL_TERMS = 1 << 16,      // multiply-adds below which waking threads doesn't pay
    MIN_SPLIT = 8,     // panels of A for which packing B again pays
    PACK_PANELS = 4,   // of A, packed together
    TAIL=2,
};

// What a thread does in one go: the tiles of A panels [a0, a1) and B panels [b0, b1) of a sweep.
struct item {
    int a0, a1, b0, b1;
};

struct plan {
    const struct tsr_gemm *g;
    struct tsr_pool *pool;
    bool serial; // too small for threads
    ptrdiff_t k;
    struct gemm_block *blocks;
    struct gemm_step *steps;
    int n_blocks;
    int slots;        // of a tile's state
    int mc, nc;       // rows, columns of a sweep
    int range_blocks; // k-blocks of a sweep
    int item_panels;  // of B, at most
    float *a, *state; // shared
    struct item *items;
    size_t thread_bytes; // scratch of a thread: panels of B, then one tile's state
};

// What the threads work on between two barriers.
struct sweep {
    const struct plan *plan;
    int i0, rows, j0, cols;
    int block0, block1;
    ptrdiff_t a_panel; // floats
    int n_items;
};

static int ceil_div(ptrdiff_t a, ptrdiff_t b) {
    return (int)((a + b - 1) / b);
}

static int min_int(ptrdiff_t a, ptrdiff_t b) {
    return (int)(a < b ? a : b);
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
        TSR_ASSERT(seg->k == 0 || ((seg->a_i == 1 || seg->a_p == 1) &&
                                   (seg->b_p == 1 || seg->b_j == 1)));
    }
}

// Writes the blocks of `kc` terms and their steps.
static void plan_steps(struct plan *pl, int kc) {
    const struct tsr_gemm *g = pl->g;
    int seg = 0, piece = -1, n_steps = 0, n_nodes = 0;
    ptrdiff_t at = 0, end = 0; // the next term, and where the current piece ends
    bool open = g->mode == TSR_GEMM_CHAIN, ended = true;
    for (int b = 0; b < pl->n_blocks; b++) {
        ptrdiff_t k1 = at + kc < pl->k ? at + kc : pl->k;
        struct gemm_block *block = &pl->blocks[b];
        *block = (struct gemm_block){.k0 = at, .k = (int)(k1 - at), .step = n_steps,
                                     .n_nodes = n_nodes, .open_in = open, .first = b == 0,
                                     .last = b + 1 == pl->n_blocks};
        for (;;) {
            if (ended && piece + 1 == g->n_pieces)
                break;
            if (ended) {
                piece++;
                while (seg < g->n_segs && g->segs[seg].piece == piece)
                    end += g->segs[seg++].k;
            }
            struct gemm_step *step = &pl->steps[n_steps++];
            ended = end <= k1;
            *step = (struct gemm_step){.k = (int)((ended ? end : k1) - at)};
            at += step->k;
            open = !ended;
            if (open)
                break;
            *step = gemm_end_piece(step->k, piece, g->n_pieces, &n_nodes);
        }
        block->n_steps = n_steps - block->step;
        block->open_out = open;
    }
}

// How much of the product one sweep covers, so that scratch stays bounded.
static void plan_sweeps(struct plan *pl, int kc) {
    const struct tsr_gemm *g = pl->g;
    int mc = min_int(min_int(g->m, A_FLOATS / kc), MC_MAX);
    mc = ceil_div(g->m, ceil_div(g->m, mc)); // equal ranges
    pl->mc = ceil_div(mc, MR) * MR;
    int fit = (int)(A_FLOATS / ((ptrdiff_t)pl->mc * kc)); // k-blocks
    fit = fit < 1 ? 1 : fit;
    pl->range_blocks = ceil_div(pl->n_blocks, ceil_div(pl->n_blocks, fit));
    pl->nc = ceil_div(g->n, NR) * NR;
    if (pl->n_blocks > 1) {
        int nc = (int)(STATE_FLOATS / ((ptrdiff_t)pl->mc * pl->slots)) / NR * NR;
        pl->nc = min_int(pl->nc, nc > NR ? nc : NR);
    }
    int panels = B_FLOATS / (NR * kc);
    pl->item_panels = panels < 1 ? 1 : min_int(panels, MAX_ITEM_PANELS);
}

// Lays the plan's arrays out in the pool's scratch.
static int take_scratch(struct plan *pl, int kc) {
    int n_panels = pl->nc / NR, threads = tsr_pool_threads(pl->pool);
    ptrdiff_t a = (ptrdiff_t)pl->mc * kc * pl->range_blocks;
    ptrdiff_t tile_state = (ptrdiff_t)pl->slots * TILE;
    ptrdiff_t state = pl->n_blocks > 1 ? (ptrdiff_t)(pl->mc / MR) * n_panels * tile_state : 0;
    size_t n_steps = (size_t)pl->n_blocks + (size_t)pl->g->n_pieces;
    size_t n_items = (size_t)n_panels + (size_t)threads * TAIL * TAIL;
    size_t n_bytes = (size_t)(a + state) * sizeof(float) +
                     (size_t)pl->n_blocks * sizeof *pl->blocks + n_steps * sizeof *pl->steps +
                     n_items * sizeof *pl->items;
    ptrdiff_t b = (ptrdiff_t)pl->item_panels * NR * kc;
    pl->thread_bytes = (size_t)(b + tile_state) * sizeof(float);
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
    pl->items = (struct item *)(pl->steps + n_steps);
    return 0;
}

static int make_plan(struct plan *pl, struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    *pl = (struct plan){.g = g, .pool = ctx->stream, .slots = 1};
    for (int s = 0; s < g->n_segs; s++)
        pl->k += g->segs[s].k;
    for (int n = g->n_pieces - 1; n > 0; n /= 2)
        pl->slots++;
    int kc = ceil_div(pl->k, pl->k > KC ? ceil_div(pl->k, KC) : 1);
    kc = kc > 0 ? ceil_div(kc, VW) * VW : VW;
    pl->n_blocks = pl->k > 0 ? ceil_div(pl->k, kc) : 1;
    double terms = (double)g->m * g->n * (double)(pl->k > 0 ? pl->k : 1);
    pl->serial = terms <= SERIAL_TERMS || tsr_pool_threads(pl->pool) == 1;
    plan_sweeps(pl, kc);
    TSR_TRY(take_scratch(pl, kc));
    plan_steps(pl, kc);
    return 0;
}

static void run(const struct plan *pl, int n_parts, void (*fn)(void *, int, int), void *arg) {
    if (!pl->serial) {
        tsr_pool_run(pl->pool, n_parts, fn, arg);
        return;
    }
    for (int i = 0; i < n_parts; i++)
        fn(arg, i, 0);
}

static void pack_part(void *arg, int part, int thread) {
    (void)thread;
    const struct sweep *s = arg;
    const struct plan *pl = s->plan;
    ptrdiff_t k0 = pl->blocks[s->block0].k0;
    const struct gemm_block *last = &pl->blocks[s->block1 - 1];
    int i = part * PACK_PANELS * MR, rows = min_int(PACK_PANELS * MR, s->rows - i);
    TSR_FN(tsr_gemm_pack_a)(pl->a + part * PACK_PANELS * s->a_panel, pl->g, k0,
                            (int)(last->k0 + last->k - k0), s->i0 + i, rows);
}

// The tiles of one item and k-block. b: its packed panels.
static void item_block(const struct sweep *s, const struct gemm_block *block,
                       const struct item *item, const float *b, float *own_state) {
    const struct plan *pl = s->plan;
    const struct tsr_gemm *g = pl->g;
    ptrdiff_t a_at = (block->k0 - pl->blocks[s->block0].k0) * MR;
    ptrdiff_t tile_state = pl->n_blocks > 1 ? pl->slots * TILE : 0;
    float *state = pl->n_blocks > 1 ? pl->state : own_state;
    int n_b = ceil_div(s->cols, NR);
    struct gemm_tile t = {.g = g, .steps = pl->steps + block->step, .block = block};
    bool from_c = block->open_in && block->first;
    for (int ip = item->a0; ip < item->a1; ip++) {
        t.a = pl->a + ip * s->a_panel + a_at;
        t.i = s->i0 + ip * MR;
        t.rows = min_int(MR, s->rows - ip * MR);
        for (int jp = item->b0; jp < item->b1; jp++) {
            bool turn = jp + 1 == item->b1; // the next tile is in the next row of tiles
            ptrdiff_t tile = (ptrdiff_t)ip * n_b + jp;
            t.j = s->j0 + jp * NR;
            t.cols = min_int(NR, s->cols - jp * NR);
            t.b = b + (ptrdiff_t)(jp - item->b0) * NR * block->k;
            t.state = state + tile * tile_state;
            t.fetch = t.a + s->a_panel + (jp - item->b0) * (ptrdiff_t)block->k * 4;
            t.ahead = NULL;
            if (turn && ip + 1 == item->a1) {
            } else if (from_c) {
                t.ahead_ld = g->ldc;
                t.ahead = (const float *)g->c + (t.i + (turn ? MR : 0)) * g->ldc +
                          (turn ? s->j0 + item->b0 * NR : t.j + NR);
            } else if (block->open_in) {
                t.ahead_ld = NR;
                t.ahead = state + (turn ? tile + n_b - (jp - item->b0) : tile + 1) * tile_state;
            }
            TSR_FN(tsr_gemm_tile)(&t);
        }
    }
}

static void item_part(void *arg, int part, int thread) {
    const struct sweep *s = arg;
    const struct plan *pl = s->plan;
    const struct item *item = &pl->items[part];
    float *b = tsr_pool_scratch(pl->pool, thread, pl->thread_bytes);
    float *own_state = b + pl->thread_bytes / sizeof(float) - (ptrdiff_t)pl->slots * TILE;
    int j = item->b0 * NR, cols = min_int((item->b1 - item->b0) * NR, s->cols - j);
    for (int k = s->block0; k < s->block1; k++) {
        const struct gemm_block *block = &pl->blocks[k];
        TSR_FN(tsr_gemm_pack_b)(b, pl->g, block->k0, block->k, s->j0 + j, cols);
        item_block(s, block, item, b, own_state);
    }
}

// Cuts the sweep into items that grow smaller towards the end, so that the threads finish
// together: fewer panels of B, then one panel and a part of the rows.
static void cut_items(struct sweep *s) {
    const struct plan *pl = s->plan;
    int threads = pl->serial ? 1 : tsr_pool_threads(pl->pool);
    int n_b = ceil_div(s->cols, NR), n_a = ceil_div(s->rows, MR);
    int tail = threads > 1 ? min_int(TAIL * threads, n_b) : 0;
    int splits = n_a / MIN_SPLIT < 1 ? 1 : min_int(n_a / MIN_SPLIT, TAIL);
    s->n_items = 0;
    for (int at = 0, n; at < n_b - tail; at += n) {
        n = threads == 1 ? pl->item_panels : (n_b - at) / (2 * threads);
        n = min_int(min_int(n < 1 ? 1 : n, pl->item_panels), n_b - tail - at);
        pl->items[s->n_items++] = (struct item){0, n_a, at, at + n};
    }
    for (int at = n_b - tail; at < n_b; at++) {
        for (int i = 0; i < splits; i++)
            pl->items[s->n_items++] =
                (struct item){n_a * i / splits, n_a * (i + 1) / splits, at, at + 1};
    }
}

int TSR_FN(tsr_gemm)(struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    check(g);
    if (g->m == 0 || g->n == 0)
        return 0;
    if (TSR_FN(tsr_gemm_is_few_rows)(g))
        return TSR_FN(tsr_gemm_few_rows)(ctx, g);
    struct plan pl;
    TSR_TRY(make_plan(&pl, ctx, g));
    struct sweep s = {.plan = &pl};
    for (s.j0 = 0; s.j0 < g->n; s.j0 += pl.nc) {
        s.cols = min_int(pl.nc, g->n - s.j0);
        for (s.i0 = 0; s.i0 < g->m; s.i0 += pl.mc) {
            s.rows = min_int(pl.mc, g->m - s.i0);
            cut_items(&s);
            for (s.block0 = 0; s.block0 < pl.n_blocks; s.block0 = s.block1) {
                s.block1 = min_int(s.block0 + pl.range_blocks, pl.n_blocks);
                const struct gemm_block *last = &pl.blocks[s.block1 - 1];
                s.a_panel = (last->k0 + last->k - pl.blocks[s.block0].k0) * MR;
                run(&pl, ceil_div(s.rows, PACK_PANELS * MR), pack_part, &s);
                run(&pl, s.n_items, item_part, &s);
            }
        }
    }
    return 0;
}

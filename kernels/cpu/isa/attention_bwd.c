// Gradient of block-wise causal attention (Dao 2023, "FlashAttention-2", Algorithm 2). For query i
// and key j that it sees, with dropout's mask and its factor in Z (1 when off):
//   p = e^(s - lse)      dV_j = sum over i of p Z dO_i      dP = Z (chain over d of dO_i v_j)
//   D_i = dO_i . O_i     dS = p (dP - D_i) scale
//   dQ_i = sum over j of dS k_j       dK_j = sum over i of dS q_i
// A part owns one slot (some query heads of one KV head) of one segment. For each block of keys,
// for each head, for each block of queries, in order: so dK and dV are chains over heads and then
// queries, dQ over keys. When there are too few parts for the threads, blocks of keys (dK, dV) and
// then blocks of queries (dQ) are parts of their own, at the price of computing p and dS twice: the
// chains, and the bits, are the same.
#include "core/error.h"
#include "kernels/cpu/isa/attention_drop.h"
#include "kernels/cpu/isa/vmath.h"

enum {
    PANEL = ATTN_KEYS * ATTN_KEYS, // weights of one block of queries and one of keys
    TOKENS_PER_PART = 64,          // of the dot products D_i
    QUERY_BLOCKS = 2               // of a part of the second pass: keys are packed for all of them
};

struct bwd_job {
    const struct tsr_attn *a;
    const struct tsr_kv_slot *slots;
    int n_slots;
    float *dq, *dk, *dv;
    const float *d_o, *o, *lse, *q, *k, *v;
    struct tsr_pool *pool;
    float *dots;        // (nq, N): D_i
    int *first;         // (n_segs + 1) parts before each segment
    bool keys, queries; // what the parts of this pass produce: dK and dV, dQ
};

// What a part works on, and its scratch. Blocks are numbered by absolute position / ATTN_KEYS.
struct bwd_part {
    const struct bwd_job *job;
    const struct tsr_segment *seg;
    const struct tsr_kv_slot *slot;
    struct attn_drop drop;
    int head, ld;                 // local query head in work; leading dimension of panels
    int base, j0, j1;             // block of keys: first position, those of the segment
    int at, i0, i1;               // block of queries: the same
    float *kt, *vt, *k, *dk, *dv; // of the keys: (D, ATTN_KEYS) twice, then panels
    float *q, *d_o, *dq;          // of the queries
    float *p, *ds;                // (queries, keys)
};

static size_t scratch_floats(const struct bwd_job *j) {
    return (size_t)(8 * ATTN_KEYS * attn_padded(j->a->head_dim) + 2 * PANEL);
}

static void lay_out(struct bwd_part *p, float *scratch) {
    float **panels[] = {&p->kt, &p->vt, &p->k, &p->dk, &p->dv, &p->q, &p->d_o, &p->dq};
    for (size_t i = 0; i < sizeof panels / sizeof *panels; i++) {
        *panels[i] = scratch;
        scratch += ATTN_KEYS * p->ld;
    }
    p->p = scratch;
    p->ds = scratch + PANEL;
}

// Where the segment's token at position base + i lies.
static ptrdiff_t token_of(const struct tsr_segment *s, int base, int i) {
    return (ptrdiff_t)s->start + (base - s->position) + i;
}

// panel(i, :) <-> array(row of i, :) for i in [lo, hi); rows of `array` are ld apart.
static void load_panel(const struct bwd_part *p, float *panel, const float *array, ptrdiff_t ld,
                       int base, int lo, int hi) {
    int d_end = p->job->a->head_dim;
    for (int i = lo; i < hi; i++) {
        const float *src = array + token_of(p->seg, base, i) * ld;
        for (int d = 0; d < d_end; d += 16)
            v16_store(panel + i * p->ld + d, v16_load_tail(src + d, d_end - d, 0.0f));
    }
}

static void store_panel(const struct bwd_part *p, const float *panel, float *array, ptrdiff_t ld,
                        int base, int lo, int hi) {
    int d_end = p->job->a->head_dim;
    for (int i = lo; i < hi; i++) {
        float *dst = array + token_of(p->seg, base, i) * ld;
        for (int d = 0; d < d_end; d += 16)
            v16_store_tail(dst + d, d_end - d, v16_load(panel + i * p->ld + d));
    }
}

// Row r of the block of queries: its weights p Z and its dS from its scores and dP.
static void soften_row(const struct bwd_part *p, int r, int lo, int hi) {
    const struct tsr_attn *a = p->job->a;
    float *s = p->p + r * ATTN_KEYS, *ds = p->ds + r * ATTN_KEYS;
    ptrdiff_t stat = (ptrdiff_t)p->head * a->n_tokens + token_of(p->seg, p->at, r);
    v16 scale = v16_set1(a->scale), lse = v16_set1(p->job->lse[stat]);
    v16 dot = v16_set1(p->job->dots[stat]), divisor = v16_set1(p->drop.divisor);
    v16m keep[ATTN_KEYS / 16];
    if (p->drop.on)
        attn_kept(keep, &p->drop, p->base, p->at + r, a->q0 + p->head);
    for (int c = lo / 16; c < (hi + 15) / 16; c++) {
        v16 w = v16_exp(v16_sub(v16_mul(v16_load(s + 16 * c), scale), lse));
        v16 z = w, dp = v16_load(ds + 16 * c);
        if (p->drop.on) {
            z = attn_dropped(keep[c], w, divisor);
            dp = attn_dropped(keep[c], dp, divisor);
        }
        v16_store(s + 16 * c, z);
        v16_store(ds + 16 * c, v16_mul(v16_mul(w, v16_sub(dp, dot)), scale));
    }
}

// The weights and dS of the block, where a query sees a key. lo, hi: keys that each query sees.
static void weights(const struct bwd_part *p, const int *lo, const int *hi) {
    int dim = p->job->a->head_dim;
    for (int r = p->i0, mr; r < p->i1; r += mr) {
        mr = attn_tile_rows(p->i1 - r);
        int c0 = lo[r] / 16, c1 = (hi[r + mr - 1] + 15) / 16;
        if (c0 >= c1)
            continue;
        TSR_FN(tsr_attn_scores)
        (p->p + r * ATTN_KEYS, p->q + r * p->ld, p->ld, p->kt, dim, mr, c0, c1);
        TSR_FN(tsr_attn_scores)
        (p->ds + r * ATTN_KEYS, p->d_o + r * p->ld, p->ld, p->vt, dim, mr, c0, c1);
        for (int i = r; i < r + mr; i++) {
            if (lo[i] < hi[i])
                soften_row(p, i, lo[i], hi[i]);
        }
    }
}

// dK and dV of the block of keys continue over this block of queries.
static void add_keys(const struct bwd_part *p) {
    int lo[ATTN_KEYS], hi[ATTN_KEYS], window = p->job->a->window;
    for (int j = p->j0; j < p->j1; j++) { // queries that see key j: from itself, for a window
        int64_t first = (int64_t)p->base + j - p->at;
        lo[j] = attn_clamp(first, p->i0, p->i1);
        hi[j] = window > 0 ? attn_clamp(first + window, p->i0, p->i1) : p->i1;
    }
    struct attn_product g = {.c = p->dv + p->j0 * p->ld,
                             .ldc = p->ld,
                             .a = p->p + p->j0,
                             .a_r = 1,
                             .a_k = ATTN_KEYS,
                             .b = p->d_o,
                             .ldb = p->ld,
                             .lo = lo + p->j0,
                             .hi = hi + p->j0,
                             .rows = p->j1 - p->j0,
                             .n = p->ld};
    TSR_FN(tsr_attn_product)(&g);
    g.c = p->dk + p->j0 * p->ld;
    g.a = p->ds + p->j0;
    g.b = p->q;
    TSR_FN(tsr_attn_product)(&g);
}

// dQ of the block of queries continues over this block of keys, or starts with it.
static void add_queries(const struct bwd_part *p, const int *lo, const int *hi) {
    const struct tsr_attn *a = p->job->a;
    float *dq = p->job->dq + (ptrdiff_t)p->head * a->head_dim;
    int low = p->seg->position;
    if (p->base / ATTN_KEYS == attn_first_block(p->at + p->i0, low, a->window))
        memset(p->dq, 0, (size_t)(ATTN_KEYS * p->ld) * sizeof *p->dq);
    else
        load_panel(p, p->dq, dq, a->ldq, p->at, p->i0, p->i1);
    TSR_FN(tsr_attn_product)
    (&(struct attn_product){.c = p->dq + p->i0 * p->ld,
                            .ldc = p->ld,
                            .a = p->ds + p->i0 * ATTN_KEYS,
                            .a_r = ATTN_KEYS,
                            .a_k = 1,
                            .b = p->k,
                            .ldb = p->ld,
                            .lo = lo + p->i0,
                            .hi = hi + p->i0,
                            .rows = p->i1 - p->i0,
                            .n = p->ld});
    store_panel(p, p->dq, dq, a->ldq, p->at, p->i0, p->i1);
}

// Head p->head, the block of queries from position `at` against the loaded block of keys.
static void block_pair(struct bwd_part *p, int at) {
    const struct tsr_attn *a = p->job->a;
    int lo[ATTN_KEYS], hi[ATTN_KEYS], low = p->seg->position;
    p->at = at;
    p->i0 = attn_max(low - at, 0);
    p->i1 = attn_min(low + p->seg->length - at, ATTN_KEYS);
    for (int i = p->i0; i < p->i1; i++)
        attn_seen(at + i, low, a->window, p->base, &lo[i], &hi[i]);
    ptrdiff_t head = (ptrdiff_t)p->head * a->head_dim;
    load_panel(p, p->q, p->job->q + head, a->ldq, at, p->i0, p->i1);
    load_panel(p, p->d_o, p->job->d_o + head, a->ldo, at, p->i0, p->i1);
    weights(p, lo, hi);
    if (p->job->keys)
        add_keys(p);
    if (p->job->queries)
        add_queries(p, lo, hi);
}

static void load_keys(struct bwd_part *p, int base) {
    const struct tsr_attn *a = p->job->a;
    ptrdiff_t row[ATTN_KEYS], head = (ptrdiff_t)p->slot->kv * a->head_dim;
    struct attn_head k = {p->job->k + head, a->ldk}, v = {p->job->v + head, a->ldv};
    p->base = base;
    p->j0 = attn_max(p->seg->position - base, 0);
    p->j1 = attn_min(p->seg->position + p->seg->length - base, ATTN_KEYS);
    TSR_FN(tsr_attn_key_rows)(row, p->seg, base, p->j0, p->j1);
    TSR_FN(tsr_attn_pack_t)(p->kt, k, row, NULL, p->j0, p->j1, a->head_dim);
    TSR_FN(tsr_attn_pack_t)(p->vt, v, row, NULL, p->j0, p->j1, a->head_dim);
    if (p->job->queries)
        TSR_FN(tsr_attn_pack)(p->k, k, row, p->j0, p->j1, a->head_dim);
}

// Blocks of keys [kb0, kb1) against those of the blocks of queries [qb0, qb1) that see them.
static void run_blocks(struct bwd_part *p, int kb0, int kb1, int qb0, int qb1) {
    const struct tsr_attn *a = p->job->a;
    ptrdiff_t ld = (ptrdiff_t)p->job->n_slots * a->head_dim;
    ptrdiff_t column = (p->slot - p->job->slots) * a->head_dim;
    size_t panel_bytes = (size_t)(ATTN_KEYS * p->ld) * sizeof(float);
    for (int kb = kb0; kb < kb1; kb++) {
        load_keys(p, kb * ATTN_KEYS);
        memset(p->dk, 0, panel_bytes);
        memset(p->dv, 0, panel_bytes);
        int end = qb1; // a window ends what the block's last key is seen by
        if (a->window > 0) {
            int64_t last = (int64_t)p->base + p->j1 - 1 + a->window - 1;
            end = attn_clamp(last / ATTN_KEYS + 1, 0, qb1);
        }
        for (int h = 0; h < p->slot->n; h++) {
            p->head = p->slot->q + h;
            for (int qb = attn_max(qb0, kb); qb < end; qb++)
                block_pair(p, qb * ATTN_KEYS);
        }
        if (p->job->keys) {
            store_panel(p, p->dk, p->job->dk + column, ld, p->base, p->j0, p->j1);
            store_panel(p, p->dv, p->job->dv + column, ld, p->base, p->j0, p->j1);
        }
    }
}

static int first_block(const struct tsr_segment *s) {
    return s->position / ATTN_KEYS;
}

static int end_block(const struct tsr_segment *s) {
    return s->length == 0 ? first_block(s) : (s->position + s->length - 1) / ATTN_KEYS + 1;
}

// Parts of one slot of a segment: all, its blocks of keys, or groups of its blocks of queries.
static int parts_of_slot(const struct bwd_job *j, const struct tsr_segment *s) {
    int n_blocks = end_block(s) - first_block(s);
    if (j->keys && j->queries)
        return n_blocks > 0;
    return j->keys ? n_blocks : (n_blocks + QUERY_BLOCKS - 1) / QUERY_BLOCKS;
}

static void run_part(void *arg, int part, int thread) {
    const struct bwd_job *j = arg;
    const struct tsr_attn *a = j->a;
    int s = attn_owner(j->first, a->n_segs, part), ld = attn_padded(a->head_dim);
    const struct tsr_segment *seg = &a->segs[s];
    int per = parts_of_slot(j, seg), i = (part - j->first[s]) % per;
    struct bwd_part p = {
        .job = j, .seg = seg, .ld = ld, .drop = attn_drop_of(&a->drop, seg->sequence)};
    p.slot = &j->slots[(part - j->first[s]) / per];
    lay_out(&p, tsr_pool_scratch(j->pool, thread, scratch_floats(j) * sizeof(float)));
    int b0 = first_block(seg), b1 = end_block(seg);
    if (j->keys && j->queries) {
        run_blocks(&p, b0, b1, b0, b1);
    } else if (j->keys) {
        run_blocks(&p, b0 + i, b0 + i + 1, b0, b1);
    } else { // the longest rows first
        int qb0 = b0 + (per - 1 - i) * QUERY_BLOCKS, qb1 = attn_min(qb0 + QUERY_BLOCKS, b1);
        int low = attn_max(qb0 * ATTN_KEYS, seg->position);
        run_blocks(&p, attn_first_block(low, seg->position, a->window), qb1, qb0, qb1);
    }
}

static void run_pass(struct bwd_job *j, bool keys, bool queries) {
    const struct tsr_attn *a = j->a;
    j->keys = keys;
    j->queries = queries;
    j->first[0] = 0;
    for (int s = 0; s < a->n_segs; s++)
        j->first[s + 1] = j->first[s] + j->n_slots * parts_of_slot(j, &a->segs[s]);
    tsr_pool_run(j->pool, j->first[a->n_segs], run_part, j);
}

// D_i of every head of some tokens.
static void dots_part(void *arg, int part, int thread) {
    (void)thread;
    const struct bwd_job *j = arg;
    const struct tsr_attn *a = j->a;
    int t0 = part * TOKENS_PER_PART, t1 = attn_min(t0 + TOKENS_PER_PART, a->n_tokens);
    for (int h = 0; h < a->nq; h++) {
        for (int t = t0; t < t1; t++) {
            ptrdiff_t at = (ptrdiff_t)t * a->ldo + (ptrdiff_t)h * a->head_dim;
            j->dots[(ptrdiff_t)h * a->n_tokens + t] =
                v16_dot_row(j->d_o + at, j->o + at, a->head_dim);
        }
    }
}

// Whether one pass with a part per slot and segment would leave threads idle for longer than two
// passes of small parts take: these do seven products where the one does five.
static bool too_few_parts(const struct bwd_job *j) {
    double total = 0, most = 0;
    for (int s = 0; s < j->a->n_segs; s++) {
        for (int i = 0; i < j->n_slots; i++) {
            double length = j->a->segs[s].length, work = length * length * j->slots[i].n;
            total += work;
            most = work > most ? work : most;
        }
    }
    return most * tsr_pool_threads(j->pool) > 1.4 * total;
}

int TSR_FN(tsr_attention_bwd)(struct tsr_ctx *ctx, const struct tsr_attn *a,
                              const struct tsr_kv_slot *slots, int n_slots, tsr_elem *dq,
                              tsr_elem *dk, tsr_elem *dv, const tsr_elem *d_o, const tsr_elem *o,
                              const float *lse, const tsr_elem *q, const tsr_elem *k,
                              const tsr_elem *v) {
    TSR_ASSERT(tsr_cpu_can(ctx) && a->head_dim > 0);
    struct tsr_pool *pool = ctx->stream;
    struct bwd_job j = {.a = a,
                        .slots = slots,
                        .n_slots = n_slots,
                        .dq = dq,
                        .dk = dk,
                        .dv = dv,
                        .d_o = d_o,
                        .o = o,
                        .lse = lse,
                        .q = q,
                        .k = k,
                        .v = v,
                        .pool = pool};
    size_t n_dots = (size_t)a->nq * (size_t)a->n_tokens;
    size_t shared = n_dots * sizeof(float) + ((size_t)a->n_segs + 1) * sizeof(int);
    j.dots = tsr_pool_shared(pool, shared);
    bool ok = j.dots != NULL;
    for (int t = 0; t < tsr_pool_threads(pool); t++)
        ok = ok && tsr_pool_scratch(pool, t, scratch_floats(&j) * sizeof(float)) != NULL;
    if (!ok)
        return tsr_fail(TSR_ENOMEM, "attention backward: no memory for scratch of %zu bytes",
                        shared);
    j.first = (int *)(j.dots + n_dots);
    tsr_pool_run(pool, (a->n_tokens + TOKENS_PER_PART - 1) / TOKENS_PER_PART, dots_part, &j);
    bool split = too_few_parts(&j);
    run_pass(&j, true, !split);
    if (split)
        run_pass(&j, false, true);
    return 0;
}

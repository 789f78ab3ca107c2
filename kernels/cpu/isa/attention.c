// Block-wise causal attention with an online softmax (Dao 2023, "FlashAttention-2", Algorithm 1).
//
// Row r of a KV head is its held query head r % g at token r / g of the segment, so a group shares
// each packed block of keys. For every block of keys, in order, and every register tile of rows:
//   s = (chain over d of q k) scale      m' = max(m, max s)      p = e^(s - m')
//   l = l e^(m - m') + sum p             O = O e^(m - m') + chain over keys of p v
// with l a virtual vector, and at the end o = O / sum(l), lse = m' + log sum(l). Keys that a row
// doesn't see are left out of its sums and chains altogether, and blocks without a seen key
// leave m, l and O as they are: a row is the same whatever part it is computed in.
//
// A part is some rows of one KV head; or, when a segment is short (decoding), all rows of several
// neighbouring KV heads, whose keys lie side by side in the cache and are read in one walk.
#include "core/error.h"
#include "kernels/cpu/isa/attention_drop.h"
#include "kernels/cpu/isa/vmath.h"

enum {
    PART_ROWS = 192,      // most rows of a part: their O and q stay in the second-level cache
    LEAST_ROWS = 24,      // fewer don't pay for packing the keys
    PARTS_PER_THREAD = 4, // enough for threads to finish together
    WALKS_PER_THREAD = 2  // the same for parts of several heads, which should be wide
};

struct fwd_job {
    const struct tsr_attn *a;
    float *o, *lse;
    const float *q, *k, *v;
    struct tsr_pool *pool;
    int part_rows;  // most rows of a part
    int part_heads; // KV heads of a part of a short segment
    int *first;     // (n_segs + 1) parts before each segment
};

// One part, and of its KV heads the one in work.
struct fwd_part {
    const struct fwd_job *job;
    const struct tsr_segment *seg;
    struct attn_drop drop;
    int low, ld;         // first key's position; leading dimension of panels
    int kv_lo, kv_hi;    // local KV heads
    int row0, row1;      // rows of each head
    int kv, q0, g, n;    // the head in work: its query heads [q0, q0 + g), n = rows of the part
    size_t at;           // rows of the heads before it
    float *scratch;
    float *q, *o, *m, *l;     // of the head in work: (n, ld) twice, (n), (n, 16)
    float *keys, *values, *s; // (D, ATTN_KEYS), (ATTN_KEYS, ld), one tile of scores
};

static size_t row_floats(int ld) {
    return 2 * (size_t)ld + 17; // q, O, l, m
}

static size_t scratch_floats(const struct fwd_job *j) {
    int ld = attn_padded(j->a->head_dim);
    size_t rows = ((size_t)j->part_rows + 15) / 16 * 16;
    return rows * row_floats(ld) + 2 * ATTN_KEYS * (size_t)ld + ATTN_ROWS * ATTN_KEYS;
}

// Local query heads [*q, *q + n) read local KV head kv; returns n.
static int heads_of(const struct tsr_attn *a, int kv, int *q) {
    int lo = attn_max((a->kv0 + kv) * a->group, a->q0) - a->q0;
    int hi = attn_min((a->kv0 + kv + 1) * a->group, a->q0 + a->nq) - a->q0;
    *q = lo;
    return attn_max(hi - lo, 0);
}

// Takes KV head kv into work; its rows stand in scratch behind those of the heads before it.
static void set_head(struct fwd_part *p, int kv) {
    const struct tsr_attn *a = p->job->a;
    size_t ld = (size_t)p->ld, rows = ((size_t)p->job->part_rows + 15) / 16 * 16;
    size_t at = kv == p->kv_lo ? 0 : p->at + (size_t)p->n;
    p->at = at;
    p->kv = kv;
    p->g = heads_of(a, kv, &p->q0);
    p->n = attn_min(p->row1, p->seg->length * p->g) - p->row0;
    float *l = p->scratch + 2 * rows * ld, *m = l + rows * 16;
    p->q = p->scratch + at * ld;
    p->o = p->scratch + (rows + at) * ld;
    p->l = l + at * 16;
    p->m = m + at;
    p->keys = m + rows;
    p->values = p->keys + ATTN_KEYS * ld;
    p->s = p->values + ATTN_KEYS * ld;
}

static int position_of(const struct fwd_part *p, int row) {
    return p->seg->position + row / p->g;
}

static void load_rows(struct fwd_part *p) {
    const struct tsr_attn *a = p->job->a;
    for (int i = 0; i < p->n; i++) {
        int row = p->row0 + i;
        const float *src = p->job->q + (ptrdiff_t)(p->seg->start + row / p->g) * a->ldq +
                           (ptrdiff_t)(p->q0 + row % p->g) * a->head_dim;
        for (int d = 0; d < a->head_dim; d += 16)
            v16_store(p->q + (ptrdiff_t)i * p->ld + d,
                      v16_load_tail(src + d, a->head_dim - d, 0.0f));
        p->m[i] = -INFINITY;
        v16_store(p->l + 16 * i, v16_zero());
    }
    memset(p->o, 0, (size_t)p->n * (size_t)p->ld * sizeof(float));
}

// The rows of a block of keys that the part reads, and of the block that is read next.
struct fwd_keys {
    int base, j0, j1;
    ptrdiff_t row[ATTN_KEYS], next[ATTN_KEYS];
};

static void find_keys(const struct fwd_part *p, struct fwd_keys *b, int block, int pos0,
                      int pos1) {
    int window = p->job->a->window, n0, n1, unused;
    b->base = block * ATTN_KEYS;
    attn_seen(pos0, p->low, window, b->base, &b->j0, &unused);
    attn_seen(pos1, p->low, window, b->base, &unused, &b->j1);
    TSR_FN(tsr_attn_key_rows)(b->row, p->seg, b->base, b->j0, b->j1);
    memcpy(b->next, b->row, sizeof b->next);
    attn_seen(pos0, p->low, window, b->base + ATTN_KEYS, &n0, &unused);
    attn_seen(pos1, p->low, window, b->base + ATTN_KEYS, &unused, &n1);
    TSR_FN(tsr_attn_key_rows)(b->next, p->seg, b->base + ATTN_KEYS, n0, n1);
}

// Packs the block's keys and values of the head in work.
static void load_keys(struct fwd_part *p, const struct fwd_keys *b) {
    const struct tsr_attn *a = p->job->a;
    const struct tsr_kv_cache *cache = p->seg->cache;
    ptrdiff_t head = (ptrdiff_t)p->kv * a->head_dim;
    struct attn_head k = {p->job->k, a->ldk}, v = {p->job->v, a->ldv};
    if (cache != NULL) {
        ptrdiff_t ld = (ptrdiff_t)a->nkv * a->head_dim;
        k = (struct attn_head){cache->k, ld};
        v = (struct attn_head){cache->v, ld};
    }
    k.p += head;
    v.p += head;
    TSR_FN(tsr_attn_pack_t)(p->keys, k, b->row, b->next, b->j0, b->j1, a->head_dim);
    TSR_FN(tsr_attn_pack)(p->values, v, b->row, b->next, b->j0, b->j1, a->head_dim);
}

// s = s scale where the row sees the key, else -inf; returns the largest.
V16_FN float scale_row(float *s, float scale, int lo, int hi) {
    v16 most = v16_set1(-INFINITY);
    for (int c = lo / 16 * 16; c < hi; c += 16) {
        v16 x = v16_mul(v16_load(s + c), v16_set1(scale));
        if (c < lo || c + 16 > hi) {
            v16m in = v16m_and(v16m_first(attn_min(hi - c, 16)),
                               v16m_not(v16m_first(attn_max(lo - c, 0))));
            x = v16_select(in, x, v16_set1(-INFINITY));
        }
        v16_store(s + c, x);
        most = v16_max(most, x);
    }
    return v16_hmax(most);
}

// s becomes p = e^(s - m), +0 for keys not seen, and is added to l, which is first scaled.
V16_FN void exp_row(float *s, float *l, float m, float alpha, int lo, int hi) {
    v16 sum = v16_mul(v16_load(l), v16_set1(alpha));
    for (int c = lo / 16 * 16; c < hi; c += 16) {
        v16 x = v16_exp(v16_sub(v16_load(s + c), v16_set1(m)));
        v16_store(s + c, x);
        sum = v16_add(sum, x);
    }
    v16_store(l, sum);
}

static void drop_row(const struct fwd_part *p, float *s, int base, int row) {
    v16m keep[ATTN_KEYS / 16];
    v16 divisor = v16_set1(p->drop.divisor);
    attn_kept(keep, &p->drop, base, position_of(p, row), p->job->a->q0 + p->q0 + row % p->g);
    for (int c = 0; c < ATTN_KEYS / 16; c++)
        v16_store(s + 16 * c, attn_dropped(keep[c], v16_load(s + 16 * c), divisor));
}

// The softmax of one tile: p->s becomes the weights; alpha: what scales the rows' O.
static void soften(struct fwd_part *p, int i, int mr, int base, const int *lo, const int *hi,
                   float alpha[16]) {
    float m[16] = {0}, old[16] = {0};
    for (int r = 0; r < mr; r++) {
        m[r] = old[r] = p->m[i + r];
        if (lo[r] < hi[r]) {
            float most = scale_row(p->s + r * ATTN_KEYS, p->job->a->scale, lo[r], hi[r]);
            m[r] = most > old[r] ? most : old[r];
        }
    }
    v16_storeu(alpha, v16_exp(v16_sub(v16_loadu(old), v16_loadu(m))));
    for (int r = 0; r < mr; r++) {
        float *s = p->s + r * ATTN_KEYS;
        if (lo[r] >= hi[r]) {
            alpha[r] = 1.0f;
            continue;
        }
        exp_row(s, p->l + 16 * (i + r), m[r], alpha[r], lo[r], hi[r]);
        p->m[i + r] = m[r];
        if (p->drop.on)
            drop_row(p, s, base, p->row0 + i + r);
    }
}

// Rows [i, i + mr) of the part against the packed block.
static void tile_block(struct fwd_part *p, int i, int mr, int base) {
    const struct tsr_attn *a = p->job->a;
    int lo[ATTN_ROWS], hi[ATTN_ROWS];
    float alpha[16];
    for (int r = 0; r < mr; r++)
        attn_seen(position_of(p, p->row0 + i + r), p->low, a->window, base, &lo[r], &hi[r]);
    int c0 = lo[0] / 16, c1 = (hi[mr - 1] + 15) / 16;
    if (c0 >= c1)
        return;
    TSR_FN(tsr_attn_scores)
    (p->s, p->q + (ptrdiff_t)i * p->ld, p->ld, p->keys, a->head_dim, mr, c0, c1);
    soften(p, i, mr, base, lo, hi, alpha);
    TSR_FN(tsr_attn_product)
    (&(struct attn_product){.c = p->o + (ptrdiff_t)i * p->ld,
                            .ldc = p->ld,
                            .alpha = alpha,
                            .a = p->s,
                            .a_r = ATTN_KEYS,
                            .a_k = 1,
                            .b = p->values,
                            .ldb = p->ld,
                            .lo = lo,
                            .hi = hi,
                            .rows = mr,
                            .n = p->ld});
}

static void store_rows(const struct fwd_part *p) {
    const struct tsr_attn *a = p->job->a;
    for (int i = 0; i < p->n; i++) {
        int row = p->row0 + i, token = p->seg->start + row / p->g, head = p->q0 + row % p->g;
        float sum = v16_hsum(v16_load(p->l + 16 * i));
        float *o = p->job->o + (ptrdiff_t)token * a->ldo + (ptrdiff_t)head * a->head_dim;
        const float *from = p->o + (ptrdiff_t)i * p->ld;
        for (int d = 0; d < a->head_dim; d += 16)
            v16_store_tail(o + d, a->head_dim - d, v16_div(v16_load(from + d), v16_set1(sum)));
        p->l[16 * i] = sum;
    }
    if (p->job->lse == NULL)
        return;
    for (int i = 0; i < p->n; i += 16) {
        float sum[16], lse[16];
        for (int r = 0; r < 16; r++)
            sum[r] = i + r < p->n ? p->l[16 * (i + r)] : 1.0f;
        v16_storeu(lse, v16_log(v16_loadu(sum)));
        for (int r = 0; r < 16 && i + r < p->n; r++) {
            int row = p->row0 + i + r, token = p->seg->start + row / p->g;
            p->job->lse[(ptrdiff_t)(p->q0 + row % p->g) * a->n_tokens + token] =
                p->m[i + r] + lse[r];
        }
    }
}

// A segment whose parts hold several KV heads.
static bool is_short(const struct fwd_job *j, const struct tsr_segment *s) {
    return (int64_t)s->length * attn_min(j->a->group, j->a->nq) <= LEAST_ROWS;
}

// Parts of one KV head of a segment that isn't short.
static int parts_of_head(const struct fwd_job *j, const struct tsr_segment *s, int kv) {
    int q;
    int64_t rows = (int64_t)s->length * heads_of(j->a, kv, &q);
    return (int)((rows + j->part_rows - 1) / j->part_rows);
}

static int parts_of(const struct fwd_job *j, const struct tsr_segment *s) {
    int n = 0;
    if (s->length == 0)
        return 0;
    if (is_short(j, s))
        return (j->a->nkv + j->part_heads - 1) / j->part_heads;
    for (int kv = 0; kv < j->a->nkv; kv++)
        n += parts_of_head(j, s, kv);
    return n;
}

// Part i of the segment p->seg.
static void choose_part(struct fwd_part *p, int i) {
    const struct fwd_job *j = p->job;
    if (is_short(j, p->seg)) {
        p->kv_lo = i * j->part_heads;
        p->kv_hi = attn_min(p->kv_lo + j->part_heads, j->a->nkv);
        p->row0 = 0;
        p->row1 = INT_MAX;
        return;
    }
    for (p->kv_lo = 0; i >= parts_of_head(j, p->seg, p->kv_lo); p->kv_lo++)
        i -= parts_of_head(j, p->seg, p->kv_lo);
    p->kv_hi = p->kv_lo + 1;
    i = parts_of_head(j, p->seg, p->kv_lo) - 1 - i; // the longest rows first
    p->row0 = i * j->part_rows;
    p->row1 = p->row0 + j->part_rows;
}

// The block against all rows of the part that read it.
static void run_block(struct fwd_part *p, const struct fwd_keys *b) {
    for (int kv = p->kv_lo; kv < p->kv_hi; kv++) {
        set_head(p, kv);
        if (p->n == 0)
            continue;
        load_keys(p, b);
        for (int i = 0, mr; i < p->n; i += mr) {
            mr = attn_tile_rows(p->n - i);
            tile_block(p, i, mr, b->base);
        }
    }
}

static void run_part(void *arg, int part, int thread) {
    const struct fwd_job *j = arg;
    int s = attn_owner(j->first, j->a->n_segs, part);
    struct fwd_part p = {.job = j, .seg = &j->a->segs[s], .ld = attn_padded(j->a->head_dim)};
    p.low = attn_low(p.seg);
    p.drop = attn_drop_of(&j->a->drop, p.seg->sequence);
    p.scratch = tsr_pool_scratch(j->pool, thread, scratch_floats(j) * sizeof(float));
    choose_part(&p, part - j->first[s]);
    int pos0 = INT_MAX, pos1 = -1;
    for (int kv = p.kv_lo; kv < p.kv_hi; kv++) {
        set_head(&p, kv);
        load_rows(&p);
        if (p.n > 0) {
            pos0 = position_of(&p, p.row0);
            pos1 = position_of(&p, p.row0 + p.n - 1);
        }
    }
    if (pos1 < 0)
        return; // KV heads without a query head here
    struct fwd_keys keys = {0};
    for (int b = attn_first_block(pos0, p.low, j->a->window); b <= pos1 / ATTN_KEYS; b++) {
        find_keys(&p, &keys, b, pos0, pos1);
        run_block(&p, &keys);
    }
    for (int kv = p.kv_lo; kv < p.kv_hi; kv++) {
        set_head(&p, kv);
        store_rows(&p);
    }
}

// Parts as large as pays while there are enough of them for the threads.
static void choose_part_size(struct fwd_job *j) {
    int64_t rows = 0, heads = 0, threads = tsr_pool_threads(j->pool);
    for (int s = 0; s < j->a->n_segs; s++) {
        rows += (int64_t)j->a->segs[s].length * j->a->nq;
        heads += is_short(j, &j->a->segs[s]) ? j->a->nkv : 0;
    }
    int64_t even = rows / (PARTS_PER_THREAD * threads) / ATTN_ROWS * ATTN_ROWS;
    j->part_rows = attn_clamp(even, LEAST_ROWS, PART_ROWS);
    j->part_heads = attn_clamp(heads / (WALKS_PER_THREAD * threads), 1, PART_ROWS / LEAST_ROWS);
    j->part_rows = attn_max(j->part_rows, j->part_heads * LEAST_ROWS);
}

int TSR_FN(tsr_attention)(struct tsr_ctx *ctx, const struct tsr_attn *a, tsr_elem *o, float *lse,
                          const tsr_elem *q, const tsr_elem *k, const tsr_elem *v) {
    TSR_ASSERT(ctx->dtype == TSR_DT_F32 && a->head_dim > 0 && a->group > 0);
    struct tsr_pool *pool = ctx->stream;
    struct fwd_job j = {.a = a, .o = o, .lse = lse, .q = q, .k = k, .v = v, .pool = pool};
    choose_part_size(&j);
    j.first = tsr_pool_shared(pool, ((size_t)a->n_segs + 1) * sizeof *j.first);
    bool ok = j.first != NULL;
    for (int t = 0; t < tsr_pool_threads(pool); t++)
        ok = ok && tsr_pool_scratch(pool, t, scratch_floats(&j) * sizeof(float)) != NULL;
    if (!ok)
        return tsr_fail(TSR_ENOMEM, "attention: no memory for scratch of %zu bytes a thread",
                        scratch_floats(&j) * sizeof(float));
    j.first[0] = 0;
    for (int s = 0; s < a->n_segs; s++)
        j.first[s + 1] = j.first[s] + parts_of(&j, &a->segs[s]);
    tsr_pool_run(pool, j.first[a->n_segs], run_part, &j);
    return 0;
}

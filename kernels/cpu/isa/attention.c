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
#include "kernels/cpu/isa/attention_fwd.h"
#include "kernels/cpu/isa/vmath.h"

enum {
    PART_ROWS = 264,     // most rows of a part: their O and q stay in the second-level cache
    LEAST_ROWS = 24,     // fewer don't pay for packing the keys
    PARTS_PER_THREAD = 4 // enough for threads to finish together
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

static void find_keys(const struct fwd_part *p, struct fwd_keys *b, int block, int pos0, int pos1) {
    int window = p->job->a->window, n0, n1, unused;
    b->base = block * ATTN_KEYS;
    attn_seen(pos0, p->low, window, b->base, &b->j0, &unused);
    attn_seen(pos1, p->low, window, b->base, &unused, &b->j1);
    attn_seen(pos0, p->low, window, b->base + ATTN_KEYS, &n0, &unused);
    attn_seen(pos1, p->low, window, b->base + ATTN_KEYS, &unused, &n1);
    TSR_FN(tsr_attn_key_rows)(b->row, p->seg, b->base, b->j0, b->j1);
    memcpy(b->next, b->row, sizeof b->next);
    TSR_FN(tsr_attn_key_rows)(b->next, p->seg, b->base + ATTN_KEYS, n0, n1);
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

// The block against all rows of the part.
static void run_block(struct fwd_part *p, const struct fwd_keys *b) {
    for (int kv = p->kv_lo; kv < p->kv_hi; kv++) {
        set_head(p, kv);
        if (p->n > 0)
            TSR_FN(tsr_attn_block)(p, b, is_short(p->job, p->seg));
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
            pos0 = attn_position(&p, p.row0);
            pos1 = attn_position(&p, p.row0 + p.n - 1);
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
    int64_t rows = 0, n_short = 0, threads = tsr_pool_threads(j->pool);
    for (int s = 0; s < j->a->n_segs; s++) {
        rows += (int64_t)j->a->segs[s].length * j->a->nq;
        n_short += is_short(j, &j->a->segs[s]);
    }
    int64_t even = rows / (PARTS_PER_THREAD * threads) / ATTN_ROWS * ATTN_ROWS;
    j->part_rows = attn_clamp(even, LEAST_ROWS, PART_ROWS);
    int64_t walks = n_short < threads ? threads : 2 * threads;
    j->part_heads =
        attn_clamp((n_short * j->a->nkv + walks - 1) / walks, 1, PART_ROWS / LEAST_ROWS);
    j->part_rows = attn_max(j->part_rows, j->part_heads * LEAST_ROWS);
}

int TSR_FN(tsr_attention)(struct tsr_ctx *ctx, const struct tsr_attn *a, tsr_elem *o, float *lse,
                          const tsr_elem *q, const tsr_elem *k, const tsr_elem *v) {
    TSR_ASSERT(tsr_cpu_can(ctx) && a->head_dim > 0 && a->group > 0);
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

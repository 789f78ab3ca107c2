// The arithmetic of attention's forward: one block of keys against the rows of one head. The
// formulas stand in attention.c.
#include "kernels/cpu/isa/attention_fwd.h"
#include "kernels/cpu/isa/vmath.h"

enum { LEAST_RUN = 8 }; // neighbouring rows of values that pay for reading them in place

static struct attn_head head_of(const struct fwd_part *p, bool values) {
    const struct tsr_attn *a = p->job->a;
    const struct tsr_kv_cache *cache = p->seg->cache;
    struct attn_head h =
        values ? (struct attn_head){p->job->v, a->ldv} : (struct attn_head){p->job->k, a->ldk};
    if (cache != NULL)
        h = (struct attn_head){values ? cache->v : cache->k, (ptrdiff_t)a->nkv * a->head_dim};
    h.p += (ptrdiff_t)p->kv * a->head_dim;
    return h;
}

// Few rows read values where they lie, when runs of them are long enough.
static bool values_in_place(const struct fwd_part *p) {
    const struct tsr_kv_cache *cache = p->seg->cache;
    return p->n <= 2 * ATTN_ROWS && p->job->a->head_dim % 16 == 0 &&
           (cache == NULL || cache->block_tokens >= LEAST_RUN);
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
    attn_kept(keep, &p->drop, base, attn_position(p, row), p->job->a->q0 + p->q0 + row % p->g);
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

// O(r,:) = alpha[r] O(r,:) + chain of the tile's weights and values, rows r from i on.
static void add_values(struct fwd_part *p, const struct fwd_keys *b, int i, int mr,
                       const float *alpha, const int *lo, const int *hi) {
    struct attn_product g = {.c = p->o + (ptrdiff_t)i * p->ld,
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
                             .n = p->ld};
    if (!values_in_place(p)) {
        TSR_FN(tsr_attn_product)(&g);
        return;
    }
    struct attn_head v = head_of(p, true);
    int run_lo[ATTN_ROWS], run_hi[ATTN_ROWS];
    g.ldb = v.ld;
    g.lo = run_lo;
    g.hi = run_hi;
    for (int j = b->j0, end; j < b->j1; j = end) { // runs of neighbouring rows, chains go on
        for (end = j + 1; end < b->j1 && b->row[end] == b->row[end - 1] + 1;)
            end++;
        for (int r = 0; r < mr; r++) {
            run_lo[r] = attn_clamp(lo[r], j, end) - j;
            run_hi[r] = attn_clamp(hi[r], j, end) - j;
        }
        g.a = p->s + j;
        g.b = v.p + b->row[j] * v.ld;
        TSR_FN(tsr_attn_product)(&g);
        g.alpha = NULL;
    }
}

// Rows [i, i + mr) of the head in work against the block, whose keys are packed.
static void tile_block(struct fwd_part *p, const struct fwd_keys *b, int i, int mr) {
    const struct tsr_attn *a = p->job->a;
    int lo[ATTN_ROWS], hi[ATTN_ROWS];
    float alpha[16];
    for (int r = 0; r < mr; r++)
        attn_seen(attn_position(p, p->row0 + i + r), p->low, a->window, b->base, &lo[r], &hi[r]);
    int c0 = lo[0] / 16, c1 = (hi[mr - 1] + 15) / 16;
    if (c0 >= c1)
        return;
    TSR_FN(tsr_attn_scores)
    (p->s, p->q + (ptrdiff_t)i * p->ld, p->ld, p->keys, a->head_dim, mr, c0, c1);
    soften(p, i, mr, b->base, lo, hi, alpha);
    add_values(p, b, i, mr, alpha, lo, hi);
}

void TSR_FN(tsr_attn_block)(struct fwd_part *p, const struct fwd_keys *b, bool few_rows) {
    int dim = p->job->a->head_dim;
    struct attn_head k = head_of(p, false), v = head_of(p, true);
    struct attn_ahead ahead = {k, v, b->next};
    TSR_FN(tsr_attn_pack_t)(p->keys, k, b->row, few_rows ? &ahead : NULL, b->j0, b->j1, dim);
    if (!values_in_place(p))
        TSR_FN(tsr_attn_pack)(p->values, v, b->row, b->j0, b->j1, dim);
    for (int i = 0, mr; i < p->n; i += mr) {
        mr = attn_tile_rows(p->n - i);
        tile_block(p, b, i, mr);
    }
}

// Packing of key blocks and the register tiles of attention. See attention_tile.h.
#include "kernels/cpu/isa/attention_tile.h"

// Virtual vectors across a tile: with ATTN_ROWS rows the accumulators fill the registers.
#if defined(TSR_ISA_AVX512)
enum { TILE_VECS = 4 };
#else
enum { TILE_VECS = 1 };
#endif

void TSR_FN(tsr_attn_key_rows)(ptrdiff_t *row, const struct tsr_segment *s, int base, int j0,
                               int j1) {
    const struct tsr_kv_cache *cache = s->cache;
    if (cache == NULL) {
        for (int j = j0; j < j1; j++)
            row[j] = (ptrdiff_t)s->start + (base - s->position) + j;
        return;
    }
    int size = cache->block_tokens;
    int block = (base + j0) / size, at = (base + j0) % size;
    for (int j = j0; j < j1; j++) {
        row[j] = (ptrdiff_t)cache->blocks[block] * size + at;
        if (++at == size) {
            at = 0;
            block++;
        }
    }
}

void TSR_FN(tsr_attn_pack_t)(float *t, struct attn_head h, const ptrdiff_t *row,
                             const struct attn_ahead *ahead, int j0, int j1, int head_dim) {
    for (int g = j0 / 16 * 16; g < j1; g += 16) {
        int lo = attn_max(j0 - g, 0), hi = attn_min(j1 - g, 16);
        for (int d = 0; d < head_dim; d += 16) {
            v16 r[16];
            for (int i = 0; i < 16; i++)
                r[i] = i >= lo && i < hi
                           ? v16_load_tail(h.p + row[g + i] * h.ld + d, head_dim - d, 0.0f)
                           : v16_zero();
            for (int i = lo; i < hi && ahead != NULL; i++) { // into the second-level cache
                __builtin_prefetch(ahead->k.p + ahead->row[g + i] * ahead->k.ld + d, 0, 2);
                __builtin_prefetch(ahead->v.p + ahead->row[g + i] * ahead->v.ld + d, 0, 2);
            }
            v16_transpose(r);
            int n = attn_min(16, head_dim - d);
            for (int i = 0; i < n; i++)
                v16_store(t + (ptrdiff_t)(d + i) * ATTN_KEYS + g, r[i]);
        }
    }
}

void TSR_FN(tsr_attn_pack)(float *panel, struct attn_head h, const ptrdiff_t *row, int j0, int j1,
                           int head_dim) {
    int ld = attn_padded(head_dim);
    for (int j = j0; j < j1; j++) {
        const float *src = h.p + row[j] * h.ld;
        for (int d = 0; d < head_dim; d += 16)
            v16_store(panel + (ptrdiff_t)j * ld + d, v16_load_tail(src + d, head_dim - d, 0.0f));
    }
}

// Term k of a tile. masked: only for rows whose range has it.
V16_FN void step(const int mr, const int nv, const bool masked, v16 acc[ATTN_ROWS][TILE_VECS],
                 const struct attn_product *p, int r0, int v0, int k) {
    const float *a = p->a + r0 * p->a_r + k * p->a_k, *b = p->b + k * p->ldb + 16 * v0;
    v16 x[TILE_VECS];
#pragma GCC unroll 4
    for (int v = 0; v < nv; v++)
        x[v] = v16_loadu(b + 16 * v);
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
        if (masked && (k < p->lo[r0 + r] || k >= p->hi[r0 + r]))
            continue;
        v16 y = v16_set1(a[r * p->a_r]);
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            acc[r][v] = v16_fma(y, x[v], acc[r][v]);
    }
}

// Rows [r0, r0 + mr) and virtual vectors [v0, v0 + nv) of a product. Its rows share the terms
// [k0, k1); before and after, each row has its own.
V16_FN void tile(const int mr, const int nv, const struct attn_product *p, int r0, int v0) {
    v16 acc[ATTN_ROWS][TILE_VECS];
    float *c = p->c + r0 * p->ldc + 16 * v0;
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
        v16 alpha = v16_set1(p->alpha == NULL ? 1.0f : p->alpha[r0 + r]);
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            acc[r][v] = p->fresh ? v16_zero() : v16_mul(v16_load(c + r * p->ldc + 16 * v), alpha);
    }
    int first = p->lo[r0], last = p->hi[r0 + mr - 1], k0 = p->lo[r0 + mr - 1], k1 = p->hi[r0];
    if (k0 >= k1)
        k0 = k1 = last;
    for (int k = first; k < k0; k++)
        step(mr, nv, true, acc, p, r0, v0, k);
    for (int k = k0; k < k1; k++)
        step(mr, nv, false, acc, p, r0, v0, k);
    for (int k = k1; k < last; k++)
        step(mr, nv, true, acc, p, r0, v0, k);
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            v16_store(c + r * p->ldc + 16 * v, acc[r][v]);
    }
}

typedef void tile_fn(const struct attn_product *p, int r0, int v0);

#define TILE_FN(mr, nv)                                                                            \
    static void tile_##mr##x##nv(const struct attn_product *p, int r0, int v0) {                   \
        tile(mr, nv, p, r0, v0);                                                                   \
    }
#define TILE_FNS(nv) TILE_FN(1, nv) TILE_FN(2, nv) TILE_FN(4, nv) TILE_FN(6, nv)
#define TILE_ROW(nv)                                                                               \
    { NULL, tile_1x##nv, tile_2x##nv, NULL, tile_4x##nv, NULL, tile_6x##nv }

TILE_FNS(1)
#if defined(TSR_ISA_AVX512)
TILE_FNS(2)
TILE_FNS(3)
TILE_FNS(4)
static tile_fn *const tiles[TILE_VECS][ATTN_ROWS + 1] = {TILE_ROW(1), TILE_ROW(2), TILE_ROW(3),
                                                         TILE_ROW(4)};
#else
static tile_fn *const tiles[TILE_VECS][ATTN_ROWS + 1] = {TILE_ROW(1)};
#endif

// Every column, in tiles of nearly equal width.
void TSR_FN(tsr_attn_product)(const struct attn_product *p) {
    int vecs = p->n / 16, n_tiles = (vecs + TILE_VECS - 1) / TILE_VECS;
    for (int r = 0, mr; r < p->rows; r += mr) {
        mr = attn_tile_rows(p->rows - r);
        for (int v = 0, nv, left = n_tiles; v < vecs; v += nv, left--) {
            nv = (vecs - v + left - 1) / left;
            tiles[nv - 1][mr](p, r, v);
        }
    }
}

void TSR_FN(tsr_attn_scores)(float *s, const float *x, ptrdiff_t ldx, const float *t, int head_dim,
                             int rows, int c0, int c1) {
    static const int none[ATTN_ROWS];
    const int all[ATTN_ROWS] = {head_dim, head_dim, head_dim, head_dim, head_dim, head_dim};
    TSR_FN(tsr_attn_product)
    (&(struct attn_product){.c = s + 16 * c0,
                            .ldc = ATTN_KEYS,
                            .fresh = true,
                            .a = x,
                            .a_r = ldx,
                            .a_k = 1,
                            .b = t + 16 * c0,
                            .ldb = ATTN_KEYS,
                            .lo = none,
                            .hi = all,
                            .rows = rows,
                            .n = 16 * (c1 - c0)});
}

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
                             const ptrdiff_t *next, int j0, int j1, int head_dim) {
    for (int g = j0 / 16 * 16; g < j1; g += 16) {
        int lo = attn_max(j0 - g, 0), hi = attn_min(j1 - g, 16);
        for (int d = 0; d < head_dim; d += 16) {
            v16 r[16];
            for (int i = 0; i < 16; i++) {
                bool in = i >= lo && i < hi;
                if (in && next != NULL)
                    __builtin_prefetch(h.p + next[g + i] * h.ld + d);
                r[i] = in ? v16_load_tail(h.p + row[g + i] * h.ld + d, head_dim - d, 0.0f)
                          : v16_zero();
            }
            v16_transpose(r);
            int n = attn_min(16, head_dim - d);
            for (int i = 0; i < n; i++)
                v16_store(t + (ptrdiff_t)(d + i) * ATTN_KEYS + g, r[i]);
        }
    }
}

void TSR_FN(tsr_attn_pack)(float *panel, struct attn_head h, const ptrdiff_t *row,
                           const ptrdiff_t *next, int j0, int j1, int head_dim) {
    int ld = attn_padded(head_dim);
    for (int j = j0; j < j1; j++) {
        const float *src = h.p + row[j] * h.ld;
        for (int d = 0; d < head_dim; d += 16) {
            if (next != NULL)
                __builtin_prefetch(h.p + next[j] * h.ld + d);
            v16_store(panel + (ptrdiff_t)j * ld + d, v16_load_tail(src + d, head_dim - d, 0.0f));
        }
    }
}

// n terms of a tile of mr rows and nv virtual vectors; alpha NULL: C starts from +0.
V16_FN void tile(const int mr, const int nv, float *c, ptrdiff_t ldc, const float *alpha,
                 const float *a, ptrdiff_t a_r, ptrdiff_t a_k, const float *b, ptrdiff_t ldb,
                 int n) {
    v16 acc[ATTN_ROWS][TILE_VECS];
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            acc[r][v] = alpha == NULL ? v16_zero()
                                      : v16_mul(v16_load(c + r * ldc + 16 * v), v16_set1(alpha[r]));
    }
    for (int k = 0; k < n; k++) {
        v16 x[TILE_VECS];
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            x[v] = v16_load(b + 16 * v);
#pragma GCC unroll 6
        for (int r = 0; r < mr; r++) {
            v16 y = v16_set1(a[r * a_r]);
#pragma GCC unroll 4
            for (int v = 0; v < nv; v++)
                acc[r][v] = v16_fma(y, x[v], acc[r][v]);
        }
        a += a_k;
        b += ldb;
    }
#pragma GCC unroll 6
    for (int r = 0; r < mr; r++) {
#pragma GCC unroll 4
        for (int v = 0; v < nv; v++)
            v16_store(c + r * ldc + 16 * v, acc[r][v]);
    }
}

typedef void tile_fn(float *c, ptrdiff_t ldc, const float *alpha, const float *a, ptrdiff_t a_r,
                     ptrdiff_t a_k, const float *b, ptrdiff_t ldb, int n);

#define TILE_FN(mr, nv)                                                                            \
    static void tile_##mr##x##nv(float *c, ptrdiff_t ldc, const float *alpha, const float *a,      \
                                 ptrdiff_t a_r, ptrdiff_t a_k, const float *b, ptrdiff_t ldb,      \
                                 int n) {                                                          \
        tile(mr, nv, c, ldc, alpha, a, a_r, a_k, b, ldb, n);                                       \
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

// How many virtual vectors the next tile takes when n are left: nearly equal tiles.
static int tile_vecs(int n) {
    int n_tiles = (n + TILE_VECS - 1) / TILE_VECS;
    return (n + n_tiles - 1) / n_tiles;
}

// Rows [r, r + mr) of a product, terms [k0, k1), all columns.
static void rows_product(const struct attn_product *p, int r, int mr, const float *alpha, int k0,
                         int k1) {
    const float *a = p->a + r * p->a_r + k0 * p->a_k;
    for (int v = 0, left = p->n / 16; left > 0;) {
        int nv = tile_vecs(left);
        tiles[nv - 1][mr](p->c + r * p->ldc + 16 * v, p->ldc, alpha, a, p->a_r, p->a_k,
                          p->b + k0 * p->ldb + 16 * v, p->ldb, attn_max(k1 - k0, 0));
        v += nv;
        left -= nv;
    }
}

// The rows of a tile share the terms [max lo, min hi); what a row has before and after those is
// done for it alone, so that no term outside its range is ever multiplied.
void TSR_FN(tsr_attn_product)(const struct attn_product *p) {
    static const float ones[ATTN_ROWS] = {1, 1, 1, 1, 1, 1};
    for (int r = 0, mr; r < p->rows; r += mr) {
        mr = attn_tile_rows(p->rows - r);
        const float *alpha = p->alpha != NULL ? p->alpha + r : ones;
        int k0 = p->lo[r + mr - 1], k1 = p->hi[r];
        if (k0 >= k1) {
            for (int i = r; i < r + mr; i++)
                rows_product(p, i, 1, alpha + (i - r), p->lo[i], p->hi[i]);
            continue;
        }
        if (p->lo[r] < k0) {
            for (int i = r; i < r + mr; i++)
                rows_product(p, i, 1, alpha + (i - r), p->lo[i], k0);
            alpha = ones;
        }
        rows_product(p, r, mr, alpha, k0, k1);
        for (int i = r; i < r + mr; i++) {
            if (p->hi[i] > k1)
                rows_product(p, i, 1, ones, k1, p->hi[i]);
        }
    }
}

void TSR_FN(tsr_attn_scores)(float *s, const float *x, ptrdiff_t ldx, const float *t, int head_dim,
                             int rows, int c0, int c1) {
    for (int r = 0, mr; r < rows; r += mr) {
        mr = attn_tile_rows(rows - r);
        for (int v = c0, nv; v < c1; v += nv) {
            nv = tile_vecs(c1 - v);
            tiles[nv - 1][mr](s + r * ATTN_KEYS + 16 * v, ATTN_KEYS, NULL, x + r * ldx, ldx, 1,
                              t + 16 * v, ATTN_KEYS, head_dim);
        }
    }
}

// Packing: a panel holds, term after term, one value of each of its rows (A) or columns (B), so
// that a tile reads memory from front to back whatever the matrices' strides are.
#include "kernels/cpu/isa/gemm.h"

#define PACK_FN static inline __attribute__((always_inline))

// dst[p ld_dst + r] = src[r ld + p] for r < rows, p < k, by VW x VW transposes. width is VW or MR:
// that many lanes are written; rows from `rows` on read as zero. width and full are constants.
// Meanwhile the next `width` rows are fetched, row after row: memory is quickest in long runs.
PACK_FN void pack_across(float *dst, int ld_dst, const float *src, ptrdiff_t ld, int rows, int k,
                         int width, bool full) {
    const float *next = src + width * ld;
    int next_p = 0;
    for (int p = 0; p < k; p += VW) {
        int n = k - p < VW ? k - p : VW;
        vec r[VW];
        for (int i = 0; i < width * VW; i += LINE) {
            __builtin_prefetch(next + next_p);
            next_p += LINE;
            if (next_p >= k) {
                next_p = 0;
                next += ld;
            }
        }
#pragma GCC unroll 16
        for (int i = 0; i < VW; i++) {
            if (i >= width || (!full && i >= rows))
                r[i] = vec_zero();
            else
                r[i] = n == VW ? vec_load(src + i * ld + p) : vec_load_n(src + i * ld + p, n);
        }
        vec_transpose(r);
#pragma GCC unroll 16
        for (int i = 0; i < VW; i++) {
            if (i >= n)
                break;
            if (width == VW)
                vec_store(dst + (ptrdiff_t)(p + i) * ld_dst, r[i]);
            else
                vec_store_mr(dst + (ptrdiff_t)(p + i) * ld_dst, r[i]);
        }
    }
}

enum { CHUNK = 16 }; // terms that stay in L1 while they are dealt out to panels

// Panels of `width` rows or columns whose values of one term lie side by side in memory: lines
// are read whole, the next chunk's ahead. width is a constant.
PACK_FN void pack_along(float *panels, const float *src, ptrdiff_t ld, int k, ptrdiff_t panel_size,
                        int count, int width) {
    for (int p0 = 0; p0 < k; p0 += CHUNK) {
        int n = k - p0 < CHUNK ? k - p0 : CHUNK;
        for (int p = p0 + CHUNK; p < p0 + 2 * CHUNK; p++) {
            for (int i = 0; i < count; i += LINE)
                __builtin_prefetch(src + p * ld + i);
        }
        for (int i = 0; i < count; i += width) {
            float *d = panels + i / width * panel_size + (ptrdiff_t)p0 * width;
            const float *s = src + p0 * ld + i;
            bool full = count - i >= width;
            for (int p = 0; p < n && full; p++, d += width, s += ld)
                memcpy(d, s, (size_t)width * sizeof *d);
            for (int p = 0; p < n && !full; p++, d += width, s += ld) {
                memset(d, 0, (size_t)width * sizeof *d);
                memcpy(d, s, (size_t)(count - i) * sizeof *d);
            }
        }
    }
}

// The terms of segment s, which begins at term `at`, that lie in [k0, k0 + k).
static struct tsr_range overlap(const struct tsr_gemm_seg *s, ptrdiff_t at, ptrdiff_t k0, int k) {
    struct tsr_range r = {k0 > at ? k0 - at : 0, s->k};
    if (r.hi > k0 + k - at)
        r.hi = k0 + k - at;
    return r;
}

static void pack_a_across(float *panels, const float *src, ptrdiff_t ld, int k,
                          ptrdiff_t panel_size, int rows) {
    for (int i = 0; i < rows; i += MR, panels += panel_size) {
        if (rows - i >= MR)
            pack_across(panels, MR, src + i * ld, ld, MR, k, MR, true);
        else
            pack_across(panels, MR, src + i * ld, ld, rows - i, k, MR, false);
    }
}

static void pack_b_across(float *panels, const float *src, ptrdiff_t ld, int k,
                          ptrdiff_t panel_size, int cols) {
    for (int j = 0; j < cols; j += VW) {
        float *dst = panels + j / NR * panel_size + j % NR;
        if (cols - j >= VW)
            pack_across(dst, NR, src + j * ld, ld, VW, k, VW, true);
        else
            pack_across(dst, NR, src + j * ld, ld, cols - j, k, VW, false);
    }
}

void TSR_FN(tsr_gemm_pack_a)(float *panels, const struct tsr_gemm *g, ptrdiff_t k0, int k, int i,
                             int rows) {
    ptrdiff_t at = 0;
    for (int s = 0; s < g->n_segs && at < k0 + k; at += g->segs[s].k, s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        struct tsr_range r = overlap(seg, at, k0, k);
        if (r.lo >= r.hi)
            continue;
        const float *src = (const float *)seg->a + i * seg->a_i + r.lo * seg->a_p;
        float *dst = panels + (at + r.lo - k0) * MR;
        int n = (int)(r.hi - r.lo);
        if (seg->a_i == 1)
            pack_along(dst, src, seg->a_p, n, (ptrdiff_t)k * MR, rows, MR);
        else
            pack_a_across(dst, src, seg->a_i, n, (ptrdiff_t)k * MR, rows);
    }
}

void TSR_FN(tsr_gemm_pack_b)(float *panels, const struct tsr_gemm *g, ptrdiff_t k0, int k, int j,
                             int cols) {
    ptrdiff_t at = 0;
    for (int s = 0; s < g->n_segs && at < k0 + k; at += g->segs[s].k, s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        struct tsr_range r = overlap(seg, at, k0, k);
        if (r.lo >= r.hi)
            continue;
        const float *src = (const float *)seg->b + r.lo * seg->b_p + j * seg->b_j;
        float *dst = panels + (at + r.lo - k0) * NR;
        int n = (int)(r.hi - r.lo);
        if (seg->b_j == 1)
            pack_along(dst, src, seg->b_p, n, (ptrdiff_t)k * NR, cols, NR);
        else
            pack_b_across(dst, src, seg->b_j, n, (ptrdiff_t)k * NR, cols);
    }
}

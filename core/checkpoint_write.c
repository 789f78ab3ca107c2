// From regions in memory to runs of bytes. All happens in the file's own matrix (its orientation,
// its fused tensors): row by row, what lies side by side there goes out as one run, whoever it
// came from.
#include "core/checkpoint_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"

// A region in the file's matrix.
struct piece {
    int entry; // of the set
    struct tsr_region r;
    const float *data; // canonical, `ld` floats from row to row
    int64_t ld;
    bool transposed; // the file's columns are the canonical rows
};

// An entry's place in its file, and the bytes of that file that are wanted.
struct target {
    struct tsr_checkpoint *c;
    int set, file;
    bool counts;   // elements are counted in one set of each part
    uint64_t base; // of the entry in the file
    uint64_t from, to;
    enum tsr_dtype dtype;
    size_t elem;        // bytes
    int64_t rows, cols; // of the entry
};

// ---- bytes

// n bytes at `offset`, as far as they are wanted.
static int put(const struct target *t, uint64_t offset, const void *data, size_t n) {
    uint64_t lo = offset > t->from ? offset : t->from;
    uint64_t hi = offset + n < t->to ? offset + n : t->to;
    if (lo >= hi)
        return 0;
    if (t->counts)
        t->c->elems_written += (int64_t)((hi - lo) / t->elem);
    return tsr_ckpt_put(t->c, t->set, t->file, lo, (const char *)data + (lo - offset),
                        (size_t)(hi - lo));
}

// Elements of the region `r` of the file's matrix, `ld` of them from row to row at `data`, in the
// file's dtype.
static int put_rows(const struct target *t, struct tsr_region r, const void *data, int64_t ld) {
    const size_t width = (size_t)(r.c1 - r.c0) * t->elem;
    const bool run = r.c1 - r.c0 == t->cols && ld == t->cols;
    for (int64_t i = r.r0; i < r.r1; i += run ? r.r1 - r.r0 : 1) {
        uint64_t offset = t->base + (uint64_t)(i * t->cols + r.c0) * t->elem;
        TSR_TRY(put(t, offset, (const char *)data + (size_t)((i - r.r0) * ld) * t->elem,
                    run ? width * (size_t)(r.r1 - r.r0) : width));
    }
    return 0;
}

// ---- pieces

static struct tsr_region meet(struct tsr_region a, struct tsr_region b) {
    return (struct tsr_region){a.r0 > b.r0 ? a.r0 : b.r0, a.r1 < b.r1 ? a.r1 : b.r1,
                               a.c0 > b.c0 ? a.c0 : b.c0, a.c1 < b.c1 ? a.c1 : b.c1};
}

static bool is_empty(struct tsr_region r) {
    return r.r0 >= r.r1 || r.c0 >= r.c1;
}

// Copies the part `r` of a piece to its place in the block `b`.
static void copy_piece(float *block, struct tsr_region b, const struct piece *p,
                       struct tsr_region r) {
    const int64_t width = b.c1 - b.c0, h = r.r1 - r.r0, w = r.c1 - r.c0;
    float *to = block + (r.r0 - b.r0) * width + (r.c0 - b.c0);
    if (p->transposed) {
        tsr_transpose(to, width, p->data + (r.c0 - p->r.c0) * p->ld + (r.r0 - p->r.r0), p->ld, w,
                      h);
        return;
    }
    const float *from = p->data + (r.r0 - p->r.r0) * p->ld + (r.c0 - p->r.c0);
    for (int64_t k = 0; k < h; k++)
        memcpy(to + k * width, from + k * p->ld, (size_t)w * sizeof *to);
}

// Brings the pieces' parts of one block together and writes it whole, or what there is of it.
static int put_block(const struct target *t, const struct piece *p, int n, struct tsr_region b) {
    struct tsr_checkpoint *c = t->c;
    const int64_t width = b.c1 - b.c0;
    int64_t covered = 0;
    for (int i = 0; i < n; i++) {
        struct tsr_region r = meet(p[i].r, b);
        if (is_empty(r))
            continue;
        copy_piece(c->block, b, &p[i], r);
        covered += tsr_region_elems(r);
    }
    const char *block = (const char *)c->block;
    if (t->dtype != TSR_DT_F32) {
        tsr_dtype_from_f32(t->dtype, c->narrow, c->block, (size_t)tsr_region_elems(b));
        block = (const char *)c->narrow;
    }
    if (covered == tsr_region_elems(b))
        return put_rows(t, b, block, width);
    for (int i = 0; i < n; i++) {
        struct tsr_region r = meet(p[i].r, b);
        size_t at = (size_t)((r.r0 - b.r0) * width + (r.c0 - b.c0)) * t->elem;
        if (!is_empty(r))
            TSR_TRY(put_rows(t, r, block + at, width));
    }
    return 0;
}

// Rows [rows.lo, rows.hi), in which no piece begins or ends.
static int put_band(const struct target *t, const struct piece *p, int n, struct tsr_range rows) {
    const struct tsr_region band = {rows.lo, rows.hi, 0, t->cols};
    const struct piece *only = NULL;
    int n_active = 0;
    for (int i = 0; i < n; i++)
        if (!is_empty(meet(p[i].r, band))) {
            only = &p[i];
            n_active++;
        }
    if (n_active == 0)
        return 0;
    if (n_active == 1 && !only->transposed && t->dtype == TSR_DT_F32) { // from where it lies
        struct tsr_region r = meet(only->r, band);
        return put_rows(t, r, only->data + (r.r0 - only->r.r0) * only->ld, only->ld);
    }
    const int64_t width = t->cols < TSR_CKPT_BLOCK ? t->cols : TSR_CKPT_BLOCK;
    const int64_t height = TSR_CKPT_BLOCK / width;
    for (int64_t i = rows.lo; i < rows.hi; i += height)
        for (int64_t j = 0; j < t->cols; j += width) {
            struct tsr_region b = {i, i + height, j, j + width};
            TSR_TRY(put_block(t, p, n, meet(b, band)));
        }
    return 0;
}

// All pieces of one entry, sorted by their first rows.
static int put_entry(const struct target *t, const struct piece *p, int n) {
    const uint64_t row_bytes = (uint64_t)t->cols * t->elem, n_bytes = (uint64_t)t->rows * row_bytes;
    if (t->from >= t->base + n_bytes || t->to <= t->base)
        return 0;
    uint64_t to = t->to - t->base < n_bytes ? t->to - t->base : n_bytes;
    int64_t i = t->from > t->base ? (int64_t)((t->from - t->base) / row_bytes) : 0;
    const int64_t end = (int64_t)((to - 1) / row_bytes) + 1;
    while (i < end) {
        int64_t next = end; // where a piece begins or ends
        for (int k = 0; k < n && p[k].r.r0 < next; k++) {
            if (p[k].r.r0 > i)
                next = p[k].r.r0;
            else if (p[k].r.r1 > i && p[k].r.r1 < next)
                next = p[k].r.r1;
        }
        TSR_TRY(put_band(t, p, n, (struct tsr_range){i, next}));
        i = next;
    }
    return 0;
}

static int order_of_pieces(const void *a, const void *b) {
    const struct piece *x = a, *y = b;
    if (x->entry != y->entry)
        return x->entry < y->entry ? -1 : 1;
    if (x->r.r0 != y->r.r0)
        return x->r.r0 < y->r.r0 ? -1 : 1;
    return x->r.c0 < y->r.c0 ? -1 : x->r.c0 > y->r.c0;
}

static struct target find_target(struct tsr_checkpoint *c, int set, int entry,
                                 const struct tsr_ckpt_window *w) {
    const struct tsr_ckpt_set *s = &c->sets[set];
    const struct tsr_st_entry *e = &s->entries[entry];
    int k = s->first_file;
    while (e >= c->files[k].entries + c->files[k].n_entries)
        k++;
    return (struct target){.c = c,
                           .set = set,
                           .file = k,
                           .counts = set == c->n_sets - 1 || c->sets[set + 1].part != s->part,
                           .base = c->files[k].header.len + e->begin,
                           .from = w ? w[k].from : 0,
                           .to = w ? w[k].to : UINT64_MAX,
                           .dtype = s->dtype,
                           .elem = tsr_dtype_size(s->dtype),
                           .rows = e->shape[0],
                           .cols = e->ndim == 2 ? e->shape[1] : 1};
}

// Sources of this set's part as pieces; returns how many.
static int find_pieces(const struct tsr_checkpoint *c, const struct tsr_ckpt_set *s,
                       const struct tsr_checkpoint_source *sources, int n, struct piece *pieces) {
    int n_pieces = 0;
    for (int i = 0; i < n; i++) {
        const struct tsr_checkpoint_source *x = &sources[i];
        const struct tsr_place place = s->hf ? tsr_place_hf(x->t) : tsr_place_canonical(x->t);
        if (x->part != s->part || tsr_region_elems(x->region) == 0)
            continue;
        int entry = s->entry_of[x->t - c->opt.table->t];
        if (entry >= 0)
            pieces[n_pieces++] = (struct piece){entry, tsr_place_region(&place, x->t, x->region),
                                                x->data, x->ld, place.transposed};
    }
    if (n_pieces > 1)
        qsort(pieces, (size_t)n_pieces, sizeof *pieces, order_of_pieces);
    return n_pieces;
}

static int write_to_set(struct tsr_checkpoint *c, int set, struct piece *pieces, int n,
                        const struct tsr_ckpt_window *w) {
    for (int i = 0, same; i < n; i += same) {
        for (same = 1; i + same < n && pieces[i + same].entry == pieces[i].entry;)
            same++;
        struct target t = find_target(c, set, pieces[i].entry, w);
        TSR_TRY(put_entry(&t, pieces + i, same));
    }
    return 0;
}

// ---- interface

static void check_source(const struct tsr_checkpoint *c, const struct tsr_checkpoint_source *x) {
    TSR_ASSERT(x->t >= c->opt.table->t && x->t < c->opt.table->t + c->opt.table->n);
    TSR_ASSERT(x->ld >= x->region.c1 - x->region.c0);
}

int tsr_checkpoint_write(struct tsr_checkpoint *c, enum tsr_checkpoint_part part,
                         const struct tsr_tensor *t, struct tsr_region region, const float *data,
                         int64_t ld) {
    const struct tsr_checkpoint_source source = {part, t, region, data, ld};
    struct piece piece;
    check_source(c, &source);
    for (int i = 0; i < c->n_sets; i++) {
        int n = find_pieces(c, &c->sets[i], &source, 1, &piece);
        TSR_TRY(write_to_set(c, i, &piece, n, NULL));
    }
    return 0;
}

// The sources as pieces of each set, and how they are shared.
struct sharing {
    struct piece *pieces[TSR_CKPT_MAX_SETS];
    int n_pieces[TSR_CKPT_MAX_SETS];
    struct tsr_ckpt_shares shares;
    struct tsr_ckpt_window *windows; // (n_files), of one share
};

static int open_sharing(struct sharing *x, const struct tsr_checkpoint *c,
                        const struct tsr_checkpoint_source *sources, int n) {
    *x = (struct sharing){.windows = malloc((size_t)c->n_files * sizeof *x->windows)};
    bool ok = x->windows != NULL;
    for (int i = 0; ok && i < c->n_sets; i++) {
        x->pieces[i] = malloc(((size_t)n + 1) * sizeof **x->pieces);
        ok = x->pieces[i] != NULL;
        if (ok)
            x->n_pieces[i] = find_pieces(c, &c->sets[i], sources, n, x->pieces[i]);
    }
    return ok ? tsr_ckpt_shares_open(&x->shares, c, sources, n)
              : tsr_fail(TSR_ENOMEM, "no memory to write a checkpoint");
}

static void close_sharing(struct sharing *x) {
    for (int i = 0; i < TSR_CKPT_MAX_SETS; i++)
        free(x->pieces[i]);
    free(x->windows);
    tsr_ckpt_shares_close(&x->shares);
}

int tsr_checkpoint_write_shares(struct tsr_checkpoint *c,
                                const struct tsr_checkpoint_source *sources, int n, int n_shares,
                                tsr_share_fn next, void *arg) {
    struct sharing x;
    int share, last = -1;
    for (int i = 0; i < n; i++)
        check_source(c, &sources[i]);
    int rc = open_sharing(&x, c, sources, n);
    while (rc == 0 && (share = next(arg)) < n_shares) {
        if (share < 0) {
            rc = share;
            break;
        }
        TSR_ASSERT(share > last);
        last = share;
        tsr_ckpt_share(&x.shares, c, share, n_shares, x.windows);
        for (int i = 0; rc == 0 && i < c->n_sets; i++)
            rc = write_to_set(c, i, x.pieces[i], x.n_pieces[i], x.windows);
    }
    close_sharing(&x);
    return rc;
}

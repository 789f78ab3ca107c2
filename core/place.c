#include "core/place.h"

#include <inttypes.h>
#include <string.h>
#include "core/error.h"

enum {
    TILE = 32,           // 4 KiB of floats on each side
    BLOCK = 1024 * 1024, // floats of a file block that is transposed at once
};

struct tsr_place tsr_place_hf(const struct tsr_tensor *t) {
    TSR_ASSERT(t->hf_ndim == 2 || (t->hf_ndim == 1 && !t->hf_transposed && t->cols == 1));
    struct tsr_place p = {t->hf_out_rows, t->cols, t->hf_ndim, t->hf_offset, t->hf_transposed};
    if (p.transposed) {
        p.rows = t->cols;
        p.cols = t->hf_out_rows;
    }
    return p;
}

struct tsr_place tsr_place_canonical(const struct tsr_tensor *t) {
    return (struct tsr_place){.rows = t->rows, .cols = t->cols, .ndim = t->hf_ndim};
}

struct tsr_region tsr_place_region(const struct tsr_place *p, const struct tsr_tensor *t,
                                   struct tsr_region r) {
    TSR_ASSERT(0 <= r.r0 && r.r0 <= r.r1 && r.r1 <= t->rows);
    TSR_ASSERT(0 <= r.c0 && r.c0 <= r.c1 && r.c1 <= t->cols);
    if (p->transposed)
        return (struct tsr_region){r.c0, r.c1, p->offset + r.r0, p->offset + r.r1};
    return (struct tsr_region){p->offset + r.r0, p->offset + r.r1, r.c0, r.c1};
}

int tsr_place_check(const struct tsr_place *p, const struct tsr_st_entry *e, const char *path) {
    if (e->dtype != TSR_DT_F32 && e->dtype != TSR_DT_F16 && e->dtype != TSR_DT_BF16)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected dtype F32, F16 or BF16, found %s",
                        path, e->name, tsr_dtype_name(e->dtype));
    const int64_t want[2] = {p->rows, p->cols};
    bool same = e->ndim == p->ndim;
    for (int i = 0; same && i < p->ndim; i++)
        same = e->shape[i] == want[i];
    if (same)
        return 0;
    char expected[64], found[TSR_ST_MAX_DIMS * 22 + 1] = "";
    if (p->ndim == 1)
        snprintf(expected, sizeof expected, "%" PRId64, p->rows);
    else
        snprintf(expected, sizeof expected, "%" PRId64 ", %" PRId64, p->rows, p->cols);
    for (int i = 0; i < e->ndim; i++) {
        size_t at = strlen(found);
        snprintf(found + at, sizeof found - at, "%s%" PRId64, i > 0 ? ", " : "", e->shape[i]);
    }
    return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected shape [%s], found [%s]", path, e->name,
                    expected, found);
}

void tsr_transpose(float *dst, int64_t ld_dst, const float *src, int64_t ld_src, int64_t rows,
                   int64_t cols) {
    for (int64_t i0 = 0; i0 < rows; i0 += TILE)
        for (int64_t j0 = 0; j0 < cols; j0 += TILE) {
            int64_t i1 = i0 + TILE < rows ? i0 + TILE : rows;
            int64_t j1 = j0 + TILE < cols ? j0 + TILE : cols;
            for (int64_t j = j0; j < j1; j++)
                for (int64_t i = i0; i < i1; i++)
                    dst[j * ld_dst + i] = src[i * ld_src + j];
        }
}

// Rows of a transposed file that are read and turned at once.
static int64_t rows_at_once(int64_t width, int64_t n_rows) {
    int64_t step = BLOCK / width < 1 ? 1 : BLOCK / width;
    return step < n_rows ? step : n_rows;
}

uint64_t tsr_place_bytes(const struct tsr_place *p, const struct tsr_tensor *t,
                         const struct tsr_st_entry *e, struct tsr_region r) {
    const struct tsr_region f = tsr_place_region(p, t, r);
    uint64_t n_bytes = 0;
    if (tsr_region_elems(r) == 0)
        return 0;
    const int64_t step = p->transposed ? rows_at_once(f.c1 - f.c0, f.r1 - f.r0) : f.r1 - f.r0;
    for (int64_t i = f.r0; i < f.r1; i += step)
        n_bytes += tsr_st_region_bytes(e, i, i + step < f.r1 ? i + step : f.r1, f.c0, f.c1);
    return n_bytes;
}

int tsr_place_read(const struct tsr_place *p, const struct tsr_tensor *t,
                   const struct tsr_st_file *f, const struct tsr_st_entry *e, struct tsr_region r,
                   float *out) {
    struct tsr_region in_file = tsr_place_region(p, t, r);
    if (tsr_region_elems(r) == 0)
        return 0;
    if (!p->transposed)
        return tsr_st_read_region(f, e, in_file.r0, in_file.r1, in_file.c0, in_file.c1, out);
    const int64_t width = in_file.c1 - in_file.c0, n_in = in_file.r1 - in_file.r0;
    const int64_t step = rows_at_once(width, n_in);
    float *block = malloc((size_t)(step * width) * sizeof *block); // (step, width) of (in, out)
    if (!block)
        return tsr_fail(TSR_ENOMEM, "%s: no memory to read tensor \"%s\"", f->path, e->name);
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < n_in; i += step) {
        int64_t n = step < n_in - i ? step : n_in - i;
        rc = tsr_st_read_region(f, e, in_file.r0 + i, in_file.r0 + i + n, in_file.c0, in_file.c1,
                                block);
        if (rc == 0)
            tsr_transpose(out + i, n_in, block, width, n, width);
    }
    free(block);
    return rc;
}

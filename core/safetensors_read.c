// Reading regions of tensors in large runs, and the header of a file to be written.
#include "core/safetensors.h"

#include <inttypes.h>
#include <jansson.h>
#include <string.h>
#include "core/error.h"

enum {
    SCRATCH = 1 << 20, // bytes
    // A gap between rows up to this many bytes is cheaper to read over than to skip by a call.
    SHORT_GAP = 32 << 10,
};

struct reader {
    const struct tsr_st_file *f;
    enum tsr_dtype dtype;
    size_t elem; // bytes
    char *scratch;
};

static int read_bytes(const struct tsr_st_file *f, void *buf, size_t n_bytes, uint64_t offset) {
    return f->source ? f->source->read(f->source->arg, f, buf, n_bytes, offset)
                     : tsr_pread_all(f->fd, buf, n_bytes, offset, f->path);
}

// n consecutive elements from `offset` in the file; fp32 goes straight to its place.
static int read_run(const struct reader *r, uint64_t offset, size_t n, float *out) {
    if (r->dtype == TSR_DT_F32)
        return read_bytes(r->f, out, n * sizeof *out, offset);
    const size_t at_most = SCRATCH / r->elem;
    while (n > 0) {
        size_t part = n < at_most ? n : at_most;
        TSR_TRY(read_bytes(r->f, r->scratch, part * r->elem, offset));
        tsr_dtype_to_f32(r->dtype, out, r->scratch, part);
        out += part;
        offset += part * r->elem;
        n -= part;
    }
    return 0;
}

// Whether rows are read one by one, or many in one call with what lies between them.
static bool skips_gaps(uint64_t stride, uint64_t row_bytes) {
    return stride > SCRATCH || stride - row_bytes > SHORT_GAP;
}

// Rows of `width` elements that lie `stride` bytes apart, the first at `offset`.
static int read_rows(const struct reader *r, uint64_t offset, uint64_t stride, int64_t n_rows,
                     size_t width, float *out) {
    const size_t row_bytes = width * r->elem;
    if (skips_gaps(stride, row_bytes)) {
        for (int64_t i = 0; i < n_rows; i++)
            TSR_TRY(read_run(r, offset + (uint64_t)i * stride, width, out + (size_t)i * width));
        return 0;
    }
    const int64_t at_most = SCRATCH / (int64_t)stride;
    for (int64_t i = 0; i < n_rows;) {
        int64_t part = n_rows - i < at_most ? n_rows - i : at_most;
        // up to the end of the last row's part, not further: that may be the end of the file
        size_t span = (size_t)(part - 1) * stride + row_bytes;
        TSR_TRY(read_bytes(r->f, r->scratch, span, offset + (uint64_t)i * stride));
        for (int64_t j = 0; j < part; j++)
            tsr_dtype_to_f32(r->dtype, out + (size_t)(i + j) * width,
                             r->scratch + (size_t)j * stride, width);
        i += part;
    }
    return 0;
}

static int check_readable(const struct tsr_st_file *f, const struct tsr_st_entry *e) {
    if (e->dtype != TSR_DT_F32 && e->dtype != TSR_DT_F16 && e->dtype != TSR_DT_BF16)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected dtype F32, F16 or BF16, found %s",
                        f->path, e->name, tsr_dtype_name(e->dtype));
    if (e->ndim != 1 && e->ndim != 2)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected 1 or 2 dimensions, found %d",
                        f->path, e->name, e->ndim);
    return 0;
}

int tsr_st_read_region(const struct tsr_st_file *f, const struct tsr_st_entry *e, int64_t r0,
                       int64_t r1, int64_t c0, int64_t c1, float *out) {
    TSR_TRY(check_readable(f, e));
    const int64_t rows = e->shape[0], cols = e->ndim == 2 ? e->shape[1] : 1;
    TSR_ASSERT(0 <= r0 && r0 <= r1 && r1 <= rows && 0 <= c0 && c0 <= c1 && c1 <= cols);
    if (r0 == r1 || c0 == c1)
        return 0;
    const uint64_t touched = (uint64_t)((r1 - r0) * cols) * tsr_dtype_size(e->dtype);
    struct reader r = {f, e->dtype, tsr_dtype_size(e->dtype),
                       malloc(touched < SCRATCH ? (size_t)touched : SCRATCH)};
    if (!r.scratch)
        return tsr_fail(TSR_ENOMEM, "%s: no memory to read tensor \"%s\"", f->path, e->name);
    uint64_t offset = f->data_offset + e->begin + (uint64_t)(r0 * cols + c0) * r.elem;
    int rc = c1 - c0 == cols
                 ? read_run(&r, offset, (size_t)((r1 - r0) * cols), out)
                 : read_rows(&r, offset, (uint64_t)cols * r.elem, r1 - r0, (size_t)(c1 - c0), out);
    free(r.scratch);
    return rc;
}

uint64_t tsr_st_region_bytes(const struct tsr_st_entry *e, int64_t r0, int64_t r1, int64_t c0,
                             int64_t c1) {
    const uint64_t elem = tsr_dtype_size(e->dtype), row_bytes = (uint64_t)(c1 - c0) * elem;
    const uint64_t n_rows = (uint64_t)(r1 - r0), cols = e->ndim == 2 ? (uint64_t)e->shape[1] : 1;
    const uint64_t stride = cols * elem;
    if (n_rows == 0 || row_bytes == 0)
        return 0;
    if (row_bytes == stride || skips_gaps(stride, row_bytes))
        return n_rows * row_bytes;
    const uint64_t at_once = SCRATCH / stride, n_calls = (n_rows + at_once - 1) / at_once;
    return (n_rows - n_calls) * stride + n_calls * row_bytes;
}

// {"dtype": …, "shape": […], "data_offsets": […]}, or NULL when out of memory.
static json_t *describe(const struct tsr_st_entry *e) {
    json_t *shape = json_array();
    bool ok = shape != NULL;
    for (int i = 0; i < e->ndim; i++)
        ok = ok && json_array_append_new(shape, json_integer(e->shape[i])) == 0;
    if (!ok) {
        json_decref(shape);
        return NULL;
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", tsr_dtype_name(e->dtype), "shape", shape,
                     "data_offsets", (json_int_t)e->begin, (json_int_t)e->end);
}

static int append_padded(struct tsr_buf *out, const char *text) {
    const size_t n = strlen(text), padded = (n + 7) / 8 * 8;
    unsigned char word[8];
    for (int i = 0; i < 8; i++)
        word[i] = (unsigned char)((uint64_t)padded >> (8 * i));
    TSR_TRY(tsr_buf_append(out, word, sizeof word));
    TSR_TRY(tsr_buf_append(out, text, n));
    return tsr_buf_append(out, "       ", padded - n);
}

int tsr_st_header(struct tsr_st_entry *entries, int n, struct tsr_buf *out) {
    uint64_t at = 0;
    json_t *root = json_pack("{s:{s:s}}", "__metadata__", "format", "pt");
    bool ok = root != NULL;
    for (int i = 0; i < n; i++) {
        struct tsr_st_entry *e = &entries[i];
        uint64_t n_bytes = tsr_dtype_size(e->dtype);
        bool overflow = false;
        for (int d = 0; d < e->ndim; d++)
            overflow |= __builtin_mul_overflow(n_bytes, (uint64_t)e->shape[d], &n_bytes);
        e->begin = at;
        overflow |= __builtin_add_overflow(at, n_bytes, &at) || at > INT64_MAX;
        TSR_ASSERT(!overflow && !(ok && json_object_get(root, e->name))); // a table's sizes, names
        e->end = at;
        ok = ok && json_object_set_new(root, e->name, describe(e)) == 0;
    }
    char *text = ok ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!text)
        return tsr_fail(TSR_ENOMEM, "no memory for a safetensors header of %d tensors", n);
    int rc = append_padded(out, text);
    free(text);
    return rc;
}

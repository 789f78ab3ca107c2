// Memory of the CPU backend: pages from the kernel, parallel fills and copies. Every call is done
// when it returns, so sync has nothing to wait for.
#include <stdbool.h>
#include <string.h>
#include "core/error.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/pages.h"
#include "kernels/cpu/stream.h"

enum {
    CHUNK = 1 << 20,     // bytes a thread fills or copies at a time
    STREAM = 64 << 10,   // from here on a move goes past the cache
    POPULATE = 16 << 20, // or gets from the kernel; smaller allocations come page by page
};

struct span_job {
    char *dst;
    const char *src; // NULL: fill with zero
    size_t n_bytes;
    bool stream; // past the cache
};

struct rows_job {
    char *dst;
    const char *src;
    ptrdiff_t dst_step, src_step; // bytes between rows
    size_t row_bytes;
    int rows, rows_per_part;
};

static void populate_part(void *arg, int part, int thread) {
    (void)thread;
    const struct span_job *j = arg;
    size_t lo = (size_t)part * POPULATE;
    tsr_pages_populate(j->dst + lo, j->n_bytes - lo < POPULATE ? j->n_bytes - lo : POPULATE);
}

int tsr_cpu_alloc(struct tsr_ctx *ctx, size_t n_bytes, void **out) {
    bool dry = tsr_pool_is_dry(ctx->stream);
    *out = dry ? tsr_pages_reserve(n_bytes) : tsr_pages_map(n_bytes);
    if (*out == NULL)
        return tsr_fail(TSR_ENOMEM, "cannot allocate %zu bytes of memory", n_bytes);
    // By all threads at once, before the first step needs it: the kernel clears pages at the speed
    // of one core, and a freshly started job would wait for that wherever it happens to be.
    struct span_job j = {.dst = *out, .n_bytes = n_bytes};
    if (!dry && n_bytes >= POPULATE)
        tsr_pool_run(ctx->stream, (int)((n_bytes - 1) / POPULATE + 1), populate_part, &j);
    tsr_pool_count(ctx->stream, (long)n_bytes);
    return 0;
}

void tsr_cpu_free(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    if (p == NULL)
        return;
    tsr_pool_count(ctx->stream, -(long)n_bytes);
    tsr_pages_unmap(p, n_bytes);
}

static void span_part(void *arg, int part, int thread) {
    (void)thread;
    const struct span_job *j = arg;
    size_t lo = (size_t)part * CHUNK;
    size_t n = j->n_bytes - lo < CHUNK ? j->n_bytes - lo : CHUNK;
    if (j->stream)
        tsr_stream_copy(j->dst + lo, j->src + lo, n);
    else if (j->src != NULL)
        memcpy(j->dst + lo, j->src + lo, n);
    else
        memset(j->dst + lo, 0, n);
}

static void run_span(struct tsr_ctx *ctx, struct span_job j) {
    if (j.n_bytes > 0)
        tsr_pool_run(ctx->stream, (int)((j.n_bytes - 1) / CHUNK + 1), span_part, &j);
}

int tsr_cpu_zero(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    run_span(ctx, (struct span_job){.dst = p, .n_bytes = n_bytes});
    return 0;
}

int tsr_cpu_copy(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    run_span(ctx, (struct span_job){.dst = dst, .src = src, .n_bytes = n_bytes});
    return 0;
}

// Between the device's memory and the host's, which here is the same. What is large is a whole
// state on its way to a checkpoint or out of one: nobody reads it soon.
int tsr_cpu_move(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    run_span(ctx, (struct span_job){
                      .dst = dst, .src = src, .n_bytes = n_bytes, .stream = n_bytes >= STREAM});
    return 0;
}

static void rows_part(void *arg, int part, int thread) {
    (void)thread;
    const struct rows_job *j = arg;
    int lo = part * j->rows_per_part;
    int hi = j->rows - lo < j->rows_per_part ? j->rows : lo + j->rows_per_part;
    for (int i = lo; i < hi; i++)
        memcpy(j->dst + i * j->dst_step, j->src + i * j->src_step, j->row_bytes);
}

int tsr_cpu_copy_2d(struct tsr_ctx *ctx, tsr_elem *dst, ptrdiff_t ldd, const tsr_elem *src,
                    ptrdiff_t lds, int rows, int cols) {
    TSR_ASSERT(rows >= 0 && cols >= 0);
    if (rows == 0 || cols == 0)
        return 0;
    ptrdiff_t elem = (ptrdiff_t)tsr_dtype_size(ctx->dtype);
    size_t row_bytes = (size_t)(cols * elem);
    int per = row_bytes >= CHUNK ? 1 : (int)(CHUNK / row_bytes);
    struct rows_job j = {.dst = dst,
                         .src = src,
                         .dst_step = ldd * elem,
                         .src_step = lds * elem,
                         .row_bytes = row_bytes,
                         .rows = rows,
                         .rows_per_part = per};
    tsr_pool_run(ctx->stream, (rows - 1) / per + 1, rows_part, &j);
    return 0;
}

// A row from one type to another; what both have in common is fp32.
static void convert_row(enum tsr_dtype to, char *dst, enum tsr_dtype from, const char *src,
                        int64_t n) {
    enum { AT_ONCE = 512 };
    float buf[AT_ONCE];
    const size_t to_size = tsr_dtype_size(to), from_size = tsr_dtype_size(from);
    for (int64_t i = 0; i < n; i += AT_ONCE) {
        size_t len = (size_t)(n - i < AT_ONCE ? n - i : AT_ONCE);
        tsr_dtype_to_f32(from, buf, src + (size_t)i * from_size, len);
        tsr_dtype_from_f32(to, dst + (size_t)i * to_size, buf, len);
    }
}

int tsr_cpu_convert(struct tsr_ctx *ctx, enum tsr_dtype to, void *dst, ptrdiff_t ldd,
                    enum tsr_dtype from, const void *src, ptrdiff_t lds, int64_t rows,
                    int64_t cols) {
    const ptrdiff_t to_step = ldd * (ptrdiff_t)tsr_dtype_size(to);
    const ptrdiff_t from_step = lds * (ptrdiff_t)tsr_dtype_size(from);
    if (to == from && to == ctx->dtype)
        return tsr_cpu_copy_2d(ctx, dst, ldd, src, lds, (int)rows, (int)cols);
    if (tsr_pool_is_dry(ctx->stream))
        return 0;
    for (int64_t i = 0; i < rows; i++)
        convert_row(to, (char *)dst + i * to_step, from, (const char *)src + i * from_step, cols);
    return 0;
}

int tsr_cpu_sync(struct tsr_ctx *ctx) {
    (void)ctx;
    return 0;
}

// Host memory is the device's own.
int tsr_cpu_pin(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    (void)ctx;
    (void)p;
    (void)n_bytes;
    return 0;
}

void tsr_cpu_unpin(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    (void)tsr_cpu_pin(ctx, p, n_bytes);
}

#include "core/io.h"
#include "core/error.h"

#include <stdarg.h>
#include <string.h>

// Makes room for n_bytes more and a NUL.
static int grow(struct tsr_buf *b, size_t n_bytes) {
    if (n_bytes >= SIZE_MAX / 2 - b->len)
        return tsr_fail(TSR_ENOMEM, "out of memory: a buffer of %zu + %zu bytes", b->len, n_bytes);
    size_t need = b->len + n_bytes + 1;
    if (need <= b->cap)
        return 0;
    size_t cap = b->cap < 64 ? 64 : b->cap;
    while (cap < need)
        cap *= 2;
    char *data = realloc(b->data, cap);
    if (!data)
        return tsr_fail(TSR_ENOMEM, "out of memory: a buffer of %zu bytes", cap);
    b->data = data;
    b->cap = cap;
    return 0;
}

int tsr_buf_append(struct tsr_buf *b, const void *p, size_t n_bytes) {
    TSR_TRY(grow(b, n_bytes));
    if (n_bytes > 0)
        memcpy(b->data + b->len, p, n_bytes);
    b->len += n_bytes;
    b->data[b->len] = 0;
    return 0;
}

int tsr_buf_printf(struct tsr_buf *b, const char *fmt, ...) {
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(NULL, 0, fmt, ap);
    va_end(ap);
    TSR_ASSERT(n >= 0);
    TSR_TRY(grow(b, (size_t)n));
    va_start(ap, fmt);
    vsnprintf(b->data + b->len, (size_t)n + 1, fmt, ap);
    va_end(ap);
    b->len += (size_t)n;
    return 0;
}

void tsr_buf_free(struct tsr_buf *b) {
    free(b->data);
    *b = (struct tsr_buf){0};
}

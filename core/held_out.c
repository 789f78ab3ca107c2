#include "core/held_out.h"
#include "core/error.h"

#include <string.h>

static size_t min_size(size_t a, size_t b) {
    return a < b ? a : b;
}

// The first place at or behind `at` where a line begins, if that is before `limit`; else where a
// character begins (at most 3 bytes on, so that damaged UTF-8 does no harm here).
static size_t move_border(const struct tsr_held_out *h, size_t at, size_t limit) {
    if (at >= h->size)
        return h->size;
    if (at == 0 || h->text[at - 1] == '\n')
        return at;
    const char *newline = memchr(h->text + at, '\n', min_size(limit, h->size) - at);
    if (newline && (size_t)(newline - h->text) + 1 < limit)
        return (size_t)(newline - h->text) + 1;
    for (int i = 0; i < 3 && at < h->size && ((unsigned char)h->text[at] & 0xC0) == 0x80; i++)
        at++;
    return at;
}

static size_t block_border(const struct tsr_held_out *h, size_t k) {
    return move_border(h, k * TSR_BLOCK_BYTES, (k + 1) * TSR_BLOCK_BYTES);
}

static bool is_blank(char c) {
    return c == ' ' || c == '\t' || c == '\r' || c == '\n';
}

// Where the tail of a short JSONL file begins: no later than the last line; at the end when
// there is only one.
static size_t line_tail(const struct tsr_held_out *h, size_t tail) {
    size_t first = 0, end = h->size;
    while (end > 0 && is_blank(h->text[end - 1]))
        end--;
    while (first < end && is_blank(h->text[first]))
        first++;
    const char *newline = end > first ? memrchr(h->text + first, '\n', end - first) : NULL;
    if (!newline)
        return h->size;
    return min_size(tail, (size_t)(newline - h->text) + 1);
}

void tsr_held_out_init(struct tsr_held_out *h, const char *text, size_t size, bool lines) {
    *h = (struct tsr_held_out){.text = text, .size = size};
    h->is_short = size < (size_t)TSR_BLOCK_PERIOD * TSR_BLOCK_BYTES;
    if (!h->is_short)
        return;
    size_t least = min_size(2048, size / 4), twentieth = size / TSR_BLOCK_PERIOD;
    size_t n_tail = twentieth > least ? twentieth : least;
    size_t tail = size - n_tail;
    h->tail = lines ? line_tail(h, tail) : move_border(h, tail, tail + n_tail / 2);
}

bool tsr_held_out_next(const struct tsr_held_out *h, int part, size_t *k, size_t *lo, size_t *hi) {
    for (;; ++*k) {
        size_t first = *k * TSR_BLOCK_PERIOD, last = first + TSR_BLOCK_PERIOD - 1;
        if (first * TSR_BLOCK_BYTES >= h->size || ((part == TSR_PART_ALL || h->is_short) && *k > 0))
            return false;
        if (part == TSR_PART_ALL) {
            *lo = 0;
            *hi = h->size;
        } else if (part == TSR_PART_TRAIN) {
            *lo = h->is_short ? 0 : block_border(h, first);
            *hi = h->is_short ? h->tail : block_border(h, last);
        } else {
            *lo = h->is_short ? h->tail : block_border(h, last);
            *hi = h->is_short ? h->size : block_border(h, last + 1);
        }
        if (*lo < *hi) {
            ++*k;
            return true;
        }
    }
}

bool tsr_held_out_has_line(const struct tsr_held_out *h, int part, size_t at) {
    if (part == TSR_PART_ALL)
        return true;
    bool held = h->is_short ? at >= h->tail
                            : at / TSR_BLOCK_BYTES % TSR_BLOCK_PERIOD == TSR_BLOCK_PERIOD - 1;
    return held == (part == TSR_PART_HELD_OUT);
}

// Encoding a long text in pieces that give the ids of the whole.
//
// Byte-level BPE splits the text by a regular expression and merges inside each split only. So a
// cut is harmless where a split always ends, whatever stands around, and where no split before it
// looks beyond it. For the patterns of GPT-2 and Llama 3 (and their kin: Qwen, o200k) that is so
// after a newline that stands alone between two characters that are no white space:
//   - no alternative has a newline followed by something else: the optional first character of
//     words is a space (GPT-2) or excludes \r and \n (Llama 3), white-space runs end before a
//     non-space, and punctuation takes newlines only at its end;
//   - the newline ends in the same split with the rest cut off: it is either taken by the
//     punctuation before it, or is a white-space run of one character, for which `\s+(?!\S)` and
//     `\s+`, `\s*[\r\n]+` all give the same split; a longer run would not, as `\s+(?!\S)` leaves
//     its last character to what follows;
//   - the rest starts afresh, as no alternative looks back.
// Words of characters may go on for ever, so such a text is never cut. Other patterns, prefix
// spaces, normalizers and added tokens could break this, so each cut is tried on the text around it
// as well; a tokenizer that fails gets the whole text at once.
#include "core/text_source.h"
#include "core/error.h"

#include <string.h>

enum { PROBE_BYTES = 256, MAX_TRIES = 16 };

static bool is_continuation(char c) {
    return ((unsigned char)c & 0xC0) == 0x80;
}

// The code point at `at`, or 0 when there is no valid one.
static uint32_t code_point(const char *text, size_t n_bytes, size_t at) {
    const unsigned char *s = (const unsigned char *)text + at;
    size_t len = s[0] < 0x80 ? 1 : s[0] < 0xE0 ? 2 : s[0] < 0xF0 ? 3 : 4;
    if (len > n_bytes - at || tsr_utf8_valid_prefix(text + at, len) != len)
        return 0;
    uint32_t c = len == 1 ? s[0] : s[0] & (0x7Fu >> len);
    for (size_t i = 1; i < len; i++)
        c = c << 6 | (s[i] & 0x3Fu);
    return c;
}

// Neither white space by anybody's definition nor an invisible mark.
static bool is_plain(uint32_t c) {
    return (c > 0x20 && c < 0x7F) || (c > 0xA0 && c < 0x1680) || (c > 0x180E && c < 0x2000) ||
           (c > 0x206F && c < 0x3000) || (c > 0x3000 && c < 0xFEFF) || c > 0xFFFF;
}

// `p` is behind a newline.
static bool is_lone_newline(const char *text, size_t n_bytes, size_t p) {
    if (p < 2 || p >= n_bytes)
        return false;
    size_t before = p - 2;
    while (before > 0 && p - 2 - before < 3 && is_continuation(text[before]))
        before--;
    if (text[p] == '/') // o200k: punctuation takes the newline and the slashes behind it
        return false;
    return is_plain(code_point(text, n_bytes, before)) && is_plain(code_point(text, n_bytes, p));
}

// Whether the text around p gives the same ids in one go and in two. Returns 1, 0 or TSR_ENOMEM.
static int try_cut(struct tsr_tokenizer *t, const char *text, size_t n_bytes, size_t p) {
    size_t lo = p > PROBE_BYTES ? p - PROBE_BYTES : 0;
    size_t hi = n_bytes - p > PROBE_BYTES ? p + PROBE_BYTES : n_bytes;
    while (lo > 0 && is_continuation(text[lo]))
        lo--;
    while (hi < n_bytes && is_continuation(text[hi]))
        hi++;
    struct tsr_ids one = {0}, two = {0};
    int rc = tsr_tokenizer_encode(t, text + lo, hi - lo, 0, &one);
    if (rc == 0)
        rc = tsr_tokenizer_encode(t, text + lo, p - lo, 0, &two);
    if (rc == 0)
        rc = tsr_tokenizer_encode(t, text + p, hi - p, 0, &two);
    int same = rc == 0 && one.n == two.n && memcmp(one.v, two.v, one.n * sizeof *one.v) == 0;
    tsr_ids_free(&one);
    tsr_ids_free(&two);
    return rc == TSR_ENOMEM ? rc : same; // damaged text is reported when its piece is encoded
}

// The first good cut at or behind `from`, or the end of the text; *tries counts down failures.
static int find_cut(struct tsr_tokenizer *t, const char *text, size_t n_bytes, size_t from,
                    int *tries, size_t *cut) {
    *cut = n_bytes;
    while (from<n_bytes && * tries> 0) {
        const char *newline = memchr(text + from, '\n', n_bytes - from);
        if (!newline)
            return 0;
        from = (size_t)(newline - text) + 1;
        if (!is_lone_newline(text, n_bytes, from))
            continue;
        int good = try_cut(t, text, n_bytes, from);
        TSR_TRY(good);
        if (good) {
            *cut = from;
            return 0;
        }
        --*tries;
    }
    return 0;
}

int tsr_text_encode(struct tsr_tokenizer *t, const char *text, size_t n_bytes, size_t base,
                    size_t piece_bytes,
                    int (*fn)(void *arg, const struct tsr_ids *ids, size_t n_done), void *arg) {
    struct tsr_ids ids = {0};
    int tries = tsr_tokenizer_may_cut(t) ? MAX_TRIES : 0, rc = 0;
    for (size_t at = 0; at < n_bytes && rc == 0;) {
        size_t end = n_bytes;
        if (n_bytes - at > piece_bytes)
            rc = find_cut(t, text, n_bytes, at + piece_bytes, &tries, &end);
        size_t n_valid = tsr_utf8_valid_prefix(text + at, end - at);
        if (rc == 0 && n_valid < end - at)
            rc = tsr_fail(TSR_EDATA, "invalid UTF-8 at byte %zu", base + at + n_valid);
        ids.n = 0;
        if (rc == 0)
            rc = tsr_tokenizer_encode(t, text + at, end - at, 0, &ids);
        if (rc == 0)
            rc = fn(arg, &ids, end);
        at = end;
    }
    tsr_ids_free(&ids);
    return rc;
}

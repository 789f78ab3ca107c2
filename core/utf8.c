#include "core/utf8.h"
#include "core/tokenizer.h"

#include <string.h>

// Length that a first byte announces, and the range of the second byte (Unicode 15, table 3-7).
// 0: the byte never begins a character.
static size_t lead(unsigned char c, unsigned char *lo, unsigned char *hi) {
    *lo = c == 0xE0 ? 0xA0 : c == 0xF0 ? 0x90 : 0x80;
    *hi = c == 0xED ? 0x9F : c == 0xF4 ? 0x8F : 0xBF;
    if (c < 0x80)
        return 1;
    if (c < 0xC2 || c > 0xF4)
        return 0;
    return c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
}

// Bytes of s[0..n) that belong to one well-formed character, whole or cut short by the end:
// *len is the announced length. 0 when it is ill-formed.
static size_t well_formed(const unsigned char *s, size_t n, size_t *len) {
    unsigned char lo, hi;
    *len = lead(s[0], &lo, &hi);
    if (*len < 2)
        return *len;
    size_t i = 1;
    for (; i < *len && i < n; i++, lo = 0x80, hi = 0xBF)
        if (s[i] < lo || s[i] > hi)
            return 0;
    return i;
}

size_t tsr_utf8_char(const char *s, size_t n_bytes) {
    size_t len, have = well_formed((const unsigned char *)s, n_bytes, &len);
    return have == len ? len : 0;
}

size_t tsr_utf8_valid_prefix(const char *s, size_t n_bytes) {
    const unsigned char *p = (const unsigned char *)s;
    size_t i = 0;
    while (i < n_bytes) {
        uint64_t w;
        if (n_bytes - i >= 8 && (memcpy(&w, p + i, 8), (w & 0x8080808080808080u) == 0)) {
            i += 8; // eight ASCII bytes
            continue;
        }
        size_t len, have = well_formed(p + i, n_bytes - i, &len);
        if (have == 0 || have < len)
            return i;
        i += len;
    }
    return n_bytes;
}

size_t tsr_utf8_whole_prefix(const char *s, size_t n_bytes) {
    const unsigned char *p = (const unsigned char *)s;
    for (size_t back = 1; back <= 3 && back <= n_bytes; back++) {
        size_t at = n_bytes - back, len;
        if ((p[at] & 0xC0) == 0x80)
            continue; // a continuation byte: its first byte is further left
        size_t have = well_formed(p + at, back, &len);
        return have == back && have < len ? at : n_bytes;
    }
    return n_bytes;
}

size_t tsr_utf8_put(char out[4], uint32_t code_point) {
    if (code_point < 0x80) {
        out[0] = (char)code_point;
        return 1;
    }
    size_t n = code_point < 0x800 ? 2 : code_point < 0x10000 ? 3 : 4;
    static const unsigned char mark[] = {0, 0, 0xC0, 0xE0, 0xF0};
    for (size_t i = n - 1; i > 0; i--, code_point >>= 6)
        out[i] = (char)(0x80 | (code_point & 0x3F));
    out[0] = (char)(mark[n] | code_point);
    return n;
}

uint32_t tsr_utf8_get(const char *s, size_t *n_bytes) {
    unsigned char c = (unsigned char)s[0];
    *n_bytes = c < 0x80 ? 1 : c < 0xE0 ? 2 : c < 0xF0 ? 3 : 4;
    if (*n_bytes == 1)
        return c;
    uint32_t code_point = c & (0x7Fu >> *n_bytes);
    for (size_t i = 1; i < *n_bytes; i++)
        code_point = code_point << 6 | ((unsigned char)s[i] & 0x3F);
    return code_point;
}

bool tsr_utf8_is_space(uint32_t c) {
    return (c >= 0x09 && c <= 0x0D) || c == 0x20 || c == 0x85 || c == 0xA0 || c == 0x1680 ||
           (c >= 0x2000 && c <= 0x200A) || c == 0x2028 || c == 0x2029 || c == 0x202F ||
           c == 0x205F || c == 0x3000;
}

int tsr_utf8_clip(const char *s, size_t max_bytes) {
    size_t n = strnlen(s, max_bytes);
    return (int)tsr_utf8_whole_prefix(s, n);
}

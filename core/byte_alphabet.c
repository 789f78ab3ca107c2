#include "core/byte_alphabet.h"
#include "core/error.h"
#include "core/utf8.h"

// Bytes that stand for themselves are [0x21, 0x7E], [0xA1, 0xAC] and [0xAE, 0xFF]. The others are
// numbered: 33 of [0, 0x20], then 34 of [0x7F, 0xA0], then 0xAD.
uint32_t tsr_byte_to_char(uint8_t byte) {
    if (byte <= 0x20)
        return 0x100u + byte;
    if (byte >= 0x7F && byte <= 0xA0)
        return 0x100u + 33 + (byte - 0x7Fu);
    return byte == 0xAD ? 0x100u + 67 : byte;
}

int tsr_char_to_byte(uint32_t c) {
    if (c >= 0x100)
        return c < 0x100 + 33    ? (int)(c - 0x100)
               : c < 0x100 + 67  ? (int)(c - 0x100 - 33 + 0x7F)
               : c == 0x100 + 67 ? 0xAD
                                 : -1;
    return tsr_byte_to_char((uint8_t)c) == c ? (int)c : -1;
}

int tsr_bytes_spell(const void *bytes, size_t n_bytes, struct tsr_buf *out) {
    const uint8_t *b = bytes;
    for (size_t i = 0; i < n_bytes; i++) {
        char c[4];
        TSR_TRY(tsr_buf_append(out, c, tsr_utf8_put(c, tsr_byte_to_char(b[i]))));
    }
    return 0;
}

int tsr_bytes_unspell(const char *text, size_t n_bytes, struct tsr_buf *out, bool *ok) {
    size_t start = out->len;
    *ok = true;
    for (size_t i = 0, len; i < n_bytes; i += len) {
        int byte = tsr_char_to_byte(tsr_utf8_get(text + i, &len));
        if (byte < 0) {
            *ok = false;
            out->len = start;
            return 0;
        }
        char c = (char)byte;
        TSR_TRY(tsr_buf_append(out, &c, 1));
    }
    return 0;
}

// UTF-8 (RFC 3629) one character at a time; tsr_utf8_valid_prefix and tsr_utf8_whole_prefix are in
// core/tokenizer.h.
#ifndef TSR_CORE_UTF8_H
#define TSR_CORE_UTF8_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

// Writes the character and returns its length, 1 to 4 bytes.
size_t tsr_utf8_put(char out[4], uint32_t code_point);

// Reads the character at s, which must be valid; *n_bytes is its length.
uint32_t tsr_utf8_get(const char *s, size_t *n_bytes);

// Length of the well-formed character at the beginning of s[0 .. n_bytes), n_bytes >= 1; 0 when
// there is none.
size_t tsr_utf8_char(const char *s, size_t n_bytes);

// Unicode's White_Space property; it is the `\s` of Hugging Face's split patterns.
bool tsr_utf8_is_space(uint32_t code_point);

// Bytes of a string that a message should quote, at most max_bytes and no torn character; the
// precision of a "%.*s".
int tsr_utf8_clip(const char *s, size_t max_bytes);

#endif

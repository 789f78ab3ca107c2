// GPT-2's byte alphabet (Radford et al. 2019, their encoder.py): each byte is one printable
// character, so that a tokenizer's file is text. Printable Latin-1 stands for itself; the other
// 68 bytes, in ascending order, are U+0100, U+0101, …
#ifndef TSR_CORE_BYTE_ALPHABET_H
#define TSR_CORE_BYTE_ALPHABET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/io.h"

uint32_t tsr_byte_to_char(uint8_t byte);   // the character's code point
int tsr_char_to_byte(uint32_t code_point); // the byte, or -1

// Appends the spelling of bytes in the alphabet. 0 or TSR_ENOMEM.
int tsr_bytes_spell(const void *bytes, size_t n_bytes, struct tsr_buf *out);

// Appends the bytes that a spelling (valid UTF-8) stands for, and sets *ok. When a character is
// not of the alphabet, *ok is false and nothing is appended. 0 or TSR_ENOMEM.
int tsr_bytes_unspell(const char *text, size_t n_bytes, struct tsr_buf *out, bool *ok);

#endif

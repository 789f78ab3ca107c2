// Pre-tokenizers: cut text into the words that BPE works on. A chain of splits, one of which is
// "ByteLevel", as in tokenizer.json's `pre_tokenizer`.
#ifndef TSR_CORE_PRETOKENIZE_H
#define TSR_CORE_PRETOKENIZE_H

#include <jansson.h>
#include <stddef.h>

struct tsr_pretok;

// Reads a `pre_tokenizer`: ByteLevel, Split, Digits, Punctuation and Sequences of them. `where`
// is the file. Others, and a chain without ByteLevel, are refused by name: TSR_EMODEL.
int tsr_pretok_parse(struct tsr_pretok **out, const json_t *json, const char *where);
void tsr_pretok_free(struct tsr_pretok *p);

// Takes one word, as bytes. A negative return stops the run.
typedef int tsr_word_fn(void *arg, const char *word, size_t n_bytes);

// Calls `fn` for each word of n_bytes of valid UTF-8, in order. 0, or the first error.
int tsr_pretok_run(struct tsr_pretok *p, const char *text, size_t n_bytes, tsr_word_fn *fn,
                   void *arg);

#endif

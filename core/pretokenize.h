// Pre-tokenizers: cut text into the words that BPE works on. A chain of splits as in
// tokenizer.json's `pre_tokenizer`. With a "ByteLevel" step words are made of bytes; without, as in
// tokenizers that were SentencePiece's, of characters.
#ifndef TSR_CORE_PRETOKENIZE_H
#define TSR_CORE_PRETOKENIZE_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

struct tsr_pretok;

// Reads a `pre_tokenizer`: ByteLevel (at most one), Metaspace, Split, Digits, Punctuation and
// Sequences of them; null: a text is one word. `where` is the file. Others are refused by name:
// TSR_EMODEL.
int tsr_pretok_parse(struct tsr_pretok **out, const json_t *json, const char *where);
void tsr_pretok_free(struct tsr_pretok *p);

bool tsr_pretok_byte_level(const struct tsr_pretok *p);

// Takes one word, as bytes. A negative return stops the run.
typedef int tsr_word_fn(void *arg, const char *word, size_t n_bytes);

// Calls `fn` for each word of n_bytes of valid UTF-8, in order. `at_start`: the whole text begins
// here, which Metaspace may mark. 0, or the first error.
int tsr_pretok_run(struct tsr_pretok *p, const char *text, size_t n_bytes, bool at_start,
                   tsr_word_fn *fn, void *arg);

#endif

// Text files as documents of tokens.
//
// A `.txt` file is one document (with a held-out part: one for each run between held-out blocks).
// `.jsonl` (and `.json`, one object a line): each line's "text" is a document; blank lines and
// empty texts are skipped. Special tokens written in the text are recognised, as in Hugging Face.
#ifndef TSR_CORE_TEXT_SOURCE_H
#define TSR_CORE_TEXT_SOURCE_H

#include "core/dataset.h"

enum tsr_source_kind { TSR_SOURCE_TEXT, TSR_SOURCE_JSONL, TSR_SOURCE_INDEXED };

// By the name's ending; any other file that exists is plain text, unless PATH.idx exists. Writes
// the prefix of a .bin/.idx pair (`.bin` and `.idx` may be given too) or the path itself.
// Nothing there: TSR_EDATA.
int tsr_source_resolve(const char *path, enum tsr_source_kind *kind, char out[static TSR_PATH_MAX]);

// Receives documents in order. `tokens` gets the next piece of the current one; `end` closes it
// and is not called for a document without tokens.
struct tsr_text_sink {
    void *arg;
    int (*tokens)(void *arg, const int32_t *ids, int64_t n);
    int (*end)(void *arg);
};

// Tokenizes the file's part with a progress line. Memory is bounded by the longest JSONL line or
// by a few MiB. Invalid UTF-8: TSR_EDATA with the byte offset in the file; a bad line: TSR_EDATA
// with its number.
int tsr_text_each(const char *path, enum tsr_source_kind kind, int part, struct tsr_tokenizer *t,
                  const struct tsr_text_sink *sink);

// Encodes a whole text piece by piece; the pieces' ids are those of the whole (text_encode.c has
// the argument). `fn` gets the ids and how many bytes of the text are done. Messages count bytes
// from `base`, where the text stands in its file.
int tsr_text_encode(struct tsr_tokenizer *t, const char *text, size_t n_bytes, size_t base,
                    size_t piece_bytes,
                    int (*fn)(void *arg, const struct tsr_ids *ids, size_t n_done), void *arg);

#endif

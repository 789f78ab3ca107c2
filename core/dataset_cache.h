// Tokenized text, kept as .bin/.idx in the cache folder, so that it is made once.
//
// The name carries a hash of all that decides the tokens: the text, the tokenizer, the part, the
// vocabulary. A stamp file beside it, written last, holds sizes and times of both files: a cache
// without its own stamp is unfinished or was touched, and is made again.
#ifndef TSR_CORE_DATASET_CACHE_H
#define TSR_CORE_DATASET_CACHE_H

#include "core/text_source.h"

// Tokenizes unless a good cache is there.
int tsr_cache_prepare(const struct tsr_dataset_opt *opt, enum tsr_source_kind kind,
                      const char *path);

// Opens what tsr_cache_prepare made. Not there: TSR_EIO.
int tsr_cache_open(const struct tsr_dataset_opt *opt, enum tsr_source_kind kind, const char *path,
                   struct tsr_indexed **out);

// Checks the ids of a user's .bin/.idx against the vocabulary, once for each state of the files.
int tsr_cache_check_indexed(const struct tsr_dataset_opt *opt, const char *prefix);

// Tokenizes documents into PREFIX.bin/.idx. `eos` -1: nothing between documents; else it ends
// each document but the last, and the last too with `append`.
int tsr_text_to_indexed(const char *prefix, int64_t vocab, int32_t eos, bool append,
                        const char *const *paths, int n_paths, int part, struct tsr_tokenizer *t);

#endif

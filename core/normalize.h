// Normalizers: what tokenizer.json does to text before it is cut. Byte-level tokenizers mostly
// have none.
#ifndef TSR_CORE_NORMALIZE_H
#define TSR_CORE_NORMALIZE_H

#include <jansson.h>
#include <stddef.h>
#include "core/io.h"

struct tsr_normalizer;

// Reads a `normalizer`: NFC, NFD, NFKC, NFKD (Unicode annex 15), Prepend, Replace and Sequences
// of them; *out is NULL for null. `where` is the file. Others are refused by name: TSR_EMODEL.
int tsr_normalizer_parse(struct tsr_normalizer **out, const json_t *json, const char *where);
void tsr_normalizer_free(struct tsr_normalizer *n);

// Replaces `out` by the normal form of n_bytes of valid UTF-8. `nz` may be NULL: a copy.
int tsr_normalizer_run(const struct tsr_normalizer *nz, const char *text, size_t n_bytes,
                       struct tsr_buf *out);

#endif

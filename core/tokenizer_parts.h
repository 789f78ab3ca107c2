// Inside of a tokenizer: shared by tokenizer.c (encoding, decoding) and tokenizer_load.c.
#ifndef TSR_CORE_TOKENIZER_PARTS_H
#define TSR_CORE_TOKENIZER_PARTS_H

#include <jansson.h>
#include "core/added_tokens.h"
#include "core/bpe.h"
#include "core/normalize.h"
#include "core/pretokenize.h"
#include "core/strmap.h"
#include "core/tokenizer.h"

// Ids are indices of arrays: a file of a few bytes mustn't make us allocate gigabytes.
enum { TSR_MAX_TOKEN_ID = (1 << 22) - 1 };

struct tsr_piece { // what an id decodes to
    size_t at;     // in `bytes`
    uint32_t n_bytes;
    bool known, special;
};

// The `decoder` of a tokenizer of characters: what it makes of each token, and of the text.
struct tsr_decoder {
    char *from, *to; // Replace; NULL: nothing
    bool bytes;      // ByteFallback: "<0x0A>" is a byte
    size_t strip;    // so many spaces go from the beginning, if they are there
};

struct tsr_tokenizer {
    struct tsr_strmap vocab; // the model's tokens, spelled as in the file
    struct tsr_ids vocab_id; // by index in `vocab`
    struct tsr_strmap added_text;
    struct tsr_added_set added; // in the order of added_text
    struct tsr_piece *piece;    // n_ids of them
    int32_t n_ids;
    struct tsr_buf bytes;
    struct tsr_bpe bpe;
    struct tsr_decoder decoder;
    struct tsr_pretok *pretok;
    struct tsr_normalizer *normalizer; // or NULL
    struct tsr_ids prefix, suffix;     // what the post-processor puts around a text
    int32_t eos, bos;                  // -1: none
};

// The byte that a token like "<0x0A>" stands for, or -1.
int tsr_byte_of_token(const char *text, size_t n_bytes);

// `decoder`; needs pretok. TSR_EMODEL.
int tsr_tokenizer_read_decoder(struct tsr_tokenizer *t, const json_t *decoder, const char *where);
// Appends what a token of the file, of a tokenizer of characters, decodes to.
int tsr_decode_token(const struct tsr_decoder *d, const char *text, size_t n_bytes,
                     struct tsr_buf *out);

// The `model` of tokenizer.json: vocabulary and merges. Needs pretok. TSR_EMODEL.
int tsr_tokenizer_read_model(struct tsr_tokenizer *t, const json_t *model, const char *where);

// `added_tokens`; needs the vocabulary and the normalizer.
int tsr_tokenizer_read_added(struct tsr_tokenizer *t, const json_t *list, const char *where);

// `post_processor`: what stands before and behind a text. Needs n_ids.
int tsr_tokenizer_read_post(struct tsr_tokenizer *t, const json_t *post, const char *where);

#endif

// BPE tokenizers in Hugging Face's `tokenizer.json`: reading, encoding and decoding (Sennrich et
// al. 2016) of byte-level ones (GPT-2's byte alphabet; GPT-2 and Llama-3 split patterns) and of
// those of characters that were SentencePiece's (LLaMA 1 and 2); training of byte-level ones.
#ifndef TSR_CORE_TOKENIZER_H
#define TSR_CORE_TOKENIZER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/io.h"

struct tsr_tokenizer;

struct tsr_ids {
    int32_t *v;
    size_t n, cap;
};
int tsr_ids_push(struct tsr_ids *ids, int32_t id); // 0 or TSR_ENOMEM
void tsr_ids_free(struct tsr_ids *ids);

// Reads DIR/tokenizer.json (and tokenizer_config.json for BOS/EOS names, when there). Anything in
// it that isn't supported is refused by name: TSR_EMODEL.
int tsr_tokenizer_load(struct tsr_tokenizer **out, const char *dir);
void tsr_tokenizer_free(struct tsr_tokenizer *t);

// One more than the largest id.
int32_t tsr_tokenizer_vocab(const struct tsr_tokenizer *t);
// The id of a token's exact text as it stands in the file (specials, "<|endoftext|>"), or -1.
int32_t tsr_tokenizer_id(const struct tsr_tokenizer *t, const char *token);
bool tsr_tokenizer_is_special(const struct tsr_tokenizer *t, int32_t id);
// The id that separates documents: EOS of tokenizer_config.json, else "<|endoftext|>",
// "<|end_of_text|>" or "</s>" when there; -1 when there is none.
int32_t tsr_tokenizer_eos(const struct tsr_tokenizer *t);
int32_t tsr_tokenizer_bos(const struct tsr_tokenizer *t);

enum tsr_encode_flags {
    TSR_ENCODE_PLAIN = 1,       // special tokens in the text are ordinary text
    TSR_ENCODE_ADD_SPECIAL = 2, // BOS/EOS as the file's post-processor says
};

// Appends the ids of `n_bytes` of UTF-8 text. Invalid UTF-8: TSR_EDATA with the byte offset.
// A tokenizer may be used from one thread at a time.
int tsr_tokenizer_encode(struct tsr_tokenizer *t, const char *text, size_t n_bytes, int flags,
                         struct tsr_ids *out);

// Appends the exact bytes of the ids. An id outside the vocabulary: TSR_EDATA.
int tsr_tokenizer_decode(const struct tsr_tokenizer *t, const int32_t *ids, size_t n,
                         bool skip_special, struct tsr_buf *out);

// How many spaces at the beginning of a decoded text weren't in the text that was encoded: 1 with
// tokenizers that put one there (SentencePiece's), or 0. Not for the continuation of a text.
size_t tsr_tokenizer_extra_spaces(const struct tsr_tokenizer *t, const char *text, size_t n_bytes);

// Whether there can be places where a text may be cut without a change of its ids: not where words
// are of characters, and may be as long as the text.
bool tsr_tokenizer_may_cut(const struct tsr_tokenizer *t);

struct tsr_bpe_train {
    int32_t vocab_size;       // with the 256 bytes and the special tokens
    const char *const *files; // text files
    int n_files;
    const char *out_dir; // gets tokenizer.json and tokenizer_config.json
    bool llama3_pattern; // else GPT-2's
    const char *eos;     // the special token, "<|endoftext|>"
};

// Trains and writes. Deterministic: ties go to the pair that HF tokenizers' trainer takes.
int tsr_tokenizer_train(const struct tsr_bpe_train *opt);

// Copies the tokenizer's files (tokenizer.json, tokenizer_config.json, special_tokens_map.json,
// vocab.json, merges.txt, tokenizer.model, chat_template.jinja: those that exist) from one folder
// to another.
int tsr_tokenizer_copy(const char *from_dir, const char *to_dir);

// Length of the longest prefix of `s` that ends on a whole UTF-8 character; bytes that can never
// become valid count as whole. For streaming.
size_t tsr_utf8_whole_prefix(const char *s, size_t n_bytes);
// Offset of the first byte that is not valid UTF-8, or n_bytes.
size_t tsr_utf8_valid_prefix(const char *s, size_t n_bytes);

#endif

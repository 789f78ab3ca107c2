// Inside of the BPE trainer: words of the text (bpe_words.c), the merges (bpe_learn.c), the files
// (bpe_write.c).
#ifndef TSR_CORE_BPE_TRAIN_H
#define TSR_CORE_BPE_TRAIN_H

#include <stdint.h>
#include "core/strmap.h"
#include "core/tokenizer.h"

// The `pre_tokenizer` that is trained with, as it is written.
const char *tsr_bpe_pretokenizer(bool llama3_pattern);

struct tsr_word_counts {
    struct tsr_strmap words; // bytes
    int64_t *count;          // by index in `words`
    size_t cap;
};

// Counts the words of the files, line by line as Hugging Face's trainer does. TSR_EDATA: a file
// that can't be read or isn't UTF-8 (with its name and the byte offset), or no text at all.
int tsr_word_counts_read(struct tsr_word_counts *w, const struct tsr_bpe_train *opt);
void tsr_word_counts_free(struct tsr_word_counts *w);

struct tsr_learned_merge {
    int32_t left, right;
};

struct tsr_learned {
    struct tsr_strmap tokens;        // spelled in the byte alphabet; the index is the id
    struct tsr_learned_merge *merge; // n_merges of them, by rank; no pair stands twice
    size_t n_merges, cap;
};

// Learns tokens until there are vocab_size of them or no pair is left.
int tsr_bpe_learn(struct tsr_learned *out, const struct tsr_word_counts *w, int32_t vocab_size,
                  const char *eos);
void tsr_learned_free(struct tsr_learned *l);

// Writes tokenizer.json, tokenizer_config.json and special_tokens_map.json.
int tsr_bpe_write(const struct tsr_learned *l, const struct tsr_bpe_train *opt, const char *eos);

#endif

// Byte-pair encoding of one word (Sennrich et al. 2016): the merge of lowest rank first, leftmost
// first among equals. O(n log n) in the word's length; words met before come from a cache.
#ifndef TSR_CORE_BPE_H
#define TSR_CORE_BPE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/pairmap.h"
#include "core/strmap.h"
#include "core/tokenizer.h"

struct tsr_bpe_symbol {
    int32_t id;          // -1: merged into its left neighbour
    uint32_t prev, next; // UINT32_MAX at the ends
};

struct tsr_bpe_merge {
    uint32_t rank, at;
    int32_t id; // of the token that the merge makes
};

struct tsr_bpe_cached {
    size_t at, n; // in cached_ids
};

struct tsr_bpe {
    int32_t byte_id[256]; // -1: the vocabulary lacks the byte
    // Words of characters, as SentencePiece's: bytes are only for those that the vocabulary lacks,
    // and only with `byte_fallback`, when all of a character's bytes are there.
    bool chars, byte_fallback;
    struct tsr_strmap letters; // tokens of one character
    struct tsr_ids letter_ids; // by index in `letters`
    // Characters that some merge joins to a mark of a space (U+2581) behind them. Before a mark
    // that follows another one no merge crosses, and the word can be cut.
    struct tsr_strmap before_space;
    struct tsr_pairmap merges; // (left, right) -> rank << 32 | id
    bool whole_words;          // `ignore_merges`: a word that is a token needs no merge
    struct tsr_strmap words;   // bytes of tokens, when whole_words
    struct tsr_ids word_ids;   // by index in `words`
    bool has_unk, fuse_unk;    // what stands for missing bytes; without it they are dropped
    int32_t unk_id;            // -1: unk_token is no token

    struct tsr_strmap cached;
    struct tsr_bpe_cached *cached_word; // by index in `cached`
    size_t cached_cap;
    struct tsr_ids cached_ids;

    struct tsr_bpe_symbol *symbol;
    size_t symbol_cap;
    struct tsr_bpe_merge *heap;
    size_t heap_n, heap_cap;
};

// Adds a merge. The last of equal pairs counts.
int tsr_bpe_add_merge(struct tsr_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id);
int tsr_bpe_add_word(struct tsr_bpe *b, const char *bytes, size_t n_bytes, int32_t id);
int tsr_bpe_add_letter(struct tsr_bpe *b, const char *bytes, size_t n_bytes, int32_t id);
// The texts of a merge's halves, when `chars`: where they meet, words can't be cut.
int tsr_bpe_add_seam(struct tsr_bpe *b, const char *left, size_t n_left, const char *right,
                     size_t n_right);

// Appends the ids of one word, valid UTF-8 when `chars`. TSR_EDATA: a byte that the vocabulary
// can't spell, or a word of 2 GiB.
int tsr_bpe_encode(struct tsr_bpe *b, const char *word, size_t n_bytes, struct tsr_ids *out);
void tsr_bpe_free(struct tsr_bpe *b);

#endif

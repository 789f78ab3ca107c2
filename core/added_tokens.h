// Added tokens: `added_tokens` of tokenizer.json, found in the text before it is cut into words.
#ifndef TSR_CORE_ADDED_TOKENS_H
#define TSR_CORE_ADDED_TOKENS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/io.h"
#include "core/regex.h"

struct tsr_added {
    char *text;     // as in the file
    char *match;    // what is looked for: `text`, or its normal form when `normalized`
    size_t n_match; // bytes of `match`
    int32_t id;
    bool single_word;    // only where no word character touches it
    bool lstrip, rstrip; // takes the spaces before, behind it, too
    bool normalized;     // looked for in normalized text
    bool special;
};

struct tsr_trie_node {
    int32_t child, sibling; // -1: none
    int32_t token;          // index of the token that ends here, or -1
    unsigned char byte;
};

struct tsr_trie {
    struct tsr_trie_node *node;
    size_t n, cap;
    int32_t root[256]; // node of a first byte, or -1
};

struct tsr_added_set {
    struct tsr_added *token;
    size_t n, cap;
    struct tsr_trie raw, normalized; // of tokens that are looked for before, after normalizing
    struct tsr_regex *word_before, *word_behind; // when there is a single_word token
};

// Takes over `t`, also on failure. 0 or TSR_ENOMEM.
int tsr_added_push(struct tsr_added_set *s, struct tsr_added *t);

// Builds the tries when all tokens are there.
int tsr_added_index(struct tsr_added_set *s);
void tsr_added_free(struct tsr_added_set *s);

// A stretch of the text: a token, or text between tokens (token NULL).
typedef int tsr_added_fn(void *arg, const struct tsr_added *token, const char *s, size_t n_bytes);

// Cuts n_bytes of valid UTF-8 at the tokens of one trie: at each place the longest token, from
// left to right. `plain` passes over special ones.
int tsr_added_split(struct tsr_added_set *s, const struct tsr_trie *trie, const char *text,
                    size_t n_bytes, bool plain, tsr_added_fn *fn, void *arg);

#endif

// Texts and tokenizers for tests of what reads text.
#ifndef TSR_TESTS_TEXT_SUPPORT_H
#define TSR_TESTS_TEXT_SUPPORT_H

#include "core/error.h"
#include "core/tokenizer.h"
#include "tests/unit/scratch.h"

#include <string.h>

// Fills `text` with words, all sorts of white space, numbers, other scripts and special tokens;
// returns how much of `size` was used (whole fragments only).
static inline size_t random_text(char *text, size_t size, uint32_t seed) {
    static const char *const FRAGMENT[] = {"the",
                                           " of",
                                           " and",
                                           " LORD",
                                           "\n",
                                           "\n",
                                           "\n\n",
                                           " \n",
                                           "\r\n",
                                           "\t",
                                           "  ",
                                           "don't",
                                           "'s",
                                           "'LL",
                                           "12345",
                                           " 7",
                                           ".",
                                           ", ",
                                           "!?!",
                                           "/",
                                           "...\n",
                                           "é",
                                           "e\u0301",
                                           "世界",
                                           "。",
                                           "\xc2\xa0",
                                           "\u2028",
                                           "\u3000",
                                           "🙂",
                                           "\u180e",
                                           "\u200b",
                                           "<|endoftext|>",
                                           " <|endoftext|>\n",
                                           "\v",
                                           "\xc2\x85",
                                           "0",
                                           "A",
                                           "ß",
                                           "\n/x",
                                           "_"};
    uint32_t x = seed * 2654435761u + 1;
    size_t used = 0;
    for (;;) {
        x = x * 1664525u + 1013904223u;
        const char *f = FRAGMENT[(x >> 16) % (sizeof FRAGMENT / sizeof *FRAGMENT)];
        size_t n = strlen(f);
        if (used + n > size)
            break;
        memcpy(text + used, f, n);
        used += n;
    }
    memset(text + used, 'x', size - used);
    return used;
}

// Trains a byte-level BPE on such a text in scratch("tokenizer") and loads it.
static inline struct tsr_tokenizer *make_tokenizer(bool llama3, bool prefix_space) {
    static char text[20000];
    struct tsr_tokenizer *t;
    char dir[TSR_PATH_MAX], json[TSR_PATH_MAX], *bytes;
    const char *file = scratch("corpus-of-the-tokenizer.txt");
    size_t n = random_text(text, sizeof text, 99);
    scratch_write(file, text, n);
    assert_int_equal(tsr_path_join(dir, scratch_dir, "tokenizer"), 0);
    assert_int_equal(tsr_path_join(json, dir, "tokenizer.json"), 0);
    struct tsr_bpe_train train = {.vocab_size = 330,
                                  .files = &file,
                                  .n_files = 1,
                                  .out_dir = dir,
                                  .llama3_pattern = llama3,
                                  .eos = "<|endoftext|>"};
    assert_int_equal(tsr_remove_tree(dir), 0);
    if (tsr_tokenizer_train(&train) < 0)
        fail_msg("%s", tsr_error_text());
    if (prefix_space) {
        assert_int_equal(tsr_read_file(json, 1 << 24, -1, &bytes, &n), 0);
        char *key = strstr(bytes, "\"add_prefix_space\"");
        assert_non_null(key);
        char *value = strstr(key, "false");
        assert_non_null(value);
        memcpy(value, "true ", 5);
        scratch_write(json, bytes, n);
        free(bytes);
    }
    if (tsr_tokenizer_load(&t, dir) < 0)
        fail_msg("%s", tsr_error_text());
    return t;
}

#endif

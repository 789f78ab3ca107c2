// Split patterns of tokenizer.json, run by PCRE2. Hugging Face runs them by Oniguruma, whose syntax
// and Unicode version differ in places: the pattern is rewritten so that the same text gives the
// same matches, and what cannot be rewritten is refused by name.
#ifndef TSR_CORE_REGEX_H
#define TSR_CORE_REGEX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/io.h"

struct tsr_regex;

// `literal`: the pattern is plain text. `where` names the file in messages. TSR_EMODEL.
int tsr_regex_compile(struct tsr_regex **out, const char *pattern, bool literal, const char *where);
void tsr_regex_free(struct tsr_regex *re);

// Where a search stands in its text. Begin with zeros.
struct tsr_regex_scan {
    size_t at;    // the next search begins here
    bool matched; // something has matched, and `at` is its end
};

// The next match in n_bytes of valid UTF-8: 1 and [*start, *end), or 0 when there is none, or an
// error. An empty match right behind the last match is passed over.
int tsr_regex_next(struct tsr_regex *re, const char *s, size_t n_bytes, struct tsr_regex_scan *scan,
                   size_t *start, size_t *end);

// The Oniguruma pattern in PCRE2's syntax. TSR_EMODEL.
int tsr_regex_translate(const char *pattern, const char *where, struct tsr_buf *out);

// Characters that Unicode 15 and 16 added: PCRE2's tables may be older than Hugging Face's.
// `kind` is a general category, or "Han" for that script.
struct tsr_newer_chars {
    uint32_t first, last;
    char kind[4];
};
extern const struct tsr_newer_chars tsr_newer_chars[];
extern const size_t tsr_n_newer_chars;

#endif

// From Oniguruma's syntax to PCRE2's. Only what split patterns use is let through. What differs:
//   \s \w \h           other sets of characters: written out
//   \p{..} \d          Unicode 16 there: newer characters are added to PCRE2's set
//   \p{Han}            the script there, script extensions in PCRE2: \p{sc:Han}
//   x{1,3}+ x{2}?      a repeated and an optional repetition there, possessive and lazy in PCRE2
//   x{,3} \uHHHH \v    unknown to PCRE2, or another thing
#include "core/regex.h"
#include "core/error.h"
#include "core/tokenizer.h"
#include "core/utf8.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"

enum { MAX_DEPTH = 100 };

struct tr {
    const char *where, *pattern, *p; // p: what is left of the pattern
    struct tsr_buf *out;
    size_t atom;            // offset in `out` of the last thing that a quantifier may follow
    size_t open[MAX_DEPTH]; // offsets of groups that are open
    int depth;
};

static int refuse(const struct tr *t, const char *what, const char *at, size_t n_bytes) {
    return tsr_fail(TSR_EMODEL, "%s: the pattern \"%.*s\" uses %s \"%.*s\", which isn't supported",
                    t->where, tsr_utf8_clip(t->pattern, 200), t->pattern, what,
                    tsr_utf8_clip(at, n_bytes), at);
}

static int emit(struct tr *t, const char *s) {
    return tsr_buf_append(t->out, s, strlen(s));
}

// The ranges of newer characters whose category begins with `kind`.
static int emit_newer(struct tr *t, const char *kind) {
    size_t len = strlen(kind);
    for (size_t i = 0; i < tsr_n_newer_chars; i++) {
        const struct tsr_newer_chars *c = &tsr_newer_chars[i];
        if (strncmp(c->kind, kind, len) == 0 && (len < 3) == (c->kind[2] == 0))
            TSR_TRY(
                tsr_buf_printf(t->out, "\\x{%X}-\\x{%X}", (unsigned)c->first, (unsigned)c->last));
    }
    return 0;
}

// Oniguruma's \w: letters, marks, decimal digits, connectors, and the numbers of Latin-1.
static int emit_word(struct tr *t) {
    TSR_TRY(emit(t, "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}\\xb2\\xb3\\xb9\\xbc-\\xbe"));
    TSR_TRY(emit_newer(t, "L"));
    TSR_TRY(emit_newer(t, "M"));
    TSR_TRY(emit_newer(t, "Nd"));
    return emit_newer(t, "Pc");
}

// A property: one or two letters are a general category, anything longer a script.
static int emit_property(struct tr *t, const char *name) {
    size_t len = strlen(name);
    char kind[4] = {0};
    if (len <= 2) {
        kind[0] = (char)toupper((unsigned char)name[0]);
        kind[1] = (char)tolower((unsigned char)name[1]);
        TSR_TRY(tsr_buf_printf(t->out, "\\p{%s}", kind));
        return emit_newer(t, kind);
    }
    TSR_TRY(tsr_buf_printf(t->out, "\\p{sc:%s}", name));
    return strcasecmp(name, "Han") == 0 ? emit_newer(t, "Han") : 0;
}

// A set of characters: `escape` is the letter of a shorthand, or 'p' with a property's name.
static int emit_members(struct tr *t, char escape, const char *name) {
    switch (escape) {
    case 's':
        return emit(t, SPACES);
    case 'h':
        return emit(t, "0-9a-fA-F");
    case 'd':
        return emit_property(t, "Nd");
    case 'w':
        return emit_word(t);
    }
    return emit_property(t, name);
}

// Reads what follows \p: "{Name}", "{^Name}" or one letter.
static int read_property(struct tr *t, char name[static 32], bool *negated) {
    size_t len = 1;
    const char *from = t->p;
    if (*t->p == '{') {
        const char *close = strchr(t->p, '}');
        from++;
        if (from[0] == '^') {
            *negated = !*negated;
            from++;
        }
        len = close ? (size_t)(close - from) : 0;
        t->p = close ? close + 1 : t->p;
    } else if (*t->p) {
        t->p++;
    }
    for (size_t i = 0; i < len; i++)
        if (!isalpha((unsigned char)from[i]) && from[i] != '_')
            len = 0;
    if (len == 0 || len >= 32)
        return refuse(t, "the property", "\\p", 2);
    memcpy(name, from, len);
    name[len] = 0;
    return 0;
}

// \s \w \d \h \p and their complements, after the letter was read. Inside a class a complement
// other than \S cannot be written with the newer characters taken out.
static int set_escape(struct tr *t, char letter, bool in_class) {
    char name[32] = "";
    bool negated = isupper((unsigned char)letter) != 0;
    char small = (char)tolower((unsigned char)letter);
    if (small == 'p')
        TSR_TRY(read_property(t, name, &negated));
    if (in_class && negated) {
        if (letter == 'S')
            return emit(t, "\\P{White_Space}");
        return refuse(t, "inside [] the complement", (char[]){'\\', letter, 0}, 2);
    }
    if (!in_class)
        TSR_TRY(emit(t, negated ? "[^" : "["));
    TSR_TRY(emit_members(t, small, name));
    return in_class ? 0 : emit(t, "]");
}

static int word_border(struct tr *t, bool negated) {
    static const char *const part[2][4] = {{"(?:(?<=[", "])(?![", "])|(?<![", "])(?=["},
                                           {"(?:(?<=[", "])(?=[", "])|(?<![", "])(?!["}};
    for (int i = 0; i < 4; i++) {
        TSR_TRY(emit(t, part[negated][i]));
        TSR_TRY(emit_word(t));
    }
    return emit(t, "]))");
}

// \xHH below 0x80, \x{H…}, \uHHHH, after the letter.
static int hex_escape(struct tr *t, char letter) {
    size_t n = 0, want = letter == 'u' ? 4 : 2;
    bool braces = letter == 'x' && *t->p == '{';
    const char *digits = t->p + braces;
    while (isxdigit((unsigned char)digits[n]) && n < (braces ? 6 : want))
        n++;
    unsigned long c = strtoul(digits, NULL, 16);
    if (braces ? n == 0 || digits[n] != '}' : n != want || (letter == 'x' && c >= 0x80))
        return refuse(t, "the escape", t->p - 2, 4);
    t->p = digits + n + braces;
    char hex[8];
    memcpy(hex, digits, n);
    hex[n] = 0;
    return tsr_buf_printf(t->out, "\\x{%s}", hex);
}

static int escape(struct tr *t, bool in_class) {
    char c = *++t->p;
    t->p += c != 0;
    if (c && strchr("sSwWdDhHpP", c))
        return set_escape(t, c, in_class);
    if (c && strchr("bB", c) && !in_class)
        return word_border(t, c == 'B');
    if (c == 'x' || c == 'u')
        return hex_escape(t, c);
    if (c == 'v')
        return emit(t, "\\x0b");
    bool known = c && strchr(in_class ? "rntfaeb" : "rntfaeAzZ", c);
    if (!known && (c == 0 || isalnum((unsigned char)c)))
        return refuse(t, "the escape", t->p - (c ? 2 : 1), c ? 2 : 1);
    return tsr_buf_append(t->out, t->p - 2, 2); // the rest of a longer character follows by itself
}

static int char_class(struct tr *t) {
    const char *begin = t->p++;
    TSR_TRY(emit(t, "["));
    if (*t->p == '^') {
        TSR_TRY(emit(t, "^"));
        t->p++;
    }
    bool dash = false; // a '-' that may be the middle of a range stands before t->p
    for (const char *first = t->p; *t->p && (*t->p != ']' || t->p == first);) {
        if (*t->p == '[' || strncmp(t->p, "&&", 2) == 0)
            return refuse(t, "inside []", t->p, 2);
        bool is_set = *t->p == '\\' && t->p[1] && strchr("sSwWdDhHpP", t->p[1]);
        if (is_set && dash)
            return refuse(t, "a range that ends in", t->p, 2);
        dash = *t->p == '-' && t->p != first;
        if (*t->p != '\\') {
            TSR_TRY(tsr_buf_append(t->out, t->p++, 1));
            continue;
        }
        TSR_TRY(escape(t, true));
        if (is_set && *t->p == '-') { // here it's no range: keep PCRE2 from seeing one
            TSR_TRY(emit(t, "\\-"));
            t->p++;
        }
    }
    if (*t->p != ']')
        return refuse(t, "an open", begin, 1);
    t->p++;
    return emit(t, "]");
}

static int open_group(struct tr *t) {
    static const char *const known[] = {"(?:",  "(?=",  "(?!",  "(?>",
                                        "(?<=", "(?<!", "(?i:", "(?-i:"};
    size_t len = 1;
    if (t->p[1] == '?' || t->p[1] == '*') {
        len = 0;
        for (size_t i = 0; i < sizeof known / sizeof known[0]; i++)
            if (strncmp(t->p, known[i], strlen(known[i])) == 0)
                len = strlen(known[i]);
        if (strncmp(t->p, "(?i)", 4) == 0 && t->out->len == 0) {
            t->p += 4;
            return emit(t, "(?i)");
        }
    }
    if (len == 0)
        return refuse(t, "the group", t->p, strnlen(t->p, 4));
    if (t->depth == MAX_DEPTH)
        return refuse(t, "too many nested groups", t->p, 1);
    t->open[t->depth++] = t->out->len;
    TSR_TRY(tsr_buf_append(t->out, t->p, len));
    t->p += len;
    return 0;
}

// Puts the last atom, with the quantifier that follows it in `out`, into a group of its own.
static int wrap_atom(struct tr *t) {
    TSR_TRY(emit(t, ")   "));
    char *at = t->out->data + t->atom;
    memmove(at + 3, at, t->out->len - 3 - t->atom);
    memcpy(at, "(?:", 3);
    return 0;
}

// {n} {n,} {n,m} {,m}; anything else is a literal brace.
static int interval(struct tr *t) {
    const char *min = t->p + 1, *end = min;
    size_t n_min = 0, n_max = 0;
    while (isdigit((unsigned char)min[n_min]))
        n_min++;
    end += n_min;
    bool comma = *end == ',';
    if (comma)
        while (isdigit((unsigned char)end[1 + n_max]))
            n_max++;
    end += comma ? 1 + n_max : 0;
    if (*end != '}' || n_min + n_max == 0) {
        t->atom = t->out->len;
        t->p++;
        return emit(t, "\\{");
    }
    TSR_TRY(emit(t, n_min ? "{" : "{0"));
    TSR_TRY(tsr_buf_append(t->out, min, (size_t)(end - min)));
    TSR_TRY(emit(t, "}"));
    t->p = end + 1;
    if (*t->p == '+' || (*t->p == '?' && !comma))
        return wrap_atom(t);
    if (*t->p == '?') {
        t->p++;
        return emit(t, "?");
    }
    return 0;
}

static int one_character(struct tr *t) {
    size_t len;
    tsr_utf8_get(t->p, &len);
    t->atom = t->out->len;
    TSR_TRY(tsr_buf_append(t->out, t->p, len));
    t->p += len;
    return 0;
}

static int step(struct tr *t) {
    switch (*t->p) {
    case '\\':
        t->atom = t->out->len;
        TSR_TRY(escape(t, false));
        while (((unsigned char)*t->p & 0xC0) == 0x80) // an escaped character of several bytes
            TSR_TRY(tsr_buf_append(t->out, t->p++, 1));
        return 0;
    case '[':
        t->atom = t->out->len;
        return char_class(t);
    case '(':
        return open_group(t);
    case ')':
        if (t->depth > 0)
            t->atom = t->open[--t->depth];
        break;
    case '{':
        return interval(t);
    case '^':
    case '$':
    case '|':
        break;
    case '*':
    case '+':
    case '?':
        TSR_TRY(tsr_buf_append(t->out, t->p++, 1));
        if (*t->p != '+' && *t->p != '?')
            return 0;
        break; // possessive or lazy
    default:
        return one_character(t);
    }
    return tsr_buf_append(t->out, t->p++, 1);
}

int tsr_regex_translate(const char *pattern, const char *where, struct tsr_buf *out) {
    struct tr t = {.where = where, .pattern = pattern, .p = pattern, .out = out};
    TSR_TRY(tsr_buf_append(out, "", 0)); // an empty pattern has a text, too
    size_t n_bytes = strlen(pattern);
    if (tsr_utf8_valid_prefix(pattern, n_bytes) != n_bytes)
        return tsr_fail(TSR_EMODEL, "%s: a split pattern is not valid UTF-8", where);
    while (*t.p)
        TSR_TRY(step(&t));
    return 0;
}

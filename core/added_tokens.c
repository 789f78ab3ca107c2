#include "core/added_tokens.h"
#include "core/error.h"
#include "core/utf8.h"

#include <string.h>

// Rust's \w, by which Hugging Face tells whether a single_word token stands alone: letters, marks,
// decimal digits, connectors and the two joiners.
#define WORD                                                                                       \
    "[\\p{L}\\p{Nl}\\p{M}\\p{Nd}\\p{Pc}\\x{24B6}-\\x{24E9}\\x{1F130}-\\x{1F149}"                   \
    "\\x{1F150}-\\x{1F169}\\x{1F170}-\\x{1F189}\\x{200C}\\x{200D}]"

static void free_token(struct tsr_added *t) {
    free(t->text);
    free(t->match);
}

int tsr_added_push(struct tsr_added_set *s, struct tsr_added *t) {
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 32;
        struct tsr_added *token = realloc(s->token, cap * sizeof *token);
        if (!token) {
            free_token(t);
            return tsr_fail(TSR_ENOMEM, "no memory for %zu added tokens", cap);
        }
        s->token = token;
        s->cap = cap;
    }
    s->token[s->n++] = *t;
    return 0;
}

static int new_node(struct tsr_trie *t, unsigned char byte, int32_t sibling, int32_t *index) {
    if (t->n == t->cap) {
        size_t cap = t->cap ? 2 * t->cap : 256;
        struct tsr_trie_node *node = realloc(t->node, cap * sizeof *node);
        if (!node)
            return tsr_fail(TSR_ENOMEM, "no memory for the added tokens");
        t->node = node;
        t->cap = cap;
    }
    TSR_ASSERT(t->n < INT32_MAX);
    t->node[t->n] = (struct tsr_trie_node){-1, sibling, -1, byte};
    *index = (int32_t)t->n++;
    return 0;
}

static int32_t child_of(const struct tsr_trie *t, int32_t node, unsigned char byte) {
    int32_t c = t->node[node].child;
    while (c >= 0 && t->node[c].byte != byte)
        c = t->node[c].sibling;
    return c;
}

// The first of tokens with equal text stays.
static int trie_add(struct tsr_trie *t, const char *s, size_t n_bytes, int32_t token) {
    const unsigned char *b = (const unsigned char *)s;
    int32_t at = t->root[b[0]];
    if (at < 0) {
        TSR_TRY(new_node(t, b[0], -1, &at));
        t->root[b[0]] = at;
    }
    for (size_t i = 1; i < n_bytes; i++) {
        int32_t next = child_of(t, at, b[i]);
        if (next < 0) {
            TSR_TRY(new_node(t, b[i], t->node[at].child, &next));
            t->node[at].child = next;
        }
        at = next;
    }
    if (t->node[at].token < 0)
        t->node[at].token = token;
    return 0;
}

int tsr_added_index(struct tsr_added_set *s) {
    bool single_word = false;
    memset(s->raw.root, 0xFF, sizeof s->raw.root);
    memset(s->normalized.root, 0xFF, sizeof s->normalized.root);
    for (size_t i = 0; i < s->n; i++) {
        const struct tsr_added *t = &s->token[i];
        single_word |= t->single_word;
        if (t->n_match > 0)
            TSR_TRY(trie_add(t->normalized ? &s->normalized : &s->raw, t->match, t->n_match,
                             (int32_t)i));
    }
    if (!single_word)
        return 0;
    TSR_TRY(tsr_regex_compile(&s->word_before, "(?<=" WORD ")\\z", false, "added_tokens"));
    return tsr_regex_compile(&s->word_behind, "\\A" WORD, false, "added_tokens");
}

void tsr_added_free(struct tsr_added_set *s) {
    for (size_t i = 0; i < s->n; i++)
        free_token(&s->token[i]);
    free(s->token);
    free(s->raw.node);
    free(s->normalized.node);
    tsr_regex_free(s->word_before);
    tsr_regex_free(s->word_behind);
    *s = (struct tsr_added_set){0};
}

// The longest token that begins at s, or -1.
static int32_t longest(const struct tsr_trie *t, const char *s, size_t n_bytes, size_t *len) {
    const unsigned char *b = (const unsigned char *)s;
    int32_t found = -1, at = t->root[b[0]];
    for (size_t i = 0; at >= 0; at = i < n_bytes ? child_of(t, at, b[i]) : -1) {
        i++;
        if (t->node[at].token >= 0) {
            found = t->node[at].token;
            *len = i;
        }
    }
    return found;
}

// Whether a word character touches [start, end) of the text.
static int in_word(struct tsr_added_set *s, const char *text, size_t n_bytes, size_t start,
                   size_t end) {
    size_t from = start, at, len;
    while (from > 0 && start - from < 4 && (from == start || (text[from] & 0xC0) == 0x80))
        from--; // the character before
    struct tsr_regex_scan before = {.at = start - from}, behind = {0};
    int found = tsr_regex_next(s->word_before, text + from, start - from, &before, &at, &len);
    if (found != 0 || end == n_bytes)
        return found;
    tsr_utf8_get(text + end, &len);
    return tsr_regex_next(s->word_behind, text + end, len, &behind, &at, &len);
}

// Start of the run of spaces that ends at `at`.
static size_t spaces_before(const char *text, size_t at) {
    while (at > 0) {
        size_t from = at - 1, len;
        while (from > 0 && (text[from] & 0xC0) == 0x80)
            from--;
        if (!tsr_utf8_is_space(tsr_utf8_get(text + from, &len)))
            break;
        at = from;
    }
    return at;
}

static size_t spaces_behind(const char *text, size_t n_bytes, size_t at) {
    size_t len;
    while (at < n_bytes && tsr_utf8_is_space(tsr_utf8_get(text + at, &len)))
        at += len;
    return at;
}

int tsr_added_split(struct tsr_added_set *s, const struct tsr_trie *trie, const char *text,
                    size_t n_bytes, bool plain, tsr_added_fn *fn, void *arg) {
    size_t done = 0, len = 0;
    for (size_t i = 0; i < n_bytes; i += len) {
        const struct tsr_added *t = NULL;
        int32_t found = longest(trie, text + i, n_bytes - i, &len);
        if (found < 0) {
            len = 1;
            continue;
        }
        t = &s->token[found];
        if (plain && t->special)
            continue; // passed over whole: a token inside it doesn't count
        if (t->single_word) {
            int touched = in_word(s, text, n_bytes, i, i + len);
            TSR_TRY(touched);
            if (touched)
                continue;
        }
        // `done` may be beyond i: the token before took the spaces that this one consists of. When
        // this one gives way to it (lstrip) nothing is left, and it doesn't count.
        size_t start = i, end = i + len;
        if (t->lstrip) {
            start = spaces_before(text, i);
            start = start < done ? done : start;
        }
        if (t->rstrip)
            end = spaces_behind(text, n_bytes, end);
        if (start >= end)
            continue;
        if (done < start)
            TSR_TRY(fn(arg, NULL, text + done, start - done));
        TSR_TRY(fn(arg, t, NULL, 0));
        done = end;
    }
    return done < n_bytes ? fn(arg, NULL, text + done, n_bytes - done) : 0;
}

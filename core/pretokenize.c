#include "core/pretokenize.h"
#include "core/byte_alphabet.h"
#include "core/error.h"
#include "core/json_field.h"
#include "core/regex.h"
#include "core/utf8.h"

#include <string.h>

// GPT-2's split (Radford et al. 2019): what ByteLevel does with use_regex.
#define GPT2_PATTERN                                                                               \
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+"

// Hugging Face's "Digits" knows the numbers of Unicode 17.
#define DIGITS_PATTERN "[\\p{N}\\x{11DE0}-\\x{11DE9}\\x{16FF4}-\\x{16FF6}]"

// Their "Punctuation" is ASCII's and that of Unicode 8: what came later is taken out, and two
// characters that were punctuation then are put in.
#define PUNCTUATION_PATTERN                                                                        \
    "(?![\\x{61D}\\x{9FD}-\\x{A76}\\x{C77}-\\x{C84}\\x{1B4E}-\\x{1B4F}\\x{1B7D}-\\x{1B7F}"         \
    "\\x{2E43}-\\x{2E5D}\\x{10D6E}-\\x{10F89}\\x{113D4}-\\x{1145D}\\x{11660}-\\x{116B9}"           \
    "\\x{1183B}-\\x{11FFF}\\x{12FF1}-\\x{12FF2}\\x{16D6D}-\\x{16FE2}\\x{1E5FF}-\\x{1E95F}])"       \
    "[!-/:-@\\[-`{-~\\p{P}\\x{166D}\\x{111C9}]"

enum { MAX_STAGES = 16 };

enum behavior { REMOVED, ISOLATED, MERGED_WITH_PREVIOUS, MERGED_WITH_NEXT, CONTIGUOUS };

// Metaspace: before which texts the mark is put.
enum prepend { NEVER, FIRST, ALWAYS };

static const char *const PREPEND[] = {"never", "first", "always"};

static const char *const BEHAVIOR[] = {"Removed", "Isolated", "MergedWithPrevious",
                                       "MergedWithNext", "Contiguous"};

struct stage {
    struct tsr_regex *regex; // NULL: no cut
    enum behavior behavior;
    bool invert;
    bool byte_level, prefix_space;
    char *mark; // Metaspace: what stands for a space; NULL in other stages
    enum prepend prepend;
    struct tsr_buf scratch; // a piece spelled in the byte alphabet, or out of it again; or marked
};

struct tsr_pretok {
    int n;
    struct stage stage[MAX_STAGES];
    // of the run under way
    bool spelled;      // text is spelled in the byte alphabet (stages behind ByteLevel)
    const char *start; // where the whole text begins, or NULL
    tsr_word_fn *fn;
    void *arg;
};

void tsr_pretok_free(struct tsr_pretok *p) {
    if (!p)
        return;
    for (int i = 0; i < p->n; i++) {
        tsr_regex_free(p->stage[i].regex);
        tsr_buf_free(&p->stage[i].scratch);
        free(p->stage[i].mark);
    }
    free(p);
}

static int parse_split(struct stage *st, const json_t *json, const char *where) {
    const char *pattern, *behavior;
    bool literal;
    TSR_TRY(tsr_field_pattern(json, "pattern", where, &pattern, &literal));
    TSR_TRY(tsr_field_string(json, "behavior", where, &behavior));
    TSR_TRY(tsr_field_bool(json, "invert", -1, where, &st->invert));
    size_t i = 0, n = sizeof BEHAVIOR / sizeof BEHAVIOR[0];
    while (i < n && strcmp(behavior, BEHAVIOR[i]) != 0)
        i++;
    if (i == n)
        return tsr_fail(TSR_EMODEL, "%s: unknown behavior \"%.*s\"", where,
                        tsr_utf8_clip(behavior, 80), behavior);
    st->behavior = (enum behavior)i;
    return tsr_regex_compile(&st->regex, pattern, literal, where);
}

static int parse_byte_level(struct stage *st, const json_t *json, const char *where) {
    bool use_regex, ignored;
    TSR_TRY(tsr_field_bool(json, "add_prefix_space", -1, where, &st->prefix_space));
    TSR_TRY(tsr_field_bool(json, "trim_offsets", 1, where, &ignored));
    TSR_TRY(tsr_field_bool(json, "use_regex", 1, where, &use_regex));
    st->byte_level = true;
    st->behavior = ISOLATED;
    return use_regex ? tsr_regex_compile(&st->regex, GPT2_PATTERN, false, where) : 0;
}

static int parse_digits(struct stage *st, const json_t *json, const char *where) {
    bool individual;
    TSR_TRY(tsr_field_bool(json, "individual_digits", -1, where, &individual));
    st->behavior = individual ? ISOLATED : CONTIGUOUS;
    return tsr_regex_compile(&st->regex, DIGITS_PATTERN, false, where);
}

static int parse_punctuation(struct stage *st, const json_t *json, const char *where) {
    const json_t *behavior = json_object_get(json, "behavior");
    st->behavior = ISOLATED;
    if (behavior &&
        (!json_is_string(behavior) || strcmp(json_string_value(behavior), BEHAVIOR[ISOLATED]) != 0))
        return tsr_fail(TSR_EMODEL,
                        "%s: a Punctuation's behavior other than \"Isolated\" is not "
                        "supported",
                        where);
    return tsr_regex_compile(&st->regex, PUNCTUATION_PATTERN, false, where);
}

// Older files say `add_prefix_space` where newer ones have a `prepend_scheme`.
static int parse_metaspace(struct stage *st, const json_t *json, const char *where) {
    const char *mark, *scheme = json_string_value(json_object_get(json, "prepend_scheme"));
    bool prefix, cut;
    TSR_TRY(tsr_field_string(json, "replacement", where, &mark));
    TSR_TRY(tsr_field_bool(json, "add_prefix_space", 1, where, &prefix));
    TSR_TRY(tsr_field_bool(json, "split", 1, where, &cut));
    size_t mark_bytes = 0;
    if (*mark)
        tsr_utf8_get(mark, &mark_bytes);
    if (mark_bytes == 0 || mark[mark_bytes])
        return tsr_fail(TSR_EMODEL, "%s: expected one character as \"replacement\"", where);
    const json_t *given = json_object_get(json, "prepend_scheme");
    if (given && !json_is_null(given) && !scheme)
        return tsr_fail(TSR_EMODEL, "%s: expected a string as \"prepend_scheme\"", where);
    int i = scheme ? 0 : prefix ? ALWAYS : NEVER;
    while (scheme && i <= ALWAYS && strcmp(scheme, PREPEND[i]) != 0)
        i++;
    if (i > ALWAYS)
        return tsr_fail(TSR_EMODEL, "%s: unknown prepend_scheme \"%.*s\"", where,
                        tsr_utf8_clip(scheme, 80), scheme);
    st->prepend = (enum prepend)i;
    st->behavior = MERGED_WITH_NEXT;
    st->mark = strdup(mark);
    if (!st->mark)
        return tsr_fail(TSR_ENOMEM, "no memory for a pre-tokenizer");
    return cut ? tsr_regex_compile(&st->regex, mark, true, where) : 0;
}

static int parse_one(struct tsr_pretok *p, const json_t *json, const char *where, int depth) {
    const char *type = tsr_field_type(json);
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "pretokenizers"), *item;
        size_t i;
        if (!json_is_array(list) || depth == MAX_STAGES)
            return tsr_fail(TSR_EMODEL, "%s: expected a list as \"pretokenizers\"", where);
        json_array_foreach(list, i, item) TSR_TRY(parse_one(p, item, where, depth + 1));
        return 0;
    }
    if (p->n == MAX_STAGES)
        return tsr_fail(TSR_EMODEL, "%s: more than %d steps", where, MAX_STAGES);
    struct stage *st = &p->stage[p->n++];
    if (strcmp(type, "Split") == 0)
        return parse_split(st, json, where);
    if (strcmp(type, "Digits") == 0)
        return parse_digits(st, json, where);
    if (strcmp(type, "Punctuation") == 0)
        return parse_punctuation(st, json, where);
    if (strcmp(type, "Metaspace") == 0)
        return parse_metaspace(st, json, where);
    if (strcmp(type, "ByteLevel") == 0)
        return parse_byte_level(st, json, where);
    return tsr_field_refuse(json, where);
}

int tsr_pretok_parse(struct tsr_pretok **out, const json_t *json, const char *where) {
    char part[512];
    snprintf(part, sizeof part, "%.480s: pre_tokenizer", where);
    struct tsr_pretok *p = calloc(1, sizeof *p);
    if (!p)
        return tsr_fail(TSR_ENOMEM, "no memory for a pre-tokenizer");
    int rc = json && !json_is_null(json) ? parse_one(p, json, part, 0) : 0;
    int n_byte_level = 0, n_metaspace = 0;
    for (int i = 0; i < p->n; i++) {
        n_byte_level += p->stage[i].byte_level;
        n_metaspace += p->stage[i].mark != NULL;
    }
    if (rc == 0 && n_byte_level > 1)
        rc = tsr_fail(TSR_EMODEL, "%s: expected one \"ByteLevel\" step, found %d", part,
                      n_byte_level);
    if (rc == 0 && n_metaspace > 1)
        rc = tsr_fail(TSR_EMODEL, "%s: expected one \"Metaspace\" step, found %d", part,
                      n_metaspace);
    if (rc == 0 && n_byte_level > 0 && n_metaspace > 0)
        rc = tsr_fail(TSR_EMODEL, "%s: \"Metaspace\" beside \"ByteLevel\" is not supported", part);
    if (rc < 0)
        tsr_pretok_free(p);
    else
        *out = p;
    return rc;
}

bool tsr_pretok_byte_level(const struct tsr_pretok *p) {
    for (int i = 0; i < p->n; i++)
        if (p->stage[i].byte_level)
            return true;
    return false;
}

static int run_from(struct tsr_pretok *p, int i, const char *s, size_t n_bytes);

// A piece goes on to the next stage, and to the caller behind the last one. Empty ones are dropped.
static int hand_on(struct tsr_pretok *p, int i, const char *s, size_t n_bytes) {
    if (n_bytes == 0)
        return 0;
    struct stage *st = &p->stage[i];
    if (st->byte_level && i + 1 < p->n) {
        st->scratch.len = 0;
        TSR_TRY(tsr_bytes_spell(s, n_bytes, &st->scratch));
        p->spelled = true;
        int rc = run_from(p, i + 1, st->scratch.data, st->scratch.len);
        p->spelled = false;
        return rc;
    }
    if (i + 1 < p->n)
        return run_from(p, i + 1, s, n_bytes);
    if (!p->spelled)
        return p->fn(p->arg, s, n_bytes);
    bool ok;
    st->scratch.len = 0;
    TSR_TRY(tsr_bytes_unspell(s, n_bytes, &st->scratch, &ok));
    TSR_ASSERT(ok);
    return p->fn(p->arg, st->scratch.data, st->scratch.len);
}

// Pieces of one text in order, [start, end) each, are grouped as the stage's behavior says.
struct grouping {
    struct tsr_pretok *p;
    int i;
    const char *s;
    size_t start, end; // the group that is still open, when `open`
    bool open, last_match;
};

static int flush(struct grouping *g) {
    if (!g->open)
        return 0;
    g->open = false;
    return hand_on(g->p, g->i, g->s + g->start, g->end - g->start);
}

static int add_piece(struct grouping *g, size_t start, size_t end, bool match) {
    const struct stage *st = &g->p->stage[g->i];
    match = match != st->invert;
    if (st->behavior == REMOVED && match)
        return 0;
    bool join = g->open && ((st->behavior == CONTIGUOUS && match == g->last_match) ||
                            (st->behavior == MERGED_WITH_PREVIOUS && match && !g->last_match) ||
                            (st->behavior == MERGED_WITH_NEXT && !match && g->last_match));
    if (!join) {
        TSR_TRY(flush(g));
        g->start = start;
    }
    g->end = end;
    g->open = true;
    g->last_match = match;
    return 0;
}

static int split(struct tsr_pretok *p, int i, const char *s, size_t n_bytes) {
    struct grouping g = {.p = p, .i = i, .s = s};
    struct tsr_regex_scan scan = {0};
    size_t done = 0, start, end;
    int found;
    while ((found = tsr_regex_next(p->stage[i].regex, s, n_bytes, &scan, &start, &end)) > 0) {
        if (done < start)
            TSR_TRY(add_piece(&g, done, start, false));
        TSR_TRY(add_piece(&g, start, end, true));
        done = end;
    }
    TSR_TRY(found);
    if (done < n_bytes)
        TSR_TRY(add_piece(&g, done, n_bytes, false));
    return flush(&g);
}

// The stage's scratch = the text with marks for spaces.
static int put_marks(const struct tsr_pretok *p, struct stage *st, const char *s, size_t n_bytes) {
    size_t n_mark = strlen(st->mark), done = 0;
    bool marked = (n_bytes >= n_mark && memcmp(s, st->mark, n_mark) == 0) || s[0] == ' ';
    st->scratch.len = 0;
    if (!marked && (st->prepend == ALWAYS || (st->prepend == FIRST && s == p->start)))
        TSR_TRY(tsr_buf_append(&st->scratch, st->mark, n_mark));
    for (size_t i = 0; i < n_bytes; i++) {
        if (s[i] != ' ')
            continue;
        TSR_TRY(tsr_buf_append(&st->scratch, s + done, i - done));
        TSR_TRY(tsr_buf_append(&st->scratch, st->mark, n_mark));
        done = i + 1;
    }
    return tsr_buf_append(&st->scratch, s + done, n_bytes - done);
}

static int run_from(struct tsr_pretok *p, int i, const char *s, size_t n_bytes) {
    struct stage *st = &p->stage[i];
    if (st->mark) {
        TSR_TRY(put_marks(p, st, s, n_bytes));
        s = st->scratch.data;
        n_bytes = st->scratch.len;
    }
    struct tsr_buf spaced = {0};
    int rc = 0;
    if (st->prefix_space && s[0] != ' ') {
        rc = tsr_buf_append(&spaced, " ", 1);
        if (rc == 0)
            rc = tsr_buf_append(&spaced, s, n_bytes);
        s = spaced.data;
        n_bytes = spaced.len;
    }
    if (rc == 0)
        rc = st->regex ? split(p, i, s, n_bytes) : hand_on(p, i, s, n_bytes);
    tsr_buf_free(&spaced);
    return rc;
}

int tsr_pretok_run(struct tsr_pretok *p, const char *text, size_t n_bytes, bool at_start,
                   tsr_word_fn *fn, void *arg) {
    if (n_bytes == 0)
        return 0;
    if (p->n == 0)
        return fn(arg, text, n_bytes);
    p->spelled = false;
    p->start = at_start ? text : NULL;
    p->fn = fn;
    p->arg = arg;
    return run_from(p, 0, text, n_bytes);
}

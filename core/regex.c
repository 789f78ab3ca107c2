#define PCRE2_CODE_UNIT_WIDTH 8
#include "core/regex.h"
#include "core/error.h"
#include "core/utf8.h"

#include <pcre2.h>
#include <string.h>

// A split pattern walks a long run of spaces once per match; a pattern that backtracks without
// end is stopped here after some seconds.
enum { MATCH_LIMIT = 400 * 1000 * 1000 };
enum { JIT_STACK_MIN = 32 << 10, JIT_STACK_MAX = 8 << 20 };

struct tsr_regex {
    pcre2_code *code;
    pcre2_match_data *match;
    pcre2_match_context *context;
    pcre2_jit_stack *stack; // NULL where this machine has no JIT: the interpreter runs then
};

void tsr_regex_free(struct tsr_regex *re) {
    if (!re)
        return;
    pcre2_jit_stack_free(re->stack);
    pcre2_match_context_free(re->context);
    pcre2_match_data_free(re->match);
    pcre2_code_free(re->code);
    free(re);
}

static int compile_text(struct tsr_regex *re, const char *text, size_t n_bytes, uint32_t options,
                        const char *pattern, const char *where) {
    pcre2_compile_context *cc = pcre2_compile_context_create(NULL);
    if (!cc)
        return tsr_fail(TSR_ENOMEM, "no memory for a split pattern");
    pcre2_set_newline(cc, PCRE2_NEWLINE_LF);
    int code;
    PCRE2_SIZE at;
    re->code = pcre2_compile((PCRE2_SPTR)text, n_bytes, PCRE2_UTF | options, &code, &at, cc);
    pcre2_compile_context_free(cc);
    if (re->code)
        return 0;
    char why[160] = "";
    pcre2_get_error_message(code, (PCRE2_UCHAR *)why, sizeof why);
    return tsr_fail(TSR_EMODEL, "%s: the pattern \"%.*s\" cannot be compiled: %s", where,
                    tsr_utf8_clip(pattern, 200), pattern, why);
}

static int prepare(struct tsr_regex *re) {
    re->match = pcre2_match_data_create_from_pattern(re->code, NULL);
    re->context = pcre2_match_context_create(NULL);
    if (!re->match || !re->context)
        return tsr_fail(TSR_ENOMEM, "no memory for a split pattern");
    pcre2_set_match_limit(re->context, MATCH_LIMIT);
    pcre2_set_depth_limit(re->context, MATCH_LIMIT);
    if (pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE) == 0) {
        re->stack = pcre2_jit_stack_create(JIT_STACK_MIN, JIT_STACK_MAX, NULL);
        if (!re->stack)
            return tsr_fail(TSR_ENOMEM, "no memory for a split pattern's stack");
        pcre2_jit_stack_assign(re->context, NULL, re->stack);
    }
    return 0;
}

int tsr_regex_compile(struct tsr_regex **out, const char *pattern, bool literal,
                      const char *where) {
    struct tsr_regex *re = calloc(1, sizeof *re);
    struct tsr_buf text = {0};
    if (!re)
        return tsr_fail(TSR_ENOMEM, "no memory for a split pattern");
    int rc = literal ? tsr_buf_append(&text, pattern, strlen(pattern))
                     : tsr_regex_translate(pattern, where, &text);
    // UCP: classes by Unicode. Oniguruma's ^ and $ stand at every line.
    uint32_t options = literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE;
    if (rc == 0)
        rc = compile_text(re, text.data, text.len, options, pattern, where);
    if (rc == 0)
        rc = prepare(re);
    tsr_buf_free(&text);
    if (rc < 0)
        tsr_regex_free(re);
    else
        *out = re;
    return rc;
}

// The text is valid UTF-8, which PCRE2 needn't check again at every call. A JIT that runs out of
// its stack leaves the match to the interpreter, whose stack is the heap.
static int search(struct tsr_regex *re, const char *s, size_t n_bytes, size_t from) {
    int rc = pcre2_match(re->code, (PCRE2_SPTR)s, n_bytes, from, PCRE2_NO_UTF_CHECK, re->match,
                         re->context);
    if (rc == PCRE2_ERROR_JIT_STACKLIMIT)
        rc = pcre2_match(re->code, (PCRE2_SPTR)s, n_bytes, from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT,
                         re->match, re->context);
    return rc;
}

int tsr_regex_next(struct tsr_regex *re, const char *s, size_t n_bytes, struct tsr_regex_scan *scan,
                   size_t *start, size_t *end) {
    for (size_t from = scan->at; from <= n_bytes;) {
        int rc = search(re, s, n_bytes, from);
        if (rc == PCRE2_ERROR_NOMATCH)
            break;
        if (rc == PCRE2_ERROR_NOMEMORY || rc == PCRE2_ERROR_HEAPLIMIT)
            return tsr_fail(TSR_ENOMEM, "no memory for matching the split pattern");
        if (rc < 0)
            return tsr_fail(TSR_EDATA,
                            "the split pattern gives up at byte %zu of a piece of %zu "
                            "bytes (PCRE2 error %d)",
                            from, n_bytes, rc);
        const PCRE2_SIZE *o = pcre2_get_ovector_pointer(re->match);
        if (o[0] == o[1] && scan->matched && o[1] == scan->at) {
            size_t len = 1;
            if (from < n_bytes)
                tsr_utf8_get(s + from, &len);
            from += len;
            continue;
        }
        *start = o[0];
        *end = o[1];
        *scan = (struct tsr_regex_scan){.at = o[1], .matched = true};
        return 1;
    }
    scan->at = n_bytes + 1;
    return 0;
}

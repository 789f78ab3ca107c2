#include "core/normalize.h"
#include "core/error.h"
#include "core/json_field.h"
#include "core/regex.h"
#include "core/tokenizer.h"

#include <string.h>
#include <utf8proc.h>

enum { MAX_STEPS = 16 };

enum kind { UNICODE_FORM, PREPEND, REPLACE };

struct step {
    enum kind kind;
    utf8proc_option_t form;
    char *text; // what is prepended, or put in
    size_t n_bytes;
    struct tsr_regex *regex; // REPLACE
};

struct tsr_normalizer {
    int n;
    struct step step[MAX_STEPS];
};

static const struct {
    const char *type;
    utf8proc_option_t form;
} FORMS[] = {{"NFC", UTF8PROC_STABLE | UTF8PROC_COMPOSE},
             {"NFD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE},
             {"NFKC", UTF8PROC_STABLE | UTF8PROC_COMPOSE | UTF8PROC_COMPAT},
             {"NFKD", UTF8PROC_STABLE | UTF8PROC_DECOMPOSE | UTF8PROC_COMPAT}};

void tsr_normalizer_free(struct tsr_normalizer *n) {
    if (!n)
        return;
    for (int i = 0; i < n->n; i++) {
        free(n->step[i].text);
        tsr_regex_free(n->step[i].regex);
    }
    free(n);
}

static int keep_text(struct step *st, const char *text) {
    st->text = strdup(text);
    st->n_bytes = strlen(text);
    return st->text ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a normalizer");
}

static int parse_replace(struct step *st, const json_t *json, const char *where) {
    const char *pattern, *content;
    bool literal;
    TSR_TRY(tsr_field_pattern(json, "pattern", where, &pattern, &literal));
    TSR_TRY(tsr_field_string(json, "content", where, &content));
    TSR_TRY(keep_text(st, content));
    st->kind = REPLACE;
    return tsr_regex_compile(&st->regex, pattern, literal, where);
}

static int parse_one(struct tsr_normalizer *n, const json_t *json, const char *where, int depth) {
    const char *type = tsr_field_type(json), *text;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(json, "normalizers"), *item;
        size_t i;
        if (!json_is_array(list) || depth == MAX_STEPS)
            return tsr_fail(TSR_EMODEL, "%s: expected a list as \"normalizers\"", where);
        json_array_foreach(list, i, item) TSR_TRY(parse_one(n, item, where, depth + 1));
        return 0;
    }
    if (n->n == MAX_STEPS)
        return tsr_fail(TSR_EMODEL, "%s: more than %d steps", where, MAX_STEPS);
    struct step *st = &n->step[n->n++];
    for (size_t i = 0; i < sizeof FORMS / sizeof FORMS[0]; i++)
        if (strcmp(type, FORMS[i].type) == 0) {
            st->form = FORMS[i].form;
            return 0;
        }
    if (strcmp(type, "Replace") == 0)
        return parse_replace(st, json, where);
    if (strcmp(type, "Prepend") != 0)
        return tsr_field_refuse(json, where);
    st->kind = PREPEND;
    TSR_TRY(tsr_field_string(json, "prepend", where, &text));
    return keep_text(st, text);
}

int tsr_normalizer_parse(struct tsr_normalizer **out, const json_t *json, const char *where) {
    *out = NULL;
    if (!json || json_is_null(json))
        return 0;
    char part[512];
    snprintf(part, sizeof part, "%.480s: normalizer", where);
    struct tsr_normalizer *n = calloc(1, sizeof *n);
    if (!n)
        return tsr_fail(TSR_ENOMEM, "no memory for a normalizer");
    int rc = parse_one(n, json, part, 0);
    if (rc < 0)
        tsr_normalizer_free(n);
    else
        *out = n;
    return rc;
}

static int unicode_form(const struct step *st, const struct tsr_buf *in, struct tsr_buf *out) {
    size_t ascii = 0;
    while (ascii < in->len && (unsigned char)in->data[ascii] < 0x80)
        ascii++;
    if (ascii == in->len) // ASCII is in every normal form
        return tsr_buf_append(out, in->data, in->len);
    utf8proc_uint8_t *text = NULL;
    utf8proc_ssize_t n = utf8proc_map((const utf8proc_uint8_t *)in->data, (utf8proc_ssize_t)in->len,
                                      &text, st->form);
    if (n == UTF8PROC_ERROR_NOMEM || n == UTF8PROC_ERROR_OVERFLOW)
        return tsr_fail(TSR_ENOMEM, "no memory to normalize %zu bytes", in->len);
    TSR_ASSERT(n >= 0); // the text is valid UTF-8
    int rc = tsr_buf_append(out, text, (size_t)n);
    free(text);
    return rc;
}

static int replace(const struct step *st, const struct tsr_buf *in, struct tsr_buf *out) {
    struct tsr_regex_scan scan = {0};
    size_t done = 0, start, end;
    int found;
    while ((found = tsr_regex_next(st->regex, in->data, in->len, &scan, &start, &end)) > 0) {
        TSR_TRY(tsr_buf_append(out, in->data + done, start - done));
        TSR_TRY(tsr_buf_append(out, st->text, st->n_bytes));
        done = end;
    }
    TSR_TRY(found);
    return tsr_buf_append(out, in->data + done, in->len - done);
}

static int run_step(const struct step *st, const struct tsr_buf *in, struct tsr_buf *out) {
    switch (st->kind) {
    case UNICODE_FORM:
        return unicode_form(st, in, out);
    case PREPEND:
        if (in->len > 0)
            TSR_TRY(tsr_buf_append(out, st->text, st->n_bytes));
        return tsr_buf_append(out, in->data, in->len);
    case REPLACE:
        break;
    }
    return replace(st, in, out);
}

int tsr_normalizer_run(const struct tsr_normalizer *nz, const char *text, size_t n_bytes,
                       struct tsr_buf *out) {
    out->len = 0;
    TSR_TRY(tsr_buf_append(out, text, n_bytes));
    struct tsr_buf next = {0};
    int rc = 0;
    for (int i = 0; nz && i < nz->n && rc == 0; i++) {
        next.len = 0;
        rc = run_step(&nz->step[i], out, &next);
        struct tsr_buf was = *out;
        *out = next;
        next = was;
    }
    tsr_buf_free(&next);
    return rc;
}

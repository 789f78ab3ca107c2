// A field's default, its end, and its value as text.
#include "core/run_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/decimal.h"
#include "core/error.h"

void tsr_field_free(struct tsr_run *r, const struct tsr_field *f) {
    if (f->type == TSR_FIELD_SOURCES) {
        struct tsr_sources *s = tsr_field_at(f, r);
        for (int i = 0; i < s->n; i++)
            free(s->items[i].path);
        free(s->items);
        *s = (struct tsr_sources){0};
    } else if (f->type == TSR_FIELD_LAYOUTS) {
        struct tsr_layouts *l = tsr_field_at(f, r);
        free(l->items);
        *l = (struct tsr_layouts){0};
    } else if (f->type > TSR_FIELD_ENUM) {
        char **at = tsr_field_at(f, r);
        free(*at);
        *at = NULL;
    }
}

int tsr_field_reset(struct tsr_run *r, const struct tsr_field *f) {
    const char *text = f->dflt ? f->dflt : "0";
    void *at = tsr_field_at(f, r);
    tsr_field_free(r, f);
    switch (f->type) {
    case TSR_FIELD_INT:
        *(int64_t *)at = strtoll(text, NULL, 10);
        return 0;
    case TSR_FIELD_REAL:
        *(double *)at = strtod(text, NULL);
        return 0;
    case TSR_FIELD_BOOL:
        *(bool *)at = strcmp(text, "true") == 0;
        return 0;
    case TSR_FIELD_ENUM:
        *(int *)at = 0;
        for (int i = 0; f->words[i]; i++)
            if (strcmp(f->words[i], text) == 0)
                *(int *)at = i;
        return 0;
    default:
        if (f->dflt && !(*(char **)at = strdup(f->dflt)))
            return tsr_fail(TSR_ENOMEM, "out of memory");
        return 0;
    }
}

static int print_real(struct tsr_buf *out, double v) {
    char text[TSR_DECIMAL_MAX];
    tsr_shortest_decimal(text, v);
    return tsr_buf_append(out, text, strlen(text));
}

static int print_sources(struct tsr_buf *out, const struct tsr_sources *s) {
    TSR_TRY(tsr_buf_append(out, "[", 1));
    for (int i = 0; i < s->n; i++) {
        TSR_TRY(tsr_buf_printf(out, "%s{path: ", i ? ", " : ""));
        TSR_TRY(tsr_quote(out, s->items[i].path));
        TSR_TRY(tsr_buf_append(out, ", weight: ", 10));
        TSR_TRY(print_real(out, s->items[i].weight));
        TSR_TRY(tsr_buf_append(out, "}", 1));
    }
    return tsr_buf_append(out, "]", 1);
}

static int print_layouts(struct tsr_buf *out, const struct tsr_layouts *l) {
    TSR_TRY(tsr_buf_append(out, "[", 1));
    for (int i = 0; i < l->n; i++)
        TSR_TRY(tsr_buf_printf(out, "%s{tp: %" PRId64 ", pp: %" PRId64 ", dp: %" PRId64 "}",
                               i ? ", " : "", l->items[i].tp, l->items[i].pp, l->items[i].dp));
    return tsr_buf_append(out, "]", 1);
}

int tsr_field_print(const struct tsr_run *r, const struct tsr_field *f, struct tsr_buf *out) {
    const void *at = tsr_field_at(f, r);
    const char *text;
    switch (f->type) {
    case TSR_FIELD_INT:
        return tsr_buf_printf(out, "%" PRId64, *(const int64_t *)at);
    case TSR_FIELD_REAL:
        return print_real(out, *(const double *)at);
    case TSR_FIELD_BOOL:
        return tsr_buf_printf(out, "%s", *(const bool *)at ? "true" : "false");
    case TSR_FIELD_ENUM:
        return tsr_buf_printf(out, "%s", f->words[*(const int *)at]);
    case TSR_FIELD_SOURCES:
        return print_sources(out, at);
    case TSR_FIELD_LAYOUTS:
        return print_layouts(out, at);
    default:
        text = *(char *const *)at;
        if (!text)
            return tsr_buf_append(out, "null", 4);
        if (f->type == TSR_FIELD_JSON)
            return tsr_buf_append(out, text, strlen(text));
        return tsr_quote(out, text);
    }
}

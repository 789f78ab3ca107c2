// One field at a time: its value from a node, its default, its value as text.
#include "core/run_private.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

void tsr_field_wrong_type(struct tsr_reader *rd, const struct tsr_field *f,
                          const yaml_node_t *node) {
    char type[200], found[100];
    const char *near = NULL;
    if (f->words && node->type == YAML_SCALAR_NODE) {
        int n = 0;
        while (f->words[n])
            n++;
        near = tsr_nearest(tsr_yaml_text(node), f->words, n);
    }
    tsr_mistake(rd, tsr_mark_of(rd, node), "%s: expected %s, found %s%s%s%s", f->path,
                tsr_field_type_text(f, type), tsr_yaml_describe(node, found),
                near ? "; did you mean " : "", near ? near : "", near ? "?" : "");
}

static bool set_int(const struct tsr_field *f, struct tsr_run *r, const yaml_node_t *node) {
    if (tsr_yaml_scalar(node) != TSR_SCALAR_INT)
        return false;
    errno = 0;
    long long v = strtoll(tsr_yaml_text(node), NULL, 10);
    if (errno || (double)v < f->lo || (double)v > f->hi)
        return false;
    *(int64_t *)tsr_field_at(f, r) = v;
    return true;
}

static bool set_real(const struct tsr_field *f, struct tsr_run *r, const yaml_node_t *node) {
    enum tsr_scalar kind = tsr_yaml_scalar(node);
    if (kind != TSR_SCALAR_INT && kind != TSR_SCALAR_REAL)
        return false;
    double v = strtod(tsr_yaml_text(node), NULL);
    if (!isfinite(v) || v < f->lo || v > f->hi || (f->open_lo && v == f->lo) ||
        (f->open_hi && v == f->hi))
        return false;
    *(double *)tsr_field_at(f, r) = v;
    return true;
}

static bool set_bool(const struct tsr_field *f, struct tsr_run *r, const yaml_node_t *node) {
    if (tsr_yaml_scalar(node) != TSR_SCALAR_BOOL)
        return false;
    *(bool *)tsr_field_at(f, r) = tsr_yaml_is_true(node);
    return true;
}

static bool set_enum(const struct tsr_field *f, struct tsr_run *r, const yaml_node_t *node) {
    for (int i = 0; f->words[i]; i++) {
        if (strcmp(tsr_yaml_text(node), f->words[i]) == 0) {
            *(int *)tsr_field_at(f, r) = i;
            return true;
        }
    }
    return false;
}

static bool is_word_of(const struct tsr_field *f, const char *text) {
    for (int i = 0; f->words && f->words[i]; i++)
        if (strcmp(text, f->words[i]) == 0)
            return true;
    return false;
}

bool tsr_yaml_is_text(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE && !tsr_yaml_is_null(node) &&
           node->data.scalar.length > 0 && strlen(tsr_yaml_text(node)) == node->data.scalar.length;
}

// Text of any kind: a name such as 123 needs no quotes.
static void set_text(struct tsr_reader *rd, const struct tsr_field *f, const yaml_node_t *node) {
    char **at = tsr_field_at(f, rd->r);
    const char *text = tsr_yaml_text(node);
    if (!tsr_yaml_is_text(node)) {
        tsr_field_wrong_type(rd, f, node);
        return;
    }
    bool is_path = f->type != TSR_FIELD_STRING && !is_word_of(f, text);
    char *copy = is_path ? tsr_reader_path(rd, tsr_mark_of(rd, node), text) : strdup(text);
    if (!copy) {
        rd->no_memory = rd->no_memory || !is_path;
        return;
    }
    free(*at);
    *at = copy;
}

static void set_json(struct tsr_reader *rd, const struct tsr_field *f, const yaml_node_t *node) {
    struct tsr_buf b = {0};
    if (!tsr_yaml_to_json(rd, node, f->path, &b)) {
        tsr_buf_free(&b);
        return;
    }
    char **at = tsr_field_at(f, rd->r);
    free(*at);
    *at = b.data;
}

static bool set_number(const struct tsr_field *f, struct tsr_run *r, const yaml_node_t *node) {
    if (node->type != YAML_SCALAR_NODE || strlen(tsr_yaml_text(node)) != node->data.scalar.length)
        return false;
    switch (f->type) {
    case TSR_FIELD_INT:
        return set_int(f, r, node);
    case TSR_FIELD_REAL:
        return set_real(f, r, node);
    case TSR_FIELD_BOOL:
        return set_bool(f, r, node);
    default:
        return set_enum(f, r, node);
    }
}

void tsr_field_set(struct tsr_reader *rd, int field, const yaml_node_t *node) {
    const struct tsr_field *f = &tsr_fields[field];
    bool is_number = f->type <= TSR_FIELD_ENUM, null = tsr_yaml_is_null(node);
    int n_before = rd->n_mistakes;
    rd->marks[field] = tsr_mark_of(rd, node);
    if (is_number) {
        if (!set_number(f, rd->r, node))
            tsr_field_wrong_type(rd, f, node);
    } else if (null) {
        rd->marks[field].argument = -1;
        rd->no_memory |= tsr_field_reset(rd->r, f) < 0;
    } else if (f->type == TSR_FIELD_SOURCES) {
        tsr_field_set_sources(rd, f, node);
    } else if (f->type == TSR_FIELD_LAYOUTS) {
        tsr_field_set_layouts(rd, f, node);
    } else if (f->type == TSR_FIELD_JSON && node->type == YAML_MAPPING_NODE) {
        set_json(rd, f, node);
    } else if (f->type != TSR_FIELD_JSON && node->type == YAML_SCALAR_NODE) {
        set_text(rd, f, node);
    } else {
        tsr_field_wrong_type(rd, f, node);
    }
    rd->bad[field] = rd->n_mistakes > n_before;
}

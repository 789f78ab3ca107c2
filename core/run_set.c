// One field at a time: its value from a node, its default, its value as text.
#include "core/run_private.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

static void wrong_type(struct tsr_reader *rd, const struct tsr_field *f, const yaml_node_t *node) {
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

// A scalar of at least one character; a NUL can stand in quotes as an escape.
static bool is_text(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE && !tsr_yaml_is_null(node) &&
           node->data.scalar.length > 0 && strlen(tsr_yaml_text(node)) == node->data.scalar.length;
}

// Text of any kind: a name such as 123 needs no quotes.
static void set_text(struct tsr_reader *rd, const struct tsr_field *f, const yaml_node_t *node) {
    char **at = tsr_field_at(f, rd->r);
    const char *text = tsr_yaml_text(node);
    if (!is_text(node)) {
        wrong_type(rd, f, node);
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

struct source_state {
    const struct tsr_field *f;
    struct tsr_source source;
};

static void set_source_key(struct tsr_reader *rd, const yaml_node_t *key, const yaml_node_t *value,
                           void *arg) {
    static const char *const keys[] = {"path", "weight"};
    struct source_state *s = arg;
    const char *name = tsr_yaml_text(key), *near = tsr_nearest(name, keys, 2);
    struct tsr_mark at = tsr_mark_of(rd, value);
    char found[100];
    bool scalar = value->type == YAML_SCALAR_NODE;
    if (strcmp(name, "path") == 0 && is_text(value)) {
        s->source.path = tsr_reader_path(rd, at, tsr_yaml_text(value));
    } else if (strcmp(name, "path") == 0) {
        tsr_mistake(rd, at, "%s: path: expected a path, found %s", s->f->path,
                    tsr_yaml_describe(value, found));
    } else if (strcmp(name, "weight") == 0) {
        enum tsr_scalar kind = scalar ? tsr_yaml_scalar(value) : TSR_SCALAR_NULL;
        bool number = kind == TSR_SCALAR_INT || kind == TSR_SCALAR_REAL;
        s->source.weight = number ? strtod(tsr_yaml_text(value), NULL) : 0.0;
        if (!(s->source.weight > 0.0 && s->source.weight < 1e15))
            tsr_mistake(rd, at, "%s: weight: expected a number > 0 and < 1e15, found %s",
                        s->f->path, tsr_yaml_describe(value, found));
    } else {
        tsr_mistake(rd, tsr_mark_of(rd, key), "%s: %.60s: unknown key; did you mean %s?",
                    s->f->path, name, near ? near : "path or weight");
    }
}

static void add_source(struct tsr_reader *rd, const struct tsr_field *f, struct tsr_sources *list,
                       const yaml_node_t *node) {
    struct source_state s = {f, {NULL, 1.0}};
    int n_before = rd->n_mistakes;
    if (node->type == YAML_MAPPING_NODE) {
        tsr_yaml_each_pair(rd, node, f->path, set_source_key, &s);
        if (!s.source.path && rd->n_mistakes == n_before && !rd->no_memory)
            tsr_mistake(rd, tsr_mark_of(rd, node), "%s: `path` is missing", f->path);
    } else if (is_text(node)) {
        s.source.path = tsr_reader_path(rd, tsr_mark_of(rd, node), tsr_yaml_text(node));
    } else {
        wrong_type(rd, f, node);
    }
    if (!s.source.path || rd->n_mistakes > n_before)
        free(s.source.path);
    else
        list->items[list->n++] = s.source;
}

static void set_sources(struct tsr_reader *rd, const struct tsr_field *f, const yaml_node_t *node) {
    bool many = node->type == YAML_SEQUENCE_NODE;
    const yaml_node_item_t *items = many ? node->data.sequence.items.start : NULL;
    int64_t n = many ? node->data.sequence.items.top - items : 1;
    tsr_field_free(rd->r, f);
    struct tsr_sources *list = tsr_field_at(f, rd->r);
    list->items = calloc((size_t)n + 1, sizeof *list->items);
    if (!list->items) {
        rd->no_memory = true;
        return;
    }
    for (int64_t i = 0; i < n && many; i++)
        add_source(rd, f, list, yaml_document_get_node(rd->doc, items[i]));
    if (!many)
        add_source(rd, f, list, node);
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
            wrong_type(rd, f, node);
    } else if (null) {
        rd->marks[field].argument = -1;
        rd->no_memory |= tsr_field_reset(rd->r, f) < 0;
    } else if (f->type == TSR_FIELD_SOURCES) {
        set_sources(rd, f, node);
    } else if (f->type == TSR_FIELD_JSON && node->type == YAML_MAPPING_NODE) {
        set_json(rd, f, node);
    } else if (f->type != TSR_FIELD_JSON && node->type == YAML_SCALAR_NODE) {
        set_text(rd, f, node);
    } else {
        wrong_type(rd, f, node);
    }
    rd->bad[field] = rd->n_mistakes > n_before;
}

// Fields whose value is a list: data sources and layouts.
#include "core/run_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { MAX_RANKS = 65536 };

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
    if (strcmp(name, "path") == 0 && tsr_yaml_is_text(value)) {
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
    } else if (tsr_yaml_is_text(node)) {
        s.source.path = tsr_reader_path(rd, tsr_mark_of(rd, node), tsr_yaml_text(node));
    } else {
        tsr_field_wrong_type(rd, f, node);
    }
    if (!s.source.path || rd->n_mistakes > n_before)
        free(s.source.path);
    else
        list->items[list->n++] = s.source;
}

void tsr_field_set_sources(struct tsr_reader *rd, const struct tsr_field *f,
                           const yaml_node_t *node) {
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

struct layout_state {
    const struct tsr_field *f;
    struct tsr_layout3 layout;
};

static void set_layout_key(struct tsr_reader *rd, const yaml_node_t *key, const yaml_node_t *value,
                           void *arg) {
    static const char *const keys[] = {"tp", "pp", "dp"};
    struct layout_state *s = arg;
    int64_t *const dims[] = {&s->layout.tp, &s->layout.pp, &s->layout.dp};
    const char *name = tsr_yaml_text(key), *near = tsr_nearest(name, keys, 3);
    char found[100];
    for (int i = 0; i < 3; i++) {
        if (strcmp(name, keys[i]) != 0)
            continue;
        bool whole = value->type == YAML_SCALAR_NODE && tsr_yaml_scalar(value) == TSR_SCALAR_INT;
        long long n = whole ? strtoll(tsr_yaml_text(value), NULL, 10) : 0;
        if (n < 1 || n > MAX_RANKS)
            tsr_mistake(rd, tsr_mark_of(rd, value),
                        "%s: %s: expected an integer from 1 to %d, found %s", s->f->path, name,
                        MAX_RANKS, tsr_yaml_describe(value, found));
        *dims[i] = n;
        return;
    }
    tsr_mistake(rd, tsr_mark_of(rd, key), "%s: %.60s: unknown key; did you mean %s?", s->f->path,
                name, near ? near : "tp, pp or dp");
}

void tsr_field_set_layouts(struct tsr_reader *rd, const struct tsr_field *f,
                           const yaml_node_t *node) {
    if (node->type != YAML_SEQUENCE_NODE) {
        tsr_field_wrong_type(rd, f, node);
        return;
    }
    const yaml_node_item_t *items = node->data.sequence.items.start;
    int64_t n = node->data.sequence.items.top - items;
    tsr_field_free(rd->r, f);
    struct tsr_layouts *list = tsr_field_at(f, rd->r);
    list->items = calloc((size_t)n + 1, sizeof *list->items);
    rd->no_memory |= !list->items;
    for (int64_t i = 0; i < n && list->items; i++) {
        const yaml_node_t *item = yaml_document_get_node(rd->doc, items[i]);
        struct layout_state s = {f, {1, 1, 1}};
        if (item->type == YAML_MAPPING_NODE)
            tsr_yaml_each_pair(rd, item, f->path, set_layout_key, &s);
        else
            tsr_field_wrong_type(rd, f, item);
        list->items[list->n++] = s.layout;
    }
}

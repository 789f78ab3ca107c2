// A YAML mapping as JSON text: model.config on its way to the reader of config.json.
#include "core/run_private.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "core/utf8.h"

// Aliases may repeat a subtree and even contain themselves, so depth and size are bounded here.
enum { MAX_DEPTH = 32, MAX_JSON_BYTES = 1 << 20, MAX_KEY_BYTES = 200 };

struct writer {
    struct tsr_buf *out;
    const char *path;
    int depth;
    int n_pairs; // written in the mapping at hand
    bool good;
};

// Line separators are folded and a byte order mark is refused by YAML, even inside quotes.
static bool needs_escape(uint32_t c) {
    return c < 0x20 || c == '"' || c == '\\' || (c >= 0x7F && c <= 0xA0) || c == 0x2028 ||
           c == 0x2029 || c == 0xFEFF || c == 0xFFFE || c == 0xFFFF;
}

int tsr_quote(struct tsr_buf *out, const char *s) {
    TSR_TRY(tsr_buf_append(out, "\"", 1));
    for (size_t n_bytes; *s; s += n_bytes) {
        bool whole = tsr_utf8_char(s, strnlen(s, 4)) > 0; // a path may be anything
        uint32_t c = whole ? tsr_utf8_get(s, &n_bytes) : '?';
        n_bytes = whole ? n_bytes : 1;
        if (c == '"' || c == '\\')
            TSR_TRY(tsr_buf_printf(out, "\\%c", (char)c));
        else if (needs_escape(c))
            TSR_TRY(tsr_buf_printf(out, "\\u%04x", c));
        else
            TSR_TRY(tsr_buf_append(out, s, n_bytes));
    }
    return tsr_buf_append(out, "\"", 1);
}

// Spells a YAML number as JSON does, digits untouched: no plus sign, no leading zeros, digits on
// both sides of a point.
static int write_number(struct tsr_buf *out, const char *s) {
    if (*s == '-')
        TSR_TRY(tsr_buf_append(out, "-", 1));
    s += *s == '-' || *s == '+';
    while (s[0] == '0' && isdigit((unsigned char)s[1]))
        s++;
    size_t whole = strspn(s, "0123456789");
    TSR_TRY(tsr_buf_append(out, whole ? s : "0", whole ? whole : 1));
    s += whole;
    if (*s == '.') {
        size_t part = strspn(s + 1, "0123456789");
        TSR_TRY(tsr_buf_append(out, ".", 1));
        TSR_TRY(tsr_buf_append(out, part ? s + 1 : "0", part ? part : 1));
        s += 1 + part;
    }
    return tsr_buf_append(out, s, strlen(s));
}

static void write_value(struct tsr_reader *rd, struct writer *w, const yaml_node_t *node);

static void keep(struct tsr_reader *rd, struct writer *w, int rc) {
    if (rc < 0) {
        rd->no_memory = true;
        w->good = false;
    }
}

static void fail(struct tsr_reader *rd, struct writer *w, const yaml_node_t *node,
                 const char *problem) {
    tsr_mistake(rd, tsr_mark_of(rd, node), "%s: %s", w->path, problem);
    w->good = false;
}

// A slip in a name would silently give the default, so a key that is nearly a known one is
// refused. Other unknown keys are kept, as in any config.json.
static void check_name(struct tsr_reader *rd, struct writer *w, struct tsr_mark at,
                       const char *name) {
    for (int i = 0; i < tsr_n_model_known_keys; i++)
        if (strcmp(name, tsr_model_known_keys[i]) == 0)
            return;
    const char *near = tsr_nearest(name, tsr_model_known_keys, tsr_n_model_known_keys);
    if (!near)
        return;
    tsr_mistake(rd, at, "%s.%.60s: unknown key; did you mean %s?", w->path, name, near);
    w->good = false;
}

static void write_pair(struct tsr_reader *rd, const yaml_node_t *key, const yaml_node_t *value,
                       void *arg) {
    struct writer *w = arg;
    if (key->data.scalar.length > MAX_KEY_BYTES) {
        fail(rd, w, key, "a key is too long");
        return;
    }
    if (w->depth == 1)
        check_name(rd, w, tsr_mark_of(rd, key), tsr_yaml_text(key));
    keep(rd, w, tsr_buf_printf(w->out, "%s", w->n_pairs++ ? ", " : ""));
    keep(rd, w, tsr_quote(w->out, tsr_yaml_text(key)));
    keep(rd, w, tsr_buf_append(w->out, ": ", 2));
    write_value(rd, w, value);
}

static void write_mapping(struct tsr_reader *rd, struct writer *w, const yaml_node_t *map) {
    int n_mistakes = rd->n_mistakes, n_outer = w->n_pairs;
    w->n_pairs = 0;
    keep(rd, w, tsr_buf_append(w->out, "{", 1));
    tsr_yaml_each_pair(rd, map, w->path, write_pair, w);
    keep(rd, w, tsr_buf_append(w->out, "}", 1));
    w->n_pairs = n_outer;
    if (rd->n_mistakes > n_mistakes)
        w->good = false;
}

static void write_list(struct tsr_reader *rd, struct writer *w, const yaml_node_t *list) {
    const yaml_node_item_t *items = list->data.sequence.items.start;
    int64_t n = list->data.sequence.items.top - items;
    keep(rd, w, tsr_buf_append(w->out, "[", 1));
    for (int64_t i = 0; i < n && w->good; i++) {
        keep(rd, w, tsr_buf_printf(w->out, "%s", i ? ", " : ""));
        write_value(rd, w, yaml_document_get_node(rd->doc, items[i]));
    }
    keep(rd, w, tsr_buf_append(w->out, "]", 1));
}

static void write_scalar(struct tsr_reader *rd, struct writer *w, const yaml_node_t *node) {
    const char *s = tsr_yaml_text(node);
    if (strlen(s) != node->data.scalar.length) {
        fail(rd, w, node, "a text holds a NUL character");
        return;
    }
    switch (tsr_yaml_scalar(node)) {
    case TSR_SCALAR_NULL:
        keep(rd, w, tsr_buf_printf(w->out, "null"));
        return;
    case TSR_SCALAR_BOOL:
        keep(rd, w, tsr_buf_printf(w->out, "%s", tsr_yaml_is_true(node) ? "true" : "false"));
        return;
    case TSR_SCALAR_INT:
    case TSR_SCALAR_REAL:
        keep(rd, w, write_number(w->out, s));
        return;
    case TSR_SCALAR_STRING:
        keep(rd, w, tsr_quote(w->out, s));
    }
}

static void write_value(struct tsr_reader *rd, struct writer *w, const yaml_node_t *node) {
    if (!w->good)
        return;
    if (w->depth >= MAX_DEPTH || w->out->len > MAX_JSON_BYTES) {
        fail(rd, w, node, w->depth >= MAX_DEPTH ? "nested too deeply" : "too long");
        return;
    }
    w->depth++;
    if (node->type == YAML_MAPPING_NODE)
        write_mapping(rd, w, node);
    else if (node->type == YAML_SEQUENCE_NODE)
        write_list(rd, w, node);
    else
        write_scalar(rd, w, node);
    w->depth--;
}

bool tsr_yaml_to_json(struct tsr_reader *rd, const yaml_node_t *map, const char *path,
                      struct tsr_buf *out) {
    struct writer w = {out, path, 0, 0, true};
    write_value(rd, &w, map);
    return w.good;
}

bool tsr_yaml_key_to_json(struct tsr_reader *rd, const char *key, const yaml_node_t *value,
                          const char *path, struct tsr_buf *out) {
    struct writer w = {out, path, 1, 0, true};
    if (!strchr(key, '.'))
        check_name(rd, &w, tsr_mark_of(rd, value), key);
    write_value(rd, &w, value);
    return w.good;
}

// YAML text into a tree of nodes (libyaml), and what a node is in YAML 1.2's core schema.
#include "core/run_private.h"

#include <ctype.h>
#include <stdio.h>
#include <string.h>
#include "core/error.h"

enum { MAX_PAIRS = 1000, MAX_NESTING = 64, MAX_ANCHORS = 1000 };

struct tsr_mark tsr_mark_of(const struct tsr_reader *rd, const yaml_node_t *node) {
    return (struct tsr_mark){rd->argument, (int)node->start_mark.line + 1,
                             (int)node->start_mark.column + 1};
}

// A reader's problem (bytes that aren't UTF-8, control characters) comes with an offset only.
static struct tsr_mark mark_of_offset(const struct tsr_reader *rd, const char *text, size_t n) {
    struct tsr_mark at = {rd->argument, 1, 1};
    for (size_t i = 0; i < n; i++) {
        bool line_end = text[i] == '\n';
        at.line += line_end;
        at.col = line_end ? 1 : at.col + ((text[i] & 0xC0) != 0x80); // count characters
    }
    return at;
}

static void record_problem(struct tsr_reader *rd, const yaml_parser_t *p, const char *text,
                           size_t n_bytes) {
    size_t offset = p->problem_offset < n_bytes ? p->problem_offset : n_bytes;
    struct tsr_mark at = {rd->argument, (int)p->problem_mark.line + 1,
                          (int)p->problem_mark.column + 1};
    switch (p->error) {
    case YAML_MEMORY_ERROR:
        rd->no_memory = true;
        return;
    case YAML_READER_ERROR:
        tsr_mistake(rd, mark_of_offset(rd, text, offset), "expected UTF-8 text: %s (byte %zu)",
                    p->problem, offset);
        return;
    default:
        tsr_mistake(rd, at, "not valid YAML: %s%s%s", p->problem ? p->problem : "unknown problem",
                    p->context ? ", " : "", p->context ? p->context : "");
    }
}

static bool is_last_document(struct tsr_reader *rd, yaml_parser_t *p, const char *text,
                             size_t n_bytes) {
    yaml_document_t next;
    if (!yaml_parser_load(p, &next)) {
        record_problem(rd, p, text, n_bytes);
        return false;
    }
    yaml_node_t *root = yaml_document_get_root_node(&next);
    if (root)
        tsr_mistake(rd, tsr_mark_of(rd, root), "expected one YAML document, found a second one");
    yaml_document_delete(&next);
    return !root;
}

static bool has_anchor(const yaml_event_t *e) {
    return (e->type == YAML_SCALAR_EVENT && e->data.scalar.anchor) ||
           (e->type == YAML_SEQUENCE_START_EVENT && e->data.sequence_start.anchor) ||
           (e->type == YAML_MAPPING_START_EVENT && e->data.mapping_start.anchor);
}

static bool start(struct tsr_reader *rd, yaml_parser_t *p, const char *text, size_t n_bytes) {
    if (!yaml_parser_initialize(p)) {
        rd->no_memory = true;
        return false;
    }
    yaml_parser_set_encoding(p, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(p, (const unsigned char *)text, n_bytes);
    return true;
}

// Runs through the events alone: libyaml's time grows with the square of the nesting and of the
// number of anchors, so both are bounded before it composes a document.
static bool is_bounded(struct tsr_reader *rd, const char *text, size_t n_bytes) {
    yaml_parser_t p;
    yaml_event_t e;
    int depth = 0, n_anchors = 0;
    bool good = true, end = false;
    if (!start(rd, &p, text, n_bytes))
        return false;
    while (good && !end) {
        if (!yaml_parser_parse(&p, &e)) {
            record_problem(rd, &p, text, n_bytes);
            good = false;
            break;
        }
        depth += e.type == YAML_SEQUENCE_START_EVENT || e.type == YAML_MAPPING_START_EVENT;
        depth -= e.type == YAML_SEQUENCE_END_EVENT || e.type == YAML_MAPPING_END_EVENT;
        n_anchors += has_anchor(&e);
        end = e.type == YAML_STREAM_END_EVENT;
        if (depth > MAX_NESTING || n_anchors > MAX_ANCHORS) {
            struct tsr_mark at = {rd->argument, (int)e.start_mark.line + 1,
                                  (int)e.start_mark.column + 1};
            tsr_mistake(rd, at,
                        depth > MAX_NESTING ? "expected at most %d levels, found more"
                                            : "expected at most %d anchors, found more",
                        depth > MAX_NESTING ? MAX_NESTING : MAX_ANCHORS);
            good = false;
        }
        yaml_event_delete(&e);
    }
    yaml_parser_delete(&p);
    return good;
}

bool tsr_yaml_compose(struct tsr_reader *rd, const char *text, size_t n_bytes,
                      yaml_document_t *doc) {
    yaml_parser_t p;
    if (!is_bounded(rd, text, n_bytes) || !start(rd, &p, text, n_bytes))
        return false;
    bool good = yaml_parser_load(&p, doc);
    if (!good) {
        record_problem(rd, &p, text, n_bytes);
    } else if (yaml_document_get_root_node(doc) && !is_last_document(rd, &p, text, n_bytes)) {
        yaml_document_delete(doc);
        good = false;
    }
    yaml_parser_delete(&p);
    return good;
}

const char *tsr_yaml_text(const yaml_node_t *scalar) {
    return (const char *)scalar->data.scalar.value;
}

static bool is_one_of(const char *s, const char *a, const char *b, const char *c) {
    return strcmp(s, a) == 0 || strcmp(s, b) == 0 || strcmp(s, c) == 0;
}

static size_t n_digits(const char *s) {
    return strspn(s, "0123456789");
}

// [-+]? ( \. [0-9]+ | [0-9]+ ( \. [0-9]* )? ) ( [eE] [-+]? [0-9]+ )? as in section 10.3.2 of the
// YAML 1.2 specification; without point and exponent it is an integer.
static enum tsr_scalar number_kind(const char *s) {
    enum tsr_scalar kind = TSR_SCALAR_INT;
    s += *s == '-' || *s == '+';
    size_t whole = n_digits(s), part = 0;
    s += whole;
    if (*s == '.') {
        kind = TSR_SCALAR_REAL;
        part = n_digits(++s);
        s += part;
    }
    if (whole + part == 0)
        return TSR_SCALAR_STRING;
    if (*s == 'e' || *s == 'E') {
        kind = TSR_SCALAR_REAL;
        s++;
        s += *s == '-' || *s == '+';
        size_t n = n_digits(s);
        if (n == 0)
            return TSR_SCALAR_STRING;
        s += n;
    }
    return *s ? TSR_SCALAR_STRING : kind;
}

enum tsr_scalar tsr_yaml_scalar(const yaml_node_t *node) {
    const char *s = tsr_yaml_text(node);
    if (node->data.scalar.style != YAML_PLAIN_SCALAR_STYLE)
        return TSR_SCALAR_STRING;
    if (*s == 0 || strcmp(s, "~") == 0 || is_one_of(s, "null", "Null", "NULL"))
        return TSR_SCALAR_NULL;
    if (is_one_of(s, "true", "True", "TRUE") || is_one_of(s, "false", "False", "FALSE"))
        return TSR_SCALAR_BOOL;
    return number_kind(s);
}

bool tsr_yaml_is_null(const yaml_node_t *node) {
    return node->type == YAML_SCALAR_NODE && tsr_yaml_scalar(node) == TSR_SCALAR_NULL;
}

bool tsr_yaml_is_true(const yaml_node_t *node) {
    return tolower((unsigned char)tsr_yaml_text(node)[0]) == 't';
}

const char *tsr_yaml_describe(const yaml_node_t *node, char buf[static 100]) {
    if (node->type == YAML_SEQUENCE_NODE)
        return "a list";
    if (node->type == YAML_MAPPING_NODE)
        return "a mapping";
    if (tsr_yaml_is_null(node))
        return "nothing";
    bool plain = node->data.scalar.style == YAML_PLAIN_SCALAR_STYLE;
    snprintf(buf, 100, "%s%.60s%s", plain ? "" : "the text \"", tsr_yaml_text(node),
             plain ? "" : "\"");
    for (char *s = buf; *s; s++)
        *s = *s == '\n' ? ' ' : *s; // a mistake is one line
    return buf;
}

// The place of the first pair with the same key, or NULL.
static const yaml_node_t *same_key_before(const struct tsr_reader *rd, const yaml_node_t *map,
                                          int n_before, const char *key) {
    for (int i = 0; i < n_before; i++) {
        const yaml_node_t *other =
            yaml_document_get_node(rd->doc, map->data.mapping.pairs.start[i].key);
        if (other->type == YAML_SCALAR_NODE && strcmp(tsr_yaml_text(other), key) == 0)
            return other;
    }
    return NULL;
}

void tsr_yaml_each_pair(struct tsr_reader *rd, const yaml_node_t *map, const char *path,
                        void (*fn)(struct tsr_reader *rd, const yaml_node_t *key,
                                   const yaml_node_t *value, void *arg),
                        void *arg) {
    const yaml_node_pair_t *pairs = map->data.mapping.pairs.start;
    int64_t n = map->data.mapping.pairs.top - pairs;
    if (n > MAX_PAIRS) {
        tsr_mistake(rd, tsr_mark_of(rd, map), "%s: expected at most %d keys, found %lld", path,
                    MAX_PAIRS, (long long)n);
        return;
    }
    for (int i = 0; i < n; i++) {
        const yaml_node_t *key = yaml_document_get_node(rd->doc, pairs[i].key);
        const yaml_node_t *value = yaml_document_get_node(rd->doc, pairs[i].value);
        char found[100];
        if (key->type != YAML_SCALAR_NODE || key->data.scalar.length == 0 ||
            strlen(tsr_yaml_text(key)) != key->data.scalar.length) {
            tsr_mistake(rd, tsr_mark_of(rd, key), "%s%sexpected a word as a key, found %s", path,
                        *path ? ": " : "", tsr_yaml_describe(key, found));
            continue;
        }
        const yaml_node_t *first = same_key_before(rd, map, i, tsr_yaml_text(key));
        if (first)
            tsr_mistake(rd, tsr_mark_of(rd, key), "%s%s%.60s: given twice, first in line %d", path,
                        *path ? "." : "", tsr_yaml_text(key), tsr_mark_of(rd, first).line);
        else
            fn(rd, key, value, arg);
    }
}

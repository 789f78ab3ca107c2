// What the files that read, check and write the run file share.
#ifndef TSR_CORE_RUN_PRIVATE_H
#define TSR_CORE_RUN_PRIVATE_H

#include <stddef.h>
#include <yaml.h>
#include "core/run.h"

enum tsr_field_type {
    TSR_FIELD_INT,     // int64_t
    TSR_FIELD_REAL,    // double
    TSR_FIELD_BOOL,    // bool
    TSR_FIELD_ENUM,    // int, an index of `words`
    TSR_FIELD_STRING,  // char *
    TSR_FIELD_PATH,    // char *, absolute
    TSR_FIELD_RESUME,  // char *: one of `words`, or a path
    TSR_FIELD_JSON,    // char *: JSON text of a mapping
    TSR_FIELD_SOURCES, // struct tsr_sources
    TSR_FIELD_LAYOUTS, // struct tsr_layouts
};

struct tsr_field {
    const char *path; // "train.steps"
    enum tsr_field_type type;
    size_t offset;             // in struct tsr_run
    const char *dflt;          // YAML text, or NULL: nothing (0 or a NULL pointer)
    double lo, hi;             // INT and REAL
    bool open_lo, open_hi;     // REAL: the bound itself is outside
    const char *const *words;  // ENUM and RESUME, ends with NULL
    bool required;             // must be given
    bool fixed;                // may not change when a run resumes
    const char *dflt_in_words; // for --help, when dflt says too little
    const char *help;
};

enum { TSR_N_FIELDS = 61 };
extern const struct tsr_field tsr_fields[TSR_N_FIELDS];

static inline void *tsr_field_at(const struct tsr_field *f, const struct tsr_run *r) {
    return (char *)r + f->offset;
}

// The index of the field of this path, or -1.
int tsr_field_find(const char *path);
// True when fields lie below this path ("train", "train.dropout").
bool tsr_field_is_section(const char *path);

// Where a value was written.
struct tsr_mark {
    int argument;  // 0: in the file, n: in override n; -1: nowhere, a default
    int line, col; // from 1, in the file
};

// One reading of a run: the file, then the overrides.
struct tsr_reader {
    struct tsr_run *r;
    const char *file;
    const char *const *overrides;
    int argument;            // as in tsr_mark: what is being read now
    char base[TSR_PATH_MAX]; // folder that relative paths start from
    yaml_document_t *doc;
    struct tsr_mark marks[TSR_N_FIELDS];
    bool bad[TSR_N_FIELDS];  // the value was a mistake
    struct tsr_buf mistakes; // one per line
    int n_mistakes;
    bool is_usage;  // an override has no '='
    bool nothing;   // the file has no keys: what is missing need not be said
    bool no_memory; // gave up
};

// Records a mistake at a place.
__attribute__((format(printf, 3, 4))) void tsr_mistake(struct tsr_reader *rd, struct tsr_mark at,
                                                       const char *fmt, ...);
struct tsr_mark tsr_mark_of(const struct tsr_reader *rd, const yaml_node_t *node);
// 0, or the failure that holds all recorded mistakes. Frees them.
int tsr_reader_finish(struct tsr_reader *rd);

// Composes the one YAML document in `text`; false with a mistake recorded. *doc is to be deleted
// when true. A document without content has no root node.
bool tsr_yaml_compose(struct tsr_reader *rd, const char *text, size_t n_bytes,
                      yaml_document_t *doc);
// What a plain scalar is in YAML 1.2's core schema.
enum tsr_scalar {
    TSR_SCALAR_NULL,
    TSR_SCALAR_BOOL,
    TSR_SCALAR_INT,
    TSR_SCALAR_REAL,
    TSR_SCALAR_STRING
};
enum tsr_scalar tsr_yaml_scalar(const yaml_node_t *node);
bool tsr_yaml_is_null(const yaml_node_t *node);
bool tsr_yaml_is_true(const yaml_node_t *node);
const char *tsr_yaml_text(const yaml_node_t *scalar);
// A scalar of at least one character; a NUL can stand in quotes as an escape.
bool tsr_yaml_is_text(const yaml_node_t *node);
// "a list", "the text `abc`" and the like, for messages.
const char *tsr_yaml_describe(const yaml_node_t *node, char buf[static 100]);
// Pairs that a mapping may have; a mistake is recorded for a mapping of more, for a key that is
// no scalar and for one given twice. Calls back with each good pair.
void tsr_yaml_each_pair(struct tsr_reader *rd, const yaml_node_t *map, const char *path,
                        void (*fn)(struct tsr_reader *rd, const yaml_node_t *key,
                                   const yaml_node_t *value, void *arg),
                        void *arg);

// Appends a mapping as JSON, numbers as they are written; false with a mistake recorded.
bool tsr_yaml_to_json(struct tsr_reader *rd, const yaml_node_t *map, const char *path,
                      struct tsr_buf *out);
// Appends the value of one key of such a mapping; `key` may have dots ("rope_scaling.factor").
bool tsr_yaml_key_to_json(struct tsr_reader *rd, const char *key, const yaml_node_t *value,
                          const char *path, struct tsr_buf *out);
// Appends "s" in double quotes, valid both as JSON and as YAML.
int tsr_quote(struct tsr_buf *out, const char *s);

// Gives a field the value of a node, or records a mistake. null is the default.
void tsr_field_set(struct tsr_reader *rd, int field, const yaml_node_t *node);
// The same for fields whose value is a list.
void tsr_field_set_sources(struct tsr_reader *rd, const struct tsr_field *f,
                           const yaml_node_t *node);
void tsr_field_set_layouts(struct tsr_reader *rd, const struct tsr_field *f,
                           const yaml_node_t *node);
// Records that a value is of another type than its field.
void tsr_field_wrong_type(struct tsr_reader *rd, const struct tsr_field *f,
                          const yaml_node_t *node);
// Gives a field its default.
int tsr_field_reset(struct tsr_run *r, const struct tsr_field *f);
void tsr_field_free(struct tsr_run *r, const struct tsr_field *f);
// "integer >= 1" and the like.
const char *tsr_field_type_text(const struct tsr_field *f, char buf[static 200]);
// Appends the value as YAML in one line.
int tsr_field_print(const struct tsr_run *r, const struct tsr_field *f, struct tsr_buf *out);

// Absolute form of `path`, which may be relative to rd->base. NULL: recorded.
char *tsr_reader_path(struct tsr_reader *rd, struct tsr_mark at, const char *path);

// Puts the value tree at `path` ("" is the whole run) into the run.
void tsr_reader_apply(struct tsr_reader *rd, const char *path, struct tsr_mark at,
                      const yaml_node_t *value);
void tsr_reader_override(struct tsr_reader *rd, int i);
// V and W whether or not they fit.
void tsr_run_pieces(const struct tsr_run *r, int64_t tp, int64_t dp, int64_t *V, int64_t *W);
// The rules of the layout that hold whatever the number of ranks, or all when parallel.dp is given.
int tsr_run_check_layout(const struct tsr_run *r);
// All rules that span fields and need no world size.
void tsr_run_check(struct tsr_reader *rd);
// Fills the run with defaults. `file` names the text in messages.
int tsr_run_reader_open(struct tsr_reader *rd, struct tsr_run *r, const char *file,
                        const char *base);
// Reads YAML text into the run; rules that span fields aren't checked.
void tsr_reader_text(struct tsr_reader *rd, const char *text, size_t n_bytes);

// Keys that the HF configurations of these models know.
extern const char *const tsr_model_known_keys[];
extern const int tsr_n_model_known_keys;

#endif

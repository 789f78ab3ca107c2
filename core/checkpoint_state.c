// state.json: what a run needs besides tensors to go on.
#include "core/checkpoint_private.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { MAX_STATE = 16 << 20, MAX_PIECES = 1 << 20 };

// One table for writing, reading and checking; all are integers.
static const struct {
    const char *key;
    size_t offset;
    int64_t min, max;
} fields[] = {
    {"step", offsetof(struct tsr_state, step), 0, INT64_MAX},
    {"updates", offsetof(struct tsr_state, updates), 0, INT64_MAX},
    {"sequences", offsetof(struct tsr_state, sequences), 0, INT64_MAX},
    {"seed", offsetof(struct tsr_state, seed), INT64_MIN, INT64_MAX},
    {"virtual_shards", offsetof(struct tsr_state, virtual_shards), 1, MAX_PIECES},
    {"virtual_replicas", offsetof(struct tsr_state, virtual_replicas), 1, MAX_PIECES},
    {"n_params", offsetof(struct tsr_state, n_params), 0, INT64_MAX},
};
enum { N_FIELDS = sizeof fields / sizeof fields[0] };

static int64_t *field_of(struct tsr_state *s, size_t i) {
    return (int64_t *)(void *)((char *)s + fields[i].offset);
}

int tsr_state_to_json(const struct tsr_state *s, struct tsr_buf *out) {
    struct tsr_state copy = *s;
    json_t *root = json_object();
    bool ok = root && json_object_set_new(root, "version", json_integer(1)) == 0;
    for (size_t i = 0; ok && i < N_FIELDS; i++)
        ok = json_object_set_new(root, fields[i].key, json_integer(*field_of(&copy, i))) == 0;
    ok = ok && json_object_set_new(root, "run", json_string(s->run_yaml)) == 0;
    char *text = ok ? json_dumps(root, JSON_INDENT(2)) : NULL;
    json_decref(root);
    if (!text)
        return tsr_fail(TSR_ENOMEM, "no memory for state.json, or a run file that isn't UTF-8");
    int rc = tsr_buf_printf(out, "%s\n", text);
    free(text);
    return rc;
}

static int parse_state(struct tsr_state *s, const json_t *root, const char *where) {
    const json_t *version = json_object_get(root, "version");
    if (!json_is_integer(version) || json_integer_value(version) != 1)
        return tsr_fail(TSR_EMODEL, "%s: expected `version` to be 1", where);
    for (size_t i = 0; i < N_FIELDS; i++) {
        const json_t *v = json_object_get(root, fields[i].key);
        json_int_t n = json_integer_value(v);
        if (!json_is_integer(v) || n < fields[i].min || n > fields[i].max)
            return tsr_fail(TSR_EMODEL,
                            "%s: expected `%s` to be an integer from %" PRId64 " to %" PRId64,
                            where, fields[i].key, fields[i].min, fields[i].max);
        *field_of(s, i) = n;
    }
    if (s->updates > s->step)
        return tsr_fail(TSR_EMODEL, "%s: expected at most %" PRId64 " updates, found %" PRId64,
                        where, s->step, s->updates);
    const char *run = json_string_value(json_object_get(root, "run"));
    if (!run)
        return tsr_fail(TSR_EMODEL, "%s: expected `run` to be the text of a run file", where);
    s->run_yaml = strdup(run);
    return s->run_yaml ? 0 : tsr_fail(TSR_ENOMEM, "%s: no memory for the run file", where);
}

int tsr_state_read(struct tsr_state *s, const char *dir) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    *s = (struct tsr_state){0};
    TSR_TRY(tsr_path_join(path, dir, "state.json"));
    TSR_TRY(tsr_read_file(path, MAX_STATE, TSR_EMODEL, &text, &n));
    json_error_t err;
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &err);
    free(text);
    if (!root)
        return tsr_fail(TSR_EMODEL, "%s: not valid JSON at line %d, column %d", path, err.line,
                        err.column);
    int rc = parse_state(s, root, path);
    json_decref(root);
    return rc;
}

void tsr_state_free(struct tsr_state *s) {
    free(s->run_yaml);
    *s = (struct tsr_state){0};
}

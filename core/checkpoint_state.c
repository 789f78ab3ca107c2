// state.json: what a run needs besides tensors to go on.
#include "core/checkpoint_private.h"

#include <float.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { MAX_STATE = 16 << 20, MAX_PIECES = 1 << 20 };

// One table for writing, reading and checking; these are integers.
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

// ---- the guard: an object, absent in checkpoints of a time without it

static json_t *floats(const float *v, int n) {
    json_t *list = json_array();
    bool ok = list != NULL;
    for (int i = 0; ok && i < n; i++)
        ok = json_array_append_new(list, json_real((double)v[i])) == 0;
    if (ok)
        return list;
    json_decref(list);
    return NULL;
}

static json_t *guard_to_json(const struct tsr_guard *g) {
    const struct {
        const char *key;
        json_t *value;
    } members[] = {
        {"skips", json_integer(g->skips)},
        {"rollbacks", json_integer(g->rollbacks)},
        {"retries", json_integer(g->retries)},
        {"anchor", json_integer(g->anchored ? g->anchor : -1)},
        {"loss", floats(g->loss, g->n)},
        {"grad_norm", floats(g->grad_norm, g->n)},
    };
    json_t *o = json_object();
    bool ok = o != NULL;
    for (size_t i = 0; i < sizeof members / sizeof *members; i++)
        ok = json_object_set_new(o, members[i].key, members[i].value) == 0 && ok;
    if (ok)
        return o;
    json_decref(o);
    return NULL;
}

// A list of finite numbers that aren't negative; its length, or -1.
static int parse_floats(const json_t *list, float out[static TSR_GUARD_WINDOW]) {
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n > TSR_GUARD_WINDOW)
        return -1;
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        double x = json_number_value(v);
        if (!json_is_number(v) || x < 0.0 || x > (double)FLT_MAX)
            return -1;
        out[i] = (float)x;
    }
    return (int)n;
}

static int parse_guard(struct tsr_guard *g, const json_t *o, int64_t step, const char *where) {
    const struct {
        const char *key;
        int64_t *to, min;
    } numbers[] = {{"skips", &g->skips, 0},
                   {"rollbacks", &g->rollbacks, 0},
                   {"retries", &g->retries, 0},
                   {"anchor", &g->anchor, -1}};
    if (!json_is_object(o))
        return tsr_fail(TSR_EMODEL, "%s: expected `guard` to be an object", where);
    for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
        const json_t *v = json_object_get(o, numbers[i].key);
        *numbers[i].to = json_integer_value(v);
        if (!json_is_integer(v) || *numbers[i].to < numbers[i].min)
            return tsr_fail(TSR_EMODEL,
                            "%s: expected `guard.%s` to be an integer of at least %" PRId64, where,
                            numbers[i].key, numbers[i].min);
    }
    if (g->anchor > step)
        return tsr_fail(TSR_EMODEL,
                        "%s: expected `guard.anchor` to be at most %" PRId64 ", found %" PRId64,
                        where, step, g->anchor);
    g->anchored = g->anchor >= 0;
    g->anchor = g->anchored ? g->anchor : 0;
    g->n = parse_floats(json_object_get(o, "loss"), g->loss);
    if (g->n < 0 || parse_floats(json_object_get(o, "grad_norm"), g->grad_norm) != g->n)
        return tsr_fail(TSR_EMODEL,
                        "%s: expected `guard.loss` and `guard.grad_norm` to be lists of as many "
                        "numbers >= 0, at most %d",
                        where, TSR_GUARD_WINDOW);
    return 0;
}

// ---- the whole

int tsr_state_to_json(const struct tsr_state *s, struct tsr_buf *out) {
    struct tsr_state copy = *s;
    json_t *root = json_object();
    bool ok = root && json_object_set_new(root, "version", json_integer(1)) == 0;
    for (size_t i = 0; ok && i < N_FIELDS; i++)
        ok = json_object_set_new(root, fields[i].key, json_integer(*field_of(&copy, i))) == 0;
    ok = ok && json_object_set_new(root, "run", json_string(s->run_yaml)) == 0;
    ok = ok && json_object_set_new(root, "guard", guard_to_json(&s->guard)) == 0;
    // Nine digits are all of an fp32 number.
    char *text = ok ? json_dumps(root, JSON_INDENT(2) | JSON_REAL_PRECISION(9)) : NULL;
    json_decref(root);
    if (!text)
        return tsr_fail(TSR_ENOMEM, "no memory for state.json, or a run file that isn't UTF-8");
    int rc = tsr_buf_printf(out, "%s\n", text);
    free(text);
    return rc;
}

static int parse_state(struct tsr_state *s, const json_t *root, const char *where) {
    const json_t *version = json_object_get(root, "version");
    if (!json_is_integer(version))
        return tsr_fail(TSR_EMODEL, "%s: expected `version` to be 1", where);
    if (json_integer_value(version) != 1)
        return tsr_fail(TSR_EMODEL, "%s: expected `version` to be 1, found %" PRId64, where,
                        (int64_t)json_integer_value(version));
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
    const json_t *guard = json_object_get(root, "guard");
    if (guard)
        TSR_TRY(parse_guard(&s->guard, guard, s->step, where));
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
    TSR_TRY(tsr_read_regular_file(path, MAX_STATE, TSR_EMODEL, &text, &n));
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

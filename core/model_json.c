// Reading single values of a config.json.
#include "core/model_private.h"

#include "core/error.h"

int tsr_json_object(json_t **out, const char *text, const char *where) {
    json_error_t e;
    *out = json_loads(text, JSON_REJECT_DUPLICATES, &e);
    if (!*out)
        return tsr_fail(TSR_EMODEL, "%s:%d:%d: not valid JSON: %s", where, e.line, e.column,
                        e.text);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    *out = NULL;
    return tsr_fail(TSR_EMODEL, "%s: expected a JSON object, found something else", where);
}

// null means "not given" to the HF configurations for most keys.
static const json_t *value_of(const struct tsr_config *c, const char *key) {
    const json_t *v = json_object_get(c->object, key);
    return json_is_null(v) ? NULL : v;
}

int tsr_config_int(const struct tsr_config *c, const char *key, const char *alias, int64_t lo,
                   int64_t hi, int64_t *out) {
    const json_t *v = value_of(c, key);
    if (!v && alias && (v = value_of(c, alias)))
        key = alias;
    if (!v)
        return 0;
    if (!json_is_integer(v))
        return tsr_fail(TSR_EMODEL, "%s: `%s`: expected an integer", c->where, key);
    int64_t i = json_integer_value(v);
    if (i < lo || i > hi)
        return tsr_fail(TSR_EMODEL, "%s: `%s`: expected %lld to %lld, found %lld", c->where, key,
                        (long long)lo, (long long)hi, (long long)i);
    *out = i;
    return 0;
}

int tsr_config_number(const struct tsr_config *c, const char *key, double lo, double hi,
                      double *out) {
    const json_t *v = value_of(c, key);
    if (!v)
        return 0;
    if (!json_is_number(v))
        return tsr_fail(TSR_EMODEL, "%s: `%s`: expected a number", c->where, key);
    double d = json_number_value(v);
    if (!(d >= lo && d <= hi))
        return tsr_fail(TSR_EMODEL, "%s: `%s`: expected %g to %g, found %g", c->where, key, lo, hi,
                        d);
    *out = d;
    return 0;
}

int tsr_config_bool(const struct tsr_config *c, const char *key, bool *out) {
    const json_t *v = value_of(c, key);
    if (!v)
        return 0;
    if (!json_is_boolean(v))
        return tsr_fail(TSR_EMODEL, "%s: `%s`: expected true or false", c->where, key);
    *out = json_is_true(v);
    return 0;
}

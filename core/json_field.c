#include "core/json_field.h"
#include "core/error.h"
#include "core/utf8.h"

const char *tsr_field_type(const json_t *obj) {
    const char *type = json_string_value(json_object_get(obj, "type"));
    return type ? type : "?";
}

int tsr_field_bool(const json_t *obj, const char *key, int dflt, const char *where, bool *out) {
    const json_t *v = json_object_get(obj, key);
    if (!v && dflt >= 0) {
        *out = dflt;
        return 0;
    }
    if (!json_is_boolean(v))
        return tsr_fail(TSR_EMODEL, "%s: expected true or false as \"%s\"", where, key);
    *out = json_is_true(v);
    return 0;
}

int tsr_field_string(const json_t *obj, const char *key, const char *where, const char **out) {
    *out = json_string_value(json_object_get(obj, key));
    if (!*out)
        return tsr_fail(TSR_EMODEL, "%s: expected a string as \"%s\"", where, key);
    return 0;
}

int tsr_field_int(const json_t *obj, const char *key, json_int_t min, json_int_t max,
                  const char *where, json_int_t *out) {
    const json_t *v = json_object_get(obj, key);
    *out = json_integer_value(v);
    if (!json_is_integer(v) || *out < min || *out > max)
        return tsr_fail(TSR_EMODEL, "%s: expected an integer from %lld to %lld as \"%s\"", where,
                        (long long)min, (long long)max, key);
    return 0;
}

int tsr_field_pattern(const json_t *obj, const char *key, const char *where, const char **text,
                      bool *literal) {
    const json_t *pattern = json_object_get(obj, key);
    const char *plain = json_string_value(json_object_get(pattern, "String"));
    const char *regex = json_string_value(json_object_get(pattern, "Regex"));
    if (!plain == !regex)
        return tsr_fail(TSR_EMODEL, "%s: expected {\"String\": …} or {\"Regex\": …} as \"%s\"",
                        where, key);
    *literal = plain != NULL;
    *text = plain ? plain : regex;
    return 0;
}

int tsr_field_refuse(const json_t *obj, const char *where) {
    return tsr_fail(TSR_EMODEL, "%s of type \"%.*s\" is not supported", where,
                    tsr_utf8_clip(tsr_field_type(obj), 80), tsr_field_type(obj));
}

#include "launcher/json_out.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/tokenizer.h"

int tsr_print_json(json_t *root) {
    char *text = root ? json_dumps(root, JSON_COMPACT) : NULL;
    json_decref(root);
    if (!text)
        return tsr_fail(TSR_ENOMEM, "no memory for the report");
    puts(text);
    free(text);
    return 0;
}

bool tsr_json_set(json_t *obj, const char *key, json_t *value) {
    if (!obj) {
        json_decref(value);
        return false;
    }
    return json_object_set_new(obj, key, value) == 0; // which takes NULL as a failure
}

// jansson refuses what isn't UTF-8, and a file's name may be anything.
json_t *tsr_json_text(const char *s) {
    json_t *v = json_string(s);
    if (v)
        return v;
    char *copy = strdup(s);
    size_t n = copy ? strlen(copy) : 0, at = 0;
    while (at < n) {
        at += tsr_utf8_valid_prefix(copy + at, n - at);
        if (at < n)
            copy[at++] = '?';
    }
    v = copy ? json_string(copy) : NULL;
    free(copy);
    return v;
}

json_t *tsr_json_real(double v) {
    return isfinite(v) ? json_real(v) : json_null();
}

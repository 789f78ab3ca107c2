// Reports for programs: what --json prints.
#ifndef TSR_LAUNCHER_JSON_OUT_H
#define TSR_LAUNCHER_JSON_OUT_H

#include <jansson.h>
#include <stdbool.h>

// Prints the object in one line and releases it. NULL: out of memory.
int tsr_print_json(json_t *root);
// Sets obj.key and takes `value`; false when out of memory, also with NULL for either.
bool tsr_json_set(json_t *obj, const char *key, json_t *value);
// A name or a message as JSON, with `?` for each byte that is no UTF-8. NULL: out of memory.
json_t *tsr_json_text(const char *s);
// JSON has no NaN and no infinity: null.
json_t *tsr_json_real(double v);

#endif

// Fields of the parts of a tokenizer.json. `where` is the file and the part, for messages.
#ifndef TSR_CORE_JSON_FIELD_H
#define TSR_CORE_JSON_FIELD_H

#include <jansson.h>
#include <stdbool.h>
#include <stddef.h>

// obj.type, or "?" when there is no such string.
const char *tsr_field_type(const json_t *obj);

// obj.key must be a boolean, or absent when `dflt` is 0 or 1 (-1: it must be there). TSR_EMODEL.
int tsr_field_bool(const json_t *obj, const char *key, int dflt, const char *where, bool *out);

// obj.key must be a string. TSR_EMODEL.
int tsr_field_string(const json_t *obj, const char *key, const char *where, const char **out);

// obj.key must be an integer in [min, max]. TSR_EMODEL.
int tsr_field_int(const json_t *obj, const char *key, json_int_t min, json_int_t max,
                  const char *where, json_int_t *out);

// obj.key must be {"String": text} or {"Regex": pattern}. TSR_EMODEL.
int tsr_field_pattern(const json_t *obj, const char *key, const char *where, const char **text,
                      bool *literal);

// Refuses a part by its type's name: TSR_EMODEL.
int tsr_field_refuse(const json_t *obj, const char *where);

#endif

// What the files that read and write config.json share.
#ifndef TSR_CORE_MODEL_PRIVATE_H
#define TSR_CORE_MODEL_PRIVATE_H

#include <jansson.h>
#include "core/model.h"

// Parses the text of one JSON object: no duplicate keys, nothing after it. TSR_EMODEL says line
// and column. The caller drops the reference.
int tsr_json_object(json_t **out, const char *text, const char *where);

// Takes eos_token_id of a generation_config.json, which goes before config.json's.
int tsr_model_parse_generation(struct tsr_model *m, const char *json, const char *where);

// Numbers of a config.json. A key that is absent leaves *out as it is; `alias`, when given, is
// read in its place. Wrong type or out of [lo, hi]: TSR_EMODEL.
struct tsr_config {
    const json_t *object;
    const char *where; // names the file in messages
};
int tsr_config_int(const struct tsr_config *c, const char *key, const char *alias, int64_t lo,
                   int64_t hi, int64_t *out);
int tsr_config_number(const struct tsr_config *c, const char *key, double lo, double hi,
                      double *out);
int tsr_config_bool(const struct tsr_config *c, const char *key, bool *out);

// rope_theta and rope_scaling, or rope_parameters (transformers 5).
int tsr_config_rope(const struct tsr_config *c, struct tsr_model *m);

// Refuses, by name, each key that changes the mathematics in a way that isn't built.
int tsr_config_refuse(const struct tsr_config *c);

#endif

// What a config.json may ask for: keys that would change the mathematics in a way that isn't
// built are refused by name, and rotary positions are read in both spellings.
#include "core/model_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"

// Keys that mean "off" when null, false, 0 or empty.
static const char *const must_be_off[] = {
    "quantization_config",
    "add_cross_attention",
    "is_encoder_decoder",
    "pruned_heads",
    "sliding_window",
    "attention_chunk_size",
    "attn_logit_softcapping",
    "final_logit_softcapping",
    "rope_interleaved",
    "rope_interleave",
    "use_qk_norm",
    "qk_norm",
    "qk_layernorm",
    "no_rope_layers",
    "alibi",
    "num_experts",
    "num_local_experts",
    "n_routed_experts",
    "attention_multiplier",
    "vision_config",
};

// Factors that do nothing only when they are 1.
static const char *const must_be_one[] = {
    "partial_rotary_factor", "rotary_pct",     "embedding_multiplier",
    "residual_multiplier",   "logits_scaling", "logit_scale",
};

static bool is_off(const json_t *v) {
    switch (json_typeof(v)) {
    case JSON_NULL:
    case JSON_FALSE:
        return true;
    case JSON_TRUE:
        return false;
    case JSON_INTEGER:
    case JSON_REAL:
        return json_number_value(v) == 0.0;
    case JSON_STRING:
        return json_string_length(v) == 0;
    case JSON_ARRAY:
        return json_array_size(v) == 0;
    case JSON_OBJECT:
        return json_object_size(v) == 0;
    }
    return false;
}

static int refuse(const struct tsr_config *c, const char *key) {
    char *text = json_dumps(json_object_get(c->object, key), JSON_ENCODE_ANY | JSON_COMPACT);
    int rc = tsr_fail(TSR_EMODEL,
                      "%s: `%s` is %.60s, which changes the model in a way that isn't supported",
                      c->where, key, text ? text : "set");
    free(text);
    return rc;
}

static bool all_full_attention(const json_t *layers) {
    size_t i;
    const json_t *v;
    if (json_is_null(layers))
        return true;
    json_array_foreach(layers, i, v) {
        if (!json_is_string(v) || strcmp(json_string_value(v), "full_attention") != 0)
            return false;
    }
    return json_is_array(layers);
}

int tsr_config_refuse(const struct tsr_config *c) {
    bool window_unused = json_is_false(json_object_get(c->object, "use_sliding_window"));
    for (size_t i = 0; i < sizeof must_be_off / sizeof must_be_off[0]; i++) {
        const json_t *v = json_object_get(c->object, must_be_off[i]);
        if (!v || is_off(v) || (window_unused && strcmp(must_be_off[i], "sliding_window") == 0))
            continue;
        return refuse(c, must_be_off[i]);
    }
    for (size_t i = 0; i < sizeof must_be_one / sizeof must_be_one[0]; i++) {
        const json_t *v = json_object_get(c->object, must_be_one[i]);
        if (v && !json_is_null(v) && !(json_is_number(v) && json_number_value(v) == 1.0))
            return refuse(c, must_be_one[i]);
    }
    const json_t *layers = json_object_get(c->object, "layer_types");
    if (layers && !all_full_attention(layers))
        return refuse(c, "layer_types");
    return 0;
}

static int parse_llama3(const struct tsr_config *rope, struct tsr_model *m) {
    static const char *const keys[] = {"factor", "low_freq_factor", "high_freq_factor",
                                       "original_max_position_embeddings"};
    double *const out[] = {&m->rope_factor, &m->rope_low_freq, &m->rope_high_freq,
                           &m->rope_original_positions};
    for (int i = 0; i < 4; i++) {
        if (!json_is_number(json_object_get(rope->object, keys[i])))
            return tsr_fail(TSR_EMODEL, "%s: rotary scaling llama3 needs the number `%s`",
                            rope->where, keys[i]);
        TSR_TRY(tsr_config_number(rope, keys[i], 1e-9, 1e12, out[i]));
    }
    if (m->rope_high_freq <= m->rope_low_freq)
        return tsr_fail(TSR_EMODEL,
                        "%s: `high_freq_factor` must be above `low_freq_factor`, found %g and %g",
                        rope->where, m->rope_high_freq, m->rope_low_freq);
    m->rope_scaling = TSR_ROPE_LLAMA3;
    return 0;
}

static int parse_scaling(const struct tsr_config *rope, struct tsr_model *m) {
    const json_t *old = json_object_get(rope->object, "type");
    const json_t *fresh = json_object_get(rope->object, "rope_type");
    if (old && fresh && !json_equal(old, fresh))
        return tsr_fail(TSR_EMODEL, "%s: `type` and `rope_type` of the rotary scaling differ",
                        rope->where);
    const json_t *type = fresh ? fresh : old;
    const char *word = type ? json_string_value(type) : "default";
    if (!word)
        return tsr_fail(TSR_EMODEL, "%s: `rope_type`: expected a string", rope->where);
    const json_t *attention = json_object_get(rope->object, "attention_factor");
    const json_t *part = json_object_get(rope->object, "partial_rotary_factor");
    if (attention && !json_is_null(attention))
        return refuse(rope, "attention_factor");
    if (part && json_number_value(part) != 1.0)
        return refuse(rope, "partial_rotary_factor");
    if (strcmp(word, "default") == 0)
        return 0;
    if (strcmp(word, "llama3") == 0)
        return parse_llama3(rope, m);
    if (strcmp(word, "linear") != 0)
        return tsr_fail(TSR_EMODEL,
                        "%s: rotary scaling `%.60s` isn't supported: expected default, linear or "
                        "llama3",
                        rope->where, word);
    if (!json_is_number(json_object_get(rope->object, "factor")))
        return tsr_fail(TSR_EMODEL, "%s: rotary scaling linear needs the number `factor`",
                        rope->where);
    m->rope_scaling = TSR_ROPE_LINEAR;
    return tsr_config_number(rope, "factor", 1e-9, 1e12, &m->rope_factor);
}

// rope_parameters holds rope_theta too and goes before the top-level keys.
int tsr_config_rope(const struct tsr_config *c, struct tsr_model *m) {
    static const char *const keys[] = {"rope_scaling", "rope_parameters"};
    TSR_TRY(tsr_config_number(c, "rope_theta", 1e-9, 1e18, &m->rope_theta));
    for (int i = 0; i < 2; i++) {
        const json_t *v = json_object_get(c->object, keys[i]);
        struct tsr_config rope = {v, c->where};
        if (!v || json_is_null(v))
            continue;
        if (!json_is_object(v))
            return tsr_fail(TSR_EMODEL, "%s: `%s`: expected an object", c->where, keys[i]);
        const json_t *inner;
        const char *key;
        json_object_foreach((json_t *)v, key, inner) {
            if (json_is_object(inner))
                return tsr_fail(TSR_EMODEL,
                                "%s: `%s.%.60s`: one rotary setting a layer type isn't "
                                "supported",
                                c->where, keys[i], key);
        }
        m->rope_scaling = TSR_ROPE_NONE;
        TSR_TRY(parse_scaling(&rope, m));
        TSR_TRY(tsr_config_number(&rope, "rope_theta", 1e-9, 1e18, &m->rope_theta));
    }
    return 0;
}

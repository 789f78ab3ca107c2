// struct tsr_model into a config.json in the spelling that every transformers version reads.
#include "core/model_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/decimal.h"
#include "core/error.h"
#include "core/io.h"

static int write_value(struct tsr_buf *b, const json_t *v, int depth);

// Always with a point or an exponent, so that it is read as a real again.
static int write_real(struct tsr_buf *b, double d) {
    char text[TSR_DECIMAL_MAX];
    tsr_shortest_decimal(text, d);
    return tsr_buf_printf(b, "%s%s", text, strpbrk(text, ".e") ? "" : ".0");
}

// jansson's own writer spells reals with 17 digits, so only strings go through it.
static int write_string(struct tsr_buf *b, const char *s) {
    json_t *v = json_string(s);
    char *text = v ? json_dumps(v, JSON_ENCODE_ANY) : NULL;
    int rc = text ? tsr_buf_append(b, text, strlen(text)) : tsr_fail(TSR_ENOMEM, "no memory");
    free(text);
    json_decref(v);
    return rc;
}

static int write_array(struct tsr_buf *b, const json_t *v, int depth) {
    for (size_t i = 0; i < json_array_size(v); i++) {
        TSR_TRY(tsr_buf_printf(b, "%s\n%*s", i ? "," : "[", 2 * depth + 2, ""));
        TSR_TRY(write_value(b, json_array_get(v, i), depth + 1));
    }
    if (json_array_size(v) == 0)
        return tsr_buf_printf(b, "[]");
    return tsr_buf_printf(b, "\n%*s]", 2 * depth, "");
}

static int write_object(struct tsr_buf *b, json_t *v, int depth) {
    const char *key;
    json_t *inner;
    const char *open = "{";
    json_object_foreach(v, key, inner) {
        TSR_TRY(tsr_buf_printf(b, "%s\n%*s", open, 2 * depth + 2, ""));
        TSR_TRY(write_string(b, key));
        TSR_TRY(tsr_buf_printf(b, ": "));
        TSR_TRY(write_value(b, inner, depth + 1));
        open = ",";
    }
    if (json_object_size(v) == 0)
        return tsr_buf_printf(b, "{}");
    return tsr_buf_printf(b, "\n%*s}", 2 * depth, "");
}

static int write_value(struct tsr_buf *b, const json_t *v, int depth) {
    switch (json_typeof(v)) {
    case JSON_OBJECT:
        return write_object(b, (json_t *)v, depth);
    case JSON_ARRAY:
        return write_array(b, v, depth);
    case JSON_STRING:
        return write_string(b, json_string_value(v));
    case JSON_INTEGER:
        return tsr_buf_printf(b, "%lld", (long long)json_integer_value(v));
    case JSON_REAL:
        return write_real(b, json_real_value(v));
    case JSON_TRUE:
        return tsr_buf_printf(b, "true");
    case JSON_FALSE:
        return tsr_buf_printf(b, "false");
    case JSON_NULL:
        return tsr_buf_printf(b, "null");
    }
    return tsr_fail(TSR_EMODEL, "an unknown kind of JSON value");
}

static json_t *rope_scaling_of(const struct tsr_model *m) {
    switch (m->rope_scaling) {
    case TSR_ROPE_NONE:
        return json_null();
    case TSR_ROPE_LINEAR:
        return json_pack("{s:s, s:s, s:f}", "type", "linear", "rope_type", "linear", "factor",
                         m->rope_factor);
    case TSR_ROPE_LLAMA3:
        return json_pack("{s:f, s:f, s:f, s:I, s:s}", "factor", m->rope_factor, "low_freq_factor",
                         m->rope_low_freq, "high_freq_factor", m->rope_high_freq,
                         "original_max_position_embeddings", (json_int_t)m->rope_original_positions,
                         "rope_type", "llama3");
    }
    return NULL;
}

static json_t *eos_of(const struct tsr_model *m) {
    if (m->n_eos == 1)
        return json_integer(m->eos[0]);
    json_t *list = json_array();
    for (int i = 0; i < m->n_eos; i++)
        json_array_append_new(list, json_integer(m->eos[i]));
    return list;
}

// json_object_set_new fails on a NULL value, so one check at the end finds any lack of memory.
static int update(json_t *o, const struct tsr_model *m) {
    static const char *const model_class[] = {
        [TSR_ARCH_GPT2] = "GPT2LMHeadModel",
        [TSR_ARCH_GPT1] = "OpenAIGPTLMHeadModel",
        [TSR_ARCH_LLAMA] = "LlamaForCausalLM",
    };
    int rc = json_object_set_new(o, "architectures", json_pack("[s]", model_class[m->arch]));
    rc |= json_object_set_new(o, "tie_word_embeddings", json_boolean(m->tied));
    json_object_del(o, "dtype");
    rc |= json_object_set_new(o, "torch_dtype", json_string("float32"));
    if (m->n_eos > 0)
        rc |= json_object_set_new(o, "eos_token_id", eos_of(m));
    if (m->bos >= 0)
        rc |= json_object_set_new(o, "bos_token_id", json_integer(m->bos));
    if (m->position == TSR_POS_ROTARY) {
        json_object_del(o, "rope_parameters");
        rc |= json_object_set_new(o, "rope_theta", json_real(m->rope_theta));
        rc |= json_object_set_new(o, "rope_scaling", rope_scaling_of(m));
    }
    return rc == 0 ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the model's configuration");
}

char *tsr_model_to_json(const struct tsr_model *m) {
    json_t *object;
    struct tsr_buf b = {0};
    if (tsr_json_object(&object, m->config_json, "config.json") < 0)
        return NULL;
    int rc = update(object, m);
    if (rc == 0)
        rc = write_value(&b, object, 0);
    if (rc == 0)
        rc = tsr_buf_append(&b, "\n", 1);
    json_decref(object);
    if (rc < 0)
        tsr_buf_free(&b);
    return b.data;
}

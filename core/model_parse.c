// config.json into struct tsr_model. A key that is absent has the default of its HF configuration
// class, as when transformers reads the file.
#include "core/model_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/run.h"

// Far above any model, far below where a product of two of them leaves 64 bits.
enum {
    MAX_LAYERS = 4096,
    MAX_WIDTH = 1 << 20,
    MAX_WIDE = 1 << 24, // FFN columns, vocabulary, heads times head size
    MAX_POSITIONS = 1 << 30,
};

static const struct {
    const char *name;
    enum tsr_arch arch;
} arch_names[] = {
    {"gpt2", TSR_ARCH_GPT2},
    {"openai-gpt", TSR_ARCH_GPT1},
    {"llama", TSR_ARCH_LLAMA},
};
enum { N_ARCHS = sizeof arch_names / sizeof arch_names[0] };

static const struct {
    const char *name;
    enum tsr_act act;
} act_names[] = {
    {"gelu", TSR_ACT_GELU},
    {"gelu_python", TSR_ACT_GELU},
    {"gelu_new", TSR_ACT_GELU_TANH},
    {"gelu_fast", TSR_ACT_GELU_TANH},
    {"gelu_pytorch_tanh", TSR_ACT_GELU_TANH},
    {"silu", TSR_ACT_SILU},
    {"swish", TSR_ACT_SILU},
};

static int parse_arch(const struct tsr_config *c, struct tsr_model *m) {
    const char *type = json_string_value(json_object_get(c->object, "model_type"));
    if (!type)
        return tsr_fail(TSR_EMODEL,
                        "%s: `model_type`: expected gpt2, openai-gpt or llama, found none",
                        c->where);
    for (int i = 0; i < N_ARCHS; i++) {
        if (strcmp(type, arch_names[i].name) == 0) {
            m->arch = arch_names[i].arch;
            return 0;
        }
    }
    return tsr_fail(TSR_EMODEL,
                    "%s: `model_type`: expected gpt2, openai-gpt or llama, found %.100s", c->where,
                    type);
}

static void set_gpt_defaults(struct tsr_model *m) {
    bool gpt1 = m->arch == TSR_ARCH_GPT1;
    m->n_layers = 12;
    m->hidden = 768;
    m->n_heads = 12;
    m->vocab = gpt1 ? 40478 : 50257;
    m->max_positions = gpt1 ? 512 : 1024;
    m->post_norm = gpt1;
    m->tied = true;
    m->attn_bias = true;
    m->mlp_bias = true;
    m->act = TSR_ACT_GELU_TANH;
    m->position = TSR_POS_LEARNED;
    m->norm_eps = 1e-5;
    m->init_range = 0.02;
    m->bos = gpt1 ? -1 : 50256;
    m->eos[0] = 50256;
    m->n_eos = gpt1 ? 0 : 1;
}

static void set_llama_defaults(struct tsr_model *m) {
    m->n_layers = 32;
    m->hidden = 4096;
    m->n_heads = 32;
    m->ffn = 11008;
    m->vocab = 32000;
    m->max_positions = 2048;
    m->rms_norm = true;
    m->gated = true;
    m->act = TSR_ACT_SILU;
    m->position = TSR_POS_ROTARY;
    m->norm_eps = 1e-6;
    m->init_range = 0.02;
    m->rope_theta = 10000.0;
    m->bos = 1;
    m->eos[0] = 2;
    m->n_eos = 1;
}

static int parse_act(const struct tsr_config *c, const char *key, struct tsr_model *m) {
    const json_t *v = json_object_get(c->object, key);
    if (!v || json_is_null(v))
        return 0;
    const char *word = json_string_value(v);
    for (size_t i = 0; word && i < sizeof act_names / sizeof act_names[0]; i++) {
        if (strcmp(word, act_names[i].name) == 0) {
            m->act = act_names[i].act;
            // OpenAIGPTModel's own table takes the tanh form under the plain name.
            if (m->arch == TSR_ARCH_GPT1 && m->act == TSR_ACT_GELU)
                m->act = TSR_ACT_GELU_TANH;
            return 0;
        }
    }
    return tsr_fail(TSR_EMODEL,
                    "%s: `%s`: expected gelu, gelu_new, gelu_pytorch_tanh or silu, found %.100s",
                    c->where, key, word ? word : "no string");
}

// Our own key: sinusoidal positions (Vaswani et al. 2017, section 3.5) in a GPT model are a frozen
// table of learned ones, so other programs read the export as it is.
static int parse_position(const struct tsr_config *c, struct tsr_model *m) {
    const json_t *v = json_object_get(c->object, "position");
    if (!v || json_is_null(v))
        return 0;
    const char *word = json_string_value(v);
    bool rotary = m->position == TSR_POS_ROTARY;
    if (word && !rotary && strcmp(word, "learned") == 0)
        return 0;
    if (word && !rotary && strcmp(word, "sinusoidal") == 0) {
        m->position = TSR_POS_SINUSOIDAL;
        return 0;
    }
    if (word && rotary && strcmp(word, "rotary") == 0)
        return 0;
    return tsr_fail(TSR_EMODEL, "%s: `position`: expected %s, found %.100s", c->where,
                    rotary ? "rotary (this is a llama model)" : "learned or sinusoidal",
                    word ? word : "no string");
}

static int parse_gpt2_only(const struct tsr_config *c, struct tsr_model *m) {
    bool scaled = true;
    TSR_TRY(tsr_config_int(c, "n_inner", NULL, 1, MAX_WIDE, &m->ffn));
    TSR_TRY(tsr_config_bool(c, "scale_attn_weights", &scaled));
    m->scores_unscaled = !scaled;
    return tsr_config_bool(c, "scale_attn_by_inverse_layer_idx", &m->scores_by_layer);
}

static int parse_sizes_gpt(const struct tsr_config *c, struct tsr_model *m) {
    TSR_TRY(tsr_config_int(c, "n_layer", "num_hidden_layers", 1, MAX_LAYERS, &m->n_layers));
    TSR_TRY(tsr_config_int(c, "n_embd", "hidden_size", 1, MAX_WIDTH, &m->hidden));
    TSR_TRY(tsr_config_int(c, "n_head", "num_attention_heads", 1, MAX_WIDTH, &m->n_heads));
    TSR_TRY(tsr_config_int(c, "n_positions", "max_position_embeddings", 1, MAX_POSITIONS,
                           &m->max_positions));
    m->ffn = 4 * m->hidden;
    if (m->arch == TSR_ARCH_GPT2) // OpenAIGPTConfig has none of these
        TSR_TRY(parse_gpt2_only(c, m));
    if (m->hidden % m->n_heads != 0)
        return tsr_fail(TSR_EMODEL, "%s: n_head (%lld) must divide n_embd (%lld)", c->where,
                        (long long)m->n_heads, (long long)m->hidden);
    m->n_kv_heads = m->n_heads;
    m->head_dim = m->hidden / m->n_heads;
    TSR_TRY(tsr_config_number(c, "layer_norm_epsilon", 0.0, 1.0, &m->norm_eps));
    TSR_TRY(parse_act(c, m->arch == TSR_ARCH_GPT1 ? "afn" : "activation_function", m));
    return parse_position(c, m);
}

static int parse_sizes_llama(const struct tsr_config *c, struct tsr_model *m) {
    TSR_TRY(tsr_config_int(c, "num_hidden_layers", NULL, 1, MAX_LAYERS, &m->n_layers));
    TSR_TRY(tsr_config_int(c, "hidden_size", NULL, 1, MAX_WIDTH, &m->hidden));
    TSR_TRY(tsr_config_int(c, "intermediate_size", NULL, 1, MAX_WIDE, &m->ffn));
    TSR_TRY(tsr_config_int(c, "num_attention_heads", NULL, 1, MAX_WIDTH, &m->n_heads));
    TSR_TRY(
        tsr_config_int(c, "max_position_embeddings", NULL, 1, MAX_POSITIONS, &m->max_positions));
    m->n_kv_heads = m->n_heads;
    TSR_TRY(tsr_config_int(c, "num_key_value_heads", NULL, 1, MAX_WIDTH, &m->n_kv_heads));
    if (m->n_heads % m->n_kv_heads != 0)
        return tsr_fail(TSR_EMODEL,
                        "%s: num_key_value_heads (%lld) must divide num_attention_heads (%lld)",
                        c->where, (long long)m->n_kv_heads, (long long)m->n_heads);
    TSR_TRY(tsr_config_int(c, "head_dim", NULL, 1, MAX_WIDTH, &m->head_dim));
    if (m->head_dim == 0) {
        if (m->hidden % m->n_heads != 0)
            return tsr_fail(TSR_EMODEL,
                            "%s: num_attention_heads (%lld) must divide hidden_size (%lld) when "
                            "head_dim isn't given",
                            c->where, (long long)m->n_heads, (long long)m->hidden);
        m->head_dim = m->hidden / m->n_heads;
    }
    if (m->head_dim % 2 != 0)
        return tsr_fail(TSR_EMODEL,
                        "%s: rotary positions need an even head size, found %lld (hidden_size / "
                        "num_attention_heads, or head_dim)",
                        c->where, (long long)m->head_dim);
    if (m->n_heads * m->head_dim > MAX_WIDE)
        return tsr_fail(TSR_EMODEL,
                        "%s: num_attention_heads * head_dim: expected at most %d, found %lld",
                        c->where, MAX_WIDE, (long long)(m->n_heads * m->head_dim));
    TSR_TRY(tsr_config_number(c, "rms_norm_eps", 0.0, 1.0, &m->norm_eps));
    TSR_TRY(tsr_config_bool(c, "attention_bias", &m->attn_bias));
    TSR_TRY(tsr_config_bool(c, "mlp_bias", &m->mlp_bias));
    TSR_TRY(parse_act(c, "hidden_act", m));
    TSR_TRY(parse_position(c, m));
    return tsr_config_rope(c, m);
}

// `key` absent leaves what is there. Ids that aren't in the vocabulary are dropped: small models
// often carry their family's ids.
static int parse_eos(const struct tsr_config *c, const char *key, struct tsr_model *m) {
    const json_t *v = json_object_get(c->object, key);
    bool list = json_is_array(v);
    size_t n = list ? json_array_size(v) : 1;
    int64_t found[TSR_MAX_EOS];
    int n_found = 0;
    if (!v)
        return 0;
    if (n > TSR_MAX_EOS)
        return tsr_fail(TSR_EMODEL, "%s: `%s`: expected at most %d ids, found %zu", c->where, key,
                        TSR_MAX_EOS, n);
    for (size_t i = 0; i < n && !json_is_null(v); i++) {
        const json_t *id = list ? json_array_get(v, i) : v;
        if (!json_is_integer(id))
            return tsr_fail(TSR_EMODEL, "%s: `%s`: expected a token id or a list of them", c->where,
                            key);
        if (json_integer_value(id) >= 0 && json_integer_value(id) < m->vocab)
            found[n_found++] = json_integer_value(id);
    }
    memcpy(m->eos, found, (size_t)n_found * sizeof *found);
    m->n_eos = n_found;
    return 0;
}

static int parse_specials(const struct tsr_config *c, struct tsr_model *m) {
    const json_t *bos = json_object_get(c->object, "bos_token_id");
    if (json_is_null(bos))
        m->bos = -1;
    else if (json_is_integer(bos))
        m->bos = json_integer_value(bos);
    else if (bos)
        return tsr_fail(TSR_EMODEL, "%s: `bos_token_id`: expected a token id", c->where);
    if (m->bos < 0 || m->bos >= m->vocab)
        m->bos = -1;
    if (m->n_eos > 0 && m->eos[0] >= m->vocab)
        m->n_eos = 0; // the family's default
    return parse_eos(c, "eos_token_id", m);
}

static int parse_all(const struct tsr_config *c, struct tsr_model *m) {
    TSR_TRY(parse_arch(c, m));
    TSR_TRY(tsr_config_refuse(c));
    if (m->arch == TSR_ARCH_LLAMA) {
        set_llama_defaults(m);
        TSR_TRY(parse_sizes_llama(c, m));
    } else {
        set_gpt_defaults(m);
        TSR_TRY(parse_sizes_gpt(c, m));
    }
    TSR_TRY(tsr_config_int(c, "vocab_size", NULL, 1, MAX_WIDE, &m->vocab));
    TSR_TRY(tsr_config_number(c, "initializer_range", 0.0, 100.0, &m->init_range));
    TSR_TRY(tsr_config_bool(c, "tie_word_embeddings", &m->tied));
    return parse_specials(c, m);
}

int tsr_model_parse(struct tsr_model *m, const char *json, const char *where) {
    json_t *object;
    *m = (struct tsr_model){0};
    TSR_TRY(tsr_json_object(&object, json, where));
    struct tsr_config c = {object, where};
    int rc = parse_all(&c, m);
    json_decref(object);
    if (rc == 0 && !(m->config_json = strdup(json)))
        rc = tsr_fail(TSR_ENOMEM, "%s: no memory for the model's configuration", where);
    return rc;
}

int tsr_model_parse_generation(struct tsr_model *m, const char *json, const char *where) {
    json_t *object;
    TSR_TRY(tsr_json_object(&object, json, where));
    struct tsr_config c = {object, where};
    bool given = !json_is_null(json_object_get(object, "eos_token_id"));
    int rc = given ? parse_eos(&c, "eos_token_id", m) : 0;
    json_decref(object);
    return rc;
}

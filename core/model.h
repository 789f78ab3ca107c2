// What a decoder-only language model is: the numbers of an HF `config.json`, in one vocabulary.
#ifndef TSR_CORE_MODEL_H
#define TSR_CORE_MODEL_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tsr_arch {
    TSR_ARCH_GPT2,  // model_type gpt2: pre-norm (GPT-2, GPT-3)
    TSR_ARCH_GPT1,  // model_type openai-gpt: post-norm, no final norm
    TSR_ARCH_LLAMA, // model_type llama: LLaMA 1 to 3.2 text, SmolLM2
};

enum tsr_act { TSR_ACT_GELU, TSR_ACT_GELU_TANH, TSR_ACT_SILU };

enum tsr_position { TSR_POS_LEARNED, TSR_POS_SINUSOIDAL, TSR_POS_ROTARY };

enum tsr_rope_scaling { TSR_ROPE_NONE, TSR_ROPE_LINEAR, TSR_ROPE_LLAMA3 };

enum { TSR_MAX_EOS = 8 };

struct tsr_model {
    enum tsr_arch arch;
    int64_t n_layers;      // L
    int64_t hidden;        // C
    int64_t n_heads;       // Hq
    int64_t n_kv_heads;    // Hkv, divides Hq
    int64_t head_dim;      // D
    int64_t ffn;           // F
    int64_t vocab;         // V of the vocabulary
    int64_t max_positions; // longest sequence the model was made for
    bool rms_norm;         // RMSNorm, else LayerNorm
    bool gated;            // act(gate) * up, else act(fc)
    bool post_norm;        // GPT-1: norm after the residual add, no final norm
    bool tied;             // lm_head is the token embedding
    bool attn_bias;        // q, k, v and o have biases
    bool mlp_bias;         // gate/up/fc and down have biases
    bool scores_unscaled;  // GPT-2: attention scores without 1/sqrt(D)
    bool scores_by_layer;  // GPT-2: of layer l = 0, 1, ... divided by l + 1
    enum tsr_act act;
    enum tsr_position position;
    double norm_eps;
    double init_range; // standard deviation of the initial weights
    double rope_theta;
    enum tsr_rope_scaling rope_scaling;
    double rope_factor, rope_low_freq, rope_high_freq; // llama3 (and factor for linear)
    double rope_original_positions;
    int64_t bos;              // -1 when absent
    int64_t eos[TSR_MAX_EOS]; // n_eos of them, from config.json or generation_config.json
    int n_eos;
    char *config_json; // the text this came from, owned; keys not used here are kept on writing
};

// Reads the text of an HF config.json (both spellings of rope and dtype keys). `where` names the
// file in messages. Every key that would change the mathematics and isn't supported is refused
// (TSR_EMODEL) by name; every size is checked. On success the caller frees with tsr_model_free.
int tsr_model_parse(struct tsr_model *m, const char *json, const char *where);

// Reads DIR/config.json, and generation_config.json for eos_token_id when it is there.
int tsr_model_load(struct tsr_model *m, const char *dir);

// The text of a config.json that every transformers version reads: the source's own keys, the
// older rope spelling, `architectures`, `torch_dtype`. Fresh string or NULL when out of memory.
char *tsr_model_to_json(const struct tsr_model *m);

// The preset's config.json text compiled in from configs/models/NAME.json, or NULL.
const char *tsr_preset_json(const char *name);
// Calls back once per preset name, in order.
void tsr_preset_each(void (*fn)(const char *name, void *arg), void *arg);

void tsr_model_free(struct tsr_model *m);

// Checks that `stored`, found in `where`, is the same mathematics as `m`: TSR_ECONFIG names the
// first number that differs.
int tsr_model_same(const struct tsr_model *m, const struct tsr_model *stored, const char *where);

int64_t tsr_model_n_params(const struct tsr_model *m); // tied embeddings counted once

// Rotary frequencies of Llama (Su et al. 2021, and Llama 3.1's scaling as in HF's
// modeling_rope_utils.py): out[d] = angle per position of pair d, d < head_dim / 2.
void tsr_rope_frequencies(const struct tsr_model *m, double *out);

#endif

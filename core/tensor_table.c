#include "core/tensor.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

// A file name's stem; ".weight" or ".bias" follows by kind.
struct stem {
    enum tsr_kind kind;
    const char *text;
};

#define LENGTH(a) (sizeof(a) / sizeof((a)[0]))

static const struct stem llama_block[] = {
    {TSR_T_NORM1_W, "input_layernorm"}, {TSR_T_Q_W, "self_attn.q_proj"},
    {TSR_T_Q_B, "self_attn.q_proj"},    {TSR_T_K_W, "self_attn.k_proj"},
    {TSR_T_K_B, "self_attn.k_proj"},    {TSR_T_V_W, "self_attn.v_proj"},
    {TSR_T_V_B, "self_attn.v_proj"},    {TSR_T_O_W, "self_attn.o_proj"},
    {TSR_T_O_B, "self_attn.o_proj"},    {TSR_T_NORM2_W, "post_attention_layernorm"},
    {TSR_T_GATE_W, "mlp.gate_proj"},    {TSR_T_GATE_B, "mlp.gate_proj"},
    {TSR_T_UP_W, "mlp.up_proj"},        {TSR_T_UP_B, "mlp.up_proj"},
    {TSR_T_DOWN_W, "mlp.down_proj"},    {TSR_T_DOWN_B, "mlp.down_proj"},
};

static const struct stem gpt_block[] = {
    {TSR_T_NORM1_W, "ln_1"},      {TSR_T_NORM1_B, "ln_1"},    {TSR_T_Q_W, "attn.c_attn"},
    {TSR_T_Q_B, "attn.c_attn"},   {TSR_T_K_W, "attn.c_attn"}, {TSR_T_K_B, "attn.c_attn"},
    {TSR_T_V_W, "attn.c_attn"},   {TSR_T_V_B, "attn.c_attn"}, {TSR_T_O_W, "attn.c_proj"},
    {TSR_T_O_B, "attn.c_proj"},   {TSR_T_NORM2_W, "ln_2"},    {TSR_T_NORM2_B, "ln_2"},
    {TSR_T_UP_W, "mlp.c_fc"},     {TSR_T_UP_B, "mlp.c_fc"},   {TSR_T_DOWN_W, "mlp.c_proj"},
    {TSR_T_DOWN_B, "mlp.c_proj"},
};

// A model's names, in the order of its table. What a model hasn't (model_has) is left out.
struct naming {
    struct stem before[2];
    const char *block_prefix; // takes the layer
    const struct stem *block;
    size_t n_block;
    struct stem after[3];
};

static const struct naming llama_names = {
    {{TSR_T_TOK_EMBED, "model.embed_tokens"}},
    "model.layers.%d.",
    llama_block,
    LENGTH(llama_block),
    {{TSR_T_FINAL_W, "model.norm"}, {TSR_T_LM_HEAD, "lm_head"}},
};

static const struct naming gpt2_names = {
    {{TSR_T_TOK_EMBED, "transformer.wte"}, {TSR_T_POS_EMBED, "transformer.wpe"}},
    "transformer.h.%d.",
    gpt_block,
    LENGTH(gpt_block),
    {{TSR_T_FINAL_W, "transformer.ln_f"},
     {TSR_T_FINAL_B, "transformer.ln_f"},
     {TSR_T_LM_HEAD, "lm_head"}},
};

static const struct naming gpt1_names = {
    {{TSR_T_TOK_EMBED, "transformer.tokens_embed"},
     {TSR_T_POS_EMBED, "transformer.positions_embed"}},
    "transformer.h.%d.",
    gpt_block,
    LENGTH(gpt_block),
    {{TSR_T_LM_HEAD, "lm_head"}},
};

static const struct naming *naming_of(enum tsr_arch arch) {
    switch (arch) {
    case TSR_ARCH_GPT2:
        return &gpt2_names;
    case TSR_ARCH_GPT1:
        return &gpt1_names;
    case TSR_ARCH_LLAMA:
        return &llama_names;
    }
    TSR_ASSERT(!"an unknown architecture");
}

static bool model_has(const struct tsr_model *m, enum tsr_kind kind) {
    switch (kind) {
    case TSR_T_POS_EMBED:
        return m->position != TSR_POS_ROTARY;
    case TSR_T_NORM1_B:
    case TSR_T_NORM2_B:
        return !m->rms_norm;
    case TSR_T_Q_B:
    case TSR_T_K_B:
    case TSR_T_V_B:
    case TSR_T_O_B:
        return m->attn_bias;
    case TSR_T_GATE_W:
        return m->gated;
    case TSR_T_GATE_B:
        return m->gated && m->mlp_bias;
    case TSR_T_UP_B:
    case TSR_T_DOWN_B:
        return m->mlp_bias;
    case TSR_T_FINAL_W:
        return !m->post_norm;
    case TSR_T_FINAL_B:
        return !m->post_norm && !m->rms_norm;
    case TSR_T_LM_HEAD:
        return !m->tied;
    default:
        return true;
    }
}

static bool is_matrix(enum tsr_kind kind) {
    switch (kind) {
    case TSR_T_TOK_EMBED:
    case TSR_T_POS_EMBED:
    case TSR_T_Q_W:
    case TSR_T_K_W:
    case TSR_T_V_W:
    case TSR_T_O_W:
    case TSR_T_GATE_W:
    case TSR_T_UP_W:
    case TSR_T_DOWN_W:
    case TSR_T_LM_HEAD:
        return true;
    default:
        return false;
    }
}

static bool is_norm_weight(enum tsr_kind kind) {
    return kind == TSR_T_NORM1_W || kind == TSR_T_NORM2_W || kind == TSR_T_FINAL_W;
}

static void cut(struct tsr_tensor *t, enum tsr_split split, enum tsr_unit unit, int64_t n_units,
                int64_t unit_size) {
    t->split = split;
    t->unit = unit;
    t->n_units = n_units;
    t->unit_size = unit_size;
    if (split == TSR_SPLIT_ROWS)
        t->rows = n_units * unit_size;
    else
        t->cols = n_units * unit_size;
}

// Shape and the dimension that tensor parallelism cuts (Shoeybi et al. 2019, section 3): rows of
// the first product of a pair, columns of the second, rows of the vocabulary.
static void set_shape(struct tsr_tensor *t, const struct tsr_model *m) {
    t->rows = m->hidden;
    t->cols = is_matrix(t->kind) ? m->hidden : 1;
    t->group = 1;
    t->n_units = 1;
    t->unit_size = m->hidden;
    switch (t->kind) {
    case TSR_T_TOK_EMBED:
    case TSR_T_LM_HEAD:
        cut(t, TSR_SPLIT_ROWS, TSR_UNIT_VOCAB, m->vocab, 1);
        break;
    case TSR_T_POS_EMBED:
        t->rows = t->unit_size = m->max_positions;
        break;
    case TSR_T_Q_W:
    case TSR_T_Q_B:
        cut(t, TSR_SPLIT_ROWS, TSR_UNIT_Q_HEAD, m->n_heads, m->head_dim);
        break;
    case TSR_T_K_W:
    case TSR_T_K_B:
    case TSR_T_V_W:
    case TSR_T_V_B:
        cut(t, TSR_SPLIT_ROWS, TSR_UNIT_KV_HEAD, m->n_kv_heads, m->head_dim);
        t->group = m->n_heads / m->n_kv_heads;
        break;
    case TSR_T_O_W:
        cut(t, TSR_SPLIT_COLS, TSR_UNIT_Q_HEAD, m->n_heads, m->head_dim);
        break;
    case TSR_T_GATE_W:
    case TSR_T_GATE_B:
    case TSR_T_UP_W:
    case TSR_T_UP_B:
        cut(t, TSR_SPLIT_ROWS, TSR_UNIT_FFN, m->ffn, 1);
        break;
    case TSR_T_DOWN_W:
        cut(t, TSR_SPLIT_COLS, TSR_UNIT_FFN, m->ffn, 1);
        break;
    default:
        break;
    }
}

// GPT-2's residual projections start smaller by sqrt of the number of residual adds (Radford et
// al. 2019, section 2.3); the others as in their HF classes.
static void set_init(struct tsr_tensor *t, const struct tsr_model *m) {
    t->decay = is_matrix(t->kind);
    if (is_norm_weight(t->kind)) {
        t->init = TSR_INIT_ONE;
    } else if (!is_matrix(t->kind)) {
        t->init = TSR_INIT_ZERO;
    } else if (t->kind == TSR_T_POS_EMBED && m->position == TSR_POS_SINUSOIDAL) {
        t->init = TSR_INIT_SINUSOID;
        t->frozen = true;
        t->decay = false;
    } else {
        bool residual = t->kind == TSR_T_O_W || t->kind == TSR_T_DOWN_W;
        t->init = TSR_INIT_NORMAL;
        t->init_std = m->init_range;
        if (residual && m->arch == TSR_ARCH_GPT2)
            t->init_std /= sqrt(2.0 * (double)m->n_layers);
    }
}

static const char *part_of_fused(enum tsr_kind kind) {
    switch (kind) {
    case TSR_T_Q_W:
    case TSR_T_Q_B:
        return ".q";
    case TSR_T_K_W:
    case TSR_T_K_B:
        return ".k";
    case TSR_T_V_W:
    case TSR_T_V_B:
        return ".v";
    default:
        return NULL;
    }
}

// Where the tensor lies in an HF file: GPT's linears are Conv1D, (in, out), with q, k and v side
// by side in the out dimension.
static void set_file_layout(struct tsr_tensor *t, const struct tsr_model *m) {
    t->hf_ndim = is_matrix(t->kind) ? 2 : 1;
    t->hf_out_rows = t->rows;
    memcpy(t->name, t->hf_name, sizeof t->name);
    if (m->arch == TSR_ARCH_LLAMA)
        return;
    t->hf_transposed = t->hf_ndim == 2 && t->layer >= 0;
    const char *part = part_of_fused(t->kind);
    if (!part)
        return;
    int64_t q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    t->hf_out_rows = q + 2 * kv;
    t->hf_offset = part[1] == 'q' ? 0 : part[1] == 'k' ? q : q + kv;
    strncat(t->name, part, sizeof t->name - strlen(t->name) - 1);
}

static void add_stems(struct tsr_tensor_table *tt, const struct tsr_model *m,
                      const struct stem *stems, size_t n_stems, int layer, const char *prefix) {
    int row = layer < 0 ? (int)tt->n_layers : layer;
    for (size_t i = 0; i < n_stems && stems[i].text; i++) {
        if (!model_has(m, stems[i].kind))
            continue;
        struct tsr_tensor *t = &tt->t[tt->n];
        bool weight = is_matrix(stems[i].kind) || is_norm_weight(stems[i].kind);
        t->kind = stems[i].kind;
        t->layer = layer;
        int n = snprintf(t->hf_name, sizeof t->hf_name, "%s%s.%s", prefix, stems[i].text,
                         weight ? "weight" : "bias");
        TSR_ASSERT(n > 0 && (size_t)n + 3 < sizeof t->hf_name);
        set_shape(t, m);
        set_init(t, m);
        set_file_layout(t, m);
        tt->index[row * TSR_N_KINDS + (int)t->kind] = tt->n++;
    }
}

int tsr_tensor_table_build(struct tsr_tensor_table *tt, const struct tsr_model *m) {
    const struct naming *names = naming_of(m->arch);
    size_t n_index = (size_t)(m->n_layers + 1) * TSR_N_KINDS;
    *tt = (struct tsr_tensor_table){.n_layers = m->n_layers};
    tt->index = malloc(n_index * sizeof *tt->index);
    tt->t = calloc(n_index, sizeof *tt->t);
    if (!tt->index || !tt->t) {
        tsr_tensor_table_free(tt);
        return tsr_fail(TSR_ENOMEM, "no memory for the table of tensors of %lld layers",
                        (long long)m->n_layers);
    }
    for (size_t i = 0; i < n_index; i++)
        tt->index[i] = -1;
    add_stems(tt, m, names->before, LENGTH(names->before), -1, "");
    for (int l = 0; l < m->n_layers; l++) {
        char prefix[64];
        snprintf(prefix, sizeof prefix, names->block_prefix, l);
        add_stems(tt, m, names->block, names->n_block, l, prefix);
    }
    add_stems(tt, m, names->after, LENGTH(names->after), -1, "");
    return 0;
}

void tsr_tensor_table_free(struct tsr_tensor_table *tt) {
    free(tt->t);
    free(tt->index);
    *tt = (struct tsr_tensor_table){0};
}

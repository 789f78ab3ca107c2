#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/tensor.h"

static struct tsr_model model_of(const char *json) {
    struct tsr_model m;
    assert_int_equal(tsr_model_parse(&m, json, "test"), 0);
    return m;
}

static struct tsr_model llama_of(int heads, int kv) {
    char json[300];
    snprintf(json, sizeof json,
             "{\"model_type\": \"llama\", \"num_attention_heads\": %d, \"num_key_value_heads\": %d,"
             "\"head_dim\": 6, \"hidden_size\": 32, \"intermediate_size\": 53, \"vocab_size\": 131,"
             "\"num_hidden_layers\": 2, \"attention_bias\": true, \"mlp_bias\": true}",
             heads, kv);
    return model_of(json);
}

static void mark_region(uint8_t *count, const struct tsr_tensor *t, struct tsr_region g) {
    assert_true(g.r0 >= 0 && g.r0 <= g.r1 && g.r1 <= t->rows);
    assert_true(g.c0 >= 0 && g.c0 <= g.c1 && g.c1 <= t->cols);
    for (int64_t r = g.r0; r < g.r1; r++)
        for (int64_t c = g.c0; c < g.c1; c++)
            count[r * t->cols + c]++;
}

static bool holds(struct tsr_region outer, struct tsr_region inner) {
    return tsr_region_elems(inner) == 0 || (outer.r0 <= inner.r0 && inner.r1 <= outer.r1 &&
                                            outer.c0 <= inner.c0 && inner.c1 <= outer.c1);
}

static void pieces_cover_once(const struct tsr_tensor *t, int V) {
    uint8_t *count = calloc((size_t)(t->rows * t->cols), 1);
    assert_non_null(count);
    for (int v = 0; v < V; v++)
        mark_region(count, t, tsr_tensor_piece(t, v, V));
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        assert_int_equal(count[i], 1);
    free(count);
}

// A rank's shard holds its pieces and each KV head that its query heads read, and no other head.
static void shard_has_what_it_needs(const struct tsr_tensor *t, int V, int rank, int tp) {
    struct tsr_region shard = tsr_tensor_shard(t, V, rank, tp);
    for (int v = rank * V / tp; v < (rank + 1) * V / tp; v++)
        assert_true(holds(shard, tsr_tensor_piece(t, v, V)));
    if (t->unit != TSR_UNIT_KV_HEAD)
        return;
    struct tsr_range q = tsr_piece_of_rank(t->n_units * t->group, V, rank, tp);
    for (int64_t h = 0; h < t->n_units; h++) {
        bool needed = false;
        for (int64_t i = q.lo; i < q.hi; i++)
            needed = needed || i / t->group == h;
        bool held = shard.r0 <= h * t->unit_size && (h + 1) * t->unit_size <= shard.r1;
        assert_int_equal(held, needed);
    }
}

static void pieces_and_shards(void **state) {
    (void)state;
    static const int heads[][2] = {{5, 1}, {9, 3}, {8, 8}, {8, 2}, {1, 1}, {12, 3}, {16, 1}};
    static const int Vs[] = {1, 3, 8, 24};
    for (size_t h = 0; h < sizeof heads / sizeof heads[0]; h++) {
        struct tsr_model m = llama_of(heads[h][0], heads[h][1]);
        struct tsr_tensor_table tt;
        assert_int_equal(tsr_tensor_table_build(&tt, &m), 0);
        for (int i = 0; i < tt.n; i++) {
            for (int k = 0; k < 4; k++) {
                pieces_cover_once(&tt.t[i], Vs[k]);
                for (int tp = 1; tp <= Vs[k]; tp++)
                    for (int rank = 0; Vs[k] % tp == 0 && rank < tp; rank++)
                        shard_has_what_it_needs(&tt.t[i], Vs[k], rank, tp);
            }
        }
        tsr_tensor_table_free(&tt);
        tsr_model_free(&m);
    }
}

// 5 query heads and 1 KV head over two ranks: both compute the KV head, rank 0's pieces own it.
static void five_heads_one_kv(void **state) {
    (void)state;
    struct tsr_model m = llama_of(5, 1);
    struct tsr_tensor_table tt;
    assert_int_equal(tsr_tensor_table_build(&tt, &m), 0);
    const struct tsr_tensor *k = tsr_tensor_find(&tt, 1, TSR_T_K_W);
    const struct tsr_tensor *o = tsr_tensor_find(&tt, 1, TSR_T_O_W);
    assert_int_equal(k->group, 5);
    for (int rank = 0; rank < 2; rank++)
        assert_int_equal(tsr_region_elems(tsr_tensor_shard(k, 8, rank, 2)), 6 * 32);
    for (int v = 0; v < 8; v++) // the first query head lies in piece 1: [5/8, 10/8) = [0, 1)
        assert_int_equal(tsr_region_elems(tsr_tensor_piece(k, v, 8)), v == 1 ? 6 * 32 : 0);
    struct tsr_region last = tsr_tensor_shard(o, 8, 1, 2);
    assert_true(last.c0 == 2 * 6 && last.c1 == 5 * 6 && last.r0 == 0 && last.r1 == 32);
    tsr_tensor_table_free(&tt);
    tsr_model_free(&m);
}

static const char gpt2_json[] = "{\"model_type\": \"gpt2\", \"n_layer\": 3, \"n_embd\": 48, "
                                "\"n_head\": 3, \"vocab_size\": 70, \"n_positions\": 20%s}";

static void gpt2_names(void **state) {
    (void)state;
    char json[200];
    snprintf(json, sizeof json, gpt2_json, "");
    struct tsr_model m = model_of(json);
    struct tsr_tensor_table tt;
    assert_int_equal(tsr_tensor_table_build(&tt, &m), 0);
    assert_int_equal(tt.n, 2 + 3 * 16 + 2);
    const struct tsr_tensor *t = tsr_tensor_find(&tt, 2, TSR_T_V_W);
    assert_string_equal(t->name, "transformer.h.2.attn.c_attn.weight.v");
    assert_string_equal(t->hf_name, "transformer.h.2.attn.c_attn.weight");
    assert_true(t->hf_transposed && t->hf_offset == 96 && t->hf_out_rows == 144);
    assert_true(t->decay && t->init == TSR_INIT_NORMAL && t->init_std == 0.02);
    t = tsr_tensor_find(&tt, 0, TSR_T_K_B);
    assert_string_equal(t->hf_name, "transformer.h.0.attn.c_attn.bias");
    assert_true(t->hf_ndim == 1 && t->cols == 1 && t->hf_offset == 48 && !t->hf_transposed);
    assert_true(!t->decay && t->init == TSR_INIT_ZERO && t->split == TSR_SPLIT_ROWS);
    t = tsr_tensor_find(&tt, 0, TSR_T_O_B);
    assert_true(t->split == TSR_SPLIT_NONE && t->rows == 48);
    t = tsr_tensor_find(&tt, 1, TSR_T_DOWN_W);
    assert_string_equal(t->hf_name, "transformer.h.1.mlp.c_proj.weight");
    assert_true(t->rows == 48 && t->cols == 192 && t->split == TSR_SPLIT_COLS);
    assert_true(fabs(t->init_std - 0.02 / sqrt(6.0)) < 1e-18);
    t = tsr_tensor_find(&tt, -1, TSR_T_POS_EMBED);
    assert_string_equal(t->hf_name, "transformer.wpe.weight");
    assert_true(t->rows == 20 && !t->hf_transposed && t->decay && !t->frozen);
    t = tsr_tensor_find(&tt, -1, TSR_T_FINAL_B);
    assert_string_equal(t->hf_name, "transformer.ln_f.bias");
    assert_null(tsr_tensor_find(&tt, -1, TSR_T_LM_HEAD));
    assert_null(tsr_tensor_find(&tt, 0, TSR_T_GATE_W));
    assert_null(tsr_tensor_find(&tt, 0, TSR_T_TOK_EMBED));
    assert_ptr_equal(tsr_tensor_by_name(&tt, "transformer.ln_f.bias"), t);
    assert_null(tsr_tensor_by_name(&tt, "nothing"));
    tsr_tensor_table_free(&tt);
    tsr_model_free(&m);
}

static void sinusoidal_is_frozen(void **state) {
    (void)state;
    char json[250];
    snprintf(json, sizeof json, gpt2_json,
             ", \"position\": \"sinusoidal\", \"tie_word_embeddings\": false");
    struct tsr_model m = model_of(json);
    struct tsr_tensor_table tt;
    assert_int_equal(tsr_tensor_table_build(&tt, &m), 0);
    const struct tsr_tensor *t = tsr_tensor_find(&tt, -1, TSR_T_POS_EMBED);
    assert_true(t->frozen && !t->decay && t->init == TSR_INIT_SINUSOID);
    t = tsr_tensor_find(&tt, -1, TSR_T_LM_HEAD);
    assert_string_equal(t->hf_name, "lm_head.weight");
    assert_true(t->rows == 70 && t->unit == TSR_UNIT_VOCAB);
    tsr_tensor_table_free(&tt);
    tsr_model_free(&m);
}

static void gpt1_has_no_final_norm(void **state) {
    (void)state;
    struct tsr_model m = model_of("{\"model_type\": \"openai-gpt\", \"n_layer\": 1}");
    struct tsr_tensor_table tt;
    assert_int_equal(tsr_tensor_table_build(&tt, &m), 0);
    assert_null(tsr_tensor_find(&tt, -1, TSR_T_FINAL_W));
    assert_string_equal(tsr_tensor_find(&tt, -1, TSR_T_TOK_EMBED)->name,
                        "transformer.tokens_embed.weight");
    assert_string_equal(tsr_tensor_find(&tt, -1, TSR_T_POS_EMBED)->name,
                        "transformer.positions_embed.weight");
    assert_true(tsr_tensor_find(&tt, 0, TSR_T_DOWN_W)->init_std == 0.02);
    tsr_tensor_table_free(&tt);
    tsr_model_free(&m);
}

// Names are unique, each tensor is found by its place and name, and the sizes add up.
static void every_preset(const char *name, void *arg) {
    (void)arg;
    struct tsr_model m;
    struct tsr_tensor_table tt;
    assert_int_equal(tsr_model_parse(&m, tsr_preset_json(name), name), 0);
    assert_int_equal(tsr_tensor_table_build(&tt, &m), 0);
    int64_t n = 0;
    for (int i = 0; i < tt.n; i++) {
        const struct tsr_tensor *t = &tt.t[i];
        n += t->rows * t->cols;
        assert_ptr_equal(tsr_tensor_find(&tt, t->layer, t->kind), t);
        if (tt.n < 400)
            assert_ptr_equal(tsr_tensor_by_name(&tt, t->name), t);
        assert_int_equal(t->decay, t->hf_ndim == 2);
    }
    assert_true(n == tsr_model_n_params(&m));
    tsr_tensor_table_free(&tt);
    tsr_model_free(&m);
}

static void presets(void **state) {
    (void)state;
    tsr_preset_each(every_preset, NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pieces_and_shards),
        cmocka_unit_test(five_heads_one_kv),
        cmocka_unit_test(gpt2_names),
        cmocka_unit_test(sinusoidal_is_frozen),
        cmocka_unit_test(gpt1_has_no_final_norm),
        cmocka_unit_test(presets),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

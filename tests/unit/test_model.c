#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/decimal.h"
#include "core/error.h"
#include "core/io.h"
#include "core/model.h"

#ifndef TESSERA_GOLDEN_DIR
#define TESSERA_GOLDEN_DIR "tests/golden"
#endif

static struct tsr_model parse(const char *json) {
    struct tsr_model m;
    if (tsr_model_parse(&m, json, "test") != 0)
        fail_msg("%s", tsr_error_text());
    return m;
}

static void presets_are_the_published_sizes(void **state) {
    (void)state;
    static const struct {
        const char *name;
        int64_t n_params;
    } known[] = {
        {"gpt2", 124439808},         {"gpt2-medium", 354823168},  {"gpt2-large", 774030080},
        {"gpt2-xl", 1557611200},     {"openai-gpt", 116534784},   {"llama-7b", 6738415616},
        {"llama-13b", 13015864320},  {"llama-30b", 32528943616},  {"llama-65b", 65285660672},
        {"llama2-7b", 6738415616},   {"llama2-70b", 68976648192}, {"llama3-8b", 8030261248},
        {"llama3-70b", 70553706496}, {"llama3.1-8b", 8030261248}, {"llama3.1-405b", 405853388800},
        {"llama3.2-1b", 1235814400}, {"llama3.2-3b", 3212749824}, {"smollm2-135m", 134515008},
        {"gpt3-125m", 125226240},    {"gpt3-13b", 12853386240},   {"gpt3-175b", 174604259328},
    };
    for (size_t i = 0; i < sizeof known / sizeof known[0]; i++) {
        struct tsr_model m;
        assert_non_null(tsr_preset_json(known[i].name));
        assert_int_equal(tsr_model_parse(&m, tsr_preset_json(known[i].name), known[i].name), 0);
        if (tsr_model_n_params(&m) != known[i].n_params)
            fail_msg("%s: expected %lld, found %lld", known[i].name, (long long)known[i].n_params,
                     (long long)tsr_model_n_params(&m));
        tsr_model_free(&m);
    }
    assert_null(tsr_preset_json("gpt5"));
    assert_null(tsr_preset_json(""));
}

static void defaults_are_hugging_face_s(void **state) {
    (void)state;
    struct tsr_model m = parse("{\"model_type\": \"llama\"}");
    assert_int_equal(tsr_model_n_params(&m), 6738415616);
    assert_true(m.rms_norm && m.gated && !m.tied && !m.attn_bias && m.n_kv_heads == 32);
    assert_true(m.bos == 1 && m.n_eos == 1 && m.eos[0] == 2 && m.norm_eps == 1e-6);
    tsr_model_free(&m);
    m = parse("{\"model_type\": \"gpt2\"}");
    assert_int_equal(tsr_model_n_params(&m), 124439808);
    assert_true(m.tied && m.attn_bias && m.ffn == 3072 && m.act == TSR_ACT_GELU_TANH);
    tsr_model_free(&m);
    m = parse("{\"model_type\": \"openai-gpt\", \"afn\": \"gelu\"}");
    assert_true(m.post_norm && m.act == TSR_ACT_GELU_TANH && m.n_eos == 0 && m.bos == -1);
    tsr_model_free(&m);
    m = parse("{\"model_type\": \"gpt2\", \"hidden_size\": 64, \"num_attention_heads\": 4,"
              "\"num_hidden_layers\": 3, \"max_position_embeddings\": 9, \"n_inner\": null,"
              "\"activation_function\": \"gelu\", \"position\": \"sinusoidal\"}");
    assert_true(m.hidden == 64 && m.n_heads == 4 && m.head_dim == 16 && m.n_layers == 3);
    assert_true(m.max_positions == 9 && m.ffn == 256 && m.act == TSR_ACT_GELU);
    assert_int_equal(m.position, TSR_POS_SINUSOIDAL);
    tsr_model_free(&m);
}

static void special_ids(void **state) {
    (void)state;
    struct tsr_model m = parse("{\"model_type\": \"gpt2\", \"vocab_size\": 100}");
    assert_true(m.n_eos == 0 && m.bos == -1); // the default 50256 isn't in this vocabulary
    tsr_model_free(&m);
    m = parse("{\"model_type\": \"gpt2\", \"vocab_size\": 100, \"eos_token_id\": [3, 50256, 4],"
              "\"bos_token_id\": null}");
    assert_true(m.n_eos == 2 && m.eos[0] == 3 && m.eos[1] == 4 && m.bos == -1);
    tsr_model_free(&m);
    m = parse("{\"model_type\": \"llama\", \"eos_token_id\": null, \"bos_token_id\": 7}");
    assert_true(m.n_eos == 0 && m.bos == 7);
    tsr_model_free(&m);
}

// {L and {G stand for the start of a Llama and a GPT-2 configuration.
static const struct {
    const char *json, *piece;
} refused[] = {
    {"", "not valid JSON"},
    {"[1]", "expected a JSON object"},
    {"{\"model_type\": \"llama\"} x", "test:1:"},
    {"{\"model_type\": \"llama\", \"model_type\": \"gpt2\"}", "duplicate"},
    {"{\"a\": \"\xff\"}", "not valid JSON"},
    {"{}", "`model_type`"},
    {"{\"model_type\": 5}", "`model_type`"},
    {"{\"model_type\": \"mistral\"}", "found mistral"},
    {"{L \"hidden_size\": \"x\"}", "`hidden_size`: expected an integer"},
    {"{L \"hidden_size\": 64.0}", "`hidden_size`: expected an integer"},
    {"{L \"hidden_size\": true}", "`hidden_size`: expected an integer"},
    {"{L \"hidden_size\": 0}", "`hidden_size`: expected 1 to"},
    {"{L \"hidden_size\": 99999999999999999999}", "not valid JSON"},
    {"{L \"hidden_size\": 9223372036854775807}", "`hidden_size`: expected 1 to"},
    {"{L \"num_hidden_layers\": 100000}", "`num_hidden_layers`"},
    {"{L \"vocab_size\": -1}", "`vocab_size`"},
    {"{L \"num_key_value_heads\": 5}", "must divide num_attention_heads"},
    {"{L \"hidden_size\": 100}", "must divide hidden_size"},
    {"{L \"head_dim\": 7}", "even head size, found 7"},
    {"{L \"head_dim\": 1048576}", "num_attention_heads * head_dim"},
    {"{L \"hidden_act\": \"relu\"}", "`hidden_act`"},
    {"{L \"hidden_act\": 3}", "`hidden_act`"},
    {"{L \"rms_norm_eps\": \"a\"}", "`rms_norm_eps`: expected a number"},
    {"{L \"rms_norm_eps\": -1}", "`rms_norm_eps`: expected 0 to 1"},
    {"{L \"mlp_bias\": 1}", "`mlp_bias`: expected true or false"},
    {"{L \"position\": \"learned\"}", "`position`: expected rotary"},
    {"{L \"sliding_window\": 4096}", "`sliding_window` is 4096"},
    {"{L \"quantization_config\": {\"bits\": 4}}", "`quantization_config`"},
    {"{L \"layer_types\": [\"full_attention\", \"sliding_attention\"]}", "`layer_types`"},
    {"{L \"partial_rotary_factor\": 0.5}", "`partial_rotary_factor`"},
    {"{L \"eos_token_id\": \"x\"}", "`eos_token_id`"},
    {"{L \"eos_token_id\": [1,2,3,4,5,6,7,8,9]}", "at most 8 ids, found 9"},
    {"{L \"bos_token_id\": []}", "`bos_token_id`"},
    {"{L \"rope_theta\": 0}", "`rope_theta`"},
    {"{L \"rope_scaling\": 3}", "`rope_scaling`: expected an object"},
    {"{L \"rope_scaling\": {\"type\": \"yarn\", \"factor\": 2}}", "`yarn` isn't supported"},
    {"{L \"rope_scaling\": {\"type\": \"dynamic\", \"factor\": 2}}", "`dynamic`"},
    {"{L \"rope_scaling\": {\"type\": \"linear\"}}", "needs the number `factor`"},
    {"{L \"rope_scaling\": {\"type\": \"linear\", \"rope_type\": \"llama3\"}}", "differ"},
    {"{L \"rope_scaling\": {\"rope_type\": \"llama3\", \"factor\": 8}}", "`low_freq_factor`"},
    {"{L \"rope_parameters\": {\"rope_type\": \"llama3\", \"factor\": 8, \"low_freq_factor\":"
     "4, \"high_freq_factor\": 4, \"original_max_position_embeddings\": 8}}",
     "must be above `low_freq_factor`"},
    {"{L \"rope_parameters\": {\"full_attention\": {}}}", "`rope_parameters.full_attention`"},
    {"{G \"scale_attn_by_inverse_layer_idx\": 1}", "`scale_attn_by_inverse_layer_idx`"},
    {"{G \"scale_attn_weights\": \"no\"}", "`scale_attn_weights`"},
    {"{G \"add_cross_attention\": true}", "`add_cross_attention`"},
    {"{G \"activation_function\": \"relu\"}", "`activation_function`"},
    {"{G \"n_head\": 7}", "n_head (7) must divide n_embd (768)"},
    {"{G \"position\": \"rotary\"}", "`position`: expected learned or sinusoidal"},
};

static void refuses_by_name(void **state) {
    (void)state;
    for (size_t i = 0; i < sizeof refused / sizeof refused[0]; i++) {
        char json[500];
        const char *s = refused[i].json;
        bool llama = strncmp(s, "{L", 2) == 0, gpt2 = strncmp(s, "{G", 2) == 0;
        snprintf(json, sizeof json, "%s%s",
                 llama  ? "{\"model_type\": \"llama\","
                 : gpt2 ? "{\"model_type\": \"gpt2\","
                        : "",
                 llama || gpt2 ? s + 2 : s);
        struct tsr_model m;
        assert_int_equal(tsr_model_parse(&m, json, "test"), TSR_EMODEL);
        if (!strstr(tsr_error_text(), refused[i].piece))
            fail_msg("%s: expected \"%s\", found: %s", json, refused[i].piece, tsr_error_text());
    }
}

static void accepts_what_changes_nothing(void **state) {
    (void)state;
    struct tsr_model m =
        parse("{\"model_type\": \"llama\", \"pretraining_tp\": 2, \"sliding_window\": null,"
              "\"use_cache\": true, \"rope_scaling\": {\"rope_type\": \"default\"},"
              "\"layer_types\": [\"full_attention\"], \"rope_interleaved\": false,"
              "\"partial_rotary_factor\": 1.0, \"attention_dropout\": 0.1, \"head_dim\": null}");
    assert_true(m.rope_scaling == TSR_ROPE_NONE && m.head_dim == 128);
    tsr_model_free(&m);
    m = parse("{\"model_type\": \"gpt2\", \"reorder_and_upcast_attn\": true, \"attn_pdrop\": 0.1,"
              "\"scale_attn_weights\": true}");
    tsr_model_free(&m);
}

// Goldens come from transformers in float32: frequencies between 1 and 1e-6 differ by its
// rounding of the power (2 ulp), and of the blend in llama3 scaling, where a wavelength near the
// border counts with up to high / (high - low) < 2 times its own error: 2e-6 covers both.
static void rope_as_transformers(void **state) {
    (void)state;
    json_t *root = json_load_file(TESSERA_GOLDEN_DIR "/rope/frequencies.json", 0, NULL);
    size_t i, k, d;
    json_t *item, *config, *value;
    assert_non_null(root);
    json_array_foreach(root, i, item) {
        json_array_foreach(json_object_get(item, "configs"), k, config) {
            char *text = json_dumps(config, 0);
            struct tsr_model m = parse(text);
            double *found = calloc((size_t)m.head_dim / 2, sizeof *found);
            assert_non_null(found);
            tsr_rope_frequencies(&m, found);
            json_t *expected = json_object_get(item, "frequencies");
            assert_int_equal(json_array_size(expected), m.head_dim / 2);
            json_array_foreach(expected, d, value) {
                if (!(fabs(found[d] / json_real_value(value) - 1.0) < 2e-6))
                    fail_msg("%s, pair %zu: expected %.9g, found %.9g",
                             json_string_value(json_object_get(item, "name")), d,
                             json_real_value(value), found[d]);
            }
            free(found);
            free(text);
            tsr_model_free(&m);
        }
    }
    assert_int_equal(i, 5);
    json_decref(root);
}

static void writes_the_older_spelling(void **state) {
    (void)state;
    struct tsr_model m = parse(
        "{\"model_type\": \"llama\", \"dtype\": \"bfloat16\", \"my_key\": {\"a\": [1, 2.5, []]},"
        "\"rms_norm_eps\": 1e-05, \"rope_parameters\": {\"rope_theta\": 500000.0, \"rope_type\":"
        "\"llama3\", \"factor\": 8.0, \"low_freq_factor\": 1.0, \"high_freq_factor\": 4.0,"
        "\"original_max_position_embeddings\": 8192}}");
    m.eos[0] = 5;
    m.eos[1] = 6;
    m.n_eos = 2;
    char *text = tsr_model_to_json(&m);
    assert_non_null(text);
    assert_non_null(strstr(text, "\"rms_norm_eps\": 1e-05"));
    assert_non_null(strstr(text, "\"rope_theta\": 500000.0"));
    json_t *o = json_loads(text, 0, NULL);
    assert_null(json_object_get(o, "rope_parameters"));
    assert_null(json_object_get(o, "dtype"));
    assert_string_equal(json_string_value(json_object_get(o, "torch_dtype")), "float32");
    json_t *scaling = json_object_get(o, "rope_scaling");
    assert_string_equal(json_string_value(json_object_get(scaling, "rope_type")), "llama3");
    assert_int_equal(
        json_integer_value(json_object_get(scaling, "original_max_position_embeddings")), 8192);
    assert_int_equal(json_array_size(json_object_get(o, "eos_token_id")), 2);
    assert_non_null(json_object_get(o, "my_key"));
    json_decref(o);
    struct tsr_model again = parse(text);
    char *second = tsr_model_to_json(&again);
    assert_string_equal(text, second);
    assert_true(again.rope_factor == 8.0 && again.rope_theta == 500000.0 && again.n_eos == 2);
    free(text);
    free(second);
    tsr_model_free(&m);
    tsr_model_free(&again);
}

static void write_text(const char *dir, const char *name, const char *text) {
    char path[TSR_PATH_MAX];
    assert_int_equal(tsr_path_join(path, dir, name), 0);
    assert_int_equal(tsr_write_file_durable(path, text, strlen(text)), 0);
}

static void loads_a_folder(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    char dir[TSR_PATH_MAX];
    struct tsr_model m;
    snprintf(dir, sizeof dir, "%s/tsr-test-XXXXXX", tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(dir));
    assert_int_equal(tsr_model_load(&m, dir), TSR_EMODEL);
    assert_int_equal(tsr_model_load(&m, "/nonexistent/model"), TSR_EMODEL);
    assert_non_null(strstr(tsr_error_text(), "/nonexistent/model: expected a model folder"));
    write_text(dir, "config.json", "{\"model_type\": \"llama\", \"eos_token_id\": 3}");
    assert_int_equal(tsr_model_load(&m, dir), 0);
    assert_true(m.n_eos == 1 && m.eos[0] == 3);
    tsr_model_free(&m);
    write_text(dir, "generation_config.json", "{\"eos_token_id\": [8, 9]}");
    assert_int_equal(tsr_model_load(&m, dir), 0);
    assert_true(m.n_eos == 2 && m.eos[0] == 8 && m.eos[1] == 9);
    tsr_model_free(&m);
    write_text(dir, "generation_config.json", "{\"eos_token_id\": null}");
    assert_int_equal(tsr_model_load(&m, dir), 0);
    assert_true(m.n_eos == 1 && m.eos[0] == 3);
    tsr_model_free(&m);
    write_text(dir, "generation_config.json", "{");
    assert_int_equal(tsr_model_load(&m, dir), TSR_EMODEL);
    assert_non_null(strstr(tsr_error_text(), "generation_config.json:1:"));
    write_text(dir, "config.json", "{");
    assert_int_equal(tsr_model_load(&m, dir), TSR_EMODEL);
    assert_int_equal(tsr_remove_tree(dir), 0);
}

static void shortest_decimals(void **state) {
    (void)state;
    static const struct {
        double v;
        const char *text;
    } cases[] = {
        {0.0, "0"},
        {1.0, "1"},
        {-2.5, "-2.5"},
        {3e-4, "0.0003"},
        {1e-5, "1e-05"},
        {500000.0, "500000"},
        {0.1, "0.1"},
        {1e16, "1e+16"},
        {1.0 / 24, "0.041666666666666664"},
        {123456789.125, "123456789.125"},
        {5e-324, "5e-324"},
        {1.7976931348623157e308, "1.7976931348623157e+308"},
        {9007199254740993.0, "9007199254740992"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char text[TSR_DECIMAL_MAX];
        tsr_shortest_decimal(text, cases[i].v);
        assert_string_equal(text, cases[i].text);
        assert_true(strtod(text, NULL) == cases[i].v);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(presets_are_the_published_sizes),
        cmocka_unit_test(defaults_are_hugging_face_s),
        cmocka_unit_test(special_ids),
        cmocka_unit_test(refuses_by_name),
        cmocka_unit_test(accepts_what_changes_nothing),
        cmocka_unit_test(rope_as_transformers),
        cmocka_unit_test(writes_the_older_spelling),
        cmocka_unit_test(loads_a_folder),
        cmocka_unit_test(shortest_decimals),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

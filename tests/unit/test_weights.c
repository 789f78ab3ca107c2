// The weights of a Hugging Face directory: fused and transposed tensors, names, shards, and every
// way in which a directory doesn't fit the model.
#include "tests/unit/files_support.h"

#include <unistd.h>
#include "core/tensor.h"
#include "core/weights.h"

static const char gpt2_json[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":2,\"n_embd\":8,\"n_head\":2,\"n_positions\":6,"
    "\"vocab_size\":11,\"n_inner\":20,\"activation_function\":\"gelu_new\"}";
static const char llama_json[] =
    "{\"model_type\":\"llama\",\"num_hidden_layers\":2,\"hidden_size\":12,"
    "\"intermediate_size\":20,\"num_attention_heads\":3,\"num_key_value_heads\":1,"
    "\"vocab_size\":11,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,"
    "\"tie_word_embeddings\":false}";

enum { MAX_ENTRIES = 64 };

// A directory under construction: the file tensors that its model's table asks for, to be changed.
static char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
static struct tsr_model model;
static struct tsr_tensor_table table;
static struct tsr_st_entry entries[MAX_ENTRIES];
static char names[MAX_ENTRIES][600];
static int n_entries;

static struct tsr_st_entry *add(const char *name, enum tsr_dtype dtype, int ndim, int64_t a,
                                int64_t b) {
    struct tsr_st_entry *e = &entries[n_entries];
    snprintf(names[n_entries], sizeof names[0], "%s", name);
    *e = (struct tsr_st_entry){names[n_entries], dtype, ndim, {a, b}, 0, 0};
    n_entries++;
    return e;
}

static struct tsr_st_entry *entry(const char *name) {
    for (int i = 0; i < n_entries; i++)
        if (strcmp(entries[i].name, name) == 0)
            return &entries[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static void drop(const char *name) {
    int i = (int)(entry(name) - entries);
    n_entries--;
    for (; i < n_entries; i++) {
        memcpy(names[i], names[i + 1], sizeof names[0]);
        entries[i] = entries[i + 1];
        entries[i].name = names[i];
    }
}

static void start(const char *json) {
    static const enum tsr_dtype dtypes[] = {TSR_DT_F32, TSR_DT_BF16, TSR_DT_F16};
    make_temp_dir(dir);
    expect_ok(tsr_path_join(path, dir, "model.safetensors"));
    expect_ok(tsr_model_parse(&model, json, "config.json"));
    expect_ok(tsr_tensor_table_build(&table, &model));
    n_entries = 0;
    for (int i = 0; i < table.n; i++) {
        const struct tsr_tensor *t = &table.t[i];
        if (t->hf_offset > 0)
            continue;
        int64_t rows = t->hf_transposed ? t->cols : t->hf_out_rows;
        int64_t cols = t->hf_transposed ? t->hf_out_rows : t->cols;
        add(t->hf_name, dtypes[n_entries % 3], t->hf_ndim, rows, t->hf_ndim == 2 ? cols : 0);
    }
}

static int start_gpt2(void **state) {
    (void)state;
    start(gpt2_json);
    return 0;
}

static int start_llama(void **state) {
    (void)state;
    start(llama_json);
    return 0;
}

static int finish(void **state) {
    (void)state;
    tsr_tensor_table_free(&table);
    tsr_model_free(&model);
    return tsr_remove_tree(dir);
}

static void save(void) {
    write_tensors(path, entries, n_entries, value_by_name);
}

static int open_weights(struct tsr_weights **w) {
    return tsr_weights_open(w, dir, &model, &table);
}

static void expect_refused(const char *word) {
    struct tsr_weights *w;
    expect_error(open_weights(&w), TSR_EMODEL, word);
}

// What canonical element (r, c) of `t` must be, by the definition of Conv1D and fusing.
static float expected(const struct tsr_tensor *t, const char *file_name, int64_t r, int64_t c) {
    int64_t row = t->hf_offset + r;
    return value_by_name(file_name, t->hf_transposed ? c * t->hf_out_rows + row : row * t->cols + c);
}

static void check_region(const struct tsr_weights *w, const struct tsr_tensor *t,
                         const char *file_name, struct tsr_region g) {
    float out[1024];
    int64_t n = tsr_region_elems(g);
    assert_true(n < 1024);
    out[n] = 77;
    expect_ok(tsr_weights_read(w, t, g, out));
    for (int64_t r = g.r0, i = 0; r < g.r1; r++)
        for (int64_t c = g.c0; c < g.c1; c++, i++)
            if (out[i] != expected(t, file_name, r, c))
                fail_msg("%s (%d, %d): expected %g, found %g", t->name, (int)r, (int)c,
                         expected(t, file_name, r, c), out[i]);
    assert_true(out[n] == 77);
}

// Reads everything whole and in parts; `strip` bytes of the names are absent in the file.
static void check_all(size_t strip) {
    struct tsr_weights *w;
    expect_ok(open_weights(&w));
    for (int i = 0; i < table.n; i++) {
        const struct tsr_tensor *t = &table.t[i];
        const char *name = t->hf_name + (strncmp(t->hf_name, "lm_head", 7) == 0 ? 0 : strip);
        int64_t r = t->rows, c = t->cols;
        const struct tsr_region regions[] = {
            {0, r, 0, c},     {r / 2, r, 0, c},         {0, r, c / 2, c},
            {0, r, 0, c / 2}, {r / 3, r / 2, 0, c / 2}, {r - 1, r, c - 1, c},
            {r, r, 0, c},     {r / 3, r - 1, c / 3, c}};
        for (size_t k = 0; k < sizeof regions / sizeof *regions; k++)
            check_region(w, t, name, regions[k]);
    }
    tsr_weights_close(w);
}

static void test_single_file(void **state) {
    (void)state;
    save();
    check_all(0);
}

static void strip_names(size_t strip) {
    for (int i = 0; i < n_entries; i++)
        if (strncmp(names[i], "lm_head", 7) != 0)
            memmove(names[i], names[i] + strip, strlen(names[i] + strip) + 1);
}

static void test_names_without_prefix_gpt2(void **state) {
    (void)state;
    strip_names(strlen("transformer."));
    save();
    check_all(strlen("transformer."));
}

static void test_names_without_prefix_llama(void **state) {
    (void)state;
    strip_names(strlen("model."));
    save();
    check_all(strlen("model."));
}

static void test_ignored_buffers_gpt2(void **state) {
    (void)state;
    struct tsr_st_entry *e = add("transformer.h.0.attn.bias", TSR_DT_BOOL, 4, 1, 1);
    e->shape[2] = e->shape[3] = 6;
    add("h.1.attn.masked_bias", TSR_DT_F32, 0, 0, 0);
    add("lm_head.weight", TSR_DT_F32, 2, 11, 8); // tied
    save();
    check_all(0);
}

static void test_ignored_buffers_llama(void **state) {
    (void)state;
    add("model.layers.1.self_attn.rotary_emb.inv_freq", TSR_DT_F64, 1, 2, 0);
    add("rotary_emb.inv_freq", TSR_DT_F32, 1, 2, 0);
    save();
    check_all(0);
}

static void test_extra(void **state) {
    (void)state;
    static const char *const extra[] = {"transformer.h.2.ln_1.weight", "transformer.h.0.ln_3.weight",
                                        "xattn.bias",  "transformer.lm_head.weight",
                                        "model.wte.weight", "transformer.transformer.wte.weight",
                                        "rotary_emb.inv_freq.x"};
    for (size_t i = 0; i < sizeof extra / sizeof *extra; i++) {
        add(extra[i], TSR_DT_F32, 1, 8, 0);
        save();
        char word[700];
        snprintf(word, sizeof word, "\"%s\" is not part of this model", extra[i]);
        expect_refused(word);
        drop(extra[i]);
    }
    char longest[513];
    memset(longest, 'x', 512);
    longest[512] = 0;
    add(longest, TSR_DT_F32, 1, 8, 0);
    save();
    expect_refused("is not part of this model");
}

static void test_twice(void **state) {
    (void)state;
    add("wte.weight", TSR_DT_F32, 2, 11, 8); // beside transformer.wte.weight
    save();
    expect_refused("is there twice");
}

static void test_missing(void **state) {
    (void)state;
    drop("transformer.h.1.attn.c_attn.bias");
    save();
    expect_refused("\"transformer.h.1.attn.c_attn.bias\" is missing");
    drop("transformer.ln_f.weight");
    save();
    expect_refused("is missing, and 1 more");
    n_entries = 0;
    save();
    expect_refused("more");
}

static void test_missing_untied_head(void **state) {
    (void)state;
    drop("lm_head.weight");
    save();
    expect_refused("\"lm_head.weight\" is missing");
}

static void test_misshapen_gpt2(void **state) {
    (void)state;
    struct tsr_st_entry *e = entry("transformer.h.0.attn.c_attn.weight");
    e->shape[0] = 24;
    e->shape[1] = 8; // as a Linear, not a Conv1D
    save();
    expect_refused("\"transformer.h.0.attn.c_attn.weight\": expected shape [8, 24], found [24, 8]");
    e->ndim = 1;
    e->shape[0] = 192;
    save();
    expect_refused("found [192]");
    e->ndim = 3;
    e->shape[0] = 1;
    e->shape[1] = 8;
    e->shape[2] = 24;
    save();
    expect_refused("found [1, 8, 24]");
}

static void test_misshapen_more(void **state) {
    (void)state;
    entry("transformer.ln_f.bias")->shape[0] = 9;
    save();
    expect_refused("\"transformer.ln_f.bias\": expected shape [8], found [9]");
    entry("transformer.ln_f.bias")->shape[0] = 8;
    entry("transformer.wte.weight")->shape[0] = 12;
    save();
    expect_refused("\"transformer.wte.weight\": expected shape [11, 8], found [12, 8]");
    entry("transformer.wte.weight")->shape[0] = 11;
    add("lm_head.weight", TSR_DT_F32, 2, 12, 8);
    save();
    expect_refused("\"lm_head.weight\": expected shape [11, 8], found [12, 8]");
}

static void test_wrong_dtype(void **state) {
    (void)state;
    entry("transformer.wpe.weight")->dtype = TSR_DT_I64;
    save();
    expect_refused("\"transformer.wpe.weight\": expected dtype F32, F16 or BF16, found I64");
}

static void test_no_files(void **state) {
    (void)state;
    expect_refused("found neither");
    expect_ok(tsr_path_join(path, dir, "nowhere"));
    struct tsr_weights *w;
    expect_error(tsr_weights_open(&w, path, &model, &table), TSR_EMODEL, "nowhere");
}

// ---- shards

static const char *const shard_names[] = {"a.safetensors", "b.safetensors", "c.safetensors"};

static int shard_of(int i) {
    return i * 7 % 3;
}

static void save_index(const char *text) {
    char index[TSR_PATH_MAX];
    expect_ok(tsr_path_join(index, dir, "model.safetensors.index.json"));
    write_text(index, text);
}

// Three shards, and an index of all tensors but `skip`; `more` is put into the map.
static void save_shards(const char *skip, const char *more) {
    struct tsr_buf b = {0};
    expect_ok(tsr_buf_printf(&b, "{\"metadata\":{\"total_size\":1},\"weight_map\":{%s", more));
    const char *comma = *more ? "," : "";
    for (int s = 0; s < 3; s++) {
        struct tsr_st_entry part[MAX_ENTRIES];
        int n = 0;
        for (int i = 0; i < n_entries; i++) {
            if (shard_of(i) != s)
                continue;
            part[n++] = entries[i];
            if (!skip || strcmp(skip, entries[i].name) != 0) {
                expect_ok(tsr_buf_printf(&b, "%s\"%s\":\"%s\"", comma, entries[i].name,
                                         shard_names[s]));
                comma = ",";
            }
        }
        expect_ok(tsr_path_join(path, dir, shard_names[s]));
        write_tensors(path, part, n, value_by_name);
    }
    expect_ok(tsr_buf_printf(&b, "}}"));
    save_index(b.data);
    tsr_buf_free(&b);
}

static void test_shards(void **state) {
    (void)state;
    save_shards(NULL, "");
    check_all(0);
}

static void test_shards_and_index_disagree(void **state) {
    (void)state;
    save_shards("lm_head.weight", "");
    expect_refused("\"lm_head.weight\": expected the index to place it in this file, found nothing");
    save_shards(NULL, "\"ghost\":\"a.safetensors\"");
    expect_refused("expected tensor \"ghost\" in a.safetensors");
    save_shards(NULL, "\"ghost\":\"d.safetensors\"");
    expect_refused("d.safetensors: cannot open");
    const char *other = shard_names[(shard_of((int)(entry("lm_head.weight") - entries)) + 1) % 3];
    char more[64];
    snprintf(more, sizeof more, "\"lm_head.weight\":\"%s\"", other);
    save_shards("lm_head.weight", more);
    expect_refused("expected tensor \"lm_head.weight\" in");
}

// An index that points out of its folder is refused by its words, before anything is opened.
static void test_index_escapes(void **state) {
    (void)state;
    static const char *const outside[] = {
        "\"../a.safetensors\"", "\"/etc/passwd\"", "\"sub/a.safetensors\"", "\"..\"", "\".\"",
        "\"\"",                 "1",               "null",                  "\"a\\nb\""};
    for (size_t i = 0; i < sizeof outside / sizeof *outside; i++) {
        char text[256];
        snprintf(text, sizeof text, "{\"weight_map\":{\"x\":%s}}", outside[i]);
        save_index(text);
        expect_refused("plain file names");
    }
    save_index("{\"weight_map\":{\"x\\ny\":\"a.safetensors\"}}");
    expect_refused("plain file names");
}

static void test_wrong_index(void **state) {
    (void)state;
    static const char *const wrong[][2] = {
        {"", "not valid JSON"},
        {"{", "not valid JSON"},
        {"[]", "weight_map"},
        {"3", "not valid JSON"},
        {"{}", "weight_map"},
        {"{\"weight_map\":[]}", "weight_map"},
        {"{\"weight_map\":{}}", "is missing"},
        {"{\"weight_map\":{\"x\":\"a\",\"x\":\"a\"}}", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof wrong / sizeof *wrong; i++) {
        save_index(wrong[i][0]);
        expect_refused(wrong[i][1]);
    }
}

// One file wins over an index beside it, as in transformers.
static void test_single_file_wins(void **state) {
    (void)state;
    save();
    save_index("{");
    check_all(0);
}

// A matrix whose transposition takes several blocks, read by pieces and whole.
static void test_large_conv1d(void **state) {
    (void)state;
    enum { IN = 700, OUT = 3 * 1000 };
    struct tsr_tensor t = {.kind = TSR_T_K_W, .layer = 0, .rows = 1000, .cols = IN,
                           .name = "k", .hf_name = "transformer.c", .hf_transposed = true,
                           .hf_offset = 1000, .hf_out_rows = OUT, .hf_ndim = 2};
    struct tsr_tensor_table one = {.n = 1, .t = &t};
    struct tsr_st_entry e = {"transformer.c", TSR_DT_F32, 2, {IN, OUT}, 0, 0};
    struct tsr_weights *w;
    write_tensors(path, &e, 1, value_by_name);
    expect_ok(tsr_weights_open(&w, dir, &model, &one));
    static float out[1000 * IN];
    expect_ok(tsr_weights_read(w, &t, (struct tsr_region){3, 998, 1, IN}, out));
    for (int64_t r = 3, i = 0; r < 998; r++)
        for (int64_t c = 1; c < IN; c++, i++)
            assert_true(out[i] == expected(&t, t.hf_name, r, c));
    tsr_weights_close(w);
}

#define WITH(test, start_it) cmocka_unit_test_setup_teardown(test, start_it, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_single_file, start_gpt2),
        WITH(test_single_file, start_llama),
        WITH(test_names_without_prefix_gpt2, start_gpt2),
        WITH(test_names_without_prefix_llama, start_llama),
        WITH(test_ignored_buffers_gpt2, start_gpt2),
        WITH(test_ignored_buffers_llama, start_llama),
        WITH(test_extra, start_gpt2),
        WITH(test_twice, start_gpt2),
        WITH(test_missing, start_gpt2),
        WITH(test_missing_untied_head, start_llama),
        WITH(test_misshapen_gpt2, start_gpt2),
        WITH(test_misshapen_more, start_gpt2),
        WITH(test_wrong_dtype, start_gpt2),
        WITH(test_no_files, start_gpt2),
        WITH(test_shards, start_llama),
        WITH(test_shards, start_gpt2),
        WITH(test_shards_and_index_disagree, start_llama),
        WITH(test_index_escapes, start_llama),
        WITH(test_wrong_index, start_llama),
        WITH(test_single_file_wins, start_llama),
        WITH(test_large_conv1d, start_gpt2),
    };
    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}

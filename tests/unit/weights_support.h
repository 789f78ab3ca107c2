// A model directory under construction, for the tests of reading weights.
#ifndef TSR_TESTS_WEIGHTS_SUPPORT_H
#define TSR_TESTS_WEIGHTS_SUPPORT_H

#include "tests/unit/files_support.h"

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

// The file tensors that the model's table asks for; a test changes them before it saves.
static char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
static struct tsr_model model;
static struct tsr_tensor_table table;
static struct tsr_st_entry entries[MAX_ENTRIES];
static char names[MAX_ENTRIES][600];
static int n_entries;

static inline struct tsr_st_entry *add(const char *name, enum tsr_dtype dtype, int ndim, int64_t a,
                                       int64_t b) {
    struct tsr_st_entry *e = &entries[n_entries];
    snprintf(names[n_entries], sizeof names[0], "%s", name);
    *e = (struct tsr_st_entry){names[n_entries], dtype, ndim, {a, b}, 0, 0};
    n_entries++;
    return e;
}

static inline struct tsr_st_entry *entry(const char *name) {
    for (int i = 0; i < n_entries; i++)
        if (strcmp(entries[i].name, name) == 0)
            return &entries[i];
    fail_msg("no tensor %s", name);
    return NULL;
}

static inline void drop(const char *name) {
    int i = (int)(entry(name) - entries);
    n_entries--;
    for (; i < n_entries; i++) {
        memcpy(names[i], names[i + 1], sizeof names[0]);
        entries[i] = entries[i + 1];
        entries[i].name = names[i];
    }
}

static inline void start(const char *json) {
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

static inline int start_gpt2(void **state) {
    (void)state;
    start(gpt2_json);
    return 0;
}

static inline int start_llama(void **state) {
    (void)state;
    start(llama_json);
    return 0;
}

static inline int finish(void **state) {
    (void)state;
    tsr_tensor_table_free(&table);
    tsr_model_free(&model);
    return tsr_remove_tree(dir);
}

static inline void save(void) {
    write_tensors(path, entries, n_entries, value_by_name);
}

static inline int open_weights(struct tsr_weights **w) {
    return tsr_weights_open(w, dir, &model, &table);
}

static inline void expect_refused(const char *word) {
    struct tsr_weights *w;
    expect_error(open_weights(&w), TSR_EMODEL, word);
}

// What canonical element (r, c) of `t` must be, by the definition of Conv1D and fusing.
static inline float expected(const struct tsr_tensor *t, const char *file_name, int64_t r,
                             int64_t c) {
    int64_t row = t->hf_offset + r;
    return value_by_name(file_name,
                         t->hf_transposed ? c * t->hf_out_rows + row : row * t->cols + c);
}

static inline void check_region(const struct tsr_weights *w, const struct tsr_tensor *t,
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
static inline void check_all(size_t strip) {
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

#define WITH(test, start_it) cmocka_unit_test_setup_teardown(test, start_it, finish)

#endif

// Writing and reading checkpoints: any layout writes the same bytes, and any reads them.
#include "tests/unit/checkpoint_support.h"

#include "core/checkpoint_private.h"
#include "core/weights.h"

static const char llama_json[] =
    "{\"model_type\":\"llama\",\"num_hidden_layers\":3,\"hidden_size\":20,"
    "\"intermediate_size\":37,\"num_attention_heads\":5,\"num_key_value_heads\":1,"
    "\"vocab_size\":23,\"max_position_embeddings\":16,\"rms_norm_eps\":1e-5,"
    "\"attention_bias\":true,\"tie_word_embeddings\":false}";
static const char sinusoidal_json[] =
    "{\"model_type\":\"gpt2\",\"n_layer\":1,\"n_embd\":8,\"n_head\":2,\"n_positions\":6,"
    "\"vocab_size\":11,\"activation_function\":\"gelu_new\",\"position\":\"sinusoidal\"}";

static struct fixture x;

static int start_gpt2(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    return 0;
}

static int start_llama(void **state) {
    (void)state;
    open_fixture(&x, llama_json);
    x.opt.max_file_bytes = 20000;
    return 0;
}

static int start_sinusoidal(void **state) {
    (void)state;
    open_fixture(&x, sinusoidal_json);
    x.opt.max_file_bytes = 1500;
    return 0;
}

static int finish(void **state) {
    (void)state;
    close_fixture(&x);
    return 0;
}

struct snapshot {
    struct tsr_ckpt_names names;
    char **bytes;
    size_t *n;
};

static struct snapshot take_snapshot(void) {
    struct snapshot s;
    char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
    expect_ok(tsr_checkpoint_path(dir, x.dir, x.opt.step));
    expect_ok(tsr_ckpt_list(&s.names, dir));
    s.bytes = malloc((size_t)s.names.n * sizeof *s.bytes);
    s.n = malloc((size_t)s.names.n * sizeof *s.n);
    for (int i = 0; i < s.names.n; i++) {
        expect_ok(tsr_path_join(path, dir, s.names.v[i]));
        s.bytes[i] = read_bytes(path, &s.n[i]);
    }
    return s;
}

static void free_snapshot(struct snapshot *s) {
    for (int i = 0; i < s->names.n; i++)
        free(s->bytes[i]);
    free(s->bytes);
    free(s->n);
    tsr_ckpt_names_free(&s->names);
}

static void check_same(const struct snapshot *a, const struct snapshot *b) {
    assert_int_equal(a->names.n, b->names.n);
    for (int i = 0; i < a->names.n; i++) {
        assert_string_equal(a->names.v[i], b->names.v[i]);
        if (a->n[i] != b->n[i] || memcmp(a->bytes[i], b->bytes[i], a->n[i]) != 0)
            fail_msg("%s differs", a->names.v[i]);
    }
}

// Every layout replaces the checkpoint of the one before, byte for byte the same.
static void check_layouts(const struct layout *layouts, int n) {
    write_checkpoint(&x, (struct layout){1, false, 1}, NULL, NULL);
    struct snapshot first = take_snapshot();
    assert_true(first.names.n >= 10); // several files of each kind
    for (int i = 0; i < 2 * n; i++) {
        x.shared = i >= n;
        write_checkpoint(&x, layouts[i % n], NULL, NULL);
        struct snapshot next = take_snapshot();
        check_same(&first, &next);
        free_snapshot(&next);
        expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
    }
    free_snapshot(&first);
}

static void test_layouts_write_the_same(void **state) {
    (void)state;
    static const struct layout layouts[] = {{2, true, 0}, {4, false, 8}, {3, false, 24}};
    check_layouts(layouts, 3);
}

static void test_layouts_write_the_same_more(void **state) {
    (void)state;
    static const struct layout layouts[] = {{3, true, 0}, {2, false, 8}};
    check_layouts(layouts, 2);
}

static void test_layouts_write_the_same_bf16(void **state) {
    x.opt.dtype = TSR_DT_BF16;
    test_layouts_write_the_same_more(state);
}

static float as_stored(float f) {
    if (x.opt.dtype == TSR_DT_BF16)
        return tsr_bf16_to_f32(tsr_f32_to_bf16(f));
    return x.opt.dtype == TSR_DT_F16 ? tsr_f16_to_f32(tsr_f32_to_f16(f)) : f;
}

static void check_values(const float *out, enum tsr_checkpoint_part part,
                         const struct tsr_tensor *t, struct tsr_region g, bool model_file) {
    for (int64_t r = g.r0, i = 0; r < g.r1; r++)
        for (int64_t c = g.c0; c < g.c1; c++, i++) {
            float want = element(&x, part, t, r, c);
            if (t->frozen && part != TSR_CKPT_WEIGHTS)
                want = 0;
            if (model_file)
                want = as_stored(want);
            if (out[i] != want)
                fail_msg("part %d of %s (%d, %d): expected %.9g, found %.9g", (int)part, t->name,
                         (int)r, (int)c, want, out[i]);
        }
}

static void check_tensor(const struct tsr_weights *w, const struct tsr_moments *m,
                         const struct tsr_tensor *t, struct tsr_region g) {
    float out[2048];
    assert_true(tsr_region_elems(g) <= 2048);
    expect_ok(tsr_weights_read(w, t, g, out));
    check_values(out, TSR_CKPT_WEIGHTS, t, g, true);
    for (int part = tsr_moments_has_master(m) ? 0 : 1; part < 3; part++) {
        expect_ok(tsr_moments_read(m, (enum tsr_checkpoint_part)part, t, g, out));
        check_values(out, (enum tsr_checkpoint_part)part, t, g, false);
    }
}

static void test_read_back(void **state) {
    (void)state;
    struct tsr_weights *w;
    struct tsr_moments *m;
    write_checkpoint(&x, (struct layout){2, false, 8}, NULL, NULL);
    expect_ok(tsr_weights_open(&w, in_checkpoint(&x, ""), &x.model, &x.table));
    expect_ok(tsr_moments_open(&m, in_checkpoint(&x, ""), &x.table));
    assert_int_equal(tsr_moments_has_master(m), x.opt.dtype != TSR_DT_F32);
    for (int i = 0; i < x.table.n; i++) {
        const struct tsr_tensor *t = &x.table.t[i];
        check_tensor(w, m, t, (struct tsr_region){0, t->rows, 0, t->cols});
        for (int v = 0; v < 5; v++)
            check_tensor(w, m, t, tsr_tensor_piece(t, v, 5));
        check_tensor(w, m, t, tsr_tensor_shard(t, 4, 1, 2));
    }
    tsr_weights_close(w);
    tsr_moments_close(m);
}

static void test_read_back_bf16(void **state) {
    x.opt.dtype = TSR_DT_BF16;
    test_read_back(state);
}

static void test_read_back_f16(void **state) {
    x.opt.dtype = TSR_DT_F16;
    test_read_back(state);
}

static void expect_in_file(const char *name, const char *text) {
    size_t n;
    char *bytes = read_bytes(in_checkpoint(&x, name), &n);
    if (!strstr(bytes, text))
        fail_msg("%s: expected %s, found:\n%s", name, text, bytes);
    free(bytes);
}

static void test_small_files(void **state) {
    (void)state;
    char source[TSR_PATH_MAX], path[TSR_PATH_MAX];
    struct tsr_state s;
    expect_ok(tsr_path_join(source, x.dir, "source"));
    expect_ok(tsr_mkdir_p(source));
    expect_ok(tsr_path_join(path, source, "generation_config.json"));
    write_text(path, "{\"eos_token_id\": [1, 2]}\n");
    expect_ok(tsr_path_join(path, source, "tokenizer.json"));
    write_text(path, "{\"any\": \"text\"}");
    write_checkpoint(&x, (struct layout){1, false, 1}, source, source);
    expect_in_file("generation_config.json", "{\"eos_token_id\": [1, 2]}\n");
    expect_in_file("tokenizer.json", "{\"any\": \"text\"}");
    expect_in_file("config.json", "\"torch_dtype\": \"float32\"");
    expect_in_file("model.safetensors.index.json",
                   "\"transformer.h.0.attn.c_attn.weight\": \"model-0000");
    expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
    expect_ok(tsr_state_read(&s, in_checkpoint(&x, "")));
    assert_int_equal(s.step, 50);
    assert_int_equal(s.updates, 50);
    assert_int_equal(s.sequences, 400);
    assert_int_equal(s.seed, -3);
    assert_int_equal(s.virtual_shards, 8);
    assert_int_equal(s.virtual_replicas, 4);
    assert_int_equal(s.n_params, tsr_model_n_params(&x.model));
    assert_string_equal(s.run_yaml, x.state.run_yaml);
    tsr_state_free(&s);
}

static void test_config_names_the_dtype(void **state) {
    (void)state;
    struct tsr_model again;
    x.opt.dtype = TSR_DT_BF16;
    write_checkpoint(&x, (struct layout){1, false, 1}, NULL, NULL);
    expect_in_file("config.json", "\"torch_dtype\": \"bfloat16\"");
    expect_ok(tsr_model_load(&again, in_checkpoint(&x, "")));
    assert_int_equal(again.vocab, x.model.vocab);
    tsr_model_free(&again);
}

// A file holds whole tensors, at most max_file_bytes of them unless one alone is larger.
static void test_files_are_cut_by_size(void **state) {
    (void)state;
    struct tsr_checkpoint *c;
    x.opt.max_file_bytes = 700;
    expect_ok(tsr_checkpoint_open(&c, &x.opt));
    int n_alone = 0, n_shared = 0;
    for (int i = 0; i < c->n_files; i++) {
        const struct tsr_ckpt_file *f = &c->files[i];
        uint64_t n_bytes = f->entries[f->n_entries - 1].end;
        assert_true(f->size == f->header.len + n_bytes);
        n_alone += f->n_entries == 1;
        n_shared += f->n_entries > 1;
        assert_true(f->n_entries == 1 || n_bytes <= x.opt.max_file_bytes);
        bool last = i + 1 == c->n_files || memcmp(c->files[i + 1].path, f->path, 12) != 0;
        const struct tsr_st_entry *next = last ? NULL : c->files[i + 1].entries;
        assert_true(last || n_bytes + next->end - next->begin > x.opt.max_file_bytes);
    }
    assert_true(n_alone > 0 && n_shared > 0);
    tsr_checkpoint_close(c);
    x.opt.max_file_bytes = 0;
    expect_ok(tsr_checkpoint_open(&c, &x.opt));
    assert_int_equal(c->n_files, 3);
    assert_string_equal(c->files[0].path, "model-00001-of-00001.safetensors");
    assert_string_equal(c->files[1].path, "optimizer/m-00001-of-00001.safetensors");
    assert_string_equal(c->files[2].path, "optimizer/v-00001-of-00001.safetensors");
    tsr_checkpoint_close(c);
}

static void test_too_large(void **state) {
    (void)state;
    struct tsr_checkpoint *c;
    x.table.t[3].rows = x.table.t[3].hf_out_rows = INT64_MAX / 2;
    expect_error(tsr_checkpoint_open(&c, &x.opt), TSR_EMODEL, "too large");
}

// A tensor with more elements than the writer's block, whole and in columns, plain and Conv1D.
static void test_large_tensors(void **state) {
    (void)state;
    enum { OUT = 1100, IN = 1000 };
    struct tsr_tensor t[2] = {{.kind = TSR_T_UP_W,
                               .rows = OUT,
                               .cols = IN,
                               .name = "conv",
                               .hf_name = "transformer.conv",
                               .hf_transposed = true,
                               .hf_out_rows = OUT,
                               .hf_ndim = 2},
                              {.kind = TSR_T_DOWN_W,
                               .rows = OUT,
                               .cols = IN,
                               .name = "plain",
                               .hf_name = "transformer.plain",
                               .hf_out_rows = OUT,
                               .hf_ndim = 2}};
    struct tsr_tensor_table table = {.n = 2, .t = t};
    static float data[OUT][IN + 3], out[OUT * IN];
    struct fixture y = x;
    struct tsr_weights *w;
    y.opt.table = &table;
    y.opt.range_bytes = 0;
    for (int i = 0; i < OUT * (IN + 3); i++)
        data[i / (IN + 3)][i % (IN + 3)] = (float)i;
    for (int dtype = TSR_DT_F32; dtype <= TSR_DT_BF16; dtype += TSR_DT_BF16) {
        struct tsr_checkpoint *c;
        struct tsr_save_vote v;
        struct gathered g;
        x.opt.dtype = y.opt.dtype = (enum tsr_dtype)dtype;
        y.opt.attempt++;
        expect_ok(tsr_checkpoint_open(&c, &y.opt));
        expect_ok(tsr_checkpoint_begin(c, &y.state, NULL, NULL));
        open_gathered(&g, &y, c);
        for (int i = 0; i < 2; i++) {
            struct tsr_region left = {0, OUT, 0, 300}, right = {0, OUT, 300, IN};
            expect_ok(tsr_checkpoint_write(c, TSR_CKPT_WEIGHTS, &t[i], left, data[0], IN + 3));
            expect_ok(
                tsr_checkpoint_write(c, TSR_CKPT_WEIGHTS, &t[i], right, data[0] + 300, IN + 3));
        }
        expect_ok(tsr_checkpoint_flush(c, &v));
        gather(&g, &v);
        read_back(&g, &c, 1);
        expect_ok(publish(&g.publish));
        free_gathered(&g);
        expect_ok(tsr_weights_open(&w, tsr_checkpoint_dir(c), &x.model, &table));
        for (int i = 0; i < 2; i++) {
            expect_ok(tsr_weights_read(w, &t[i], (struct tsr_region){0, OUT, 0, IN}, out));
            for (int k = 0; k < OUT * IN; k++)
                assert_true(out[k] == as_stored(data[k / IN][k % IN]));
        }
        tsr_weights_close(w);
        tsr_checkpoint_close(c);
    }
}

#define WITH(test, start) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_layouts_write_the_same_more, start_gpt2),
        WITH(test_layouts_write_the_same, start_llama),
        WITH(test_layouts_write_the_same_more, start_sinusoidal),
        WITH(test_layouts_write_the_same_bf16, start_gpt2),
        WITH(test_read_back, start_gpt2),
        WITH(test_read_back, start_llama),
        WITH(test_read_back, start_sinusoidal),
        WITH(test_read_back_bf16, start_gpt2),
        WITH(test_read_back_bf16, start_sinusoidal),
        WITH(test_read_back_f16, start_llama),
        WITH(test_small_files, start_gpt2),
        WITH(test_config_names_the_dtype, start_llama),
        WITH(test_files_are_cut_by_size, start_gpt2),
        WITH(test_too_large, start_gpt2),
        WITH(test_large_tensors, start_gpt2),
    };
    return cmocka_run_group_tests_name("checkpoint", tests, NULL, NULL);
}

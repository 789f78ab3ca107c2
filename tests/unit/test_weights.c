// The weights of a Hugging Face directory: fused and transposed tensors, names, and every way in
// which its tensors don't fit the model.
#include "tests/unit/weights_support.h"

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
    static const char *const extra[] = {"transformer.h.2.ln_1.weight",
                                        "transformer.h.0.ln_3.weight",
                                        "xattn.bias",
                                        "transformer.lm_head.weight",
                                        "model.wte.weight",
                                        "transformer.transformer.wte.weight",
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

// A matrix whose transposition takes several blocks, read by pieces and whole.
static void test_large_conv1d(void **state) {
    (void)state;
    enum { IN = 700, OUT = 3 * 1000 };
    struct tsr_tensor t = {.kind = TSR_T_K_W,
                           .layer = 0,
                           .rows = 1000,
                           .cols = IN,
                           .name = "k",
                           .hf_name = "transformer.c",
                           .hf_transposed = true,
                           .hf_offset = 1000,
                           .hf_out_rows = OUT,
                           .hf_ndim = 2};
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
        WITH(test_large_conv1d, start_gpt2),
    };
    return cmocka_run_group_tests_name("weights", tests, NULL, NULL);
}

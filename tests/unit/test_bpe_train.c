// The trainer against Hugging Face's (tests/golden/tokenizer).
#include "tests/unit/tokenizer_support.h"

#include <jansson.h>
#include "core/log.h"

static json_t *load_json(const char *path) {
    json_error_t e;
    json_t *j = json_load_file(path, 0, &e);
    if (!j)
        fail_msg("%s: %s", path, e.text);
    return j;
}

static int train(const char *file, const char *out, int32_t vocab_size, bool llama3) {
    return tsr_tokenizer_train(&(struct tsr_bpe_train){.vocab_size = vocab_size,
                                                       .files = &file,
                                                       .n_files = 1,
                                                       .out_dir = out,
                                                       .llama3_pattern = llama3});
}

static int train_text(const char *text, const char *out, int32_t vocab_size) {
    scratch_write(scratch("text"), text, strlen(text));
    return train(scratch("text"), out, vocab_size, false);
}

// Every part is what the library saves; merges are its pairs, joined by a space.
static void same_as_golden(const char *name, bool llama3) {
    char golden[TSR_PATH_MAX];
    snprintf(golden, sizeof golden, "%s/tokenizer/%s/tokenizer.json", TESSERA_GOLDEN_DIR, name);
    assert_int_equal(train(TESSERA_GOLDEN_DIR "/tokenizer/train.txt", scratch("made"), 640, llama3),
                     0);
    json_t *want = load_json(golden), *got = load_json(scratch("made/tokenizer.json"));
    json_t *model = json_object_get(want, "model"), *pair;
    json_t *lines = json_array();
    size_t i;
    json_array_foreach(json_object_get(model, "merges"), i, pair) json_array_append_new(
        lines, json_sprintf("%s %s", json_string_value(json_array_get(pair, 0)),
                            json_string_value(json_array_get(pair, 1))));
    assert_int_equal(json_array_size(lines), 640 - 257);
    json_object_set_new(model, "merges", lines);
    const char *key;
    json_t *value;
    json_object_foreach(want, key, value) if (!json_equal(value, json_object_get(got, key)))
        fail_msg("%s: \"%s\" differs", name, key);
    assert_int_equal(json_object_size(want), json_object_size(got));
    json_decref(want);
    json_decref(got);
}

static void goldens(void **state) {
    (void)state;
    same_as_golden("gpt2", false);
    same_as_golden("llama3", true);
}

static const char *token(const struct tsr_tokenizer *t, int32_t id) {
    static char text[256];
    struct tsr_buf b = {0};
    assert_int_equal(tsr_tokenizer_decode(t, &id, 1, false, &b), 0);
    snprintf(text, sizeof text, "%s", b.data ? b.data : "");
    tsr_buf_free(&b);
    return text;
}

static struct tsr_tokenizer *load_made(void) {
    struct tsr_tokenizer *t = NULL;
    if (tsr_tokenizer_load(&t, scratch("made")) != 0)
        fail_msg("%s", tsr_error_text());
    return t;
}

// Equal counts: the pair with the lower ids. Ids follow the code points of the byte alphabet, in
// which the space comes behind the letters.
static void ties(void **state) {
    (void)state;
    assert_int_equal(train_text("zy ab", scratch("made"), 258), 0);
    struct tsr_tokenizer *t = load_made();
    assert_string_equal(token(t, 257), "ab");
    tsr_tokenizer_free(t);
    assert_int_equal(train_text("zy zy ab", scratch("made"), 259), 0);
    t = load_made();
    assert_string_equal(token(t, 257), "zy"); // more frequent goes first
    assert_string_equal(token(t, 258), "ab");
    tsr_tokenizer_free(t);
}

// A merge that makes a token which exists already, the special one, adds no token but counts. And
// pairs that overlap in a run.
static void existing_token(void **state) {
    (void)state;
    static const char text[] = "aaaaaaaa\naaaa\naaa\naaaaa\naaaaaaa\naaa\naa\n";
    static const char *const want[] = {"a a",    "aa aa",     "aa a",
                                       "aaaa a", "aaaa aaaa", "aaaa aaa"}; // tokenizers 0.23.3
    const char *file = scratch("text");
    scratch_write(file, text, strlen(text));
    struct tsr_bpe_train opt = {
        .vocab_size = 270, .files = &file, .n_files = 1, .out_dir = scratch("made"), .eos = "aa"};
    assert_int_equal(tsr_tokenizer_train(&opt), 0);
    json_t *got = load_json(scratch("made/tokenizer.json"));
    const json_t *model = json_object_get(got, "model"), *merges = json_object_get(model, "merges");
    assert_int_equal(json_object_size(json_object_get(model, "vocab")), 262);
    assert_int_equal(json_array_size(merges), sizeof want / sizeof want[0]);
    for (size_t i = 0; i < sizeof want / sizeof want[0]; i++)
        assert_string_equal(json_string_value(json_array_get(merges, i)), want[i]);
    json_decref(got);
}

static void same_files(const char *a, const char *b) {
    char *x, *y;
    size_t n, m;
    assert_int_equal(tsr_read_file(a, 1 << 24, TSR_EDATA, &x, &n), 0);
    assert_int_equal(tsr_read_file(b, 1 << 24, TSR_EDATA, &y, &m), 0);
    assert_int_equal(n, m);
    assert_memory_equal(x, y, n);
    free(x);
    free(y);
}

// The order of the files, and a run before this one, change nothing.
static void deterministic(void **state) {
    (void)state;
    const char *golden = TESSERA_GOLDEN_DIR "/tokenizer/train.txt", *extra = scratch("extra");
    scratch_write(extra, "some more text, text, text\n", 27);
    const char *one[] = {golden, extra}, *two[] = {extra, golden};
    struct tsr_bpe_train opt = {
        .vocab_size = 600, .files = one, .n_files = 2, .out_dir = scratch("one")};
    assert_int_equal(tsr_tokenizer_train(&opt), 0);
    opt.files = two;
    opt.out_dir = scratch("two");
    assert_int_equal(tsr_tokenizer_train(&opt), 0);
    same_files(scratch("one/tokenizer.json"), scratch("two/tokenizer.json"));
    same_files(scratch("one/tokenizer_config.json"), scratch("two/tokenizer_config.json"));
    same_files(scratch("one/special_tokens_map.json"), scratch("two/special_tokens_map.json"));
}

static void loads_again(void **state) {
    (void)state;
    assert_int_equal(train(TESSERA_GOLDEN_DIR "/tokenizer/train.txt", scratch("made"), 500, true),
                     0);
    struct tsr_tokenizer *t = load_made();
    static const char text[] = "The shepherd\r\n\r\n옛날 🙂\t<|endoftext|>12345 \x7f\x01";
    struct tsr_ids ids = {0};
    struct tsr_buf back = {0};
    assert_int_equal(tsr_tokenizer_vocab(t), 500);
    assert_int_equal(tsr_tokenizer_eos(t), 0);
    assert_int_equal(tsr_tokenizer_bos(t), 0);
    assert_true(tsr_tokenizer_is_special(t, 0));
    assert_int_equal(tsr_tokenizer_encode(t, text, sizeof text, 0, &ids), 0); // with the NUL
    assert_int_equal(tsr_tokenizer_decode(t, ids.v, ids.n, false, &back), 0);
    assert_int_equal(back.len, sizeof text);
    assert_memory_equal(back.data, text, sizeof text);
    tsr_ids_free(&ids);
    tsr_buf_free(&back);
    tsr_tokenizer_free(t);
}

// Another special token, with characters that JSON and the byte alphabet don't leave alone.
static void special_token(void **state) {
    (void)state;
    const char *file = scratch("text");
    scratch_write(file, "abc abc", 7);
    struct tsr_bpe_train opt = {.vocab_size = 259,
                                .files = &file,
                                .n_files = 1,
                                .out_dir = scratch("made"),
                                .eos = "<\"\\\n\xE2\x82\xAC>"};
    assert_int_equal(tsr_tokenizer_train(&opt), 0);
    struct tsr_tokenizer *t = load_made();
    assert_int_equal(tsr_tokenizer_eos(t), 0);
    assert_string_equal(token(t, 0), opt.eos);
    assert_string_equal(ids_of(t, "<\"\\\n\xE2\x82\xAC><", 0), "0 28");
    tsr_tokenizer_free(t);
    opt.eos = "";
    assert_int_equal(tsr_tokenizer_train(&opt), TSR_EUSAGE);
    opt.eos = "\xFF";
    assert_int_equal(tsr_tokenizer_train(&opt), TSR_EUSAGE);
}

// A text with few pairs gives a smaller vocabulary.
static void small_text(void **state) {
    (void)state;
    assert_int_equal(train_text("abc", scratch("made"), 1000), 0);
    struct tsr_tokenizer *t = load_made();
    assert_int_equal(tsr_tokenizer_vocab(t), 259);
    assert_string_equal(token(t, 258), "abc");
    tsr_tokenizer_free(t);
    assert_int_equal(train_text("abc", scratch("made"), 257), 0); // bytes only
    t = load_made();
    assert_int_equal(tsr_tokenizer_vocab(t), 257);
    tsr_tokenizer_free(t);
}

static void mistakes(void **state) {
    (void)state;
    char out[TSR_PATH_MAX];
    assert_int_equal(tsr_path_join(out, scratch_dir, "never"), 0);
    assert_int_equal(train_text("abc", out, 256), TSR_EUSAGE);
    assert_non_null(strstr(tsr_error_text(), "257"));
    assert_int_equal(train_text("abc", out, 1 << 23), TSR_EUSAGE);
    assert_int_equal(train_text("", out, 300), TSR_EDATA);
    assert_int_equal(train_text("good\nbad \xC3(\n", out, 300), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "/text: "));
    assert_non_null(strstr(tsr_error_text(), "0xc3 at offset 9"));
    assert_int_equal(train(scratch("missing"), out, 300, false), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "missing"));
    assert_int_equal(train(scratch_dir, out, 300, false), TSR_EDATA);
    assert_false(tsr_path_exists(out));
    assert_int_equal(train_text("abc", scratch("text"), 300), TSR_EUSAGE); // a file as the folder
    struct tsr_bpe_train none = {.vocab_size = 300, .out_dir = out};
    assert_int_equal(tsr_tokenizer_train(&none), TSR_EUSAGE);
}

static int quiet_setup(void **state) {
    tsr_log_level(TSR_LOG_ERROR);
    return scratch_setup(state);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goldens),        cmocka_unit_test(ties),
        cmocka_unit_test(existing_token), cmocka_unit_test(deterministic),
        cmocka_unit_test(loads_again),    cmocka_unit_test(special_token),
        cmocka_unit_test(small_text),     cmocka_unit_test(mistakes),
    };
    return cmocka_run_group_tests(tests, quiet_setup, scratch_teardown);
}

// What tokenizer.json may hold, and what is refused by name.
#include "tests/unit/tokenizer_support.h"

#define TOKEN(id, text, flags)                                                                     \
    "{\"id\":" #id ",\"content\":\"" text "\"," flags "\"normalized\":false,\"special\":true}"
#define NO_FLAGS "\"single_word\":false,\"lstrip\":false,\"rstrip\":false,"

static void refused(const struct parts *p, const char *what) {
    struct tsr_tokenizer *t;
    write_parts(scratch("bad"), p);
    int rc = tsr_tokenizer_load(&t, scratch("bad"));
    if (rc != TSR_EMODEL || !strstr(tsr_error_text(), what))
        fail_msg("wanted \"%s\", found %d \"%s\"", what, rc, tsr_error_text());
    assert_int_equal(tsr_utf8_valid_prefix(tsr_error_text(), strlen(tsr_error_text())),
                     strlen(tsr_error_text()));
}

static void refuses_parts(void **state) {
    (void)state;
    refused(&(struct parts){.pre = "null"}, "decoder of type \"ByteLevel\"");
    refused(&(struct parts){.pre = "{\"type\":\"Metaspace\"}"}, "replacement");
    refused(&(struct parts){.pre = "{\"type\":\"Digits\",\"individual_digits\":true}"},
            "decoder of type \"ByteLevel\"");
    refused(&(struct parts){.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[" GPT2_BYTE_LEVEL
                                   "," GPT2_BYTE_LEVEL "]}"},
            "one \"ByteLevel\" step, found 2");
    refused(&(struct parts){.pre = "{\"type\":\"Sequence\",\"pretokenizers\":[" GPT2_BYTE_LEVEL
                                   ",{\"type\":\"Metaspace\",\"replacement\":\"_\"}]}"},
            "\"Metaspace\" beside \"ByteLevel\"");
    refused(&(struct parts){.pre = "{\"type\":\"Metaspace\",\"replacement\":\"_\","
                                   "\"prepend_scheme\":\"second\"}"},
            "second");
    refused(&(struct parts){.pre = "{\"type\":\"ByteLevel\"}"}, "add_prefix_space");
    refused(&(struct parts){.pre = "{\"type\":\"Sequence\"}"}, "pretokenizers");
    refused(&(struct parts){.normalizer = "{\"type\":\"Lowercase\"}"}, "Lowercase");
    refused(&(struct parts){.normalizer = "{\"type\":\"Replace\",\"content\":\"\"}"}, "pattern");
    refused(&(struct parts){.decoder = "null"}, "decoder");
    refused(&(struct parts){.decoder = "{\"type\":\"WordPiece\"}"}, "WordPiece");
    refused(&(struct parts){.post = "{\"type\":\"Unknown\"}"}, "Unknown");
    refused(&(struct parts){.options = ",\"dropout\":0.1"}, "dropout");
    refused(&(struct parts){.options = ",\"end_of_word_suffix\":\"</w>\""}, "end_of_word_suffix");
    refused(&(struct parts){.options = ",\"continuing_subword_prefix\":\"##\""},
            "continuing_subword_prefix");
    refused(&(struct parts){.options = ",\"ignore_merges\":1"}, "ignore_merges");
    refused(&(struct parts){.options = ",\"unk_token\":3"}, "unk_token");
}

#define STRIP(start, stop)                                                                         \
    "{\"type\":\"Strip\",\"content\":\" \",\"start\":" #start ",\"stop\":" #stop "}"

static void refuses_decoders_of_characters(void **state) {
    (void)state;
    static const struct {
        const char *list, *why;
    } bad[] = {
        {STRIP(1, 0), "decoder of type \"Strip\""}, // would be of each token
        {"{\"type\":\"Fuse\"}," STRIP(0, 1), "Strip"},
        {"{\"type\":\"Fuse\"}," STRIP(-1, 0), "start"},
        {"{\"type\":\"Fuse\"},{\"type\":\"ByteFallback\"}", "ByteFallback"},
        {"{\"type\":\"ByteLevel\"}", "decoder of type \"ByteLevel\""},
        {"{\"type\":\"Replace\",\"pattern\":{\"Regex\":\"_\"},\"content\":\" \"}", "Replace"},
        {"{\"type\":\"Replace\",\"pattern\":{\"String\":\"\"},\"content\":\" \"}", "Replace"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        char decoder[256];
        snprintf(decoder, sizeof decoder, "{\"type\":\"Sequence\",\"decoders\":[%s]}", bad[i].list);
        refused(&(struct parts){.pre = "null", .decoder = decoder}, bad[i].why);
    }
}

static void refuses_model(void **state) {
    (void)state;
    refused(&(struct parts){.more = "\"ab\":255"}, "two tokens have the id 255");
    refused(&(struct parts){.more = "\"ab\":-1"}, "\"ab\"");
    refused(&(struct parts){.more = "\"ab\":4194304"}, "\"ab\"");
    refused(&(struct parts){.more = "\"ab\":9223372036854775807"}, "\"ab\"");
    refused(&(struct parts){.more = "\"ab\":1e3"}, "\"ab\"");
    refused(&(struct parts){.more = "\"ab\":256,\"ab\":257"}, "uplicate");
    refused(&(struct parts){.merges = "\"a b\""}, "the whole is not a token");
    refused(&(struct parts){.more = "\"ab\":256", .merges = "\"a bb\""}, "the second half");
    refused(&(struct parts){.more = "\"ab\":256", .merges = "\"aa b\""}, "the first half");
    refused(&(struct parts){.merges = "\"ab\""}, "two tokens and a space");
    refused(&(struct parts){.merges = "\"a b c\""}, "two tokens and a space");
    refused(&(struct parts){.merges = "[\"a\"]"}, "expected two tokens");
    refused(&(struct parts){.more = "\"ab\":256", .merges = "\"a b\",[\"a\",\"b\"]"}, "merge 1");
    refused(&(struct parts){.merges = "3"}, "merge 0");
}

static void refuses_added(void **state) {
    (void)state;
    refused(&(struct parts){.added = "{\"id\":256}"}, "content");
    refused(&(struct parts){.added = "{\"id\":256,\"content\":\"<s>\"}"}, "single_word");
    refused(&(struct parts){.added = TOKEN(-1, "<s>", NO_FLAGS)}, "\"id\"");
    refused(&(struct parts){.added = "7"}, "content");
    static const char *const templates[] = {
        "[]", "[{\"Sequence\":{\"id\":\"B\",\"type_id\":0}}]",
        "[{\"Sequence\":{\"id\":\"A\"}},{\"Sequence\":{\"id\":\"A\"}}]",
        "[{\"SpecialToken\":{\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}]"};
    for (size_t i = 0; i < sizeof templates / sizeof templates[0]; i++) {
        char post[512];
        snprintf(post, sizeof post,
                 "{\"type\":\"TemplateProcessing\",\"single\":%s,\"special_tokens\":{}}",
                 templates[i]);
        refused(&(struct parts){.post = post}, "post_processor");
    }
    refused(&(struct parts){.post =
                                "{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{"
                                "\"id\":\"x\"}},{\"Sequence\":{\"id\":\"A\"}}],\"special_tokens\":"
                                "{\"x\":{\"id\":\"x\",\"ids\":[256]}}}"},
            "expected the id of a token, found 256");
}

static void refuses_patterns(void **state) {
    (void)state;
    static const char *const bad[][2] = {
        {"(a", "cannot be compiled"},
        {"a)", "cannot be compiled"},
        {"[a", "open"},
        {"\\\\Qa", "escape"},
        {"(?P<n>a)", "group"},
        {"(*FAIL)", "group"},
        {"(?i)a|(?i)b", "group"},
        {"(?s:a)", "group"},
        {"[[:alpha:]]", "inside []"},
        {"[a&&b]", "inside []"},
        {"[a[b]]", "inside []"},
        {"[\\\\P{L}]", "complement"},
        {"\\\\p{Nonsense}", "compile"},
        {"\\\\p", "property"},
        {"\\\\xE9", "escape"},
        {"a\\\\", "escape"},
        {"\\\\1(a)", "escape"},
        {"[a-\\\\w]", "range"},
        {"\\\\K", "escape"},
        {"\\\\p{L", "property"},
        {"*", "compile"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char pre[512];
        snprintf(
            pre, sizeof pre,
            "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"
            "\"%s\"},\"behavior\":\"Isolated\",\"invert\":false}," PLAIN_BYTE_LEVEL "]}",
            bad[i][0]);
        refused(&(struct parts){.pre = pre}, bad[i][1]);
    }
}

static void refuses_files(void **state) {
    (void)state;
    struct tsr_tokenizer *t;
    const char *dir = scratch("files"), *file = scratch("files/tokenizer.json");
    assert_int_equal(tsr_tokenizer_load(&t, dir), TSR_EMODEL);
    assert_non_null(strstr(tsr_error_text(), "tokenizer.json"));
    assert_int_equal(mkdir(dir, 0777), 0);
    static const char *const bad[] = {"",
                                      "[]",
                                      "{",
                                      "{\"a\":\"\xFF\"}",
                                      "{\"version\":\"2.0\"}",
                                      "{\"model\":\"\\ud800\"}",
                                      "nonsense"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        scratch_write(file, bad[i], strlen(bad[i]));
        assert_int_equal(tsr_tokenizer_load(&t, dir), TSR_EMODEL);
        assert_non_null(strstr(tsr_error_text(), "files/tokenizer.json"));
    }
}

// A file that is cut anywhere is an error, never a crash or a smaller tokenizer.
static void truncated(void **state) {
    (void)state;
    char *text;
    size_t n;
    struct tsr_tokenizer *t;
    assert_int_equal(tsr_read_file(TESSERA_GOLDEN_DIR "/tokenizer/flags/tokenizer.json", 1 << 20,
                                   TSR_EMODEL, &text, &n),
                     0);
    assert_int_equal(mkdir(scratch("cut"), 0777), 0);
    for (size_t cut = 0; cut < n; cut += 1 + n / 97) {
        scratch_write(scratch("cut/tokenizer.json"), text, cut);
        assert_int_equal(tsr_tokenizer_load(&t, scratch("cut")), TSR_EMODEL);
    }
    free(text);
}

static void config(void **state) {
    (void)state;
    static const char added[] = TOKEN(256, "</s>", NO_FLAGS) "," TOKEN(257, "<s>", NO_FLAGS);
    struct tsr_tokenizer *t = load_parts(&(struct parts){.added = added});
    assert_int_equal(tsr_tokenizer_eos(t), 256);
    tsr_tokenizer_free(t);
    static const char both[] = "{\"eos_token\":{\"content\":\"<s>\"},\"bos_token\":\"</s>\","
                               "\"model_max_length\":1000000000000000019884624838656}";
    scratch_write(scratch("parts/tokenizer_config.json"), both, strlen(both));
    t = load_parts(&(struct parts){.added = added});
    assert_int_equal(tsr_tokenizer_eos(t), 257);
    assert_int_equal(tsr_tokenizer_bos(t), 256);
    tsr_tokenizer_free(t);
    static const char unknown[] = "{\"eos_token\":\"<none>\"}";
    scratch_write(scratch("parts/tokenizer_config.json"), unknown, strlen(unknown));
    assert_int_equal(tsr_tokenizer_load(&t, scratch("parts")), TSR_EMODEL);
    assert_non_null(strstr(tsr_error_text(), "<none>"));
    unlink(scratch("parts/tokenizer_config.json"));
}

static void options(void **state) {
    (void)state;
    // A word that is a token, although no merge makes it.
    struct tsr_tokenizer *t = load_parts(&(struct parts){.options = ",\"ignore_merges\":true",
                                                         .pre = GPT2_BYTE_LEVEL,
                                                         .more = "\"abc\":256,\"\xC4\xA0x\":257"});
    assert_string_equal(ids_of(t, "abc x abcd", 0), "256 257 32 97 98 99 100");
    tsr_tokenizer_free(t);
    // Lines of merges.txt: "#version" doesn't count; the last of equal pairs does.
    t = load_parts(&(struct parts){.more = "\"ab\":256,\"bc\":257",
                                   .merges = "\"#version: 0.2\",\"a b\",\"b c\",\"a b\""});
    assert_string_equal(ids_of(t, "abc", 0), "97 257");
    tsr_tokenizer_free(t);
    t = load_parts(&(struct parts){.more = "\"ab\":256", .merges = "[\"a\",\"b\"]"});
    assert_string_equal(ids_of(t, "abab", 0), "256 256");
    tsr_tokenizer_free(t);
}

// A vocabulary without the letter b: nothing stands for it, or the unknown token.
static void unknown_bytes(void **state) {
    (void)state;
    static const char *const unk[] = {"null", "\"<u>\",\"fuse_unk\":false",
                                      "\"<u>\",\"fuse_unk\":true", "\"none\""};
    static const char *const want[] = {"0 0", "0 1 1 0 1", "0 1 0 1", NULL};
    assert_int_equal(mkdir(scratch("unk"), 0777), 0);
    for (int i = 0; i < 4; i++) {
        char text[1024];
        struct tsr_tokenizer *t;
        struct tsr_ids ids = {0};
        int n =
            snprintf(text, sizeof text,
                     "{\"pre_tokenizer\":" PLAIN_BYTE_LEVEL
                     ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"unk_token\":%s,\"vocab\":{"
                     "\"a\":0,\"<u>\":1},\"merges\":[]}}",
                     unk[i]);
        scratch_write(scratch("unk/tokenizer.json"), text, (size_t)n);
        assert_int_equal(tsr_tokenizer_load(&t, scratch("unk")), 0);
        if (want[i]) {
            assert_string_equal(ids_of(t, "abbab", 0), want[i]);
        } else {
            assert_int_equal(tsr_tokenizer_encode(t, "ab", 2, 0, &ids), TSR_EDATA);
            assert_non_null(strstr(tsr_error_text(), "0x62"));
        }
        tsr_ids_free(&ids);
        tsr_tokenizer_free(t);
    }
}

// Tokens in the text: the longest at the first place; spaces that go with them; inside words.
static void added_tokens(void **state) {
    (void)state;
    static const char added[] = TOKEN(256, "<a>", NO_FLAGS) "," TOKEN(
        257, "<a><b>", NO_FLAGS) "," TOKEN(258, "<l>",
                                           "\"single_word\":false,\"lstrip\":true,\"rstrip\":"
                                           "false,") "," TOKEN(259, "<r>",
                                                               "\"single_word\":false,"
                                                               "\"lstrip\":false,\"rstrip\":"
                                                               "true,") "," TOKEN(260, "w",
                                                                                  "\"single_"
                                                                                  "word\":true,"
                                                                                  "\"lstrip\":"
                                                                                  "false,"
                                                                                  "\"rstrip\":"
                                                                                  "false,");
    struct tsr_tokenizer *t = load_parts(&(struct parts){.added = added});
    assert_string_equal(ids_of(t, "<a><b><a><", 0), "257 256 60");
    assert_string_equal(ids_of(t, "x \xC2\xA0<l> x", 0), "120 258 32 120");
    assert_string_equal(ids_of(t, "x <r>\n\xE3\x80\x80x", 0), "120 32 259 120");
    assert_string_equal(ids_of(t, "<r>  <l>", 0), "259 258");
    assert_string_equal(ids_of(t, "w.w", 0), "119 46 119"); // in the model: its own id
    assert_string_equal(ids_of(t, "<a>", TSR_ENCODE_PLAIN), "60 97 62");
    tsr_tokenizer_free(t);
    // A run of spaces belongs to the first token that takes it.
    t = load_parts(&(struct parts){
        .added = TOKEN(256, "  ", "\"single_word\":false,\"lstrip\":true,\"rstrip\":true,")});
    assert_string_equal(ids_of(t, "a      b", 0), "97 256 98");
    tsr_tokenizer_free(t);
    t = load_parts(&(struct parts){
        .added = TOKEN(256, "ww", "\"single_word\":true,\"lstrip\":false,\"rstrip\":false,")});
    assert_string_equal(ids_of(t, "ww ww.", 0), "256 32 256 46");
    assert_string_equal(ids_of(t, "aww", 0), "97 119 119");
    assert_string_equal(ids_of(t, "ww1", 0), "119 119 49");
    assert_string_equal(ids_of(t, "ww\xC3\xA9", 0), "119 119 195 169");
    assert_string_equal(ids_of(t, "\xF0\x9F\x99\x82ww", 0), "240 159 153 130 256");
    tsr_tokenizer_free(t);
}

static void copies(void **state) {
    (void)state;
    struct tsr_tokenizer *t = load_parts(&(struct parts){0});
    tsr_tokenizer_free(t);
    scratch_write(scratch("parts/merges.txt"), "a\0b", 3);
    assert_int_equal(mkdir(scratch("copy"), 0777), 0);
    assert_int_equal(tsr_tokenizer_copy(scratch("parts"), scratch("copy")), 0);
    assert_int_equal(tsr_tokenizer_load(&t, scratch("copy")), 0);
    tsr_tokenizer_free(t);
    char *text;
    size_t n;
    assert_int_equal(tsr_read_file(scratch("copy/merges.txt"), 10, TSR_EDATA, &text, &n), 0);
    assert_int_equal(n, 3);
    free(text);
    assert_false(tsr_path_exists(scratch("copy/vocab.json")));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(refuses_parts),    cmocka_unit_test(refuses_decoders_of_characters),
        cmocka_unit_test(refuses_model),    cmocka_unit_test(refuses_added),
        cmocka_unit_test(refuses_patterns), cmocka_unit_test(refuses_files),
        cmocka_unit_test(truncated),        cmocka_unit_test(config),
        cmocka_unit_test(options),          cmocka_unit_test(unknown_bytes),
        cmocka_unit_test(added_tokens),     cmocka_unit_test(copies),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

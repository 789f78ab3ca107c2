// Tokenizers against Hugging Face's (tests/golden/tokenizer) and against a naive BPE.
#include "tests/unit/tokenizer_support.h"

#include <jansson.h>

static struct tsr_tokenizer *load_golden(const char *name) {
    char dir[TSR_PATH_MAX];
    struct tsr_tokenizer *t = NULL;
    snprintf(dir, sizeof dir, "%s/tokenizer/%s", TESSERA_GOLDEN_DIR, name);
    if (tsr_tokenizer_load(&t, dir) != 0)
        fail_msg("%s", tsr_error_text());
    return t;
}

static void same_ids(const json_t *c, const char *key, struct tsr_tokenizer *t, int flags) {
    const json_t *text = json_object_get(c, "text"), *want = json_object_get(c, key);
    struct tsr_ids ids = {0};
    assert_int_equal(
        tsr_tokenizer_encode(t, json_string_value(text), json_string_length(text), flags, &ids), 0);
    bool same = ids.n == json_array_size(want);
    for (size_t i = 0; same && i < ids.n; i++)
        same = ids.v[i] == json_integer_value(json_array_get(want, i));
    if (!same)
        fail_msg("%s of \"%s\" by %s: %zu ids, wanted %zu", key, json_string_value(text),
                 json_string_value(json_object_get(c, "tokenizer")), ids.n, json_array_size(want));
    tsr_ids_free(&ids);
}

static void same_text(const json_t *c, const char *key, const struct tsr_tokenizer *t, bool skip) {
    const json_t *from = json_object_get(c, "special"), *want = json_object_get(c, key), *v;
    struct tsr_ids ids = {0};
    struct tsr_buf out = {0};
    size_t i;
    json_array_foreach(from, i, v)
        assert_int_equal(tsr_ids_push(&ids, (int32_t)json_integer_value(v)), 0);
    assert_int_equal(tsr_tokenizer_decode(t, ids.v, ids.n, skip, &out), 0);
    size_t extra = tsr_tokenizer_extra_spaces(t, out.data, out.len);
    assert_int_equal(out.len - extra, json_string_length(want));
    if (out.len > extra)
        assert_memory_equal(out.data + extra, json_string_value(want), out.len - extra);
    tsr_ids_free(&ids);
    tsr_buf_free(&out);
}

static void goldens(void **state) {
    (void)state;
    json_error_t e;
    json_t *cases = json_load_file(TESSERA_GOLDEN_DIR "/tokenizer/cases.json", JSON_ALLOW_NUL, &e);
    const json_t *c;
    size_t i, n = 0;
    struct tsr_tokenizer *t = NULL;
    const char *loaded = "";
    json_array_foreach(cases, i, c) {
        const char *name = json_string_value(json_object_get(c, "tokenizer"));
        if (strcmp(name, loaded) != 0) {
            tsr_tokenizer_free(t);
            t = load_golden(loaded = name);
        }
        same_ids(c, "ids", t, 0);
        same_ids(c, "plain", t, TSR_ENCODE_PLAIN);
        same_ids(c, "special", t, TSR_ENCODE_ADD_SPECIAL);
        same_text(c, "decoded", t, false);
        same_text(c, "skipped", t, true);
        n++;
    }
    assert_true(n > 200);
    tsr_tokenizer_free(t);
    json_decref(cases);
}

static void about_tokens(void **state) {
    (void)state;
    struct tsr_tokenizer *t = load_golden("llama3-full");
    int32_t bos = tsr_tokenizer_id(t, "<|begin_of_text|>");
    assert_int_equal(tsr_tokenizer_vocab(t), 644);
    assert_int_equal(bos, 640);
    assert_int_equal(tsr_tokenizer_eos(t), tsr_tokenizer_id(t, "<|endoftext|>"));
    assert_int_equal(tsr_tokenizer_bos(t), -1); // no tokenizer_config.json
    assert_true(tsr_tokenizer_is_special(t, bos));
    assert_false(tsr_tokenizer_is_special(t, 100));
    assert_false(tsr_tokenizer_is_special(t, -1));
    assert_false(tsr_tokenizer_is_special(t, 644));
    assert_int_equal(tsr_tokenizer_id(t, "no such token"), -1);
    assert_int_equal(tsr_tokenizer_id(t, "\xC4\xA0"), 221); // the space, spelled as in the file
    tsr_tokenizer_free(t);
}

static void bad_text(void **state) {
    (void)state;
    struct tsr_tokenizer *t = load_golden("gpt2");
    struct tsr_ids ids = {0};
    assert_int_equal(tsr_ids_push(&ids, 7), 0);
    assert_int_equal(tsr_tokenizer_encode(t, "good so far \xFF bad", 17, 0, &ids), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "0xff at offset 12"));
    assert_int_equal(tsr_tokenizer_encode(t, "cut \xE2\x82", 6, 0, &ids), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "offset 4"));
    assert_int_equal(ids.n, 1); // what was there stays
    struct tsr_buf out = {0};
    int32_t bad[] = {5, 640};
    assert_int_equal(tsr_tokenizer_decode(t, bad, 2, false, &out), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "640"));
    bad[1] = -1;
    assert_int_equal(tsr_tokenizer_decode(t, bad, 2, false, &out), TSR_EDATA);
    assert_int_equal(out.len, 0);
    assert_int_equal(tsr_tokenizer_encode(t, NULL, 0, 0, &ids), 0);
    assert_int_equal(ids.n, 1);
    assert_int_equal(tsr_tokenizer_decode(t, NULL, 0, false, &out), 0);
    tsr_buf_free(&out);
    tsr_ids_free(&ids);
    tsr_tokenizer_free(t);
}

// Tokens may end within a character: decoding gives the bytes as they are.
static void torn_characters(void **state) {
    (void)state;
    struct tsr_tokenizer *t = load_parts(&(struct parts){0});
    struct tsr_buf out = {0};
    int32_t ids[] = {0xE2, 0x82, 0xAC, 0xFF, 0, 0x41};
    assert_int_equal(tsr_tokenizer_decode(t, ids, 2, false, &out), 0);
    assert_int_equal(out.len, 2);
    assert_int_equal(tsr_utf8_whole_prefix(out.data, out.len), 0);
    assert_int_equal(tsr_tokenizer_decode(t, ids + 2, 4, false, &out), 0);
    assert_int_equal(out.len, 6);
    assert_memory_equal(out.data, "\xE2\x82\xAC\xFF\0A", 6);
    tsr_buf_free(&out);
    tsr_tokenizer_free(t);
}

// ids[0..n) by the textbook: join the leftmost pair of lowest rank until there is none.
struct rule {
    int32_t a, b, made;
};

static size_t naive(const struct rule *rule, size_t n_rules, int32_t *ids, size_t n) {
    for (;;) {
        size_t best = n_rules, at = 0;
        for (size_t i = 0; i + 1 < n; i++)
            for (size_t r = 0; r < best; r++)
                if (rule[r].a == ids[i] && rule[r].b == ids[i + 1]) {
                    best = r;
                    at = i;
                }
        if (best == n_rules)
            return n;
        ids[at] = rule[best].made;
        memmove(ids + at + 1, ids + at + 2, (n - at - 2) * sizeof *ids);
        n--;
    }
}

enum { N_RULES = 60, N_LETTERS = 3 };

// Random merges over three letters, each making a token of its own.
static struct tsr_tokenizer *random_tokenizer(unsigned *seed, struct rule rule[N_RULES]) {
    char name[N_RULES + N_LETTERS][256], more[1 << 15] = "", merges[1 << 15] = "";
    int32_t id[N_RULES + N_LETTERS];
    int n = N_LETTERS, n_rules = 0;
    for (int i = 0; i < N_LETTERS; i++) {
        snprintf(name[i], sizeof name[i], "%c", 'a' + i);
        id[i] = 'a' + i;
    }
    while (n_rules < N_RULES) {
        int a = (int)(rand_r(seed) % (unsigned)n), b = (int)(rand_r(seed) % (unsigned)n);
        char joined[512];
        snprintf(joined, sizeof joined, "%s%s", name[a], name[b]);
        bool known = strlen(joined) > 12;
        for (int i = 0; i < n; i++)
            known = known || strcmp(name[i], joined) == 0;
        if (known)
            continue;
        snprintf(name[n], sizeof name[n], "%.200s", joined);
        id[n] = 256 + n_rules;
        rule[n_rules] = (struct rule){id[a], id[b], id[n]};
        snprintf(more + strlen(more), 64, "%s\"%.40s\":%d", n_rules ? "," : "", joined, id[n]);
        snprintf(merges + strlen(merges), 64, "%s\"%.20s %.20s\"", n_rules ? "," : "", name[a],
                 name[b]);
        n_rules++;
        n++;
    }
    return load_parts(&(struct parts){.more = more, .merges = merges});
}

static void against_naive(void **state) {
    (void)state;
    unsigned seed = 42;
    for (int round = 0; round < 12; round++) {
        struct rule rule[N_RULES];
        struct tsr_tokenizer *t = random_tokenizer(&seed, rule);
        for (int k = 0; k < 60; k++) {
            char text[200];
            int32_t want[200];
            struct tsr_ids got = {0};
            size_t n = 1 + rand_r(&seed) % sizeof text;
            for (size_t i = 0; i < n; i++)
                want[i] = text[i] = (char)('a' + rand_r(&seed) % N_LETTERS);
            size_t n_want = naive(rule, N_RULES, want, n);
            assert_int_equal(tsr_tokenizer_encode(t, text, n, 0, &got), 0);
            assert_int_equal(got.n, n_want);
            assert_memory_equal(got.v, want, n_want * sizeof *want);
            tsr_ids_free(&got);
        }
        tsr_tokenizer_free(t);
    }
}

// One word of a million letters in well under a second: O(n log n).
static void long_word(void **state) {
    (void)state;
    struct tsr_tokenizer *t = load_parts(
        &(struct parts){.more = "\"aa\":256,\"aaaa\":257", .merges = "\"a a\",\"aa aa\""});
    enum { N = 1000003 };
    char *text = malloc(N);
    struct tsr_ids ids = {0};
    memset(text, 'a', N);
    assert_int_equal(tsr_tokenizer_encode(t, text, N, 0, &ids), 0);
    assert_int_equal(ids.n, N / 4 + 2);
    assert_int_equal(ids.v[0], 257);
    assert_int_equal(ids.v[ids.n - 2], 256);
    assert_int_equal(ids.v[ids.n - 1], 'a');
    free(text);
    tsr_ids_free(&ids);
    tsr_tokenizer_free(t);
}

// More different words than the cache holds, twice: emptying it changes nothing.
static void cache_overflow(void **state) {
    (void)state;
    struct tsr_tokenizer *t = load_parts(
        &(struct parts){.pre = GPT2_BYTE_LEVEL, .more = "\"12\":256", .merges = "\"1 2\""});
    struct tsr_buf text = {0};
    struct tsr_ids first = {0}, second = {0};
    for (int i = 0; i < 300000; i++)
        assert_int_equal(tsr_buf_printf(&text, " %d", i), 0);
    assert_int_equal(tsr_tokenizer_encode(t, text.data, text.len, 0, &first), 0);
    assert_int_equal(tsr_tokenizer_encode(t, text.data, text.len, 0, &second), 0);
    assert_int_equal(first.n, second.n);
    assert_memory_equal(first.v, second.v, first.n * sizeof *first.v);
    struct tsr_buf back = {0};
    assert_int_equal(tsr_tokenizer_decode(t, first.v, first.n, false, &back), 0);
    assert_int_equal(back.len, text.len);
    assert_memory_equal(back.data, text.data, text.len);
    tsr_buf_free(&text);
    tsr_buf_free(&back);
    tsr_ids_free(&first);
    tsr_ids_free(&second);
    tsr_tokenizer_free(t);
}

static void byte_alphabet(void **state) {
    (void)state;
    bool seen[0x200] = {false};
    for (int b = 0; b < 256; b++) {
        uint32_t c = tsr_byte_to_char((uint8_t)b);
        assert_true(c < 0x200 && !seen[c]);
        seen[c] = true;
        assert_int_equal(tsr_char_to_byte(c), b);
    }
    for (uint32_t c = 0; c < 0x200; c++)
        if (!seen[c])
            assert_int_equal(tsr_char_to_byte(c), -1);
    assert_int_equal(tsr_byte_to_char(' '), 0x120);
    assert_int_equal(tsr_byte_to_char('\n'), 0x10A);
    assert_int_equal(tsr_byte_to_char(0xAD), 0x143);
    assert_int_equal(tsr_char_to_byte(0x20AC), -1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(goldens),        cmocka_unit_test(about_tokens),
        cmocka_unit_test(bad_text),       cmocka_unit_test(torn_characters),
        cmocka_unit_test(against_naive),  cmocka_unit_test(long_word),
        cmocka_unit_test(cache_overflow), cmocka_unit_test(byte_alphabet),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

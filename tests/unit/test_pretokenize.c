// Where text is cut: split behaviors, and the pattern's translation from Oniguruma.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/normalize.h"
#include "core/pretokenize.h"
#include "core/regex.h"

static int collect(void *arg, const char *word, size_t n_bytes) {
    struct tsr_buf *b = arg;
    TSR_TRY(tsr_buf_append(b, "|", 1));
    return tsr_buf_append(b, word, n_bytes);
}

// The words of `text`, each after a bar.
static void words(const char *json, const char *text, const char *want) {
    json_error_t e;
    json_t *j = json_loads(json, 0, &e);
    struct tsr_pretok *p = NULL;
    struct tsr_buf got = {0};
    if (!j || tsr_pretok_parse(&p, j, "test") != 0)
        fail_msg("%s: %s", json, j ? tsr_error_text() : e.text);
    assert_int_equal(tsr_pretok_run(p, text, strlen(text), true, collect, &got), 0);
    assert_string_equal(got.data ? got.data : "", want);
    tsr_buf_free(&got);
    tsr_pretok_free(p);
    json_decref(j);
}

#define BYTES(prefix, regex)                                                                       \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":" #prefix ",\"use_regex\":" #regex "}"
#define SPLIT(kind, pattern, behavior, invert)                                                     \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"" kind           \
    "\":\"" pattern "\"},\"behavior\":\"" behavior "\",\"invert\":" #invert                        \
    "}," BYTES(false, false) "]}"

static void behaviors(void **state) {
    (void)state;
    static const char text[] = "the-final--countdown";
    words(SPLIT("String", "-", "Removed", false), text, "|the|final|countdown");
    words(SPLIT("String", "-", "Isolated", false), text, "|the|-|final|-|-|countdown");
    words(SPLIT("String", "-", "MergedWithPrevious", false), text, "|the-|final-|-|countdown");
    words(SPLIT("String", "-", "MergedWithNext", false), text, "|the|-final|-|-countdown");
    words(SPLIT("String", "-", "Contiguous", false), text, "|the|-|final|--|countdown");
    words(SPLIT("String", "-", "Removed", true), text, "|-|-|-");
    words(SPLIT("String", "-", "MergedWithNext", false), "--a--", "|-|-a|-|-");
    words(SPLIT("String", "-", "MergedWithPrevious", false), "--a--", "|-|-|a-|-");
    words(SPLIT("String", "a.", "Isolated", false), "aba.b", "|ab|a.|b"); // no pattern: a text
    words(SPLIT("Regex", "x*", "Isolated", false), "axxb", "|a|xx|b");    // empty matches
}

static void byte_level(void **state) {
    (void)state;
    words(BYTES(false, true), "It's 12ab  x\n", "|It|'s| 12|ab| | x|\n");
    words(BYTES(true, true), "a", "| a");
    words(BYTES(true, true), " a", "| a");
    words(BYTES(true, true), "", "");
    words(BYTES(false, false), "a b", "|a b");
    words(BYTES(false, true), "a\u00a0b\u3000\u3000c", "|a|\u00a0|b|\u3000|\u3000|c");
    words(BYTES(false, true), "a\u180eb", "|a|\u180e|b"); // no space, though PCRE2 thinks so
    words(BYTES(false, true), " \u180e", "| \u180e");
    // Unicode 15 and 16 have these letters and digits.
    words(BYTES(false, true), "a\U00031350\U000105C0!", "|a\U00031350\U000105C0|!");
    words(BYTES(false, true), "1\U00010D40", "|1\U00010D40");
}

static void digits_and_punctuation(void **state) {
    (void)state;
#define BEFORE(step) "{\"type\":\"Sequence\",\"pretokenizers\":[" step "," BYTES(false, true) "]}"
    words(BEFORE("{\"type\":\"Digits\",\"individual_digits\":true}"), "a 123\u00bd",
          "|a| |1|2|3|\u00bd");
    words(BEFORE("{\"type\":\"Digits\",\"individual_digits\":false}"), "a 123b", "|a| |123|b");
    words(BEFORE("{\"type\":\"Punctuation\"}"), "a, b!!$", "|a|,| b|!|!|$");
    // A step behind ByteLevel sees the byte alphabet: byte C2 is a letter, byte BD is one half.
    words("{\"type\":\"Sequence\",\"pretokenizers\":[" BYTES(
              false, true) ",{\"type\":\"Digits\",\"individual_digits\":false}]}",
          "a\u00bd 7", "|a|\xC2|\xBD| |7");
}

static void llama3(void **state) {
    (void)state;
#define LLAMA3                                                                                     \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}{1,3}| "         \
    "?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"
    words(SPLIT("Regex", LLAMA3, "Isolated", false), "We'LL pay $12345.\r\n\r\n  (now)",
          "|We|'LL| pay| $|123|45|.\r\n\r\n| | (|now|)");
    words(SPLIT("Regex", LLAMA3, "Isolated", false), "x'\u017fy", "|x|'\u017f|y"); // long s
}

static void translation(void **state) {
    (void)state;
    static const char *const same[] = {"a|b",     "[^\\r\\n]+", "(?i:'s)", "x{2,3}", "a++",
                                       "\\x{41}", "[]a]",       "(?<!a)b", "\\.",    ""};
    for (size_t i = 0; i < sizeof same / sizeof same[0]; i++) {
        struct tsr_buf out = {0};
        assert_int_equal(tsr_regex_translate(same[i], "test", &out), 0);
        assert_string_equal(out.data, same[i]);
        tsr_buf_free(&out);
    }
    static const char *const other[][2] = {
        {"ab{2}+", "a(?:b{2})+"},
        {"(ab){1,3}+", "(?:(ab){1,3})+"},
        {"a{2}?", "(?:a{2})?"},
        {"a{1,2}?", "a{1,2}?"},
        {"a{,2}", "a{0,2}"},
        {"a{", "a\\{"},
        {"\\v", "\\x0b"},
        {"\\u00e9", "\\x{00e9}"},
        {"\\h", "[0-9a-fA-F]"},
        {"\\x41", "\\x{41}"},
        {"[\\h-]", "[0-9a-fA-F\\-]"},
        {"\\p{Greek}", "[\\p{sc:Greek}]"},
        {"[\\S]", "[\\P{White_Space}]"},
        {"\\p{zs}", "[\\p{Zs}]"},
        {"\\P{^Zs}", "[\\p{Zs}]"},
        {"\\pZ", "[\\p{Z}]"},
        {"a{x}", "a\\{x}"},
    };
    for (size_t i = 0; i < sizeof other / sizeof other[0]; i++) {
        struct tsr_buf out = {0};
        assert_int_equal(tsr_regex_translate(other[i][0], "test", &out), 0);
        assert_string_equal(out.data, other[i][1]);
        tsr_buf_free(&out);
    }
}

// Ten million spaces are one match, and neither a deep recursion nor a quadratic search.
static void long_runs(void **state) {
    (void)state;
    enum { N = 10 << 20 };
    struct tsr_regex *re;
    struct tsr_regex_scan scan = {0};
    size_t start, end;
    char *text = malloc(N + 1);
    memset(text, ' ', N);
    text[N] = 'x';
    assert_int_equal(tsr_regex_compile(&re, "\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+|\\S", false, "test"),
                     0);
    assert_int_equal(tsr_regex_next(re, text, N + 1, &scan, &start, &end), 1);
    assert_int_equal(end, N - 1);
    assert_int_equal(tsr_regex_next(re, text, N + 1, &scan, &start, &end), 1);
    assert_int_equal(end, N);
    assert_int_equal(tsr_regex_next(re, text, N + 1, &scan, &start, &end), 1);
    assert_int_equal(tsr_regex_next(re, text, N + 1, &scan, &start, &end), 0);
    tsr_regex_free(re);
    free(text);
}

static void normal_form(const char *json, const char *text, const char *want) {
    json_error_t e;
    json_t *j = json_loads(json, JSON_DECODE_ANY, &e);
    struct tsr_normalizer *n;
    struct tsr_buf got = {0};
    assert_int_equal(tsr_normalizer_parse(&n, j, "test"), 0);
    assert_int_equal(tsr_normalizer_run(n, text, strlen(text), &got), 0);
    assert_string_equal(got.data, want);
    tsr_buf_free(&got);
    tsr_normalizer_free(n);
    json_decref(j);
}

static void normalizers(void **state) {
    (void)state;
    normal_form("null", "e\u0301", "e\u0301");
    normal_form("{\"type\":\"NFC\"}", "e\u0301 \u1112\u1161\u11ab \ufb01", "\u00e9 \ud55c \ufb01");
    normal_form("{\"type\":\"NFD\"}", "\u00e9\ud55c", "e\u0301\u1112\u1161\u11ab");
    normal_form("{\"type\":\"NFKC\"}", "\ufb01\u2460e\u0301", "fi1\u00e9");
    normal_form("{\"type\":\"NFKD\"}", "\ufb01\u00e9", "fie\u0301");
    normal_form("{\"type\":\"NFC\"}", "", "");
    normal_form("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "a", "_a");
    normal_form("{\"type\":\"Prepend\",\"prepend\":\"_\"}", "", "");
    normal_form("{\"type\":\"Replace\",\"pattern\":{\"String\":\".\"},\"content\":\"!!\"}", "a.b.",
                "a!!b!!");
    normal_form("{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Replace\",\"pattern\":{"
                "\"Regex\":\" +\"},"
                "\"content\":\"\"},{\"type\":\"NFC\"}]}",
                "e  \u0301", "\u00e9");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(behaviors),
        cmocka_unit_test(byte_level),
        cmocka_unit_test(digits_and_punctuation),
        cmocka_unit_test(llama3),
        cmocka_unit_test(translation),
        cmocka_unit_test(long_runs),
        cmocka_unit_test(normalizers),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

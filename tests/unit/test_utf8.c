#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdbool.h>
#include <string.h>
#include "core/tokenizer.h"
#include "core/utf8.h"

// Whether s[0..n) is one character, decoded and judged by its number: the longest way round.
static bool one_character(const unsigned char *s, size_t n) {
    static const uint32_t least[] = {0, 0, 0x80, 0x800, 0x10000};
    size_t len = s[0] < 0x80             ? 1
                 : (s[0] & 0xE0) == 0xC0 ? 2
                 : (s[0] & 0xF0) == 0xE0 ? 3
                 : (s[0] & 0xF8) == 0xF0 ? 4
                                         : 0;
    if (len != n)
        return false;
    uint32_t c = n == 1 ? s[0] : s[0] & (0x7Fu >> n);
    for (size_t i = 1; i < n; i++) {
        if ((s[i] & 0xC0) != 0x80)
            return false;
        c = c << 6 | (s[i] & 0x3F);
    }
    return c >= least[n] && c <= 0x10FFFF && !(c >= 0xD800 && c <= 0xDFFF);
}

static size_t valid(const void *s, size_t n) {
    return tsr_utf8_valid_prefix(s, n);
}

static size_t whole(const void *s, size_t n) {
    return tsr_utf8_whole_prefix(s, n);
}

// Every first, second and third byte: valid exactly when the naive reader says so.
static void three_bytes(void **state) {
    (void)state;
    for (int a = 0x60; a < 256; a++)
        for (int b = 0; b < 256; b++)
            for (int c = 0; c < 256; c += b < 0x80 ? 51 : 1) {
                unsigned char s[3] = {(unsigned char)a, (unsigned char)b, (unsigned char)c};
                size_t want = 0;
                for (size_t n = 1; want < 3 && n <= 3 - want;)
                    if (one_character(s + want, n)) {
                        want += n;
                        n = 1;
                    } else {
                        n++;
                    }
                if (valid(s, 3) != want)
                    fail_msg("%02x %02x %02x: %zu, not %zu", a, b, c, valid(s, 3), want);
            }
}

static void four_bytes(void **state) {
    (void)state;
    static const unsigned char tail[] = {0x00, 0x7F, 0x80, 0xBF, 0xC0, 0xFF};
    for (int a = 0xEF; a < 256; a++)
        for (int b = 0; b < 256; b++)
            for (size_t i = 0; i < 36; i++) {
                unsigned char s[4] = {(unsigned char)a, (unsigned char)b, tail[i / 6], tail[i % 6]};
                bool want = one_character(s, 4) || (one_character(s, 3) && one_character(s + 3, 1));
                assert_int_equal(valid(s, 4) == 4, want);
            }
}

static void every_code_point(void **state) {
    (void)state;
    for (uint32_t c = 0; c <= 0x10FFFF; c++) {
        char s[4];
        size_t n = tsr_utf8_put(s, c), len;
        if (c >= 0xD800 && c <= 0xDFFF) {
            assert_int_equal(valid(s, n), 0);
            continue;
        }
        assert_int_equal(valid(s, n), n);
        assert_int_equal(tsr_utf8_get(s, &len), c);
        assert_int_equal(len, n);
        for (size_t cut = 1; cut < n; cut++) { // streaming: wait for the rest
            assert_int_equal(whole(s, cut), 0);
            assert_int_equal(valid(s, cut), 0);
        }
        assert_int_equal(whole(s, n), n);
    }
}

// The ASCII path takes eight bytes at a time: a bad byte is found at every place.
static void offsets(void **state) {
    (void)state;
    char s[40];
    for (size_t at = 0; at < sizeof s; at++) {
        memset(s, 'a', sizeof s);
        s[at] = (char)0xFF;
        assert_int_equal(valid(s, sizeof s), at);
        s[at] = (char)0xE2; // begins a character that doesn't come
        assert_int_equal(valid(s, sizeof s), at);
        assert_int_equal(valid(s, at), at);
    }
    assert_int_equal(valid("", 0), 0);
    assert_int_equal(valid("a\0b", 3), 3);
}

static void whole_prefixes(void **state) {
    (void)state;
    assert_int_equal(whole("", 0), 0);
    assert_int_equal(whole("ab\xE2\x82", 4), 2);
    assert_int_equal(whole("ab\xE2\x82\xAC", 5), 5);
    assert_int_equal(whole("\xF0\x9F\x99", 3), 0);
    // What can never become valid is whole, so that a stream doesn't wait for it.
    assert_int_equal(whole("ab\xFF", 3), 3);
    assert_int_equal(whole("ab\x80\x80\x80\x80", 6), 6);
    assert_int_equal(whole("ab\xE0\x80", 4), 4);     // overlong
    assert_int_equal(whole("ab\xED\xA0", 4), 4);     // a surrogate
    assert_int_equal(whole("ab\xF4\x90\x80", 5), 5); // beyond U+10FFFF
    assert_int_equal(whole("ab\xC0", 3), 3);
    assert_int_equal(whole("ab\xF5\x80", 4), 4);
    assert_int_equal(whole("\xE2\x82\xE2", 3), 2); // the first one is broken, the second waits
}

static void spaces(void **state) {
    (void)state;
    int n = 0;
    for (uint32_t c = 0; c <= 0x10FFFF; c++)
        n += tsr_utf8_is_space(c);
    assert_int_equal(n, 25); // PropList.txt, White_Space
    assert_true(tsr_utf8_is_space(0xA0));
    assert_true(tsr_utf8_is_space(0x3000));
    assert_false(tsr_utf8_is_space(0x180E)); // not since Unicode 6.3
    assert_false(tsr_utf8_is_space(0x200B));
}

static void clips(void **state) {
    (void)state;
    assert_int_equal(tsr_utf8_clip("abc", 80), 3);
    assert_int_equal(tsr_utf8_clip("abc", 2), 2);
    assert_int_equal(tsr_utf8_clip("a\xE2\x82\xAC", 3), 1);
    assert_int_equal(tsr_utf8_clip("a\xE2\x82\xAC", 4), 4);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(three_bytes),
        cmocka_unit_test(four_bytes),
        cmocka_unit_test(every_code_point),
        cmocka_unit_test(offsets),
        cmocka_unit_test(whole_prefixes),
        cmocka_unit_test(spaces),
        cmocka_unit_test(clips),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

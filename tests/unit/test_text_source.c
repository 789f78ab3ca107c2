#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/error.h"
#include "core/held_out.h"
#include "core/text_source.h"
#include "tests/unit/scratch.h"
#include "tests/unit/text_support.h"

#include <string.h>

static void check_split(const char *text, size_t size, bool valid_utf8) {
    struct tsr_held_out h;
    size_t cover = 0, k[2] = {0, 0}, lo[2], hi[2], total[2] = {0, 0};
    static const int PART[2] = {TSR_PART_TRAIN, TSR_PART_HELD_OUT};
    tsr_held_out_init(&h, text, size, false);
    bool more[2] = {tsr_held_out_next(&h, PART[0], &k[0], &lo[0], &hi[0]),
                    tsr_held_out_next(&h, PART[1], &k[1], &lo[1], &hi[1])};
    while (more[0] || more[1]) { // the runs of both, merged, follow each other without a gap
        int p = !more[0] || (more[1] && lo[1] < lo[0]);
        assert_int_equal(lo[p], cover);
        assert_true(hi[p] > lo[p] && hi[p] <= size);
        if (valid_utf8)
            assert_int_equal(tsr_utf8_valid_prefix(text + lo[p], hi[p] - lo[p]), hi[p] - lo[p]);
        cover = hi[p];
        total[p] += hi[p] - lo[p];
        more[p] = tsr_held_out_next(&h, PART[p], &k[p], &lo[p], &hi[p]);
    }
    assert_int_equal(cover, size);
    if (size >= 4000) // a valid part for any text of some KB
        assert_true(total[1] >= 900 && total[1] * 4 <= size);
    if (size >= 200000)
        assert_true(total[1] * 100 > size && total[1] * 10 < size);
    size_t at = 0, all_lo, all_hi;
    assert_int_equal(tsr_held_out_next(&h, TSR_PART_ALL, &at, &all_lo, &all_hi), size > 0);
    if (size > 0) {
        assert_true(all_lo == 0 && all_hi == size);
        assert_false(tsr_held_out_next(&h, TSR_PART_ALL, &at, &all_lo, &all_hi));
    }
}

static void test_held_out_covers(void **state) {
    enum { N = 700000 };
    char *text = malloc(N);
    (void)state;
    assert_non_null(text);
    random_text(text, N, 11);
    for (size_t size = 0; size < 300; size++)
        check_split(text, size, false);
    for (size_t size = 300; size < N; size += 7919)
        check_split(text, size, false);
    for (size_t k = 15; k < 45; k++) // just around the borders of blocks
        for (size_t d = 0; d < 5; d++)
            check_split(text, k * TSR_BLOCK_BYTES + d - 2, false);
    for (size_t i = 0; i + 3 <= N; i += 3) // three-byte characters, never a newline
        memcpy(text + i, "世", 3);
    for (size_t size = 3; size < N; size += 3 * 4999)
        check_split(text, size, true);
    memset(text, 0x80, N); // continuation bytes only
    for (size_t size = 0; size < N; size += 9973)
        check_split(text, size, false);
    memset(text, '\n', N);
    for (size_t size = 0; size < N; size += 9973)
        check_split(text, size, false);
    free(text);
}

// Lines of 100 bytes: the borders are those of the blocks, moved on to the next line.
static void test_held_out_blocks(void **state) {
    enum { N = 41 * TSR_BLOCK_BYTES };
    struct tsr_held_out h;
    size_t k = 0, lo, hi;
    char *text = malloc(N);
    (void)state;
    assert_non_null(text);
    for (size_t i = 0; i < N; i++)
        text[i] = i % 100 == 99 ? '\n' : 'x';
    tsr_held_out_init(&h, text, N, false);
    assert_true(tsr_held_out_next(&h, TSR_PART_HELD_OUT, &k, &lo, &hi));
    assert_int_equal(lo, (19 * TSR_BLOCK_BYTES + 99) / 100 * 100);
    assert_int_equal(hi, (20 * TSR_BLOCK_BYTES + 99) / 100 * 100);
    assert_true(tsr_held_out_next(&h, TSR_PART_HELD_OUT, &k, &lo, &hi));
    assert_int_equal(lo, (39 * TSR_BLOCK_BYTES + 99) / 100 * 100);
    assert_false(tsr_held_out_next(&h, TSR_PART_HELD_OUT, &k, &lo, &hi));
    for (size_t at = 0; at < N; at++) { // JSONL goes by where the line begins
        bool held = at / TSR_BLOCK_BYTES == 19 || at / TSR_BLOCK_BYTES == 39;
        assert_int_equal(tsr_held_out_has_line(&h, TSR_PART_HELD_OUT, at), held);
        assert_int_equal(tsr_held_out_has_line(&h, TSR_PART_TRAIN, at), !held);
        assert_true(tsr_held_out_has_line(&h, TSR_PART_ALL, at));
    }
    free(text);
}

static void test_held_out_of_few_lines(void **state) {
    static const struct {
        const char *text;
        size_t first_held; // line start
    } CASES[] = {{"{}\n{}\n{}\n", 6}, {"{}\n{}", 3}, {"\n {}\n\n{}\n \n\n", 6},
                 {"{}\n", 99},        {"", 99},      {"\n\n", 99},
                 {"\n\n{}\n", 99}};
    struct tsr_held_out h;
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        size_t n = strlen(CASES[i].text);
        tsr_held_out_init(&h, CASES[i].text, n, true);
        for (size_t at = 0; at < n; at++)
            if (CASES[i].text[at] == '{')
                assert_int_equal(tsr_held_out_has_line(&h, TSR_PART_HELD_OUT, at),
                                 at >= CASES[i].first_held);
    }
}

struct pieces {
    struct tsr_ids all;
    int n;
    size_t done;
};

static int collect(void *arg, const struct tsr_ids *ids, size_t n_done) {
    struct pieces *p = arg;
    assert_true(n_done > p->done);
    p->done = n_done;
    p->n++;
    for (size_t i = 0; i < ids->n; i++)
        TSR_TRY(tsr_ids_push(&p->all, ids->v[i]));
    return 0;
}

// Returns the number of pieces.
static int same_in_pieces(struct tsr_tokenizer *t, const char *text, size_t n, size_t piece) {
    struct tsr_ids whole = {0};
    struct pieces p = {0};
    assert_int_equal(tsr_tokenizer_encode(t, text, n, 0, &whole), 0);
    assert_int_equal(tsr_text_encode(t, text, n, 0, piece, collect, &p), 0);
    assert_int_equal(p.done, n);
    assert_int_equal(p.all.n, whole.n);
    assert_memory_equal(p.all.v, whole.v, whole.n * sizeof *whole.v);
    tsr_ids_free(&whole);
    tsr_ids_free(&p.all);
    return p.n;
}

static void test_pieces_equal_the_whole(void **state) {
    enum { N = 60000 };
    static char text[N];
    (void)state;
    for (int llama3 = 0; llama3 < 2; llama3++) {
        struct tsr_tokenizer *t = make_tokenizer(llama3, false);
        for (uint32_t seed = 0; seed < 8; seed++) {
            size_t n = random_text(text, N, seed);
            assert_true(same_in_pieces(t, text, n, 1 + 40 * seed * seed) > 20);
        }
        tsr_tokenizer_free(t);
    }
}

// Where the start of a text matters a cut isn't safe, except before a special token.
static void test_prefix_space_is_noticed(void **state) {
    enum { N = 20000 };
    static char text[N];
    (void)state;
    struct tsr_tokenizer *t = make_tokenizer(false, true);
    size_t n = random_text(text, N, 5);
    assert_true(same_in_pieces(t, text, n, 500) < 10);
    for (size_t i = 0; i < N; i++)
        text[i] = i % 10 == 9 ? '\n' : 'a';
    assert_int_equal(same_in_pieces(t, text, N, 500), 1);
    tsr_tokenizer_free(t);
    t = make_tokenizer(false, false);
    assert_int_equal(same_in_pieces(t, text, N, 500), N / 500);
    tsr_tokenizer_free(t);
}

struct documents {
    struct tsr_tokenizer *t;
    struct tsr_ids ids;
    struct tsr_buf text; // documents decoded, each with '|' behind it
};

static int on_tokens(void *arg, const int32_t *ids, int64_t n) {
    struct documents *d = arg;
    for (int64_t i = 0; i < n; i++)
        TSR_TRY(tsr_ids_push(&d->ids, ids[i]));
    return 0;
}

static int on_end(void *arg) {
    struct documents *d = arg;
    TSR_TRY(tsr_tokenizer_decode(d->t, d->ids.v, d->ids.n, false, &d->text));
    d->ids.n = 0;
    return tsr_buf_append(&d->text, "|", 1);
}

// The documents of `bytes` as a file of that name; rc of tsr_text_each.
static int documents_of(struct tsr_tokenizer *t, const char *name, const void *bytes, size_t n,
                        int part, char **out) {
    struct documents d = {.t = t};
    struct tsr_text_sink sink = {&d, on_tokens, on_end};
    enum tsr_source_kind kind;
    char path[TSR_PATH_MAX];
    scratch_write(scratch(name), bytes, n);
    assert_int_equal(tsr_source_resolve(scratch(name), &kind, path), 0);
    assert_string_equal(path, scratch(name));
    int rc = tsr_text_each(path, kind, part, t, &sink);
    tsr_ids_free(&d.ids);
    if (rc == 0)
        assert_int_equal(tsr_buf_append(&d.text, "", 0), 0);
    *out = d.text.data;
    return rc;
}

static void expect_documents(const char *name, const char *bytes, const char *want) {
    struct tsr_tokenizer *t = make_tokenizer(false, false);
    char *got;
    assert_int_equal(documents_of(t, name, bytes, strlen(bytes), TSR_PART_ALL, &got), 0);
    assert_string_equal(got, want);
    free(got);
    tsr_tokenizer_free(t);
}

static void test_documents(void **state) {
    (void)state;
    expect_documents("a.txt", "one\n\ntwo\n", "one\n\ntwo\n|");
    expect_documents("a.txt", "", "");
    expect_documents("a.text", "any ending", "any ending|");
    expect_documents("a.jsonl",
                     "{\"text\": \"one\"}\n\n  \r\n{\"id\": 3, \"text\": \"tw\\u00f6\\n\"}\r\n",
                     "one|twö\n|");
    expect_documents("a.jsonl", "{\"text\": \"no newline at the end\"}", "no newline at the end|");
    expect_documents("a.jsonl", "{\"text\": \"\"}\n{\"text\": \"empty ones are skipped\"}\n",
                     "empty ones are skipped|");
    expect_documents("a.json", "{\"text\": \"x\"}\n", "x|");
    expect_documents("a.jsonl", "", "");
    expect_documents("a.jsonl", "\n\n", "");
}

static void expect_failure(struct tsr_tokenizer *t, const char *name, const char *bytes, size_t n,
                           const char *why) {
    char *got;
    assert_int_equal(documents_of(t, name, bytes, n, TSR_PART_ALL, &got), TSR_EDATA);
    free(got);
    if (!strstr(tsr_error_text(), why) || !strstr(tsr_error_text(), name))
        fail_msg("expected \"%s\" and \"%s\" in \"%s\"", name, why, tsr_error_text());
}

static void test_bad_text(void **state) {
    static const struct {
        const char *bytes, *why;
    } LINES[] = {
        {"{\"text\": \"a\"}\n{\"text\": \"b\"\n", "line 2"},
        {"\n\n{\"text\": 5}\n",
         "line 3: expected an object with a string \"text\", found something"},
        {"{\"txt\": \"a\"}\n",
         "line 1: expected an object with a string \"text\", found no such key"},
        {"[\"text\"]\n", "line 1: expected an object with a string \"text\", found no object"},
        {"\"text\"\n", "line 1"},
        {"{\"text\": \"a\"} {}\n", "line 1"},
        {"{\"text\": \"\\ud800\"}\n", "line 1"},
        {"{\"text\": \"a\"}\n{\"text\": \"\xff\"}\n", "line 2: invalid UTF-8 at byte 24"},
        {"{\"text\": \"a\"}\nplain words\n", "line 2"},
    };
    static char big[3 << 20];
    struct tsr_tokenizer *t = make_tokenizer(true, false);
    (void)state;
    for (size_t i = 0; i < sizeof LINES / sizeof *LINES; i++)
        expect_failure(t, "b.jsonl", LINES[i].bytes, strlen(LINES[i].bytes), LINES[i].why);
    expect_failure(t, "b.txt", "good \xc3\x28", 7, "invalid UTF-8 at byte 5");
    expect_failure(t, "b.txt", "cut \xe2\x82", 6, "invalid UTF-8 at byte 4");
    expect_failure(t, "b.txt", "\xed\xa0\x80", 3, "invalid UTF-8 at byte 0");
    for (size_t i = 0; i < sizeof big; i++) // in the third of several pieces
        big[i] = i % 50 == 49 ? '\n' : 'x';
    big[2500000] = '\xff';
    expect_failure(t, "b.txt", big, sizeof big, "invalid UTF-8 at byte 2500000");
    tsr_tokenizer_free(t);
}

static void test_files_that_are_none(void **state) {
    enum tsr_source_kind kind;
    char path[TSR_PATH_MAX];
    struct tsr_text_sink sink = {0};
    (void)state;
    assert_int_equal(tsr_source_resolve(scratch("gone"), &kind, path), TSR_EDATA);
    assert_int_equal(tsr_text_each(scratch("gone.txt"), TSR_SOURCE_TEXT, TSR_PART_ALL, NULL, &sink),
                     TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "gone.txt"));
    assert_int_equal(tsr_text_each(scratch_dir, TSR_SOURCE_TEXT, TSR_PART_ALL, NULL, &sink),
                     TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "folder"));
    memset(path, 'x', sizeof path - 1);
    path[sizeof path - 1] = 0;
    char out[TSR_PATH_MAX];
    assert_int_equal(tsr_source_resolve(path, &kind, out), TSR_EUSAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_held_out_covers),
        cmocka_unit_test(test_held_out_blocks),
        cmocka_unit_test(test_held_out_of_few_lines),
        cmocka_unit_test(test_pieces_equal_the_whole),
        cmocka_unit_test(test_prefix_space_is_noticed),
        cmocka_unit_test(test_documents),
        cmocka_unit_test(test_bad_text),
        cmocka_unit_test(test_files_that_are_none),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/error.h"
#include "core/indexed.h"
#include "tests/unit/scratch.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

#ifndef TESSERA_GOLDEN_DIR
#define TESSERA_GOLDEN_DIR "tests/golden"
#endif

static const char *const GOLDENS[] = {"uint16", "int32",  "int64", "int16", "int8",
                                      "uint8",  "nested", "empty", "modes"};
enum { N_GOLDENS = sizeof GOLDENS / sizeof *GOLDENS, MAX_TOKENS = 64 };

struct bytes {
    char *p;
    size_t n;
};

static struct bytes slurp(const char *prefix, const char *suffix) {
    char path[TSR_PATH_MAX];
    struct bytes b;
    snprintf(path, sizeof path, "%s%s", prefix, suffix);
    assert_int_equal(tsr_read_file(path, 1 << 24, TSR_EDATA, &b.p, &b.n), 0);
    return b;
}

static const char *golden(const char *name) {
    static char path[TSR_PATH_MAX];
    snprintf(path, sizeof path, "%s/indexed/%s", TESSERA_GOLDEN_DIR, name);
    return path;
}

static void spill(const char *prefix, const char *suffix, const void *p, size_t n) {
    char path[TSR_PATH_MAX];
    snprintf(path, sizeof path, "%s%s", prefix, suffix);
    scratch_write(path, p, n);
}

// Changes bytes in place: rewriting whole files makes some file systems flush each time.
static void poke(const char *prefix, const char *suffix, size_t at, const void *p, size_t n) {
    char path[TSR_PATH_MAX];
    snprintf(path, sizeof path, "%s%s", prefix, suffix);
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(tsr_pwrite_all(fd, p, n, at, path), 0);
    close(fd);
}

static void cut_to(const char *prefix, const char *suffix, size_t n) {
    char path[TSR_PATH_MAX];
    snprintf(path, sizeof path, "%s%s", prefix, suffix);
    assert_int_equal(truncate(path, (off_t)n), 0);
}

// What NAME.txt says: ids, and where a document begins. Returns the number of documents.
static int expected(const char *text, int32_t *ids, uint8_t *start, int64_t *n, int64_t *n_seq) {
    int documents = 0;
    const char *p = strchr(text, '\n') + 1;
    *n_seq = strtol(p, NULL, 10);
    *n = 0;
    memset(start, 0, MAX_TOKENS);
    for (p = strchr(p, '\n') + 1; *p; p = strchr(p, '\n') + 1, documents++) {
        start[*n] = 1; // an empty document leaves its mark on the next one
        for (char *end; *p != '\n'; p = end)
            ids[(*n)++] = (int32_t)strtol(p, &end, 10);
    }
    return documents;
}

static void test_reads_what_megatron_reads(void **state) {
    (void)state;
    for (int k = 0; k < N_GOLDENS; k++) {
        int32_t want[MAX_TOKENS], got[MAX_TOKENS];
        uint8_t start[MAX_TOKENS], got_start[MAX_TOKENS];
        int64_t n, n_sequences;
        struct tsr_indexed *x;
        struct bytes text = slurp(golden(GOLDENS[k]), ".txt");
        int documents = expected(text.p, want, start, &n, &n_sequences);
        assert_int_equal(tsr_indexed_open(&x, golden(GOLDENS[k])), 0);
        assert_int_equal(tsr_indexed_n_tokens(x), n);
        assert_int_equal(tsr_indexed_n_sequences(x), n_sequences);
        assert_int_equal(tsr_indexed_n_documents(x), documents);
        assert_memory_equal(tsr_idx_dtype_name(tsr_indexed_dtype(x)), text.p,
                            (size_t)(strchr(text.p, '\n') - text.p));
        for (int64_t at = 0; at <= n; at++)
            for (int64_t m = 0; at + m <= n; m++) {
                assert_int_equal(tsr_indexed_read(x, at, m, got, got_start), 0);
                assert_memory_equal(got, want + at, (size_t)m * 4);
                assert_memory_equal(got_start, start + at, (size_t)m);
                assert_int_equal(tsr_indexed_read(x, at, m, got, NULL), 0);
            }
        tsr_indexed_close(x);
        free(text.p);
    }
}

static void same_file(const char *a, const char *b, const char *suffix) {
    struct bytes x = slurp(a, suffix), y = slurp(b, suffix);
    assert_int_equal(x.n, y.n);
    assert_memory_equal(x.p, y.p, x.n);
    free(x.p);
    free(y.p);
}

// Documents of one sequence each: our writer gives Megatron's very bytes.
static void test_writes_what_megatron_writes(void **state) {
    static const struct {
        const char *name;
        int64_t vocab;
    } CASES[] = {{"uint16", 65400},
                 {"empty", 10},
                 {"vocab_65499", 65499},
                 {"int32", 1 << 30},
                 {"vocab_65500", 65500}};
    (void)state;
    for (size_t k = 0; k < sizeof CASES / sizeof *CASES; k++) {
        int32_t ids[MAX_TOKENS];
        uint8_t start[MAX_TOKENS];
        int64_t n, n_sequences, vocab = CASES[k].vocab;
        struct tsr_indexed_writer *w;
        struct bytes text = slurp(golden(CASES[k].name), ".txt");
        expected(text.p, ids, start, &n, &n_sequences);
        vocab = n > 0 && ids[n - 1] >= vocab ? INT64_C(1) << 31 : vocab;
        assert_int_equal(tsr_indexed_create(&w, scratch("w"), vocab), 0);
        for (int64_t at = 0, end; at < n; at = end) {
            for (end = at + 1; end < n && !start[end];)
                end++;
            assert_int_equal(tsr_indexed_add_document(w, ids + at, end - at), 0);
        }
        assert_int_equal(tsr_indexed_finish(w), 0);
        same_file(scratch("w"), golden(CASES[k].name), ".bin");
        same_file(scratch("w"), golden(CASES[k].name), ".idx");
        free(text.p);
    }
}

static int count_files(void) {
    int n = 0;
    DIR *d = opendir(scratch_dir);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static void test_writer_failures(void **state) {
    struct tsr_indexed_writer *w;
    int32_t good[] = {0, 9}, bad[] = {3, 10}, negative[] = {-1};
    int before = count_files();
    (void)state;
    assert_int_equal(tsr_indexed_create(&w, scratch("no/such/folder"), 10), TSR_EIO);
    assert_int_equal(tsr_indexed_create(&w, scratch("v"), 10), 0);
    assert_int_equal(tsr_indexed_add_document(w, good, 2), 0);
    assert_int_equal(tsr_indexed_add_tokens(w, bad, 2), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "token 3: id 10, but the vocabulary is 10"));
    assert_int_equal(tsr_indexed_add_tokens(w, negative, 1), TSR_EDATA);
    tsr_indexed_abort(w);
    assert_int_equal(count_files(), before);

    // A disk that is full while the last buffer is written.
    struct rlimit old, small;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(tsr_indexed_create(&w, scratch("v"), 10), 0);
    assert_int_equal(tsr_indexed_add_document(w, good, 2), 0);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){3, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = tsr_indexed_finish(w);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, TSR_EIO);
    assert_int_equal(count_files(), before);
}

// What a killed writer left is removed by the next one, unless it may still be at work.
static void test_leftovers(void **state) {
    static const struct {
        const char *name;
        int age_s;
        bool kept;
    } FILES[] = {{"l.bin.tmp-1-2-3", 3600, false}, {"l.idx.tmp-1-2-3", 3600, false},
                 {"l.bin.tmp-4-5-6", 60, true},    {"l.bin.other", 3600, true},
                 {"ll.bin.tmp-1-2-3", 3600, true}, {"l.b", 3600, true}};
    struct tsr_indexed_writer *w;
    (void)state;
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++) {
        struct timespec t[2] = {{.tv_sec = time(NULL) - FILES[i].age_s},
                                {.tv_sec = time(NULL) - FILES[i].age_s}};
        scratch_write(scratch(FILES[i].name), "x", 1);
        assert_int_equal(utimensat(AT_FDCWD, scratch(FILES[i].name), t, 0), 0);
    }
    assert_int_equal(tsr_indexed_create(&w, scratch("l"), 10), 0);
    assert_int_equal(tsr_indexed_finish(w), 0);
    for (size_t i = 0; i < sizeof FILES / sizeof *FILES; i++)
        assert_int_equal(tsr_path_exists(scratch(FILES[i].name)), FILES[i].kept);
}

// A document in pieces, longer than the writer's buffer.
static void test_long_document(void **state) {
    enum { N = 700001 };
    struct tsr_indexed_writer *w;
    struct tsr_indexed *x;
    int32_t *ids = malloc(N * sizeof *ids), got[3];
    uint8_t start[3];
    (void)state;
    assert_non_null(ids);
    for (int i = 0; i < N; i++)
        ids[i] = i % 60000;
    assert_int_equal(tsr_indexed_create(&w, scratch("long"), 60000), 0);
    for (int at = 0; at < N; at += 1000)
        assert_int_equal(tsr_indexed_add_tokens(w, ids + at, N - at < 1000 ? N - at : 1000), 0);
    assert_int_equal(tsr_indexed_end_document(w), 0);
    assert_int_equal(tsr_indexed_add_document(w, ids, 1), 0);
    assert_int_equal(tsr_indexed_finish(w), 0);
    assert_int_equal(tsr_indexed_open(&x, scratch("long")), 0);
    assert_int_equal(tsr_indexed_n_tokens(x), N + 1);
    assert_int_equal(tsr_indexed_n_documents(x), 2);
    assert_int_equal(tsr_indexed_read(x, N - 2, 3, got, start), 0);
    assert_int_equal(got[1], (N - 1) % 60000);
    assert_int_equal(got[2], 0);
    assert_memory_equal(start, "\0\0\1", 3);
    assert_int_equal(tsr_indexed_scan(x, 60000), 0);
    assert_int_equal(tsr_indexed_scan(x, 59999), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "position 59999: token id 59999"));
    tsr_indexed_close(x);
    free(ids);
}

// Opens scratch("m"); whatever opens must be readable as a whole. True when it opened.
static int opens_and_reads(void) {
    struct tsr_indexed *x;
    int rc = tsr_indexed_open(&x, scratch("m"));
    if (rc < 0) {
        assert_int_equal(rc, TSR_EDATA);
        assert_non_null(strstr(tsr_error_text(), "/m."));
        return 0;
    }
    int64_t n = tsr_indexed_n_tokens(x);
    int32_t ids[MAX_TOKENS];
    uint8_t start[MAX_TOKENS];
    assert_true(n <= MAX_TOKENS);
    rc = tsr_indexed_read(x, 0, n, ids, start);
    assert_true(rc == 0 || rc == TSR_EDATA);
    tsr_indexed_close(x);
    return 1;
}

static void test_truncated_anywhere(void **state) {
    (void)state;
    for (int k = 0; k < N_GOLDENS; k++) {
        struct bytes idx = slurp(golden(GOLDENS[k]), ".idx");
        struct bytes bin = slurp(golden(GOLDENS[k]), ".bin");
        spill(scratch("m"), ".bin", bin.p, bin.n);
        spill(scratch("m"), ".idx", idx.p, idx.n);
        assert_true(opens_and_reads());
        cut_to(scratch("m"), ".bin", bin.n + 1); // bytes too many are no better
        assert_false(opens_and_reads());
        for (size_t n = bin.n; n > 0; n--) {
            cut_to(scratch("m"), ".bin", n - 1);
            assert_false(opens_and_reads());
        }
        cut_to(scratch("m"), ".bin", bin.n);
        poke(scratch("m"), ".bin", 0, bin.p, bin.n);
        assert_true(opens_and_reads());
        cut_to(scratch("m"), ".idx", idx.n + 1);
        assert_false(opens_and_reads());
        for (size_t n = idx.n; n > 0; n--) {
            cut_to(scratch("m"), ".idx", n - 1);
            // Only the modes may be missing: without them it is a whole file of text.
            bool whole = strcmp(GOLDENS[k], "modes") == 0 && n - 1 == idx.n - 4;
            assert_int_equal(opens_and_reads(), whole);
        }
        free(idx.p);
        free(bin.p);
    }
}

// Every bit of the index, one at a time, and every byte inverted. The head and the sequence table
// hold each number twice in effect, so a change is always seen; a document border may move
// without a contradiction.
static void test_changed_anywhere(void **state) {
    (void)state;
    for (int k = 0; k < N_GOLDENS; k++) {
        struct bytes idx = slurp(golden(GOLDENS[k]), ".idx");
        struct bytes bin = slurp(golden(GOLDENS[k]), ".bin");
        int64_t n_sequences;
        memcpy(&n_sequences, idx.p + 18, 8);
        spill(scratch("m"), ".bin", bin.p, bin.n);
        spill(scratch("m"), ".idx", idx.p, idx.n);
        for (size_t i = 0; i < 9 * idx.n; i++) {
            size_t at = i / 9;
            char changed = (char)(idx.p[at] ^ (i % 9 < 8 ? 1 << i % 9 : 0xFF));
            poke(scratch("m"), ".idx", at, &changed, 1);
            int opened = opens_and_reads();
            bool no_elements = at == 17 && bin.n == 0; // then nothing tells dtypes apart
            if (at < 34 + 12 * (size_t)n_sequences && !no_elements)
                assert_false(opened);
            poke(scratch("m"), ".idx", at, &idx.p[at], 1);
        }
        assert_true(opens_and_reads());
        free(idx.p);
        free(bin.p);
    }
}

static void expect_refused(uint64_t n, uint64_t d) {
    poke(scratch("m"), ".idx", 18, &n, 8);
    poke(scratch("m"), ".idx", 26, &d, 8);
    assert_false(opens_and_reads());
}

// Numbers chosen so that products and sums would overflow.
static void test_hostile_counts(void **state) {
    static const uint64_t BIG[] = {UINT64_MAX,          UINT64_MAX / 8,      UINT64_MAX / 12,
                                   UINT64_MAX / 12 + 1, (uint64_t)1 << 61,   (uint64_t)1 << 63,
                                   UINT64_MAX - 40,     6148914691236517200u};
    struct bytes idx = slurp(golden("uint16"), ".idx"), bin = slurp(golden("uint16"), ".bin");
    (void)state;
    spill(scratch("m"), ".bin", bin.p, bin.n);
    spill(scratch("m"), ".idx", idx.p, idx.n);
    for (size_t i = 0; i < 8; i++) {
        for (size_t j = 0; j < 8; j++)
            expect_refused(BIG[i], BIG[j]);
        expect_refused(BIG[i], 5);
        expect_refused(4, BIG[i]);
    }
    expect_refused(4, 0);
    char f32 = TSR_IDX_F32;
    poke(scratch("m"), ".idx", 0, idx.p, idx.n);
    poke(scratch("m"), ".idx", 17, &f32, 1);
    assert_false(opens_and_reads());
    assert_non_null(strstr(tsr_error_text(), "float32"));
    free(idx.p);
    free(bin.p);
}

static void test_ids_that_are_none(void **state) {
    struct bytes idx = slurp(golden("int64"), ".idx"), bin = slurp(golden("int64"), ".bin");
    struct tsr_indexed *x;
    int32_t ids[3];
    int64_t bad[] = {1, -5, INT64_C(1) << 31};
    (void)state;
    assert_int_equal(bin.n, sizeof bad);
    spill(scratch("m"), ".idx", idx.p, idx.n);
    spill(scratch("m"), ".bin", bad, sizeof bad);
    assert_int_equal(tsr_indexed_open(&x, scratch("m")), 0);
    assert_int_equal(tsr_indexed_read(x, 0, 1, ids, NULL), 0);
    assert_int_equal(tsr_indexed_read(x, 0, 3, ids, NULL), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "position 1: expected a token id, found -5"));
    assert_int_equal(tsr_indexed_read(x, 2, 1, ids, NULL), TSR_EDATA);
    assert_int_equal(tsr_indexed_scan(x, 100), TSR_EDATA);
    tsr_indexed_close(x);
    free(idx.p);
    free(bin.p);
}

static void test_missing(void **state) {
    struct tsr_indexed *x;
    (void)state;
    assert_int_equal(tsr_indexed_open(&x, scratch("absent")), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "absent.idx"));
    struct bytes idx = slurp(golden("int64"), ".idx");
    spill(scratch("half"), ".idx", idx.p, idx.n);
    assert_int_equal(tsr_indexed_open(&x, scratch("half")), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "half.bin"));
    assert_int_equal(tsr_mkdir_p(scratch("half.bin")), 0);
    assert_int_equal(tsr_indexed_open(&x, scratch("half")), TSR_EDATA);
    free(idx.p);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_reads_what_megatron_reads),
        cmocka_unit_test(test_writes_what_megatron_writes),
        cmocka_unit_test(test_writer_failures),
        cmocka_unit_test(test_leftovers),
        cmocka_unit_test(test_long_document),
        cmocka_unit_test(test_truncated_anywhere),
        cmocka_unit_test(test_changed_anywhere),
        cmocka_unit_test(test_hostile_counts),
        cmocka_unit_test(test_ids_that_are_none),
        cmocka_unit_test(test_missing),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/dataset.h"
#include "core/dataset_cache.h"
#include "core/error.h"
#include "core/held_out.h"
#include "tests/unit/scratch.h"
#include "tests/unit/text_support.h"

#include <dirent.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

enum { TEXT_BYTES = 400000, SOME_BYTES = 30000 };

static char cache_dir[TSR_PATH_MAX], tokenizer_dir[TSR_PATH_MAX], text_path[TSR_PATH_MAX];
static char text[TEXT_BYTES];
static size_t n_text, n_some; // all of it, and a short piece of whole characters
static struct tsr_tokenizer *tokenizer;
static struct tsr_source source;
static struct tsr_sources sources = {&source, 1};

static int setup(void **state) {
    if (scratch_setup(state) < 0 || tsr_path_join(cache_dir, scratch_dir, "cache/of/tokens") < 0 ||
        tsr_path_join(tokenizer_dir, scratch_dir, "tokenizer") < 0 ||
        tsr_path_join(text_path, scratch_dir, "text.txt") < 0)
        return -1;
    tokenizer = make_tokenizer(true, false);
    n_text = random_text(text, sizeof text, 3);
    n_some = tsr_utf8_valid_prefix(text, SOME_BYTES);
    return 0;
}

static int teardown(void **state) {
    tsr_tokenizer_free(tokenizer);
    return scratch_teardown(state);
}

static struct tsr_dataset_opt option(const char *path, int part) {
    source = (struct tsr_source){(char *)(uintptr_t)path, 1};
    struct tsr_dataset_opt opt = {.sources = &sources,
                                  .cache_dir = cache_dir,
                                  .tokenizer = tokenizer,
                                  .tokenizer_dir = tokenizer_dir,
                                  .vocab = 1000,
                                  .seq_len = 4,
                                  .part = TSR_PART_ALL};
    memcpy(&opt.part, &part, sizeof opt.part);
    return opt;
}

static struct tsr_dataset *open_ok(const struct tsr_dataset_opt *opt) {
    struct tsr_dataset *d;
    assert_int_equal(tsr_dataset_prepare(opt), 0);
    assert_int_equal(tsr_dataset_open(&d, opt), 0);
    assert_non_null(d);
    return d;
}

// All tokens as text again; *n_starts counts documents.
static char *decoded(const struct tsr_dataset *d, int *n_starts) {
    size_t n = (size_t)tsr_dataset_n_tokens(d);
    int32_t *ids = malloc(n * sizeof *ids);
    uint8_t *start = malloc(n);
    struct tsr_buf b = {0};
    assert_true(ids && start);
    assert_int_equal(tsr_dataset_read(d, 0, (int64_t)n, ids, start), 0);
    assert_int_equal(tsr_tokenizer_decode(tokenizer, ids, n, false, &b), 0);
    *n_starts = 0;
    for (size_t i = 0; i < n; i++) {
        *n_starts += start[i];
        if (start[i] && i > 0) // documents are joined by EOS, which belongs to the earlier one
            assert_int_equal(ids[i - 1], tsr_tokenizer_eos(tokenizer));
    }
    free(ids);
    free(start);
    return b.data;
}

static void test_documents_are_joined_by_eos(void **state) {
    static const char LINES[] = "{\"text\": \"one two\"}\n{\"text\": \"\"}\n{\"text\": \"three\"}\n"
                                "{\"text\": \"four\"}\n";
    char path[TSR_PATH_MAX];
    int n_starts;
    (void)state;
    assert_int_equal(tsr_path_join(path, scratch_dir, "j.jsonl"), 0);
    scratch_write(path, LINES, sizeof LINES - 1);
    struct tsr_dataset_opt opt = option(path, TSR_PART_ALL);
    struct tsr_dataset *d = open_ok(&opt);
    char *all = decoded(d, &n_starts);
    assert_string_equal(all, "one two<|endoftext|>three<|endoftext|>four");
    assert_int_equal(n_starts, 3);
    free(all);
    tsr_dataset_close(d);
}

static void test_text_is_one_document(void **state) {
    int n_starts;
    (void)state;
    scratch_write(text_path, text, n_text);
    struct tsr_dataset_opt opt = option(text_path, TSR_PART_ALL);
    struct tsr_dataset *d = open_ok(&opt);
    char *all = decoded(d, &n_starts);
    assert_int_equal(strlen(all), n_text);
    assert_memory_equal(all, text, n_text);
    assert_int_equal(n_starts, 1);
    free(all);
    tsr_dataset_close(d);
}

// Each part is its runs of the file, joined by EOS.
static void test_parts(void **state) {
    static const char EOS[] = "<|endoftext|>";
    (void)state;
    scratch_write(text_path, text, n_text);
    for (int part = TSR_PART_TRAIN; part <= TSR_PART_HELD_OUT; part++) {
        struct tsr_dataset_opt opt = option(text_path, part);
        struct tsr_dataset *d = open_ok(&opt);
        int n_starts, n_runs = 0;
        char *all = decoded(d, &n_starts), *p = all;
        struct tsr_held_out h;
        size_t k = 0, lo, hi;
        tsr_held_out_init(&h, text, n_text, false);
        for (; tsr_held_out_next(&h, part, &k, &lo, &hi); n_runs++) {
            if (n_runs > 0) {
                assert_memory_equal(p, EOS, sizeof EOS - 1);
                p += sizeof EOS - 1;
            }
            assert_memory_equal(p, text + lo, hi - lo);
            p += hi - lo;
        }
        assert_int_equal(*p, 0);
        assert_int_equal(n_starts, n_runs);
        assert_int_equal(n_runs, part == TSR_PART_TRAIN ? 3 : 2);
        free(all);
        tsr_dataset_close(d);
    }
}

static void test_too_little_to_hold_out(void **state) {
    struct tsr_dataset *d;
    (void)state;
    scratch_write(text_path, "a few words\n", 12);
    struct tsr_dataset_opt opt = option(text_path, TSR_PART_HELD_OUT);
    assert_int_equal(tsr_dataset_prepare(&opt), 0);
    assert_int_equal(tsr_dataset_open(&d, &opt), 0);
    assert_null(d);
    opt = option(text_path, TSR_PART_TRAIN);
    opt.seq_len = 100;
    assert_int_equal(tsr_dataset_prepare(&opt), 0);
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "expected at least 101 tokens"));
}

// Files of the cache whose name has this in it; the last one's path.
static int in_cache(const char *part_of_name, char path[static TSR_PATH_MAX]) {
    int n = 0;
    DIR *d = opendir(cache_dir);
    for (struct dirent *e; d && (e = readdir(d));)
        if (e->d_name[0] != '.' && strstr(e->d_name, part_of_name)) {
            n++;
            assert_int_equal(tsr_path_join(path, cache_dir, e->d_name), 0);
        }
    if (d)
        closedir(d);
    return n;
}

static ino_t inode(const char *path) {
    struct stat st;
    assert_int_equal(stat(path, &st), 0);
    return st.st_ino;
}

static void test_made_once(void **state) {
    char bin[TSR_PATH_MAX], other[TSR_PATH_MAX];
    (void)state;
    assert_int_equal(tsr_remove_tree(cache_dir), 0);
    scratch_write(text_path, text, n_some);
    struct tsr_dataset_opt opt = option(text_path, TSR_PART_ALL);
    tsr_dataset_close(open_ok(&opt));
    assert_int_equal(in_cache("text.txt-all", bin), 3); // .bin, .idx, .stamp
    assert_int_equal(in_cache(".bin", bin), 1);
    ino_t first = inode(bin);
    tsr_dataset_close(open_ok(&opt));
    assert_int_equal(inode(bin), first);

    opt.vocab = 70000; // other ids, or other text: another name
    tsr_dataset_close(open_ok(&opt));
    assert_int_equal(in_cache(".bin", other), 2);
    char *letter = memchr(text, 'h', n_some);
    *letter = 'H';
    scratch_write(text_path, text, n_some);
    *letter = 'h';
    tsr_dataset_close(open_ok(&opt));
    assert_int_equal(in_cache(".bin", other), 3);
    opt = option(text_path, TSR_PART_HELD_OUT);
    tsr_dataset_close(open_ok(&opt));
    assert_int_equal(in_cache("text.txt-held-out", other), 3);
    assert_int_equal(inode(bin), first);
}

static void test_damaged_is_made_again(void **state) {
    static const char *const SUFFIX[] = {".bin", ".idx", ".stamp"};
    int n_starts;
    (void)state;
    scratch_write(text_path, text, n_some);
    struct tsr_dataset_opt opt = option(text_path, TSR_PART_ALL);
    for (int how = 0; how < 9; how++) {
        char path[TSR_PATH_MAX], *bytes;
        size_t n;
        struct timespec pause = {0, 20000000}; // a kernel's clock tick: times must differ
        assert_int_equal(tsr_remove_tree(cache_dir), 0);
        tsr_dataset_close(open_ok(&opt));
        assert_int_equal(in_cache(SUFFIX[how % 3], path), 1);
        assert_int_equal(tsr_read_file(path, 1 << 24, TSR_EDATA, &bytes, &n), 0);
        nanosleep(&pause, NULL);
        if (how / 3 == 0) { // a flipped bit
            bytes[n / 2] ^= 4;
            scratch_write(path, bytes, n);
        } else if (how / 3 == 1) { // cut short
            assert_int_equal(truncate(path, (off_t)n / 2), 0);
        } else {
            assert_int_equal(unlink(path), 0);
        }
        free(bytes);
        struct tsr_dataset *d = open_ok(&opt);
        char *all = decoded(d, &n_starts);
        assert_memory_equal(all, text, n_some);
        free(all);
        tsr_dataset_close(d);
        assert_int_equal(in_cache("", path), 3);
    }
}

static void test_not_prepared(void **state) {
    struct tsr_dataset *d;
    (void)state;
    assert_int_equal(tsr_remove_tree(cache_dir), 0);
    scratch_write(text_path, text, n_some);
    struct tsr_dataset_opt opt = option(text_path, TSR_PART_TRAIN);
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EIO);
    assert_null(d);
    assert_non_null(strstr(tsr_error_text(), "same folder on every host"));
}

// Whatever goes wrong while tokenizing leaves nothing behind that could be taken for a cache.
static void test_failures_leave_nothing(void **state) {
    char path[TSR_PATH_MAX];
    struct rlimit old, small;
    (void)state;
    assert_int_equal(tsr_remove_tree(cache_dir), 0);
    scratch_write(text_path, text, n_some);
    struct tsr_dataset_opt opt = option(text_path, TSR_PART_TRAIN);
    opt.vocab = 100;
    assert_int_equal(tsr_dataset_prepare(&opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "text.txt"));
    assert_non_null(strstr(tsr_error_text(), "but the vocabulary is 100"));
    assert_int_equal(in_cache("", path), 0);

    opt.vocab = 1000;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){1000, old.rlim_max};
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = tsr_dataset_prepare(&opt);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, TSR_EIO);
    assert_int_equal(in_cache("", path), 0);

    scratch_write(text_path, "fine\n\xff", 6);
    opt.part = TSR_PART_ALL;
    assert_int_equal(tsr_dataset_prepare(&opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "text.txt: invalid UTF-8 at byte 5"));
    assert_int_equal(in_cache("", path), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_documents_are_joined_by_eos),
        cmocka_unit_test(test_text_is_one_document),
        cmocka_unit_test(test_parts),
        cmocka_unit_test(test_too_little_to_hold_out),
        cmocka_unit_test(test_made_once),
        cmocka_unit_test(test_damaged_is_made_again),
        cmocka_unit_test(test_not_prepared),
        cmocka_unit_test(test_failures_leave_nothing),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/dataset.h"
#include "core/error.h"
#include "core/mix.h"
#include "tests/unit/scratch.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>

static void test_permutation_is_a_bijection(void **state) {
    static uint8_t seen[70000];
    (void)state;
    for (uint64_t n = 1; n <= 70000; n = n < 70 ? n + 1 : n * 3 / 2 + 1) {
        memset(seen, 0, sizeof seen);
        for (uint64_t i = 0; i < n; i++) {
            uint64_t j = tsr_permute(i, n, 1234567, n % 5);
            assert_true(j < n);
            assert_int_equal(seen[j]++, 0);
            assert_true(j == tsr_permute(i, n, 1234567, n % 5)); // no state
        }
    }
    uint64_t n = UINT64_C(1) << 63; // beyond 32 bits, too
    for (uint64_t i = 0; i < 100; i++) {
        assert_true(tsr_permute(n - 1 - i, n, 5, 6) < n);
        assert_true(tsr_permute(i, n + 7, 5, 6) < n + 7);
    }
}

// Over many seeds each index goes to each place equally often, and neighbours part. 6 degrees of
// freedom: a chi-square above 35 has a probability of 4e-6 for a fair shuffle; seeds are fixed.
static void test_permutation_is_even(void **state) {
    enum { N = 7, SEEDS = 7000 };
    int count[N][N] = {0}, neighbours = 0;
    (void)state;
    for (uint64_t seed = 0; seed < SEEDS; seed++)
        for (uint64_t i = 0; i < N; i++)
            count[i][tsr_permute(i, N, seed, 3)]++;
    for (int i = 0; i < N; i++) {
        double chi2 = 0, mean = (double)SEEDS / N;
        for (int j = 0; j < N; j++)
            chi2 += (count[i][j] - mean) * (count[i][j] - mean) / mean;
        assert_true(chi2 < 35);
    }
    for (uint64_t i = 0; i + 1 < 10000; i++)
        neighbours += tsr_permute(i, 10000, 9, 0) + 1 == tsr_permute(i + 1, 10000, 9, 0);
    assert_true(neighbours <= 8); // 1 is expected
}

static void test_permutation_depends_on_everything(void **state) {
    int same_seed = 0, same_epoch = 0, same_high = 0;
    (void)state;
    for (uint64_t i = 0; i < 1000; i++) {
        uint64_t j = tsr_permute(i, 1000, 1, 1);
        same_seed += j == tsr_permute(i, 1000, 2, 1);
        same_epoch += j == tsr_permute(i, 1000, 1, 2);
        same_high += j == tsr_permute(i, 1000, 1 + (UINT64_C(1) << 32), 1);
    }
    assert_true(same_seed < 12 && same_epoch < 12 && same_high < 12); // 1 is expected
}

// `period` 0: none fits, and shares are within a pick; -1: tiny weights took a pick of others.
static void check_mix(const double *weights, int n, int64_t period) {
    struct tsr_mix m;
    int64_t count[8] = {0};
    long double sum = 0; // twice 1e308 is beyond double
    assert_int_equal(tsr_mix_init(&m, weights, n), 0);
    for (int s = 0; s < n; s++)
        sum += weights[s];
    if (period > 0)
        assert_int_equal(m.P, period);
    for (uint64_t g = 0; g < 2 * (uint64_t)m.P; g++) {
        struct tsr_pick p = tsr_mix_at(&m, g);
        assert_true(p.source >= 0 && p.source < n);
        assert_int_equal(p.index, count[p.source]); // each source counts its own picks
        count[p.source]++;
        for (int s = 0; s < n; s++) { // every stretch from the start is near the weights
            double share = (double)m.c[s] / (double)m.P * (double)(g + 1);
            assert_true(fabs((double)count[s] - share) < n);
        }
    }
    for (int s = 0; s < n; s++) {
        assert_int_equal(count[s], 2 * m.c[s]);
        double off = (double)m.c[s] - (double)(weights[s] / sum) * (double)m.P;
        assert_true(fabs(off) < (period > 0 ? 1e-5 : period == 0 ? 1 : n));
    }
    uint64_t far = UINT64_C(1) << 40; // any place is reached at once
    struct tsr_pick p = tsr_mix_at(&m, far);
    assert_int_equal(p.index, far / (uint64_t)m.P * (uint64_t)m.c[p.source] +
                                  tsr_mix_at(&m, far % (uint64_t)m.P).index);
    tsr_mix_free(&m);
}

static void test_mix(void **state) {
    (void)state;
    check_mix((double[]){3}, 1, 1);
    check_mix((double[]){1, 1}, 2, 2);
    check_mix((double[]){0.7, 0.3}, 2, 10);
    check_mix((double[]){0.1, 0.2, 0.7}, 3, 10);
    check_mix((double[]){70, 30}, 2, 10);
    check_mix((double[]){0.333, 0.667}, 2, 1000);
    check_mix((double[]){1, 2, 3, 4, 5, 6, 7, 8}, 8, 36);
    check_mix((double[]){3.14159265358979, 2.71828182845905}, 2, 0);
    check_mix((double[]){1e-9, 1, 1e-9, 2}, 4, -1); // nobody is left out
    check_mix((double[]){1e308, 1e308, 1e-300}, 3, -1);
    check_mix((double[]){1e300, 1e-300, 1e-300, 1e-300, 1e-300}, 5, -1);
}

// Writes documents of the lengths given (0 ends the list); token i is first + i.
static const char *make_bin(const char *name, int32_t first, const int *lengths, int64_t vocab) {
    struct tsr_indexed_writer *w;
    int32_t ids[4096];
    const char *prefix = scratch(name);
    assert_int_equal(tsr_indexed_create(&w, prefix, vocab), 0);
    for (; *lengths; lengths++) {
        for (int i = 0; i < *lengths; i++)
            ids[i] = first++;
        assert_int_equal(tsr_indexed_add_document(w, ids, *lengths), 0);
    }
    assert_int_equal(tsr_indexed_finish(w), 0);
    return prefix;
}

static struct tsr_dataset_opt option(struct tsr_sources *sources, int64_t T, bool shuffle) {
    static char cache[TSR_PATH_MAX];
    assert_int_equal(tsr_path_join(cache, scratch_dir, "cache"), 0);
    return (struct tsr_dataset_opt){.sources = sources,
                                    .cache_dir = cache,
                                    .vocab = 60000,
                                    .seq_len = T,
                                    .shuffle = shuffle,
                                    .seed = 42,
                                    .part = TSR_PART_TRAIN};
}

static void path_of(struct tsr_source *s, const char *path, double weight) {
    s->path = (char *)(uintptr_t)path;
    s->weight = weight;
}

static struct tsr_dataset *open_ok(const struct tsr_dataset_opt *opt) {
    struct tsr_dataset *d;
    assert_int_equal(tsr_dataset_prepare(opt), 0);
    assert_int_equal(tsr_dataset_open(&d, opt), 0);
    assert_non_null(d);
    return d;
}

static void test_epochs_unshuffled(void **state) {
    struct tsr_source s;
    struct tsr_sources sources = {&s, 1};
    int32_t ids[65];
    uint8_t start[65];
    (void)state;
    path_of(&s, make_bin("e", 0, (int[]){40, 50, 10, 0}, 60000), 1);
    for (int64_t T = 1; T <= 64; T++) {
        struct tsr_dataset_opt opt = option(&sources, T, false);
        struct tsr_dataset *d = open_ok(&opt);
        uint64_t n = (uint64_t)(99 / T);
        assert_int_equal(tsr_dataset_n_tokens(d), 100);
        assert_int_equal(tsr_dataset_n_sequences(d), n);
        for (uint64_t g = 0; g < 2 * n + 1; g++) {
            assert_int_equal(tsr_dataset_sequence(d, g, ids, start), 0);
            for (int64_t i = 0; i <= T; i++) {
                int64_t at = (int64_t)(g % n) * T + i;
                assert_int_equal(ids[i], at);
                assert_int_equal(start[i], at == 0 || at == 40 || at == 90);
            }
        }
        tsr_dataset_close(d);
    }
}

static void test_named_by_either_file(void **state) {
    struct tsr_source s;
    struct tsr_sources sources = {&s, 1};
    char path[TSR_PATH_MAX + 8];
    int32_t ids[5];
    (void)state;
    const char *prefix = make_bin("named.v2", 7, (int[]){9, 0}, 60000);
    static const char *const SUFFIX[] = {"", ".bin", ".idx"};
    for (int i = 0; i < 3; i++) {
        snprintf(path, sizeof path, "%s%s", prefix, SUFFIX[i]);
        path_of(&s, path, 1);
        struct tsr_dataset_opt opt = option(&sources, 4, false);
        struct tsr_dataset *d = open_ok(&opt);
        assert_int_equal(tsr_dataset_read(d, 4, 5, ids, NULL), 0);
        assert_int_equal(ids[4], 15);
        tsr_dataset_close(d);
    }
}

static void test_shuffled_epochs(void **state) {
    enum { T = 4, N = 101, EPOCHS = 3 };
    struct tsr_source s;
    struct tsr_sources sources = {&s, 1};
    int32_t ids[T + 1], order[EPOCHS * (N - 1) / T];
    (void)state;
    path_of(&s, make_bin("s", 0, (int[]){N, 0}, 60000), 1);
    struct tsr_dataset_opt opt = option(&sources, T, true);
    struct tsr_dataset *d = open_ok(&opt);
    int n = (int)tsr_dataset_n_sequences(d), differ = 0;
    assert_int_equal(n, 25);
    for (int e = 0; e < EPOCHS; e++) {
        bool seen[25] = {0};
        for (int i = 0; i < n; i++) {
            assert_int_equal(tsr_dataset_sequence(d, (uint64_t)(e * n + i), ids, NULL), 0);
            assert_int_equal(ids[0] % T, 0);
            for (int t = 0; t <= T; t++)
                assert_int_equal(ids[t], ids[0] + t);
            order[e * n + i] = ids[0] / T;
            assert_int_equal(order[e * n + i],
                             tsr_permute((uint64_t)i, (uint64_t)n, 42, (uint64_t)e));
            assert_false(seen[ids[0] / T]); // each sequence once an epoch
            seen[ids[0] / T] = true;
            differ += e > 0 && order[i] != order[e * n + i];
        }
    }
    assert_true(differ > n);                       // another order each time
    for (int g = EPOCHS * n - 1; g >= 0; g -= 7) { // seeking equals walking
        assert_int_equal(tsr_dataset_sequence(d, (uint64_t)g, ids, NULL), 0);
        assert_int_equal(ids[0] / T, order[g]);
    }
    tsr_dataset_close(d);
}

static void test_weighted_sources(void **state) {
    enum { T = 8 };
    struct tsr_source s[3];
    struct tsr_sources sources = {s, 3};
    int32_t ids[T + 1], again[T + 1], count[3] = {0}, n_of[3] = {12, 2, 25};
    bool seen[3][32] = {{0}};
    (void)state;
    path_of(&s[0], make_bin("w0", 0, (int[]){100, 0}, 60000), 0.2);
    path_of(&s[1], make_bin("w1", 10000, (int[]){20, 0}, 60000), 0.5);
    path_of(&s[2], make_bin("w2", 20000, (int[]){202, 0}, 60000), 0.3);
    struct tsr_dataset_opt opt = option(&sources, T, true);
    struct tsr_dataset *d = open_ok(&opt), *other = open_ok(&opt);
    assert_int_equal(tsr_dataset_n_sequences(d), 12 + 2 + 25);
    assert_int_equal(tsr_dataset_n_tokens(d), 322);
    for (uint64_t g = 0; g < 1000; g++) {
        assert_int_equal(tsr_dataset_sequence(d, g, ids, NULL), 0);
        int from = ids[0] / 10000, i = ids[0] % 10000 / T;
        // Each source goes through all of its sequences before it repeats one.
        if (count[from] % n_of[from] == 0)
            memset(seen[from], 0, sizeof seen[from]);
        assert_false(seen[from][i]);
        seen[from][i] = true;
        count[from]++;
    }
    assert_int_equal(count[0], 200);
    assert_int_equal(count[1], 500);
    assert_int_equal(count[2], 300);
    for (uint64_t g = 999; g < 1000; g -= 13) { // another reader, from the end
        assert_int_equal(tsr_dataset_sequence(d, g, ids, NULL), 0);
        assert_int_equal(tsr_dataset_sequence(other, g, again, NULL), 0);
        assert_memory_equal(ids, again, sizeof ids);
    }
    tsr_dataset_close(d);
    tsr_dataset_close(other);
}

static void test_too_short(void **state) {
    struct tsr_source s[2];
    struct tsr_sources sources = {s, 1};
    struct tsr_dataset *d;
    (void)state;
    path_of(&s[0], make_bin("short", 0, (int[]){5, 3, 0}, 60000), 1);
    path_of(&s[1], make_bin("fine", 0, (int[]){50, 0}, 60000), 1);
    struct tsr_dataset_opt opt = option(&sources, 7, false);
    d = open_ok(&opt);
    assert_int_equal(tsr_dataset_n_sequences(d), 1);
    tsr_dataset_close(d);
    opt.seq_len = 8;
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "expected at least 9 tokens"));
    assert_non_null(strstr(tsr_error_text(), "found 8"));
    sources.n = 2; // its share could not be kept
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "short"));
    make_bin("short", 0, (int[]){0}, 60000);
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "found 0"));
}

static void test_nothing_held_out_of_tokens(void **state) {
    struct tsr_source s;
    struct tsr_sources sources = {&s, 1};
    struct tsr_dataset *d = (struct tsr_dataset *)&s;
    (void)state;
    path_of(&s, make_bin("h", 0, (int[]){50, 0}, 60000), 1);
    struct tsr_dataset_opt opt = option(&sources, 7, false);
    opt.part = TSR_PART_HELD_OUT;
    assert_int_equal(tsr_dataset_prepare(&opt), 0);
    assert_int_equal(tsr_dataset_open(&d, &opt), 0);
    assert_null(d);
}

static void test_ids_beyond_the_vocabulary(void **state) {
    struct tsr_source s;
    struct tsr_sources sources = {&s, 1};
    struct tsr_dataset *d;
    int32_t ids[8];
    (void)state;
    path_of(&s, make_bin("v", 0, (int[]){50, 0}, 60000), 1);
    struct tsr_dataset_opt opt = option(&sources, 7, false);
    for (int i = 0; i < 2; i++) { // the second time its stamp is there: of the right vocabulary
        opt.vocab = 50;
        assert_int_equal(tsr_dataset_prepare(&opt), 0);
        opt.vocab = 49;
        assert_int_equal(tsr_dataset_prepare(&opt), TSR_EDATA);
        assert_non_null(
            strstr(tsr_error_text(), "v.bin: position 49: token id 49, but the vocabulary is 49"));
    }
    assert_int_equal(tsr_dataset_open(&d, &opt), 0); // nobody prepared: found when it is read
    assert_int_equal(tsr_dataset_sequence(d, 0, ids, NULL), 0);
    assert_int_equal(tsr_dataset_sequence(d, 6, ids, NULL), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "position 49"));
    tsr_dataset_close(d);
    opt.cache_dir = NULL; // no place for stamps
    assert_int_equal(tsr_dataset_prepare(&opt), TSR_EDATA);
    opt.vocab = 50;
    assert_int_equal(tsr_dataset_prepare(&opt), 0);
}

static void test_wrong_sources(void **state) {
    struct tsr_source s;
    struct tsr_sources sources = {&s, 1};
    struct tsr_dataset *d;
    (void)state;
    struct tsr_dataset_opt opt = option(&sources, 7, false);
    path_of(&s, scratch("nothing"), 1);
    assert_int_equal(tsr_dataset_prepare(&opt), TSR_EDATA);
    assert_non_null(strstr(tsr_error_text(), "nothing"));
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
    path_of(&s, scratch("nothing.bin"), 1);
    assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
    path_of(&s, make_bin("ok", 0, (int[]){50, 0}, 60000), 1);
    static const double WEIGHTS[] = {0, -1, INFINITY, NAN};
    for (int i = 0; i < 4; i++) {
        s.weight = WEIGHTS[i];
        assert_int_equal(tsr_dataset_open(&d, &opt), TSR_EDATA);
        assert_non_null(strstr(tsr_error_text(), "weight"));
    }
    scratch_write(scratch("t.txt"), "text", 4);
    path_of(&s, scratch("t.txt"), 1);
    assert_int_equal(tsr_dataset_prepare(&opt), TSR_ECONFIG); // no tokenizer
    assert_non_null(strstr(tsr_error_text(), "model.tokenizer"));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_permutation_is_a_bijection),
        cmocka_unit_test(test_permutation_is_even),
        cmocka_unit_test(test_permutation_depends_on_everything),
        cmocka_unit_test(test_mix),
        cmocka_unit_test(test_epochs_unshuffled),
        cmocka_unit_test(test_named_by_either_file),
        cmocka_unit_test(test_shuffled_epochs),
        cmocka_unit_test(test_weighted_sources),
        cmocka_unit_test(test_too_short),
        cmocka_unit_test(test_nothing_held_out_of_tokens),
        cmocka_unit_test(test_ids_beyond_the_vocabulary),
        cmocka_unit_test(test_wrong_sources),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

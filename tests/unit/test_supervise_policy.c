// What the supervisor does after an end, which layout it takes, and what it keeps off the terminal.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "launcher/supervise_output.h"
#include "launcher/supervise_policy.h"

static struct tsr_policy policy(int64_t restarts, int n_elastic, struct tsr_layout3 *elastic) {
    struct tsr_run r = {0};
    struct tsr_policy p;
    r.parallel.tp = 2;
    r.parallel.pp = 2;
    r.parallel.dp = 1;
    r.parallel.elastic = (struct tsr_layouts){elastic, n_elastic};
    r.supervise.restarts = restarts;
    assert_int_equal(tsr_policy_init(&p, &r, 0), 0);
    return p;
}

static struct tsr_verdict after(struct tsr_policy *p, int code, int64_t committed) {
    const struct tsr_end e = {code, false, true, committed};
    return tsr_policy_after(p, &e);
}

static void test_final(void **state) {
    (void)state;
    static const int codes[] = {0, 2, 3, 5};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++)
        for (int stopping = 0; stopping < 2; stopping++) {
            struct tsr_policy p = policy(10, 0, NULL);
            struct tsr_end e = {codes[i], stopping, true, 0};
            struct tsr_verdict v = tsr_policy_after(&p, &e);
            assert_false(v.restart);
            assert_int_equal(v.exit_code, codes[i]);
        }
}

static void test_tried_again(void **state) {
    (void)state;
    static const int codes[] = {4, 1, 127, 137, 139, 143, 255};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        struct tsr_policy p = policy(10, 0, NULL);
        assert_true(after(&p, codes[i], 0).restart);
        p = policy(0, 0, NULL);
        struct tsr_verdict v = after(&p, codes[i], 0);
        assert_false(v.restart);
        assert_int_equal(v.exit_code, 4);
        p = policy(10, 0, NULL);
        struct tsr_end e = {codes[i], true, true, 0}; // the user asked for the end
        v = tsr_policy_after(&p, &e);
        assert_false(v.restart);
        assert_int_equal(v.exit_code, 4);
    }
}

static void test_delays(void **state) {
    (void)state;
    static const double expected[] = {0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30.0, 30.0};
    struct tsr_policy p = policy(10, 0, NULL);
    for (int round = 0; round < 2; round++) { // progress begins it anew
        for (int i = 0; i < 10; i++) {
            struct tsr_verdict v = after(&p, 137, 7 * round);
            assert_true(v.restart);
            assert_true(v.delay_s > 0.999 * expected[i] && v.delay_s < 1.001 * expected[i]);
        }
    }
    struct tsr_verdict v = after(&p, 137, 7);
    assert_false(v.restart);
    assert_int_equal(v.exit_code, 4);
}

static void test_in_vain(void **state) {
    (void)state;
    struct tsr_policy p = policy(10, 0, NULL);
    const struct tsr_end e = {255, false, false, 0};
    for (int i = 0; i < TSR_VAIN_RESTARTS; i++)
        assert_true(tsr_policy_after(&p, &e).restart);
    struct tsr_verdict v = tsr_policy_after(&p, &e);
    assert_false(v.restart);
    assert_int_equal(v.exit_code, 4);
    p = policy(10, 0, NULL); // once they came up, it may have been a passing trouble
    assert_true(after(&p, 137, 0).restart);
    for (int i = 0; i < 9; i++)
        assert_true(tsr_policy_after(&p, &e).restart);
    assert_false(tsr_policy_after(&p, &e).restart);
}

static void test_bug_once(void **state) {
    (void)state;
    struct tsr_policy p = policy(10, 0, NULL);
    assert_true(after(&p, 70, 0).restart);
    assert_true(after(&p, 137, 0).restart);
    struct tsr_verdict v = after(&p, 70, 0);
    assert_false(v.restart);
    assert_int_equal(v.exit_code, 70);
    p = policy(10, 0, NULL);
    assert_true(after(&p, 70, 0).restart);
    assert_true(after(&p, 70, 5).restart); // there was progress
    assert_false(after(&p, 70, 5).restart);
    p = policy(0, 0, NULL);
    assert_int_equal(after(&p, 70, 0).exit_code, 70);
}

static void test_layouts(void **state) {
    (void)state;
    struct tsr_layout3 elastic[] = {{1, 1, 4}, {2, 1, 1}, {1, 1, 1}};
    struct tsr_policy p = policy(100, 3, elastic);
    assert_int_equal(tsr_policy_choose(&p, INT64_MAX), 0);
    assert_int_equal(tsr_policy_choose(&p, 4), 0);
    assert_int_equal(tsr_policy_choose(&p, 3), 2); // two hosts' worth of ranks is lost
    assert_int_equal(tsr_policy_choose(&p, 1), 3);
    assert_int_equal(tsr_policy_choose(&p, 0), -1);
    assert_int_equal(tsr_policy_choose(&p, 4), 0); // and they are back

    // Twice in a row without progress: the next one. Then all of them, then again from the first.
    static const int order[] = {0, 0, 1, 1, 2, 2, 3, 3, 0};
    for (size_t i = 0; i < sizeof order / sizeof *order; i++) {
        assert_int_equal(tsr_policy_choose(&p, INT64_MAX), order[i]);
        assert_true(after(&p, 137, 0).restart);
    }
    // Progress: the first is preferred again, and has two tries.
    assert_int_equal(tsr_policy_choose(&p, INT64_MAX), 0);
    assert_true(after(&p, 4, 10).restart);
    assert_int_equal(tsr_policy_choose(&p, INT64_MAX), 0);
    assert_true(after(&p, 4, 10).restart);
    assert_int_equal(tsr_policy_choose(&p, INT64_MAX), 1);
    assert_true(after(&p, 4, 20).restart);
    assert_int_equal(tsr_policy_choose(&p, INT64_MAX), 0);
}

static void test_init(void **state) {
    (void)state;
    struct tsr_run r = {0};
    struct tsr_policy p;
    struct tsr_layout3 many[TSR_MAX_LAYOUTS];
    for (int i = 0; i < TSR_MAX_LAYOUTS; i++)
        many[i] = (struct tsr_layout3){1, 1, 1};
    r.parallel.tp = r.parallel.pp = 3;
    r.parallel.elastic = (struct tsr_layouts){many, TSR_MAX_LAYOUTS};
    assert_int_equal(tsr_policy_init(&p, &r, 0), TSR_ECONFIG);
    r.parallel.elastic.n--;
    assert_int_equal(tsr_policy_init(&p, &r, 0), 0);
    assert_int_equal(p.n_layouts, TSR_MAX_LAYOUTS);
    assert_int_equal(tsr_layout_ranks(&p.layouts[0]), 9); // dp not given: 1
}

// ---- the filter

#define DASHES "--------------------------------------------------------------------------\n"
#define NOTICE                                                                                     \
    DASHES "mpirun noticed that process rank 1 with PID 0 on node vm exited on signal 9 "          \
           "(Killed).\n" DASHES
#define ABORTED                                                                                    \
    DASHES "Primary job  terminated normally, but 1 process returned\n"                            \
           "a non-zero exit code. Per user-direction, the job has been aborted.\n" DASHES
#define HELP  "[vm:123] 1 more process has sent help message help-mpi-api.txt / mpi-abort\n"
#define SLOTS DASHES "There are not enough slots available in the system.\n" DASHES

// Feeds the text in pieces of `piece` bytes at one instant, and ends it.
static void assert_filtered(const char *text, size_t piece, const char *passed,
                            const char *dropped) {
    struct tsr_noise f = {0};
    struct tsr_buf out = {0}, noise = {0};
    size_t n = strlen(text);
    for (size_t at = 0; at < n; at += piece)
        assert_int_equal(
            tsr_noise_feed(&f, text + at, n - at < piece ? n - at : piece, 1.0, &out, &noise), 0);
    assert_int_equal(tsr_noise_flush(&f, 1.0, true, &out, &noise), 0);
    assert_string_equal(out.data ? out.data : "", passed);
    assert_string_equal(noise.data ? noise.data : "", dropped);
    tsr_buf_free(&out);
    tsr_buf_free(&noise);
    tsr_noise_free(&f);
}

static void test_filter(void **state) {
    (void)state;
    static const char *const cases[][3] = {
        {"a line\n", "a line\n", ""},
        {"no newline", "no newline", ""},
        {NOTICE, "", NOTICE},
        {ABORTED NOTICE, "", ABORTED NOTICE},
        {"before\n" ABORTED "between\n" NOTICE "after", "before\nbetween\nafter", ABORTED NOTICE},
        {HELP "[vm:9] a rank's own line\n", "[vm:9] a rank's own line\n", HELP},
        {SLOTS, SLOTS, ""}, // why a start failed is for the user
        {DASHES "a table of the user\n", DASHES "a table of the user\n", ""},
        {"--- three dashes\n", "--- three dashes\n", ""},
        {"-" DASHES "x\n", "-" DASHES "x\n", ""},
        {"-" NOTICE, "-" NOTICE, ""},         // a line of 75 dashes is somebody else's
        {"text " NOTICE, "text " NOTICE, ""}, // in the middle of a line it is nobody's paragraph
        {DASHES, DASHES, ""},
        {"\r 10% [===", "\r 10% [===", ""},
        {"\r 10%\033[K\r" NOTICE "x", "\r 10%\033[K\rx", NOTICE}, // a bar is no line
        {"", "", ""},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++)
        for (size_t piece = 1; piece < 200; piece += piece < 3 ? 1 : 47)
            assert_filtered(cases[i][0], piece, cases[i][1], cases[i][2]);
}

static void test_filter_is_prompt(void **state) {
    (void)state;
    struct tsr_noise f = {0};
    struct tsr_buf out = {0}, noise = {0};
    assert_int_equal(tsr_noise_feed(&f, "10%", 3, 1.0, &out, &noise), 0);
    assert_string_equal(out.data, "10%"); // at once, although the line isn't complete
    assert_int_equal(tsr_noise_feed(&f, "\n---", 4, 1.0, &out, &noise), 0);
    assert_string_equal(out.data, "10%\n");
    assert_int_equal(tsr_noise_flush(&f, 1.1, false, &out, &noise), 0);
    assert_string_equal(out.data, "10%\n");
    assert_int_equal(tsr_noise_flush(&f, 1.5, false, &out, &noise), 0);
    assert_string_equal(out.data, "10%\n---");
    tsr_buf_free(&out);
    tsr_buf_free(&noise);
    tsr_noise_free(&f);
}

// What never ends is not held back for ever.
static void test_filter_is_bounded(void **state) {
    (void)state;
    size_t n = 3 * TSR_NOISE_BYTES;
    char *text = malloc(n + 1);
    assert_non_null(text);
    memcpy(text, DASHES, sizeof DASHES - 1);
    for (size_t i = sizeof DASHES - 1; i < n; i++)
        text[i] = i % 60 == 0 ? '\n' : 'x';
    text[n] = 0;
    struct tsr_noise f = {0};
    struct tsr_buf out = {0}, noise = {0};
    for (size_t at = 0; at < n; at += 1000) {
        assert_int_equal(
            tsr_noise_feed(&f, text + at, n - at < 1000 ? n - at : 1000, 1.0, &out, &noise), 0);
        assert_true(f.held.len < TSR_NOISE_BYTES);
    }
    assert_int_equal(tsr_noise_flush(&f, 1.0, true, &out, &noise), 0);
    assert_string_equal(out.data, text);
    free(text);
    tsr_buf_free(&out);
    tsr_buf_free(&noise);
    tsr_noise_free(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_final),
        cmocka_unit_test(test_tried_again),
        cmocka_unit_test(test_delays),
        cmocka_unit_test(test_in_vain),
        cmocka_unit_test(test_bug_once),
        cmocka_unit_test(test_layouts),
        cmocka_unit_test(test_init),
        cmocka_unit_test(test_filter),
        cmocka_unit_test(test_filter_is_prompt),
        cmocka_unit_test(test_filter_is_bounded),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

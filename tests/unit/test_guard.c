// Which steps are bad, and what is done about them (core/guard.h).
#include <math.h>
#include "core/guard.h"
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <cmocka.h>

static struct tsr_run run; // only its train section is read

static struct tsr_guard *fresh(int64_t window, double norm_factor, double loss_factor) {
    static struct tsr_guard g;
    g = (struct tsr_guard){0};
    run = (struct tsr_run){0};
    run.train.max_skips = 3;
    run.train.spike.window = window;
    run.train.spike.grad_norm = norm_factor;
    run.train.spike.loss = loss_factor;
    return &g;
}

static struct tsr_judgement judge(const struct tsr_guard *g, double loss, double norm) {
    return tsr_guard_judge(g, &run, loss, norm);
}

// A step as the trainer takes it; returns its kind.
static enum tsr_step_kind take(struct tsr_guard *g, double loss, double norm) {
    struct tsr_judgement j = judge(g, loss, norm);
    tsr_guard_count(g, &run, &j);
    return j.kind;
}

static void test_not_finite(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(4, 0, 0);
    const double bad[] = {NAN, -NAN, INFINITY, -INFINITY};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_int_equal(judge(g, bad[i], 1).kind, TSR_STEP_NOT_FINITE);
        assert_int_equal(judge(g, 1, bad[i]).kind, TSR_STEP_NOT_FINITE);
    }
    assert_int_equal(judge(g, 0, 0).kind, TSR_STEP_GOOD);
    assert_int_equal(judge(g, 1e300, 1e300).kind, TSR_STEP_GOOD);
    run.train.on_nonfinite = TSR_ON_BAD_ROLLBACK;
    run.train.spike.action = TSR_ON_BAD_STOP;
    assert_int_equal(judge(g, NAN, 1).action, TSR_ON_BAD_ROLLBACK);
}

// Nothing is a spike before the window is full, and while the factor is 0.
static void test_window(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(3, 2, 0);
    assert_int_equal(take(g, 1, 1), TSR_STEP_GOOD);
    assert_int_equal(take(g, 1, 100), TSR_STEP_GOOD);
    assert_int_equal(take(g, 1, 1000), TSR_STEP_GOOD);
    assert_int_equal(g->n, 3); // 1 100 1000: the median is 100
    assert_int_equal(judge(g, 1, 200).kind, TSR_STEP_GOOD);
    struct tsr_judgement j = judge(g, 1, 200.1);
    assert_int_equal(j.kind, TSR_STEP_NORM_SPIKE);
    assert_true(j.median == 100 && j.factor == 2);
    assert_int_equal(take(g, 1, 1), TSR_STEP_GOOD); // 100 1000 1
    assert_int_equal(take(g, 1, 1), TSR_STEP_GOOD); // 1000 1 1: the oldest have gone
    assert_int_equal(g->n, 3);
    assert_true(g->grad_norm[0] == 1000 && g->grad_norm[2] == 1);
    assert_int_equal(judge(g, 1, 3).kind, TSR_STEP_NORM_SPIKE);
    assert_int_equal(judge(g, 1e6, 1).kind, TSR_STEP_GOOD); // the loss isn't asked
    run.train.spike.grad_norm = 0;
    assert_int_equal(judge(g, 1, 3).kind, TSR_STEP_GOOD);
}

// Of an even number of steps: the mean of the middle two.
static void test_even_median(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(4, 0, 1.5);
    const double losses[] = {4, 1, 2, 8};
    for (int i = 0; i < 4; i++)
        take(g, losses[i], 1);
    assert_int_equal(judge(g, 4.5, 1).kind, TSR_STEP_GOOD);
    struct tsr_judgement j = judge(g, 4.51, 1);
    assert_int_equal(j.kind, TSR_STEP_LOSS_SPIKE);
    assert_true(j.median == 3);
    run.train.spike.grad_norm = 2; // asked first
    assert_int_equal(judge(g, 4.51, 2.5).kind, TSR_STEP_NORM_SPIKE);
}

// What is bad never enters the window; whether it is skipped in a row is counted.
static void test_count(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(2, 2, 0);
    take(g, 1, 1);
    take(g, 1, 1);
    assert_int_equal(take(g, 1, 9), TSR_STEP_NORM_SPIKE);
    assert_int_equal(take(g, NAN, 1), TSR_STEP_NOT_FINITE);
    assert_int_equal(g->skips, 2);
    assert_int_equal(g->n, 2);
    assert_true(g->grad_norm[0] == 1 && g->grad_norm[1] == 1);
    assert_int_equal(take(g, 1, 2), TSR_STEP_GOOD);
    assert_int_equal(g->skips, 0);
}

static void test_limit(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(2, 2, 0);
    for (int i = 0; i < 3; i++) {
        struct tsr_judgement j = judge(g, NAN, 1);
        assert_false(j.worn_out);
        assert_int_equal(j.in_a_row, i);
        tsr_guard_count(g, &run, &j);
    }
    assert_true(judge(g, NAN, 1).worn_out);
    assert_false(judge(g, 1, 1).worn_out);
    run.train.on_nonfinite = TSR_ON_BAD_ROLLBACK; // has a count of its own
    assert_false(judge(g, NAN, 1).worn_out);
    g->retries = 2;
    assert_false(judge(g, NAN, 1).worn_out);
    g->retries = 3;
    assert_true(judge(g, NAN, 1).worn_out);
    run.train.on_nonfinite = TSR_ON_BAD_STOP;
    assert_false(judge(g, NAN, 1).worn_out);
    g = fresh(2, 2, 0);
    run.train.max_skips = 0;
    assert_true(judge(g, NAN, 1).worn_out);
}

// A resumed run may have another window: of a longer history the newest count, a shorter one isn't
// enough.
static void test_other_window(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(5, 2, 0);
    const double norms[] = {100, 100, 100, 1, 1};
    for (int i = 0; i < 5; i++)
        take(g, 1, norms[i]);
    assert_int_equal(judge(g, 1, 3).kind, TSR_STEP_GOOD);
    run.train.spike.window = 2;
    assert_int_equal(judge(g, 1, 3).kind, TSR_STEP_NORM_SPIKE);
    take(g, 1, 2);
    assert_int_equal(g->n, 2);
    assert_true(g->grad_norm[0] == 1 && g->grad_norm[1] == 2);
    run.train.spike.window = 3;
    assert_int_equal(judge(g, 1, 1e9).kind, TSR_STEP_GOOD);
}

// The largest window, and numbers that don't fit in fp32 or leave no measure.
static void test_extremes(void **state) {
    (void)state;
    struct tsr_guard *g = fresh(TSR_GUARD_WINDOW, 2, 2);
    for (int i = 0; i < 3 * TSR_GUARD_WINDOW; i++)
        assert_int_equal(take(g, 1, 1 + (i % 7) * 0.01), TSR_STEP_GOOD);
    assert_int_equal(g->n, TSR_GUARD_WINDOW);
    assert_int_equal(judge(g, 1, 2.2).kind, TSR_STEP_NORM_SPIKE);
    g = fresh(0, 2, 2); // a run that wasn't read from a file
    assert_int_equal(take(g, 1, 1), TSR_STEP_GOOD);
    assert_int_equal(take(g, 1, 1e9), TSR_STEP_GOOD);
    assert_int_equal(g->n, 0);
    g = fresh(1, 2, 0);
    take(g, 1, 1e200);
    assert_true(isfinite(g->grad_norm[0]));
    assert_int_equal(judge(g, 1, 1e250).kind, TSR_STEP_GOOD);
    g = fresh(1, 2, 2);
    take(g, 0, 0); // no measure of anything
    assert_int_equal(judge(g, 1, 1).kind, TSR_STEP_GOOD);
}

static void test_may_roll_back(void **state) {
    (void)state;
    fresh(4, 0, 0);
    assert_false(tsr_guard_may_roll_back(&run));
    run.train.spike.action = TSR_ON_BAD_ROLLBACK; // but no spikes are looked for
    assert_false(tsr_guard_may_roll_back(&run));
    run.train.spike.loss = 2;
    assert_true(tsr_guard_may_roll_back(&run));
    fresh(4, 0, 0);
    run.train.on_nonfinite = TSR_ON_BAD_ROLLBACK;
    assert_true(tsr_guard_may_roll_back(&run));
}

static void test_describe(void **state) {
    (void)state;
    char text[TSR_GUARD_TEXT];
    struct tsr_guard *g = fresh(1, 5, 1.5);
    take(g, 2, 1.5);
    struct tsr_judgement j = judge(g, 2.25, 50);
    tsr_guard_describe(text, &j, 14);
    assert_string_equal(text, "step 14: loss 2.25, gradient norm 50: the norm is more than 5 x "
                              "1.5, the median of the last 1 good steps");
    j = judge(g, 3.25, 2);
    tsr_guard_describe(text, &j, 7);
    assert_string_equal(text, "step 7: loss 3.25, gradient norm 2: the loss is more than 1.5 x 2, "
                              "the median of the last 1 good steps");
    j = judge(g, -NAN, INFINITY);
    tsr_guard_describe(text, &j, INT64_MAX);
    assert_string_equal(text, "step 9223372036854775807: loss nan, gradient norm inf: not finite");
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_not_finite),  cmocka_unit_test(test_window),
        cmocka_unit_test(test_even_median), cmocka_unit_test(test_count),
        cmocka_unit_test(test_limit),       cmocka_unit_test(test_other_window),
        cmocka_unit_test(test_extremes),    cmocka_unit_test(test_may_roll_back),
        cmocka_unit_test(test_describe),
    };
    return cmocka_run_group_tests_name("guard", tests, NULL, NULL);
}

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <math.h>
#include "core/run.h"

static struct tsr_run with(int schedule, int64_t steps, int64_t warmup, int64_t decay) {
    struct tsr_run r = {0};
    r.train.schedule = schedule;
    r.train.steps = steps;
    r.train.warmup = warmup;
    r.train.decay = decay;
    r.train.lr = 1e-3;
    r.train.min_lr = 1e-4;
    return r;
}

static void warm_up_is_linear(void **state) {
    (void)state;
    for (int schedule = TSR_LR_CONSTANT; schedule <= TSR_LR_WSD; schedule++) {
        struct tsr_run r = with(schedule, 100, 20, -1);
        for (int s = 1; s <= 20; s++)
            assert_true(tsr_run_lr(&r, s) == 1e-3 * s / 20);
        assert_true(tsr_run_lr(&r, 21) <= 1e-3 && tsr_run_lr(&r, 21) > 0.9e-3);
    }
}

// Values worked out by hand at a quarter, half and all of the way down.
static void falls_as_the_formulas_say(void **state) {
    (void)state;
    struct tsr_run r = with(TSR_LR_COSINE, 120, 20, -1);
    assert_true(fabs(tsr_run_lr(&r, 45) - (1e-4 + 9e-4 * (1 + sqrt(0.5)) / 2)) < 1e-18);
    assert_true(fabs(tsr_run_lr(&r, 70) - 5.5e-4) < 1e-18);
    assert_true(tsr_run_lr(&r, 120) == 1e-4);
    assert_true(tsr_run_lr(&r, 500) == 1e-4);
    r = with(TSR_LR_LINEAR, 120, 20, -1);
    assert_true(fabs(tsr_run_lr(&r, 45) - 7.75e-4) < 1e-18);
    assert_true(tsr_run_lr(&r, 120) == 1e-4);
    r = with(TSR_LR_CONSTANT, 120, 20, -1);
    assert_true(tsr_run_lr(&r, 21) == 1e-3 && tsr_run_lr(&r, 120) == 1e-3);
}

static void wsd_keeps_then_falls(void **state) {
    (void)state;
    struct tsr_run r = with(TSR_LR_WSD, 103, 10, -1); // a fifth: 20 steps
    assert_true(tsr_run_lr(&r, 83) == 1e-3);
    assert_true(fabs(tsr_run_lr(&r, 84) - (1e-4 + 9e-4 * 19 / 20)) < 1e-18);
    assert_true(tsr_run_lr(&r, 103) == 1e-4);
    r = with(TSR_LR_WSD, 100, 0, 40);
    assert_true(tsr_run_lr(&r, 60) == 1e-3);
    assert_true(fabs(tsr_run_lr(&r, 80) - 5.5e-4) < 1e-18);
    r = with(TSR_LR_WSD, 100, 0, 0);
    assert_true(tsr_run_lr(&r, 100) == 1e-3);
    r = with(TSR_LR_WSD, 100, 95, -1); // the warm-up leaves only 5 steps
    assert_true(tsr_run_lr(&r, 95) == 1e-3);
    assert_true(fabs(tsr_run_lr(&r, 96) - (1e-4 + 9e-4 * 4 / 5)) < 1e-18);
}

static void edges(void **state) {
    (void)state;
    for (int schedule = TSR_LR_CONSTANT; schedule <= TSR_LR_WSD; schedule++) {
        struct tsr_run r = with(schedule, 10, 10, -1); // all warm-up
        assert_true(tsr_run_lr(&r, 10) == 1e-3);
        assert_true(tsr_run_lr(&r, 11) == 1e-3);
        r = with(schedule, 1, 0, -1);
        assert_true(isfinite(tsr_run_lr(&r, 1)));
        r = with(schedule, 50, 3, -1);
        for (int s = 4; s <= 50; s++)
            assert_true(tsr_run_lr(&r, s) <= tsr_run_lr(&r, s - 1) || s == 4);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(warm_up_is_linear),
        cmocka_unit_test(falls_as_the_formulas_say),
        cmocka_unit_test(wsd_keeps_then_falls),
        cmocka_unit_test(edges),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// The stall rule: hangs under live heartbeats are found and the right rank is named; what is merely
// slow is left alone.
#include "coordinator_support.h"

// Steps of a healthy run, so that phases have a measure.
static void train(struct rig *r, int steps, double forward_s) {
    for (int s = 0; s < steps; s++) {
        rig_pass(r, forward_s, (1u << r->world) - 1, (uint64_t)s, TSR_PHASE_FORWARD,
                 2 * (uint64_t)s + 1);
        rig_pass(r, 0.25, (1u << r->world) - 1, (uint64_t)s, TSR_PHASE_REDUCE, 2 * (uint64_t)s + 2);
    }
}

static void test_culprit(void **state) {
    (void)state;
    struct rig *r = rig_open(3);
    rig_all_join(r);
    train(r, 4, 0.5);
    assert_int_equal(r->n_failed, 0);
    double began = r->now;
    for (int i = 0; i < 40 && r->n_failed == 0; i++) { // rank 1 hangs; the others wait for it
        rig_beat(r, 0, 4, TSR_PHASE_REDUCE, 10);
        rig_beat(r, 1, 4, TSR_PHASE_FORWARD, 9);
        rig_beat(r, 2, 4, TSR_PHASE_REDUCE, 10);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 1);
    assert_string_equal(r->operation, "forward of micro-batch 0, collective 9");
    assert_non_null(strstr(r->cause, "stalled for 3."));
    assert_true(r->now - began < 3.6);
    rig_close(r);
}

// 5 times the longest, when that is more.
static void test_factor(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    train(r, 3, 2.0);
    rig_beat(r, 0, 3, TSR_PHASE_FORWARD, 7);
    rig_beat(r, 1, 3, TSR_PHASE_FORWARD, 7);
    rig_pass(r, 9.0, 3, 3, TSR_PHASE_FORWARD, 7);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 2.5, 3, 3, TSR_PHASE_FORWARD, 7);
    assert_int_equal(r->n_failed, 1);
    rig_close(r);
}

// A rollback: the ranks' steps go back, each rank's at its own time, while a checkpoint is loaded
// for as long as it takes. A hang afterwards is found as ever.
static void test_rollback(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    train(r, 9, 0.25);
    for (int i = 0; i < 2000; i++) { // rank 0 has loaded, rank 1 loads
        rig_beat(r, 0, 5, TSR_PHASE_LOAD, 40);
        rig_beat(r, 1, 9, TSR_PHASE_LOAD, 39);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 0);
    for (uint64_t step = 5; step < 12; step++) {
        rig_beat(r, 0, step, TSR_PHASE_FORWARD, 50 + step);
        rig_beat(r, 1, step, TSR_PHASE_FORWARD, 50 + step);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 0);
    for (int i = 0; i < 40 && r->n_failed == 0; i++) {
        rig_beat(r, 0, 12, TSR_PHASE_REDUCE, 71);
        rig_beat(r, 1, 12, TSR_PHASE_FORWARD, 70);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 1);
    rig_close(r);
}

// Loading and tokenizing take as long as they take; the first forward two minutes.
static void test_slow_start(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    rig_pass(r, 900, 3, 0, TSR_PHASE_LOAD, 0);
    rig_pass(r, 900, 3, 0, TSR_PHASE_DATA, 0);
    for (int i = 0; i < 3600; i++) { // rank 0 tokenizes, rank 1 waits in its first collective
        rig_beat(r, 0, 0, TSR_PHASE_DATA, 0);
        rig_beat(r, 1, 0, TSR_PHASE_FORWARD, 1);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 0);
    rig_beat(r, 0, 0, TSR_PHASE_FORWARD, 1);
    rig_beat(r, 1, 0, TSR_PHASE_BACKWARD, 1);
    rig_pass(r, 119, 3, 0, TSR_PHASE_BACKWARD, 1);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 3, 3, 0, TSR_PHASE_BACKWARD, 1);
    assert_int_equal(r->n_failed, 1);
    rig_close(r);
}

// A first evaluation of an hour is none; the second one of five hours and more would be.
static void test_evaluation(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    train(r, 3, 0.5);
    rig_pass(r, 600, 3, 3, TSR_PHASE_EVAL, 7);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 0.25, 3, 3, TSR_PHASE_FORWARD, 8);
    rig_pass(r, 2900, 3, 3, TSR_PHASE_EVAL, 8);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 200, 3, 3, TSR_PHASE_EVAL, 8);
    assert_int_equal(r->n_failed, 1);
    rig_close(r);
}

// Ranks wait for a save that takes long, and learn a moment later than others that it has ended.
static void test_waiting_for_a_save(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    train(r, 4, 0.5);
    rig_begin_save(r, 4, 1);
    rig_pass(r, 1000, 3, 4, TSR_PHASE_CHECKPOINT, 9);
    assert_int_equal(r->n_failed, 0);
    rig_all_vote(r, 4, 1);
    for (int step = TSR_DISK_WRITE_MANIFEST; step <= TSR_DISK_SYNC_PARENT; step++)
        rig_disk_ok(r, (enum tsr_disk_step)step, RIG_EPOCH);
    assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), 2);
    rig_pass(r, 100, 3, 4, TSR_PHASE_CHECKPOINT, 9);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 25, 3, 4, TSR_PHASE_CHECKPOINT, 9);
    assert_int_equal(r->n_failed, 1); // the save is over, and they still stand there
    rig_close(r);
}

// Pipeline stages count different collectives: the one with fewer isn't behind. Within a stage it
// is.
static void test_stages(void **state) {
    (void)state;
    struct rig *r = rig_open(4);
    for (int i = 0; i < 4; i++) {
        Tessera__Control__Hello h = rig_hello_of(r, i); // tp 2, pp 2: ranks 2 and 3 are stage 1
        h.tp = h.pp = 2;
        h.dp = 1;
        assert_int_equal(tsr_coord_message(r->c, RIG_CONN + i, FRAME(HELLO), &h.base), 0);
    }
    train(r, 3, 0.5);
    for (int i = 0; i < 40 && r->n_failed == 0; i++) {
        rig_beat(r, 0, 3, TSR_PHASE_FORWARD, 10);
        rig_beat(r, 1, 3, TSR_PHASE_FORWARD, 10);
        rig_beat(r, 2, 3, TSR_PHASE_FORWARD, 501);
        rig_beat(r, 3, 3, TSR_PHASE_FORWARD, 500);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 3);
    rig_close(r);
}

// Who has completed fewer steps is behind, whatever the others wait for.
static void test_fewest_steps(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    train(r, 3, 0.5);
    for (int i = 0; i < 40 && r->n_failed == 0; i++) {
        rig_beat(r, 0, 4, TSR_PHASE_FORWARD, 8);
        rig_beat(r, 1, 3, TSR_PHASE_REDUCE, 9);
        rig_pass(r, 0.25, 0, 0, TSR_PHASE_START, 0);
    }
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 1);
    rig_close(r);
}

// Numbers that no rank sends do no harm.
static void test_strange_phase(void **state) {
    (void)state;
    struct rig *r = rig_open(1);
    rig_all_join(r);
    rig_pass(r, 10, 1, 0, (enum tsr_phase)77, 0);
    rig_pass(r, 1, 1, 0, (enum tsr_phase) - 3, 0);
    rig_pass(r, 1, 1, UINT64_MAX, TSR_PHASE_FORWARD, UINT64_MAX);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 5, 0, 0, TSR_PHASE_START, 0);
    assert_int_equal(r->n_failed, 1);
    rig_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_culprit),       cmocka_unit_test(test_factor),
        cmocka_unit_test(test_rollback),      cmocka_unit_test(test_slow_start),
        cmocka_unit_test(test_evaluation),    cmocka_unit_test(test_waiting_for_a_save),
        cmocka_unit_test(test_stages),        cmocka_unit_test(test_fewest_steps),
        cmocka_unit_test(test_strange_phase),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// What checkpoints hold for rollbacks (core/guard.h): the guard in state.json, the anchor that
// stays, and steps that are given up.
#include "tests/unit/checkpoint_folder.h"

#include <unistd.h>

// ---- state.json

// The guard's numbers go to the file and back as they are; checkpoints without it are read.
static void test_guard(void **state) {
    (void)state;
    struct tsr_state s = x.state, back;
    struct tsr_buf b = {0};
    char path[TSR_PATH_MAX];
    uint32_t bits = 12345;
    s.guard = (struct tsr_guard){.skips = 2,
                                 .rollbacks = 7,
                                 .retries = 1,
                                 .anchored = true,
                                 .anchor = 0,
                                 .n = TSR_GUARD_WINDOW};
    for (int i = 0; i < s.guard.n; i++) {
        bits = bits * 1664525u + 1013904223u;
        s.guard.loss[i] = (float)bits * 0x1p-31f * (float)(i + 1);
        s.guard.grad_norm[i] = (i % 3 ? 1e-40f : 3.4e38f) * ((float)bits * 0x1p-32f);
    }
    expect_ok(tsr_path_join(path, x.dir, "state.json"));
    for (int round = 0; round < 3; round++) {
        b.len = 0;
        expect_ok(tsr_state_to_json(&s, &b));
        write_bytes(path, b.data, b.len);
        expect_ok(tsr_state_read(&back, x.dir));
        assert_memory_equal(&back.guard, &s.guard, sizeof s.guard);
        tsr_state_free(&back);
        s.guard.anchored = round == 0; // then none
        s.guard.anchor = round == 0 ? 50 : 0;
    }
    write_text(path, "{\"version\":1,\"step\":1,\"updates\":1,\"sequences\":1,\"seed\":1,"
                     "\"virtual_shards\":1,\"virtual_replicas\":1,\"n_params\":1,\"run\":\"\"}");
    expect_ok(tsr_state_read(&back, x.dir));
    assert_true(!back.guard.anchored && back.guard.n == 0);
    tsr_state_free(&back);
    tsr_buf_free(&b);
}

static void test_wrong_guard(void **state) {
    (void)state;
    static const struct {
        const char *guard, *piece;
    } cases[] = {
        {"7", "`guard` to be an object"},
        {"null", "`guard` to be an object"},
        {"{}", "`guard.skips` to be an integer of at least 0"},
        {"{\"skips\":-1}", "`guard.skips`"},
        {"{\"skips\":0,\"rollbacks\":1.5}", "`guard.rollbacks`"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":\"1\"}", "`guard.retries`"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":-2}", "`guard.anchor`"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":2}", "at most 1, found 2"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":1}", "`guard.loss`"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":1,\"loss\":[1],"
         "\"grad_norm\":[1,2]}",
         "as many numbers"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":1,\"loss\":[-1],"
         "\"grad_norm\":[1]}",
         "as many numbers"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":1,\"loss\":[1],"
         "\"grad_norm\":[1e39]}",
         "as many numbers"},
        {"{\"skips\":0,\"rollbacks\":0,\"retries\":0,\"anchor\":1,\"loss\":[null],"
         "\"grad_norm\":[1]}",
         "as many numbers"},
    };
    struct tsr_state s;
    struct tsr_buf b = {0};
    char path[TSR_PATH_MAX];
    expect_ok(tsr_path_join(path, x.dir, "state.json"));
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        b.len = 0;
        expect_ok(tsr_buf_printf(&b,
                                 "{\"version\":1,\"step\":1,\"updates\":1,\"sequences\":1,"
                                 "\"seed\":1,\"virtual_shards\":1,\"virtual_replicas\":1,"
                                 "\"n_params\":1,\"run\":\"\",\"guard\":%s}",
                                 cases[i].guard));
        write_bytes(path, b.data, b.len);
        expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, cases[i].piece);
    }
    tsr_buf_free(&b);
}

// ---- the folder

static int retain(int64_t keep) {
    struct tsr_known_good fresh = {0};
    return tsr_checkpoint_retain(x.dir, keep, &fresh);
}

// The checkpoint that a rollback would go to stays, however old.
static void test_retain_anchor(void **state) {
    (void)state;
    x.state.guard.anchored = true;
    x.state.guard.anchor = 0;
    for (int64_t step = 0; step <= 50; step += 10)
        save_step(step);
    expect_ok(retain(2));
    assert_string_equal(steps(), "50 40 0");
    x.state.guard.anchor = 50;
    save_step(60);
    expect_ok(retain(2));
    assert_string_equal(steps(), "60 50");
    save_step(70);
    save_step(80);
    expect_ok(retain(2));
    assert_string_equal(steps(), "80 70 50");
    assert_int_equal(truncate(below("step-00000080/state.json"), 9),
                     0); // the newest good one is asked
    expect_ok(retain(1));
    assert_string_equal(steps(), "80 70 50");
    x.state.guard.anchored = false;
    save_step(90);
    expect_ok(retain(2));
    assert_string_equal(steps(), "90 80 70");
}

static void test_discard(void **state) {
    (void)state;
    expect_ok(tsr_checkpoint_discard(x.dir, 0, INT64_MAX)); // nothing there
    for (int64_t step = 0; step <= 60; step += 10)
        save_step(step);
    expect_ok(tsr_checkpoint_discard(x.dir, 50, 50));
    expect_ok(tsr_checkpoint_discard(x.dir, 30, 49)); // of another run: 50 and 60 stay
    assert_string_equal(steps(), "60 50 30 20 10 0");
    expect_ok(tsr_checkpoint_discard(x.dir, 10, INT64_MAX));
    assert_string_equal(steps(), "10 0");
    expect_ok(tsr_checkpoint_discard(x.dir, 10, 20));
    expect_ok(tsr_checkpoint_discard(x.dir, 0, 10));
    assert_string_equal(steps(), "0");
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_guard),
        WITH(test_wrong_guard),
        WITH(test_retain_anchor),
        WITH(test_discard),
    };
    return cmocka_run_group_tests_name("checkpoint_guard", tests, NULL, NULL);
}

// Ranks' agents and a coordinator over real sockets: whole saves, failures in each stage, and
// coordinators that die in each stage.
#include "control_support.h"

#include <sys/wait.h>

static void saves_commit_one_after_another(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    for (uint32_t attempt = 1; attempt <= 3; attempt++) {
        ranks[1].digest_all = attempt == 2;
        ranks_save(ranks, 10 * attempt, attempt);
        ranks_expect(ranks, 10 * attempt, 0);
        assert_string_equal(ranks[2].ended.directory, attempt == 1   ? "step-00000010"
                                                      : attempt == 2 ? "step-00000020"
                                                                     : "step-00000030");
        expect_newest(10 * attempt);
    }
    for (int i = 0; i < WORLD; i++) {
        assert_int_equal(atomic_load(&ranks[i].n_ended), 3);
        assert_int_equal(atomic_load(&ranks[i].in[IN_WRITE]), 3);
        assert_int_equal(atomic_load(&ranks[i].in[IN_BEGIN]), i == 0 ? 3 : 0);
    }
    ranks_close(ranks);
    assert_int_equal(atomic_load(&c.failed), 0);
    coordinator_stop(&c);
}

static void a_failure_on_one_rank_fails_the_save_on_all(void **state) {
    static const struct {
        int rank;
        enum stage stage;
        int code;
    } cases[] = {{0, IN_BEGIN, TSR_ENOSPC}, {1, IN_WRITE, TSR_EIO}, {0, IN_WRITE, TSR_ENOSPC}};
    static struct coordinator c;
    static struct rank ranks[WORLD];
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    for (int k = 0; k < 3; k++) {
        struct rank *bad = &ranks[cases[k].rank];
        bad->fail[cases[k].stage] = cases[k].code;
        ranks_save(ranks, 5, (uint32_t)k + 1);
        for (int i = 0; i < WORLD; i++) {
            struct tsr_save_result result;
            expect_ok(tsr_agent_save_wait(ranks[i].agent, PATIENCE_S, &result));
            assert_int_equal(result.code, i == bad->number ? cases[k].code : TSR_EIO);
            assert_non_null(strstr(result.error, "can't in stage"));
        }
        bad->fail[cases[k].stage] = 0;
        expect_newest(0);
    }
    ranks_save(ranks, 5, 4); // and the next one is fine
    ranks_expect(ranks, 5, 0);
    expect_newest(5);
    ranks_close(ranks);
    coordinator_stop(&c);
}

// The coordinator goes while one rank is held in a stage, and comes back at the same port or
// another: training notices nothing, and the save is committed.
static void a_coordinator_may_die_in_any_stage(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    uint32_t attempt = 0;
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    for (int stage = 0; stage < N_STAGES; stage++)
        for (int elsewhere = 0; elsewhere < 2; elsewhere++) {
            struct rank *held = &ranks[stage == IN_BEGIN ? 0 : attempt % WORLD];
            int before = atomic_load(&held->in[stage]);
            for (int i = 0; i < WORLD; i++)
                ranks[i].digest_all = stage == IN_DIGEST; // so that each rank gets some
            atomic_store(&held->hold[stage], 1);
            attempt++;
            ranks_save(ranks, attempt, attempt);
            WAIT_FOR(atomic_load(&held->in[stage]) > before);
            int port = c.address.port;
            coordinator_stop(&c);
            coordinator_start(&c, elsewhere ? 0 : port);
            atomic_store(&held->hold[stage], 0);
            ranks_expect(ranks, attempt, 0);
            expect_newest(attempt);
        }
    for (int i = 0; i < WORLD; i++) // each wrote once a save, however often it was asked
        assert_int_equal(atomic_load(&ranks[i].in[IN_WRITE]), attempt);
    ranks_close(ranks);
    assert_int_equal(atomic_load(&c.failed), 0);
    coordinator_stop(&c);
}

// A coordinator as a process, to be killed; returns its port.
static int coordinator_spawn(pid_t *pid, int port) {
    int ends[2];
    assert_int_equal(pipe(ends), 0);
    *pid = fork();
    assert_true(*pid >= 0);
    if (*pid == 0) {
        struct coordinator c;
        coordinator_start(&c, port);
        if (write(ends[1], &c.address.port, sizeof port) == sizeof port)
            pause();
        _exit(1);
    }
    close(ends[1]);
    assert_int_equal(read(ends[0], &port, sizeof port), sizeof port);
    close(ends[0]);
    return port;
}

static void coordinator_kill(pid_t pid) {
    assert_int_equal(kill(pid, SIGKILL), 0);
    assert_int_equal(waitpid(pid, NULL, 0), pid);
}

// At whatever instant it happens to be, without a word.
static void a_coordinator_may_be_killed_at_any_instant(void **state) {
    static struct rank ranks[WORLD];
    struct coordinator c;
    pid_t pid;
    (void)state;
    int port = coordinator_spawn(&pid, 0);
    snprintf(c.where, sizeof c.where, "127.0.0.1:%d", port);
    ranks_open(ranks, &c);
    for (uint32_t attempt = 1; attempt <= 5; attempt++) {
        ranks_save(ranks, attempt, attempt);
        nap(0.001 * attempt);
        coordinator_kill(pid);
        coordinator_spawn(&pid, attempt % 2 ? port : 0);
        ranks_expect(ranks, attempt, 0);
        expect_newest(attempt);
    }
    for (int i = 0; i < WORLD; i++)
        assert_int_equal(atomic_load(&ranks[i].in[IN_WRITE]), 5);
    ranks_close(ranks);
    coordinator_kill(pid);
}

static void a_run_that_ends_during_a_save_says_so(void **state) {
    static struct coordinator c;
    static struct rank ranks[WORLD];
    (void)state;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    atomic_store(&ranks[2].hold[IN_WRITE], 1);
    ranks_save(ranks, 1, 1);
    WAIT_FOR(atomic_load(&ranks[2].in[IN_WRITE]) == 1);
    expect_error(tsr_agent_save_wait(ranks[2].agent, 0.01, NULL), TSR_ETIMEOUT, "longer than");
    atomic_store(&ranks[2].hold[IN_WRITE], 0);
    ranks_close(ranks);
    for (int i = 0; i < WORLD; i++) {
        assert_int_equal(atomic_load(&ranks[i].n_ended), 1);
        assert_true(ranks[i].ended.code <= 0);
    }
    coordinator_stop(&c);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, control_setup, control_teardown)
        TEST(saves_commit_one_after_another),
        TEST(a_failure_on_one_rank_fails_the_save_on_all),
        TEST(a_coordinator_may_die_in_any_stage),
        TEST(a_coordinator_may_be_killed_at_any_instant),
        TEST(a_run_that_ends_during_a_save_says_so),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Saves: the happy path, failures at every step, ranks and coordinators that come back.
#include "coordinator_support.h"

static const enum tsr_disk_step order[] = {
    TSR_DISK_WRITE_MANIFEST, TSR_DISK_SYNC_MANIFEST, TSR_DISK_SYNC_DIRS,
    TSR_DISK_CHECK_EPOCH,    TSR_DISK_RENAME,        TSR_DISK_SYNC_PARENT,
};
enum { N_ORDER = sizeof order / sizeof *order };

static struct rig *joined(int world) {
    struct rig *r = rig_open(world);
    rig_all_join(r);
    return r;
}

static void commit(struct rig *r) {
    for (int i = 0; i < N_ORDER; i++)
        rig_disk_ok(r, order[i], RIG_EPOCH);
}

static void aborted(struct rig *r, uint64_t step, uint32_t exit_code, const char *why) {
    const Tessera__Checkpoint__SaveAbort *m = rig_last(r, -1, FRAME(SAVE_ABORT));
    assert_non_null(m);
    assert_int_equal(m->step, step);
    assert_int_equal(m->exit_code, exit_code);
    if (!strstr(m->reason, why))
        fail_msg("expected \"%s\" in \"%s\"", why, m->reason);
    assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), 0);
}

static void save_status(struct rig *r, const char *stage, uint32_t waiting_for) {
    Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
    assert_int_equal(tsr_coord_status(r->c, &s), 0);
    assert_int_equal(s.save->in_flight, stage != NULL);
    if (stage)
        assert_string_equal(s.save->stage, stage);
    assert_int_equal(s.save->waiting_for, waiting_for);
    tsr_coord_status_free(&s);
}

static void test_happy(void **state) {
    (void)state;
    struct rig *r = joined(3);
    assert_int_equal(rig_plan(r, 50, 1), 0);
    for (int i = 0; i < 3; i++) {
        save_status(r, "ready", (uint32_t)(3 - i));
        assert_int_equal(rig_count(r, FRAME(SAVE_WRITE)), 0);
        assert_int_equal(rig_ready(r, i, 50, 1), 0);
    }
    assert_int_equal(rig_count(r, FRAME(SAVE_WRITE)), 3);
    save_status(r, "write", 3);
    assert_int_equal(rig_vote(r, 0, 50, 1, 1, true), 0);
    assert_int_equal(rig_vote(r, 1, 50, 1, 1, false), 0);
    save_status(r, "write", 1);
    assert_int_equal(rig_vote(r, 2, 50, 1, 1, true), 0);
    save_status(r, "digest", 1);
    const Tessera__Checkpoint__SaveDigest *d = rig_last(r, RIG_CONN, FRAME(SAVE_DIGEST));
    assert_non_null(d);
    assert_int_equal(d->n_spans, 1);
    assert_int_equal(d->spans[0]->first, 1);
    assert_int_equal(d->spans[0]->count, 1);
    assert_false(r->busy);
    assert_int_equal(rig_digests(r, 0, 50, 1, 1, 1), 0);
    save_status(r, "commit", 0);
    const struct tsr_coord_save *s = r->job.save;
    assert_int_equal(s->step, 50);
    assert_int_equal(s->epoch, RIG_EPOCH);
    assert_string_equal(s->temporary, ".tmp-step-00000050-e00000007-a1");
    assert_string_equal(s->directory, "step-00000050");
    assert_int_equal(s->n_files, 1);
    assert_int_equal(s->n_ranges, 3);
    for (int i = 0; i < 3; i++)
        assert_int_equal(s->digests[i].b[15], i + 1);
    for (int i = 0; i < N_ORDER; i++) {
        assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), 0);
        rig_disk_ok(r, order[i], RIG_EPOCH);
    }
    assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), 3);
    const Tessera__Checkpoint__SaveDone *done = rig_last(r, RIG_CONN + 1, FRAME(SAVE_DONE));
    assert_string_equal(done->directory, "step-00000050");
    assert_int_equal(r->job.step, TSR_DISK_RETAIN);
    assert_int_equal(r->job.keep, 3);
    rig_disk_ok(r, TSR_DISK_RETAIN, 0);
    assert_false(r->busy);
    save_status(r, NULL, 0);
    rig_pass(r, 0.3, 7, 50, TSR_PHASE_LOAD, 0);
    assert_int_equal(
        ((const Tessera__Control__Pulse *)rig_last(r, -1, FRAME(PULSE)))->committed_step, 50);
    rig_close(r);
}

// After a rollback an earlier step is saved again, and then what comes after it once more.
static void test_step_again(void **state) {
    (void)state;
    static const uint64_t steps[] = {50, 60, 50, 60};
    struct rig *r = joined(2);
    for (uint32_t i = 0; i < 4; i++) {
        rig_begin_save(r, steps[i], i + 1);
        rig_all_vote(r, steps[i], i + 1);
        commit(r);
        const Tessera__Checkpoint__SaveDone *done = rig_last(r, RIG_CONN + 1, FRAME(SAVE_DONE));
        assert_int_equal(done->step, steps[i]);
        assert_int_equal(done->attempt, i + 1);
        rig_disk_ok(r, TSR_DISK_RETAIN, 0);
        Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
        assert_int_equal(tsr_coord_status(r->c, &s), 0);
        assert_int_equal(s.committed_step, steps[i]);
        tsr_coord_status_free(&s);
        rig_forget(r);
    }
    rig_close(r);
}

// Whatever disk step fails, nothing is announced and, before the rename, the directory goes.
static void test_disk_fails(void **state) {
    (void)state;
    for (int at = 0; at < N_ORDER; at++) {
        struct rig *r = joined(2);
        rig_begin_save(r, 50, 1);
        rig_all_vote(r, 50, 1);
        for (int i = 0; i < at; i++)
            rig_disk_ok(r, order[i], RIG_EPOCH);
        assert_int_equal(r->job.step, order[at]);
        rig_answer(r, TSR_ENOSPC, "the disk is full", 0);
        aborted(r, 50, 3, "the disk is full");
        assert_int_equal(rig_count(r, FRAME(SAVE_ABORT)), 2);
        assert_int_equal(r->busy, order[at] != TSR_DISK_SYNC_PARENT);
        if (r->busy)
            rig_disk_ok(r, TSR_DISK_REMOVE_TEMPORARY, 0);
        rig_forget(r);
        rig_begin_save(r, 60, 2); // and the next one succeeds
        rig_all_vote(r, 60, 2);
        commit(r);
        assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), 2);
        rig_close(r);
    }
}

static void test_superseded(void **state) {
    (void)state;
    struct rig *r = joined(2);
    rig_begin_save(r, 50, 1);
    rig_all_vote(r, 50, 1);
    for (int i = 0; order[i] != TSR_DISK_CHECK_EPOCH; i++)
        rig_disk_ok(r, order[i], 0);
    rig_disk_ok(r, TSR_DISK_CHECK_EPOCH, RIG_EPOCH + 1);
    aborted(r, 50, 4, "epoch 8 of this run has begun");
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 2);
    assert_int_equal(rig_count(r, FRAME(STOP)), 2);
    rig_disk_ok(r, TSR_DISK_REMOVE_TEMPORARY, 0);
    rig_forget(r);
    assert_int_equal(rig_ready(r, 0, 60, 2), 0);
    aborted(r, 60, 4, "the run has failed");
    rig_close(r);
}

static void test_vote_fails(void **state) {
    (void)state;
    struct rig *r = joined(2);
    rig_begin_save(r, 50, 1);
    assert_int_equal(rig_vote(r, 1, 50, 1, 0, false), 0);
    aborted(r, 50, 3, "rank 1 (node): the disk is full");
    rig_disk_ok(r, TSR_DISK_REMOVE_TEMPORARY, 0);
    assert_int_equal(rig_vote(r, 0, 50, 1, 1, true), 0); // too late: told again
    assert_int_equal(rig_count(r, FRAME(SAVE_ABORT)), 3);
    assert_false(r->busy);
    rig_close(r);
    r = joined(2); // rank 0 can't make the directory, and says so before anything else
    assert_int_equal(rig_vote(r, 0, 50, 1, 0, false), 0);
    aborted(r, 50, 3, "rank 0 (node)");
    rig_close(r);
}

static void test_bad_messages(void **state) {
    (void)state;
    struct rig *r = joined(2);
    rig_begin_save(r, 50, 1);
    assert_int_equal(rig_vote(r, 0, 50, 2, 1, true), 0); // another attempt, step, both
    assert_int_equal(rig_vote(r, 0, 51, 1, 1, true), 0);
    assert_int_equal(rig_vote(r, 1, 49, 9, 1, true), 0);
    save_status(r, "write", 2);
    assert_int_equal(rig_vote(r, 0, 50, 1, 1, true), 0);
    assert_int_equal(rig_vote(r, 0, 50, 1, 1, true), 0); // twice is once
    save_status(r, "write", 1);
    assert_int_equal(rig_digests(r, 0, 50, 1, 0, 1), 0); // nobody asked
    assert_int_equal(rig_vote(r, 1, 50, 1, 1, false), 0);
    save_status(r, "digest", 1);
    assert_int_equal(rig_digests(r, 1, 50, 1, 0, 1), 0); // not this rank's to give
    save_status(r, "digest", 1);
    assert_int_equal(rig_digests(r, 0, 50, 1, UINT64_MAX, 2), 0); // no such range
    aborted(r, 50, 70, "digests of rank 0");
    assert_int_equal(rig_ready(r, 0, 60, 0), TSR_EREQUEST); // attempts count from 1
    rig_close(r);
}

static int plan_with(struct rig *r, const char *temporary, const char *path, uint64_t size,
                     uint64_t range_bytes) {
    Tessera__Checkpoint__SavePlan m = TESSERA__CHECKPOINT__SAVE_PLAN__INIT;
    Tessera__Checkpoint__PlannedFile f = TESSERA__CHECKPOINT__PLANNED_FILE__INIT, *fp = &f;
    f.path = (char *)path;
    f.size = size;
    m.step = 50;
    m.attempt = 1;
    m.temporary = (char *)temporary;
    m.range_bytes = range_bytes;
    m.n_files = 1;
    m.files = &fp;
    return tsr_coord_message(r->c, RIG_CONN, FRAME(SAVE_PLAN), &m.base);
}

static void test_bad_plans(void **state) {
    (void)state;
    static const char good[] = ".tmp-step-00000050-e00000007-a1";
    static const struct {
        const char *temporary, *path;
        uint64_t size, range_bytes;
    } bad[] = {
        {".tmp-step-00000050-e00000006-a1", "a", 1, 4096}, // another epoch's
        {"../step-00000040", "a", 1, 4096},
        {good, "../a", 1, 4096},
        {good, "/a", 1, 4096},
        {good, "a//b", 1, 4096},
        {good, "a/", 1, 4096},
        {good, "", 1, 4096},
        {good, "manifest.json", 1, 4096},
        {good, "a", 1, 0},
        {good, "a", 1, 4097},
        {good, "a", UINT64_MAX, 4096}, // more ranges than there may be
        {good, "a", UINT64_MAX, UINT64_C(1) << 63},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct rig *r = joined(1);
        assert_int_equal(
            plan_with(r, bad[i].temporary, bad[i].path, bad[i].size, bad[i].range_bytes), 0);
        aborted(r, 50, 70, "plan of a save");
        rig_close(r);
    }
    struct rig *r = joined(1);
    assert_int_equal(plan_with(r, good, "optimizer/a", UINT64_C(1) << 33, 1 << 24), 0);
    save_status(r, "ready", 1);
    assert_int_equal(rig_count(r, FRAME(SAVE_ABORT)), 0);
    rig_close(r);
}

// A dead rank ends the save, unless the rename is under way: that one is seen through.
static void test_death(void **state) {
    (void)state;
    for (int at = -2; at < N_ORDER; at++) {
        struct rig *r = joined(2);
        rig_begin_save(r, 50, 1);
        if (at > -2)
            rig_all_vote(r, 50, 1);
        for (int i = 0; i < at; i++)
            rig_disk_ok(r, order[i], RIG_EPOCH);
        tsr_coord_closed(r->c, RIG_CONN + 1);
        rig_pass(r, 1.1, 1, 50, TSR_PHASE_LOAD, 0);
        assert_int_equal(r->n_failed, 1);
        bool late = at >= 0 && order[at] >= TSR_DISK_RENAME;
        if (!late)
            aborted(r, 50, 4, "rank 1 (node): its connection ended");
        for (int i = at < 0 ? 0 : at; late && i < N_ORDER; i++)
            rig_disk_ok(r, order[i], RIG_EPOCH);
        assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), late); // to the one that lives
        if (!late && r->job.step != TSR_DISK_REMOVE_TEMPORARY)
            rig_answer(r, 0, NULL, RIG_EPOCH); // what was in flight leads nowhere
        rig_disk_ok(r, late ? TSR_DISK_RETAIN : TSR_DISK_REMOVE_TEMPORARY, 0);
        assert_false(r->busy);
        rig_close(r);
    }
}

// A rank that loses its connection in any stage finds the save where it left it.
static void test_reconnect(void **state) {
    (void)state;
    struct rig *r = joined(2);
    assert_int_equal(rig_plan(r, 50, 1), 0);
    assert_int_equal(rig_ready(r, 0, 50, 1), 0);
    for (int stage = 0; stage < 4; stage++) {
        tsr_coord_closed(r->c, RIG_CONN + 1);
        rig_pass(r, 0.5, 1, 50, TSR_PHASE_LOAD, 0);
        assert_int_equal(rig_hello(r, 1, RIG_CONN + 1), 0);
        assert_int_equal(rig_map(r, 1, 4, 8), 0);
        rig_forget(r);
        assert_int_equal(rig_ready(r, 1, 50, 1), 0);
        const Tessera__Checkpoint__SaveDigest *d = rig_last(r, RIG_CONN + 1, FRAME(SAVE_DIGEST));
        if (stage == 0) { // the last one that was waited for
            assert_int_equal(rig_count(r, FRAME(SAVE_WRITE)), 2);
            assert_int_equal(rig_vote(r, 0, 50, 1, 1, false), 0);
        } else if (stage == 1) { // asked again
            assert_non_null(rig_last(r, RIG_CONN + 1, FRAME(SAVE_WRITE)));
            assert_int_equal(rig_count(r, FRAME(SAVE_WRITE)), 1);
            assert_int_equal(rig_vote(r, 1, 50, 1, 1, false), 0);
        } else if (stage == 2) {
            assert_non_null(d);
            assert_int_equal(d->spans[0]->first, 1);
            assert_int_equal(rig_digests(r, 0, 50, 1, 0, 1), 0);
            assert_int_equal(rig_digests(r, 1, 50, 1, 1, 1), 0);
            commit(r);
        } else { // it missed the end
            assert_non_null(rig_last(r, RIG_CONN + 1, FRAME(SAVE_DONE)));
            assert_int_equal(rig_count(r, FRAME(SAVE_DONE)), 1);
        }
    }
    assert_int_equal(r->n_failed, 0);
    rig_close(r);
}

static int say_end(struct rig *r, int rank, uint64_t step, uint32_t attempt, bool done) {
    Tessera__Checkpoint__SaveDone d = TESSERA__CHECKPOINT__SAVE_DONE__INIT;
    Tessera__Checkpoint__SaveAbort a = TESSERA__CHECKPOINT__SAVE_ABORT__INIT;
    d.step = a.step = step;
    d.attempt = a.attempt = attempt;
    d.directory = "step-00000050";
    a.reason = "some reason";
    a.exit_code = 3;
    return tsr_coord_message(r->c, RIG_CONN + rank, done ? FRAME(SAVE_DONE) : FRAME(SAVE_ABORT),
                             done ? &d.base : &a.base);
}

// A coordinator that was started anew learns from one rank how the save ended that another one
// still waits for, in either order.
static void test_rebuilt(void **state) {
    (void)state;
    for (int done = 0; done < 2; done++)
        for (int first = 0; first < 2; first++) {
            struct rig *r = joined(2);
            if (first)
                assert_int_equal(say_end(r, 0, 50, 4, done), 0);
            assert_int_equal(rig_ready(r, 1, 50, 4), 0);
            if (!first)
                assert_int_equal(say_end(r, 0, 50, 4, done), 0);
            const Tessera__Checkpoint__SaveDone *d = rig_last(r, RIG_CONN + 1, FRAME(SAVE_DONE));
            const Tessera__Checkpoint__SaveAbort *a = rig_last(r, RIG_CONN + 1, FRAME(SAVE_ABORT));
            assert_int_equal(d != NULL, done);
            assert_int_equal(a != NULL, !done);
            if (d)
                assert_string_equal(d->directory, "step-00000050");
            else
                assert_string_equal(a->reason, "some reason");
            save_status(r, NULL, 0);
            rig_forget(r);
            rig_begin_save(r, 60, 5);
            assert_int_equal(rig_count(r, FRAME(SAVE_WRITE)), 2);
            rig_close(r);
        }
}

// One in flight: a newer attempt ends an older one that a rank still waits for.
static void test_newer_attempt(void **state) {
    (void)state;
    struct rig *r = joined(2);
    assert_int_equal(rig_ready(r, 1, 50, 1), 0);
    assert_int_equal(rig_ready(r, 0, 60, 2), 0);
    aborted(r, 50, 4, "rank 0 has begun the next save");
    rig_forget(r);
    assert_int_equal(rig_ready(r, 1, 50, 1), 0); // it still doesn't know
    aborted(r, 50, 4, "rank 0 has begun the next save");
    rig_forget(r);
    assert_int_equal(rig_ready(r, 1, 61, 2), 0); // ranks that don't agree on the step
    aborted(r, 61, 4, "this attempt is over");
    rig_close(r);
}

static void test_no_progress(void **state) {
    (void)state;
    struct rig *r = joined(2);
    rig_begin_save(r, 50, 1);
    assert_int_equal(rig_vote(r, 0, 50, 1, 1, true), 0);
    rig_pass(r, 1790, 3, 50, TSR_PHASE_LOAD, 0);
    save_status(r, "write", 1);
    rig_pass(r, 20, 3, 50, TSR_PHASE_LOAD, 0);
    aborted(r, 50, 4, "it waits for rank 1");
    rig_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_happy),         cmocka_unit_test(test_step_again),
        cmocka_unit_test(test_disk_fails),    cmocka_unit_test(test_superseded),
        cmocka_unit_test(test_vote_fails),    cmocka_unit_test(test_bad_messages),
        cmocka_unit_test(test_bad_plans),     cmocka_unit_test(test_death),
        cmocka_unit_test(test_reconnect),     cmocka_unit_test(test_rebuilt),
        cmocka_unit_test(test_newer_attempt), cmocka_unit_test(test_no_progress),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

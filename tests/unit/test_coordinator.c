// Membership of the coordinator: who may join, who is dead, and what is told to whom.
#include "coordinator_support.h"

static void refused(struct rig *r, int conn, const Tessera__Control__Hello *h, const char *why) {
    rig_forget(r);
    assert_int_equal(tsr_coord_message(r->c, conn, FRAME(HELLO), &h->base), TSR_EREQUEST);
    const Tessera__Control__Refused *m = rig_last(r, conn, FRAME(REFUSED));
    assert_non_null(m);
    if (!strstr(m->reason, why))
        fail_msg("expected \"%s\" in \"%s\"", why, m->reason);
}

static void test_join(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    assert_int_equal(rig_hello(r, 1, 5), 0);
    const Tessera__Control__Welcome *w = rig_last(r, 5, FRAME(WELCOME));
    assert_non_null(w);
    assert_int_equal(w->epoch, RIG_EPOCH);
    assert_int_equal(w->heartbeat_ms, 250);
    assert_int_equal(w->lost_ms, 3000);
    Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
    assert_int_equal(tsr_coord_status(r->c, &s), 0);
    assert_int_equal(s.n_ranks, 2);
    assert_false(s.ranks[0]->alive);
    assert_true(s.ranks[1]->alive);
    assert_int_equal(s.committed_step, 40);
    assert_int_equal(s.restarts, 2);
    assert_string_equal(s.run_name, "unit");
    tsr_coord_status_free(&s);
    rig_close(r);
}

static void test_refused(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    assert_int_equal(rig_hello(r, 0, 1), 0);
    Tessera__Control__Hello h = rig_hello_of(r, 1);
    h.version = 2;
    refused(r, 2, &h, "version");
    h = rig_hello_of(r, 1);
    h.epoch = RIG_EPOCH - 1;
    refused(r, 2, &h, "epoch 7");
    h = rig_hello_of(r, 1);
    h.world = 4;
    h.dp = 4;
    refused(r, 2, &h, "a rank of 2");
    h = rig_hello_of(r, 1);
    h.dp = 1;
    refused(r, 2, &h, "are not tp");
    h = rig_hello_of(r, 1);
    h.tp = h.pp = h.dp = 65536;
    h.world = 0;
    refused(r, 2, &h, "expected 1 to 65536");
    h.world = 65537;
    refused(r, 2, &h, "expected 1 to 65536");
    h = rig_hello_of(r, 2);
    refused(r, 2, &h, "rank 2 of 2");
    h = rig_hello_of(r, 1);
    h.tp = 2;
    h.dp = 1;
    refused(r, 2, &h, "(tp 1, pp 1)");
    h = rig_hello_of(r, 1);
    h.role = (Tessera__Control__Role)9;
    refused(r, 2, &h, "no such role");
    char host[80];
    memset(host, 'h', sizeof host);
    host[79] = '\0';
    h = rig_hello_of(r, 1);
    h.host = host;
    refused(r, 2, &h, "79 bytes");
    assert_int_equal(r->n_failed, 0);
    rig_close(r);
}

// The same process comes back on another connection; another process with the same rank doesn't.
static void test_duplicate(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    assert_int_equal(rig_hello(r, 0, 1), 0);
    Tessera__Control__Hello h = rig_hello_of(r, 0);
    h.pid = 99;
    refused(r, 2, &h, "is process 5000");
    h = rig_hello_of(r, 0);
    h.host = "other";
    refused(r, 2, &h, "on other");
    assert_int_equal(r->dropped, -1);
    assert_int_equal(rig_hello(r, 0, 3), 0);
    assert_int_equal(r->dropped, 1);
    tsr_coord_closed(r->c, 1); // late news of the old one
    rig_forget(r);
    rig_pass(r, 0.3, 0, 0, TSR_PHASE_START, 0);
    assert_non_null(rig_last(r, 3, FRAME(PULSE)));
    assert_null(rig_last(r, 1, FRAME(PULSE)));
    rig_close(r);
}

static void test_order(void **state) {
    (void)state;
    struct rig *r = rig_open(1);
    Tessera__Control__Heartbeat b = TESSERA__CONTROL__HEARTBEAT__INIT;
    assert_int_equal(tsr_coord_message(r->c, 3, FRAME(HEARTBEAT), &b.base), TSR_EREQUEST);
    tsr_coord_closed(r->c, 3);
    tsr_coord_closed(r->c, 70000); // never heard of
    assert_int_equal(rig_hello(r, 0, 3), 0);
    assert_int_equal(rig_hello(r, 0, 3), TSR_EREQUEST); // twice on one connection
    assert_int_equal(rig_hello(r, 0, RIG_CONN), 0);
    Tessera__Control__Pulse p = TESSERA__CONTROL__PULSE__INIT; // not a rank's to say
    assert_int_equal(tsr_coord_message(r->c, RIG_CONN, FRAME(PULSE), &p.base), TSR_EREQUEST);
    assert_int_equal(rig_hello(r, 0, TSR_COORD_MAX_CONNS - 1), 0);
    rig_close(r);
}

static void test_silence(void **state) {
    (void)state;
    struct rig *r = rig_open(3);
    rig_all_join(r);
    rig_pass(r, 2.9, 5, 0, TSR_PHASE_LOAD, 0); // rank 1 says nothing
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 0.3, 5, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 1);
    assert_string_equal(r->cause, "no heartbeat for 3.0 s");
    assert_string_equal(r->operation, "start, collective 0");
    const Tessera__Control__Stop *stop = rig_last(r, RIG_CONN + 2, FRAME(STOP));
    assert_non_null(stop);
    assert_false(stop->save);
    assert_int_equal(stop->exit_code, 4);
    assert_non_null(strstr(stop->reason, "rank 1 (node): no heartbeat for 3.0 s"));
    rig_pass(r, 10, 0, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 1); // once
    Tessera__Control__Hello h = rig_hello_of(r, 1);
    refused(r, 50, &h, "the run has failed");
    rig_close(r);
}

// The first whose connection ended is to blame; mpirun kills the others a moment later.
static void test_connection_ends(void **state) {
    (void)state;
    struct rig *r = rig_open(3);
    rig_all_join(r);
    rig_pass(r, 0.5, 7, 0, TSR_PHASE_LOAD, 0);
    tsr_coord_closed(r->c, RIG_CONN + 2);
    r->now += 0.05;
    tsr_coord_closed(r->c, RIG_CONN + 0);
    tsr_coord_closed(r->c, RIG_CONN + 1);
    rig_pass(r, 0.9, 0, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 0.2, 0, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 2);
    assert_string_equal(r->cause, "its connection ended");
    assert_true(tsr_coord_over(r->c));
    rig_close(r);
}

// Who is known to be dead isn't waited for; one that isn't, is.
static void test_process_ends(void **state) {
    (void)state;
    struct rig *r = rig_open(3);
    rig_all_join(r);
    r->ended_pid = 5001;
    tsr_coord_closed(r->c, RIG_CONN + 2);
    rig_pass(r, 0.2, 3, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 0);
    r->ended_pid = 5002;
    rig_pass(r, 0.1, 3, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 2);
    assert_string_equal(r->cause, "its process ended");
    rig_close(r);
}

static void test_comes_back(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    rig_all_join(r);
    for (int i = 0; i < 5; i++) {
        tsr_coord_closed(r->c, RIG_CONN + 1);
        rig_pass(r, 0.9, 1, 0, TSR_PHASE_LOAD, 0);
        assert_false(tsr_coord_over(r->c));
        assert_int_equal(rig_hello(r, 1, RIG_CONN + 1), 0);
    }
    rig_pass(r, 5, 3, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 0);
    rig_close(r);
}

static void test_bye(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    Tessera__Control__Bye bye = TESSERA__CONTROL__BYE__INIT;
    rig_all_join(r);
    assert_int_equal(tsr_coord_message(r->c, RIG_CONN, FRAME(BYE), &bye.base), 0);
    tsr_coord_closed(r->c, RIG_CONN);
    assert_false(tsr_coord_over(r->c));
    rig_pass(r, 10, 2, 0, TSR_PHASE_DONE, 0);
    assert_int_equal(tsr_coord_message(r->c, RIG_CONN + 1, FRAME(BYE), &bye.base), 0);
    assert_true(tsr_coord_over(r->c));
    rig_pass(r, 100, 0, 0, TSR_PHASE_DONE, 0);
    assert_int_equal(r->n_failed, 0);
    Tessera__Control__Hello h = rig_hello_of(r, 0);
    refused(r, 50, &h, "has left the run");
    rig_close(r);
}

static void test_never_joins(void **state) {
    (void)state;
    struct rig *r = rig_open(3);
    assert_int_equal(rig_hello(r, 0, RIG_CONN), 0);
    rig_pass(r, 59, 1, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 2, 1, 0, TSR_PHASE_LOAD, 0);
    assert_int_equal(r->n_failed, 1);
    assert_int_equal(r->culprit, 1);
    assert_string_equal(r->cause, "it did not join within 60 s");
    rig_close(r);
    r = rig_open(1);
    rig_pass(r, 290, 0, 0, TSR_PHASE_START, 0);
    assert_int_equal(r->n_failed, 0);
    rig_pass(r, 20, 0, 0, TSR_PHASE_START, 0);
    assert_int_equal(r->n_failed, 1);
    assert_string_equal(r->cause, "no rank has joined");
    rig_close(r);
}

// The coordinator stood still for a minute: heartbeats lie unread, and that is nobody's death.
static void test_own_pause(void **state) {
    (void)state;
    for (int first = 0; first < 2; first++) {
        struct rig *r = rig_open(2);
        rig_all_join(r);
        rig_pass(r, 1, 3, 0, TSR_PHASE_LOAD, 0);
        r->now += 60;
        if (first)
            rig_beat(r, 0, 0, TSR_PHASE_LOAD, 0);
        tsr_coord_tick(r->c);
        rig_pass(r, 5, 3, 0, TSR_PHASE_LOAD, 0);
        assert_int_equal(r->n_failed, 0);
        rig_pass(r, 5, 1, 0, TSR_PHASE_LOAD, 0);
        assert_int_equal(r->n_failed, 1);
        assert_int_equal(r->culprit, 1);
        rig_close(r);
    }
}

static void test_watchers(void **state) {
    (void)state;
    struct rig *r = rig_open(1);
    Tessera__Control__Hello h = TESSERA__CONTROL__HELLO__INIT;
    Tessera__Control__StatusRequest q = TESSERA__CONTROL__STATUS_REQUEST__INIT;
    Tessera__Control__Stop stop = TESSERA__CONTROL__STOP__INIT;
    stop.save = 1;
    stop.reason = "asked to";
    h.version = 1;
    h.role = TESSERA__CONTROL__ROLE__ROLE_OBSERVER;
    assert_int_equal(tsr_coord_message(r->c, 1, FRAME(HELLO), &h.base), 0);
    assert_int_equal(tsr_coord_message(r->c, 1, FRAME(STATUS_REQUEST), &q.base), 0);
    const Tessera__Control__Status *s = rig_last(r, 1, FRAME(STATUS));
    assert_non_null(s);
    assert_int_equal(s->n_ranks, 0);
    assert_int_equal(tsr_coord_message(r->c, 1, FRAME(STOP), &stop.base), TSR_EREQUEST);
    h.role = TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR;
    h.epoch = RIG_EPOCH - 1; // of an earlier incarnation: it must not end this one
    assert_int_equal(tsr_coord_message(r->c, 2, FRAME(HELLO), &h.base), TSR_EREQUEST);
    assert_non_null(strstr(rig_last(r, 2, FRAME(REFUSED)) ? tsr_error_text() : "", "supervisor"));
    assert_int_equal(tsr_coord_message(r->c, 2, FRAME(STOP), &stop.base), TSR_EREQUEST);
    h.epoch = RIG_EPOCH;
    assert_int_equal(tsr_coord_message(r->c, 3, FRAME(HELLO), &h.base), 0);
    assert_int_equal(tsr_coord_message(r->c, 3, FRAME(STOP), &stop.base), 0);
    assert_null(rig_last(r, RIG_CONN, FRAME(STOP)));
    rig_all_join(r); // a rank that joins later is told, too
    const Tessera__Control__Stop *told = rig_last(r, RIG_CONN, FRAME(STOP));
    assert_non_null(told);
    assert_true(told->save);
    assert_string_equal(told->reason, "asked to");
    tsr_coord_closed(r->c, RIG_CONN);
    rig_pass(r, 1.2, 0, 0, TSR_PHASE_START, 0);
    assert_int_equal(r->n_failed, 1); // it was to save and say Bye
    assert_non_null(rig_last(r, 3, FRAME(FAILED)));
    rig_close(r);
}

static void test_stop_at_once(void **state) {
    (void)state;
    struct rig *r = rig_open(2);
    Tessera__Control__Hello h = TESSERA__CONTROL__HELLO__INIT;
    Tessera__Control__Stop stop = TESSERA__CONTROL__STOP__INIT;
    stop.exit_code = 4;
    h.version = 1;
    h.epoch = RIG_EPOCH;
    h.role = TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR;
    rig_all_join(r);
    assert_int_equal(tsr_coord_message(r->c, 2, FRAME(HELLO), &h.base), 0);
    assert_int_equal(tsr_coord_message(r->c, 2, FRAME(STOP), &stop.base), 0);
    assert_int_equal(rig_count(r, FRAME(STOP)), 2);
    tsr_coord_closed(r->c, RIG_CONN);
    tsr_coord_closed(r->c, RIG_CONN + 1);
    rig_pass(r, 5, 0, 0, TSR_PHASE_START, 0);
    assert_int_equal(r->n_failed, 0); // as they were told
    assert_true(tsr_coord_over(r->c));
    rig_close(r);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),         cmocka_unit_test(test_refused),
        cmocka_unit_test(test_duplicate),    cmocka_unit_test(test_order),
        cmocka_unit_test(test_silence),      cmocka_unit_test(test_connection_ends),
        cmocka_unit_test(test_comes_back),   cmocka_unit_test(test_bye),
        cmocka_unit_test(test_never_joins),  cmocka_unit_test(test_own_pause),
        cmocka_unit_test(test_watchers),     cmocka_unit_test(test_stop_at_once),
        cmocka_unit_test(test_process_ends),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

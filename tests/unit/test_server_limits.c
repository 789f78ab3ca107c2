// The server alone, with little patience and few places: silence, half-open connections, addresses.
#include "control_client.h"

#include "launcher/coordinator/server.h"

struct host {
    uv_thread_t thread;
    uv_loop_t loop;
    uv_async_t stop;
    uv_sem_t ready;
    struct tsr_server_opt opt;
    struct tsr_server *server;
    int rc;
    atomic_int greeted, closed, open;
    uv_timer_t timer;
};

static int host_message(void *arg, int conn, uint16_t type, const ProtobufCMessage *m) {
    struct host *h = arg;
    Tessera__Control__Welcome w = TESSERA__CONTROL__WELCOME__INIT;
    (void)m;
    if (type != FRAME(HELLO))
        return tsr_fail(TSR_EREQUEST, "only a Hello, please");
    atomic_fetch_add(&h->greeted, 1);
    w.epoch = 5;
    w.heartbeat_ms = 50;
    w.lost_ms = 200;
    tsr_server_send(h->server, conn, FRAME(WELCOME), &w.base);
    return 0;
}

static void host_closed(void *arg, int conn) {
    struct host *h = arg;
    (void)conn;
    atomic_fetch_add(&h->closed, 1);
}

static void host_count(uv_timer_t *t) {
    struct host *h = t->data;
    atomic_store(&h->open, tsr_server_counts(h->server).open);
}

static void host_stop_now(uv_async_t *a) {
    struct host *h = a->data;
    tsr_server_close(h->server);
    uv_close((uv_handle_t *)&h->stop, NULL);
    uv_close((uv_handle_t *)&h->timer, NULL);
}

static void host_run(void *arg) {
    struct host *h = arg;
    assert_int_equal(uv_loop_init(&h->loop), 0);
    uv_async_init(&h->loop, &h->stop, host_stop_now);
    uv_timer_init(&h->loop, &h->timer);
    h->stop.data = h->timer.data = h;
    uv_timer_start(&h->timer, host_count, 5, 5);
    h->opt.loop = &h->loop;
    h->rc = tsr_server_open(&h->server, &h->opt);
    uv_sem_post(&h->ready);
    uv_run(&h->loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&h->loop), 0);
}

static void host_start(struct host *h, int n_places, double handshake_s) {
    *h = (struct host){.opt = {.host = "localhost",
                               .epoch = run_epoch,
                               .handshake_s = handshake_s,
                               .n_places = n_places,
                               .message = host_message,
                               .closed = host_closed,
                               .arg = h}};
    own_secret(h->opt.secret);
    uv_sem_init(&h->ready, 0);
    uv_thread_create(&h->thread, host_run, h);
    uv_sem_wait(&h->ready);
    expect_ok(h->rc);
}

static void host_stop(struct host *h) {
    uv_async_send(&h->stop);
    uv_thread_join(&h->thread);
    uv_sem_destroy(&h->ready);
}

static void half_open_connections_go_away(void **state) {
    static struct host h;
    int fds[20];
    (void)state;
    host_start(&h, 0, 0.2);
    for (int i = 0; i < 20; i++) {
        fds[i] = connect_to(tsr_server_port(h.server));
        send(fds[i], "\0\0\0", (size_t)(i % 4), MSG_NOSIGNAL); // some have begun a header
    }
    for (int i = 0; i < 20; i++) {
        assert_true(is_closed_by_peer(fds[i]));
        close(fds[i]);
    }
    WAIT_FOR(atomic_load(&h.open) == 0);
    assert_int_equal(atomic_load(&h.greeted), 0);
    assert_int_equal(atomic_load(&h.closed), 0);
    host_stop(&h);
}

// All places are taken by connections that say nothing: who has the key gets in all the same.
static void half_open_connections_make_room(void **state) {
    static struct host h;
    struct client good[6];
    uint8_t secret[TSR_SECRET];
    int fds[40];
    (void)state;
    own_secret(secret);
    host_start(&h, 8, 60);
    for (int i = 0; i < 40; i++)
        fds[i] = connect_to(tsr_server_port(h.server));
    for (int i = 0; i < 6; i++) {
        bool in = false;
        while (!in) { // turned away while the places of others are being cleared
            client_open(&good[i], tsr_server_port(h.server), secret);
            if (client_read(&good[i], 1)) {
                client_hello(&good[i], OBSERVER, run_epoch);
                in = client_read(&good[i], 2);
            }
            if (!in)
                client_close(&good[i]);
        }
        assert_int_equal(good[i].last_type, FRAME(WELCOME));
    }
    assert_int_equal(atomic_load(&h.greeted), 6);
    assert_true(atomic_load(&h.open) <= 8);
    for (int i = 0; i < 6; i++)
        client_close(&good[i]);
    WAIT_FOR(atomic_load(&h.closed) == 6);
    for (int i = 0; i < 40; i++)
        close(fds[i]);
    host_stop(&h);
}

// The owner's refusal ends a connection without `closed`.
static void a_refusal_of_the_owner_is_no_end_that_it_is_told(void **state) {
    static struct host h;
    struct client x;
    uint8_t secret[TSR_SECRET];
    (void)state;
    own_secret(secret);
    host_start(&h, 0, 60);
    client_open(&x, tsr_server_port(h.server), secret);
    client_hello(&x, OBSERVER, run_epoch);
    assert_true(client_read(&x, 2));
    client_ask(&x);
    assert_true(client_send(&x));
    assert_false(client_read(&x, 3));
    client_close(&x);
    WAIT_FOR(atomic_load(&h.open) == 0);
    assert_int_equal(atomic_load(&h.closed), 0);
    host_stop(&h);
}

// A coordinator that hangs: after lost_ms without a word the rank looks for it anew.
static void a_silent_coordinator_is_tried_again(void **state) {
    static struct host h;
    static struct rank r;
    char where[64];
    (void)state;
    host_start(&h, 0, 60);
    snprintf(where, sizeof where, "127.0.0.1:%d", tsr_server_port(h.server));
    expect_ok(rank_open(&r, 0, where, run_epoch, 60));
    WAIT_FOR(atomic_load(&h.greeted) >= 2);
    assert_int_equal(atomic_load(&r.exit_code), -1);
    tsr_agent_close(r.agent, 0);
    host_stop(&h);
}

// Its connection ends without a Bye and it does not come back.
static void a_rank_that_dies_is_reported(void **state) {
    static struct coordinator c;
    Tessera__Control__Hello hello = TESSERA__CONTROL__HELLO__INIT;
    Tessera__Control__Bye bye = TESSERA__CONTROL__BYE__INIT;
    struct client dying, leaving;
    uint8_t secret[TSR_SECRET];
    (void)state;
    own_secret(secret);
    limits.grace_s = 0.1;
    coordinator_start(&c, 0);
    hello.world = hello.dp = 2;
    hello.tp = hello.pp = 1;
    hello.epoch = run_epoch;
    hello.host = (char *)"here";
    client_open(&leaving, c.address.port, secret);
    client_greet(&leaving, hello);
    assert_true(client_read(&leaving, 2));
    hello.rank = 1;
    client_open(&dying, c.address.port, secret);
    client_greet(&dying, hello);
    assert_true(client_read(&dying, 2));
    expect_ok(tsr_session_seal(leaving.session, FRAME(BYE), &bye.base, &leaving.out));
    assert_true(client_send(&leaving));
    client_close(&leaving);
    nap(0.3);
    assert_int_equal(atomic_load(&c.failed), 0);
    client_close(&dying);
    WAIT_FOR(atomic_load(&c.failed) == 2); // rank 1
    coordinator_stop(&c);
}

static void a_coordinator_of_an_old_epoch_does_not_begin(void **state) {
    struct tsr_coordinator_thread *t;
    struct tsr_address at;
    struct tsr_coordinator_opt opt = {.core = {.run_name = "test", .run_dir = run_dir},
                                      .metrics_port = TSR_METRICS_NONE};
    (void)state;
    opt.core.epoch = run_epoch;
    opt.host = "192.0.2.1"; // of nobody
    expect_error(tsr_coordinator_thread_open(&t, &opt, &at), TSR_EUSAGE, "192.0.2.1");
    opt.host = NULL;
    expect_ok(tsr_epoch_take(run_dir, &run_epoch));
    expect_error(tsr_coordinator_thread_open(&t, &opt, &at), TSR_EPEER, "has taken over");
}

static void addresses_are_checked(void **state) {
    static struct host h;
    struct tsr_server *s;
    uv_loop_t loop;
    (void)state;
    host_start(&h, 0, 60);
    assert_int_equal(uv_loop_init(&loop), 0);
    struct tsr_server_opt opt = {.loop = &loop, .host = "0.0.0.0"}; // a secret of zeros is none
    expect_error(tsr_server_open(&s, &opt), TSR_EUSAGE, "key");
    opt.host = "no.such.host.invalid";
    expect_error(tsr_server_open(&s, &opt), TSR_EUSAGE, "no.such.host");
    own_secret(opt.secret);
    opt.host = "192.0.2.1"; // of nobody (RFC 5737)
    expect_error(tsr_server_open(&s, &opt), TSR_EUSAGE, "192.0.2.1");
    opt.host = "0.0.0.0";
    opt.port = tsr_server_port(h.server);
    expect_ok(tsr_server_open(&s, &opt)); // taken: another port
    assert_int_not_equal(tsr_server_port(s), opt.port);
    tsr_server_close(s);
    uv_run(&loop, UV_RUN_DEFAULT);
    assert_int_equal(uv_loop_close(&loop), 0);
    host_stop(&h);
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, control_setup, control_teardown)
        TEST(half_open_connections_go_away),
        TEST(half_open_connections_make_room),
        TEST(a_refusal_of_the_owner_is_no_end_that_it_is_told),
        TEST(a_silent_coordinator_is_tried_again),
        TEST(a_rank_that_dies_is_reported),
        TEST(a_coordinator_of_an_old_epoch_does_not_begin),
        TEST(addresses_are_checked),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

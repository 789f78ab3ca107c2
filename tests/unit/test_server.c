// What strangers, enemies and the unlucky can send to a coordinator: garbage, floods, wrong keys,
// replays, no reading. It stays within its bounds, and the run goes on.
#include "control_client.h"

// ---- the run beside all that

static struct coordinator c;
static struct rank ranks[WORLD];
static uint32_t attempt;

static int run_setup(void **state) {
    if (control_setup(state) < 0)
        return -1;
    attempt = 0;
    limits.metrics_port = 0;
    coordinator_start(&c, 0);
    ranks_open(ranks, &c);
    return 0;
}

static void the_run_is_unharmed(void) {
    attempt++;
    ranks_save(ranks, attempt, attempt);
    ranks_expect(ranks, attempt, 0);
    expect_newest(attempt);
    for (int i = 0; i < WORLD; i++)
        assert_int_equal(atomic_load(&ranks[i].exit_code), -1);
    assert_int_equal(atomic_load(&c.failed), 0);
}

static int run_teardown(void **state) {
    ranks_close(ranks);
    coordinator_stop(&c);
    return control_teardown(state);
}

// ---- strangers

static void garbage_is_refused(void **state) {
    static char bytes[100000];
    (void)state;
    expect_ok(tsr_random_bytes(bytes, sizeof bytes));
    for (size_t n = 1; n <= sizeof bytes; n *= 10) {
        int fd = connect_to(c.address.port);
        send(fd, bytes, n, MSG_NOSIGNAL);
        shutdown(fd, SHUT_WR);
        assert_true(is_closed_by_peer(fd));
        close(fd);
    }
    the_run_is_unharmed();
}

static void a_frame_of_four_gigabytes_is_refused_by_its_header(void **state) {
    uint8_t header[TSR_FRAME_HEADER] = {0xFF, 0xFF, 0xFF, 0xFF, FRAME(HELLO)};
    (void)state;
    int fd = connect_to(c.address.port);
    assert_int_equal(send(fd, header, sizeof header, 0), sizeof header);
    assert_true(is_closed_by_peer(fd)); // though the payload hasn't come
    close(fd);
    the_run_is_unharmed();
}

static void another_key_gets_nothing(void **state) {
    struct client x;
    uint8_t secret[TSR_SECRET];
    (void)state;
    expect_ok(tsr_random_bytes(secret, sizeof secret));
    client_open(&x, c.address.port, secret);
    assert_false(client_read(&x, 1)); // the Challenge isn't authentic to it
    assert_int_equal(x.n_messages, 0);
    client_close(&x);
    the_run_is_unharmed();
}

static void a_replayed_frame_ends_the_connection(void **state) {
    struct client x;
    uint8_t secret[TSR_SECRET];
    (void)state;
    own_secret(secret);
    client_open(&x, c.address.port, secret);
    client_hello(&x, OBSERVER, run_epoch);
    client_ask(&x);
    size_t n = x.out.len;
    char *again = malloc(n);
    memcpy(again, x.out.data, n);
    assert_true(client_send(&x));
    assert_true(client_read(&x, 3)); // Challenge, Welcome, Status
    assert_int_equal(x.last_type, FRAME(STATUS));
    assert_int_equal(send(x.fd, again, n, 0), n);
    free(again);
    while (client_read(&x, x.n_messages + 1))
        continue;
    assert_int_equal(x.last_type, FRAME(REFUSED)); // and then it was closed
    client_close(&x);
    the_run_is_unharmed();
}

static void an_old_epoch_is_refused_with_a_reason(void **state) {
    struct client x;
    uint8_t secret[TSR_SECRET];
    (void)state;
    own_secret(secret);
    client_open(&x, c.address.port, secret);
    client_hello(&x, TESSERA__CONTROL__ROLE__ROLE_RANK, run_epoch + 7);
    while (client_read(&x, x.n_messages + 1))
        continue;
    assert_int_equal(x.last_type, FRAME(REFUSED));
    assert_true(strlen(x.reason) > 0);
    client_close(&x);
    the_run_is_unharmed();
}

static void a_thousand_connections_leave_the_run_alone(void **state) {
    enum { N = 1000 };
    static int fds[N];
    (void)state;
    for (int i = 0; i < N; i++) {
        fds[i] = connect_to(c.address.port);
        if (i % 2)
            send(fds[i], "x", 1, MSG_NOSIGNAL);
    }
    the_run_is_unharmed();
    tessera__control__status__free_unpacked(coordinator_status(&c), NULL);
    for (int i = 0; i < N; i++)
        close(fds[i]);
    the_run_is_unharmed();
}

// What a sanitizer keeps of freed memory says nothing: 0.
static size_t resident_bytes(void) {
    long pages = 0;
#ifdef __SANITIZE_ADDRESS__
    return 0;
#endif
    FILE *f = fopen("/proc/self/statm", "r");
    assert_non_null(f);
    assert_int_equal(fscanf(f, "%*d %ld", &pages), 1);
    fclose(f);
    return (size_t)pages * (size_t)sysconf(_SC_PAGESIZE);
}

// It asks and asks and never reads: what is kept for it has a bound, then it is dropped.
static void who_does_not_read_is_dropped(void **state) {
    struct client x;
    uint8_t secret[TSR_SECRET];
    int n = 0;
    (void)state;
    own_secret(secret);
    client_open(&x, c.address.port, secret);
    client_hello(&x, OBSERVER, run_epoch);
    size_t before = resident_bytes();
    bool dropped = false;
    for (; !dropped && n < 2000; n++) {
        for (int i = 0; i < 100; i++)
            client_ask(&x);
        dropped = !client_send(&x);
    }
    assert_true(dropped);
    assert_true(resident_bytes() - before < (size_t)64 << 20);
    client_close(&x);
    the_run_is_unharmed();
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define RUN(f) cmocka_unit_test_setup_teardown(f, run_setup, run_teardown)
        RUN(garbage_is_refused),
        RUN(a_frame_of_four_gigabytes_is_refused_by_its_header),
        RUN(another_key_gets_nothing),
        RUN(a_replayed_frame_ends_the_connection),
        RUN(an_old_epoch_is_refused_with_a_reason),
        RUN(a_thousand_connections_leave_the_run_alone),
        RUN(who_does_not_read_is_dropped),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

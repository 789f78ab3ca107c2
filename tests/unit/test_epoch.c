// The files of RUN_DIR/coordinator: epoch, key, address, and the probe of a shared directory.
#include "files_support.h"

#include <pthread.h>
#include <sys/stat.h>
#include "launcher/epoch.h"

static char dir[TSR_PATH_MAX];

static int setup(void **state) {
    (void)state;
    make_temp_dir(dir);
    return 0;
}

static int teardown(void **state) {
    (void)state;
    return tsr_remove_tree(dir);
}

static const char *file(const char *name) {
    static char path[TSR_PATH_MAX];
    expect_ok(tsr_path_join(path, dir, "coordinator"));
    expect_ok(tsr_path_join(path, path, name));
    return path;
}

static void epochs_count_up(void **state) {
    uint64_t epoch;
    (void)state;
    expect_ok(tsr_epoch_read(dir, &epoch));
    assert_int_equal(epoch, 0);
    for (uint64_t i = 1; i < 4; i++) {
        expect_ok(tsr_epoch_take(dir, &epoch));
        assert_int_equal(epoch, i);
        expect_ok(tsr_epoch_read(dir, &epoch));
        assert_int_equal(epoch, i);
    }
    expect_ok(tsr_epoch_check(dir, 3));
    expect_error(tsr_epoch_check(dir, 2), TSR_EPEER, "incarnation 3");
    expect_error(tsr_epoch_check(dir, 4), TSR_EUSAGE, "never taken");
}

static void the_key_is_made_once_and_is_ours_alone(void **state) {
    uint8_t first[TSR_SECRET], again[TSR_SECRET];
    uint64_t epoch;
    struct stat st;
    (void)state;
    expect_error(tsr_run_key(dir, first), TSR_EUSAGE, "key");
    expect_ok(tsr_epoch_take(dir, &epoch));
    expect_ok(tsr_run_key(dir, first));
    assert_int_equal(stat(file("key"), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    expect_ok(tsr_epoch_take(dir, &epoch));
    expect_ok(tsr_run_key(dir, again));
    assert_memory_equal(first, again, TSR_SECRET);
    assert_int_equal(chmod(file("key"), 0644), 0);
    expect_error(tsr_epoch_take(dir, &epoch), TSR_EUSAGE, "key");
}

static void a_file_that_is_not_an_epoch_is_refused(void **state) {
    static const char *const bad[] = {"",
                                      "\n",
                                      "x",
                                      "-1\n",
                                      "1 2",
                                      "+1",
                                      "1\n\n",
                                      " 1\n",
                                      "0x1",
                                      "99999999999999999999\n",
                                      "18446744073709551615\n"};
    uint64_t epoch;
    (void)state;
    expect_ok(tsr_epoch_take(dir, &epoch));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text(file("epoch"), bad[i]);
        expect_error(tsr_epoch_take(dir, &epoch), TSR_EDATA, "whole number");
    }
    write_text(file("epoch"), "41"); // without a newline it is one
    expect_ok(tsr_epoch_take(dir, &epoch));
    assert_int_equal(epoch, 42);
}

enum { TAKERS = 4, EACH = 8 };

static void *take(void *arg) {
    uint64_t *epochs = arg;
    for (int i = 0; i < EACH; i++)
        if (tsr_epoch_take(dir, &epochs[i]) < 0)
            epochs[i] = 0;
    return NULL;
}

static void starts_at_once_get_different_epochs(void **state) {
    uint64_t epochs[TAKERS][EACH];
    bool seen[TAKERS * EACH + 1] = {false};
    pthread_t threads[TAKERS];
    (void)state;
    for (int i = 0; i < TAKERS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, take, epochs[i]), 0);
    for (int i = 0; i < TAKERS; i++)
        pthread_join(threads[i], NULL);
    for (int i = 0; i < TAKERS; i++)
        for (int k = 0; k < EACH; k++) {
            assert_in_range(epochs[i][k], 1, TAKERS * EACH);
            assert_false(seen[epochs[i][k]]);
            seen[epochs[i][k]] = true;
        }
}

static void addresses_go_round(void **state) {
    struct tsr_address a = {
        .host = "node7", .port = 4242, .metrics_port = 9, .pid = 17, .epoch = 3};
    struct tsr_address b;
    uint64_t epoch;
    (void)state;
    expect_ok(tsr_epoch_take(dir, &epoch));
    assert_int_equal(tsr_address_read(dir, &b), 0);
    expect_ok(tsr_address_write(dir, &a));
    assert_int_equal(tsr_address_read(dir, &b), 1);
    assert_string_equal(b.host, "node7");
    assert_int_equal(b.port, 4242);
    assert_int_equal(b.metrics_port, 9);
    assert_int_equal(b.pid, 17);
    assert_int_equal(b.epoch, 3);
    static const char *const bad[] = {
        "",
        "[]",
        "{}",
        "{\"host\":\"h\",\"port\":70000,\"metrics_port\":0,\"pid\":1,\"epoch\":1}",
        "{\"host\":\"h\",\"port\":-1,\"metrics_port\":0,\"pid\":1,\"epoch\":1}",
        "{\"host\":\"\",\"port\":1,\"metrics_port\":0,\"pid\":1,\"epoch\":1}",
        "{\"host\":1,\"port\":1,\"metrics_port\":0,\"pid\":1,\"epoch\":1}",
        "{\"host\":\"h\",\"port\":1.5,\"metrics_port\":0,\"pid\":1,\"epoch\":1}",
        "{\"host\":\"h\",\"port\":1,\"metrics_port\":0,\"pid\":1}",
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        write_text(file("address"), bad[i]);
        expect_error(tsr_address_read(dir, &b), TSR_EDATA, "host");
    }
}

static void addresses_are_parsed(void **state) {
    static const char *const bad[] = {"",     ":1",      "h",    "h:",         "h:0",  "h:65536",
                                      "h:1x", "h:-1",    "::1",  "::1:80",     "[]:1", "[::1]",
                                      "h: 1", "[::1]80", "h:+1", "h:99999999", ":"};
    struct tsr_address a;
    char text[TSR_HOST_MAX + 16];
    (void)state;
    expect_ok(tsr_address_parse("node7.example:4242", &a));
    assert_string_equal(a.host, "node7.example");
    assert_int_equal(a.port, 4242);
    tsr_address_text(text, a.host, a.port);
    assert_string_equal(text, "node7.example:4242");
    expect_ok(tsr_address_parse("[fe80::1]:1", &a));
    assert_string_equal(a.host, "fe80::1");
    tsr_address_text(text, a.host, a.port);
    assert_string_equal(text, "[fe80::1]:1");
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        expect_error(tsr_address_parse(bad[i], &a), TSR_EUSAGE, "host:port");
}

static void a_directory_that_is_not_shared_is_noticed(void **state) {
    char other[TSR_PATH_MAX];
    (void)state;
    make_temp_dir(other);
    expect_ok(tsr_probe_put(dir, 7));
    expect_ok(tsr_probe_find(dir, 7, 0));
    expect_error(tsr_probe_find(dir, 8, 0.05), TSR_EUSAGE, "shared");
    expect_error(tsr_probe_find(other, 7, 0.05), TSR_EUSAGE, other);
    expect_ok(tsr_probe_remove(dir, 7));
    expect_ok(tsr_probe_remove(dir, 7));
    expect_error(tsr_probe_find(dir, 7, 0), TSR_EUSAGE, "shared");
    expect_ok(tsr_remove_tree(other));
}

int main(void) {
    const struct CMUnitTest tests[] = {
#define TEST(f) cmocka_unit_test_setup_teardown(f, setup, teardown)
        TEST(epochs_count_up),
        TEST(the_key_is_made_once_and_is_ours_alone),
        TEST(a_file_that_is_not_an_epoch_is_refused),
        TEST(starts_at_once_get_different_epochs),
        TEST(addresses_go_round),
        TEST(addresses_are_parsed),
        TEST(a_directory_that_is_not_shared_is_noticed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

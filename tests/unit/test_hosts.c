// Host lists, of --hosts and of Slurm.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "launcher/hosts.h"

static void assert_list(struct tsr_hosts *h, const char *expected) {
    struct tsr_buf text = {0};
    assert_int_equal(tsr_hosts_format(h, NULL, &text), 0);
    assert_string_equal(text.data, expected);
    tsr_buf_free(&text);
    tsr_hosts_free(h);
}

static void test_list(void **state) {
    (void)state;
    struct tsr_hosts h;
    assert_int_equal(tsr_hosts_parse(&h, "h1:8,h2:4,node-3.cluster_b:1"), 0);
    assert_int_equal(tsr_hosts_slots(&h), 13);
    assert_list(&h, "h1:8,h2:4,node-3.cluster_b:1");
    assert_int_equal(tsr_hosts_parse(&h, "a"), 0);
    assert_list(&h, "a:1");
    assert_int_equal(tsr_hosts_parse(&h, "10.77.0.1:2,10.77.0.2"), 0);
    assert_list(&h, "10.77.0.1:2,10.77.0.2:1");
}

static void test_left_out(void **state) {
    (void)state;
    struct tsr_hosts h;
    struct tsr_buf text = {0};
    static const bool lost[] = {true, false, true, false};
    assert_int_equal(tsr_hosts_parse(&h, "a:1,b:2,c:3,d:4"), 0);
    assert_int_equal(tsr_hosts_format(&h, lost, &text), 0);
    assert_string_equal(text.data, "b:2,d:4");
    tsr_buf_free(&text);
    tsr_hosts_free(&h);
}

static void test_bad_lists(void **state) {
    (void)state;
    static const char *const bad[] = {"",        ",",
                                      "a,",      ",a",
                                      "a,,b",    ":8",
                                      "a:",      "a:0",
                                      "a:-1",    "a:1.5",
                                      "a:8x",    "a:1048577",
                                      "a b",     "a;rm -rf /:8",
                                      "-x:2",    "a:8:8",
                                      "a,a",     "a:1,a:2",
                                      "$x",      "a\n:1",
                                      "[::1]:1", "a:99999999999999999999"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tsr_hosts h;
        if (tsr_hosts_parse(&h, bad[i]) != TSR_EUSAGE)
            fail_msg("\"%s\" is taken", bad[i]);
        assert_int_equal(h.n, 0);
        assert_null(h.items);
    }
    char *name = malloc(400);
    struct tsr_hosts h;
    assert_non_null(name);
    memset(name, 'a', 399);
    name[399] = 0;
    assert_int_equal(tsr_hosts_parse(&h, name), TSR_EUSAGE);
    free(name);
}

static void test_slurm_lists(void **state) {
    (void)state;
    static const char *const cases[][2] = {
        {"node1", "node1:1"},
        {"node1,node2", "node1:1,node2:1"},
        {"gpu[01-03,7],login", "gpu01:1,gpu02:1,gpu03:1,gpu7:1,login:1"},
        {"n[8-11]", "n8:1,n9:1,n10:1,n11:1"},
        {"n[098-101]", "n098:1,n099:1,n100:1,n101:1"},
        {"rack[1-2]n[0-1]-ib", "rack1n0-ib:1,rack1n1-ib:1,rack2n0-ib:1,rack2n1-ib:1"},
        {"a[1],b[2-2]", "a1:1,b2:1"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tsr_hosts h;
        if (tsr_hosts_parse_slurm(&h, cases[i][0]) != 0)
            fail_msg("%s: %s", cases[i][0], tsr_error_text());
        assert_list(&h, cases[i][1]);
    }
}

static void test_bad_slurm_lists(void **state) {
    (void)state;
    static const char *const bad[] = {
        "",       ",",     "a[",        "a[]",           "a[1",           "a[1-]",  "a[-1]",
        "a[3-1]", "a[1,]", "a[x]",      "a[1-2x]",       "a[1]]",         "a[[1]]", "a[1-2-3]",
        "a[1-2",  "a]",    "a[1-1],a1", "a[0-99999999]", "a[1234567890]", "a[1 2]", "a[1-2],"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tsr_hosts h;
        if (tsr_hosts_parse_slurm(&h, bad[i]) != TSR_EUSAGE)
            fail_msg("\"%s\" is taken", bad[i]);
        assert_int_equal(h.n, 0);
    }
}

static void assert_slots(const char *tasks, const char *expected) {
    struct tsr_hosts h;
    assert_int_equal(tsr_hosts_parse_slurm(&h, "n[1-4]"), 0);
    if (tsr_hosts_slurm_slots(&h, tasks) == 0) {
        if (!expected)
            fail_msg("\"%s\" is taken", tasks);
        assert_list(&h, expected);
    } else {
        if (expected)
            fail_msg("\"%s\": %s", tasks, tsr_error_text());
        tsr_hosts_free(&h);
    }
}

static void test_slurm_slots(void **state) {
    (void)state;
    assert_slots("8(x4)", "n1:8,n2:8,n3:8,n4:8");
    assert_slots("2(x3),1", "n1:2,n2:2,n3:2,n4:1");
    assert_slots("1,2,3,4", "n1:1,n2:2,n3:3,n4:4");
    static const char *const bad[] = {"",        "8",     "8(x5)",  "8(x3)",
                                      "8(x4),1", "8(4)",  "8(x0)",  "8(x4",
                                      "0(x4)",   "a(x4)", "8(x4)x", "8(x4),",
                                      "(x4)",    "8(x)",  "-1(x4)", "8(x99999999999999999999)"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_slots(bad[i], NULL);
}

static void test_slurm_job(void **state) {
    (void)state;
    struct tsr_hosts h;
    setenv("PATH", "/nowhere", 1); // no scontrol
    unsetenv("SLURM_JOB_ID");
    setenv("SLURM_JOB_NODELIST", "n[1-2]", 1);
    setenv("SLURM_TASKS_PER_NODE", "4(x2)", 1);
    assert_int_equal(tsr_hosts_from_slurm(&h), 0);
    assert_int_equal(h.n, 0); // not in a job
    setenv("SLURM_JOB_ID", "17", 1);
    assert_int_equal(tsr_hosts_from_slurm(&h), 0);
    assert_list(&h, "n1:4,n2:4");
    setenv("SLURM_JOB_NODELIST", "n1", 1);
    assert_int_equal(tsr_hosts_from_slurm(&h), 0);
    assert_int_equal(h.n, 0); // a single node is this one
    setenv("SLURM_JOB_NODELIST", "n[1-", 1);
    assert_int_equal(tsr_hosts_from_slurm(&h), TSR_EUSAGE);
    assert_non_null(strstr(tsr_error_text(), "SLURM_JOB_NODELIST=n[1-"));
    unsetenv("SLURM_JOB_ID");
}

static void test_here(void **state) {
    (void)state;
    char own[300] = "";
    assert_int_equal(gethostname(own, 200), 0);
    assert_true(tsr_host_is_here(own));
    assert_true(tsr_host_is_here("localhost"));
    assert_true(tsr_host_is_here("127.0.0.1"));
    assert_true(tsr_host_is_here("127.3.2.1"));
    assert_false(tsr_host_is_here("192.0.2.1")); // RFC 5737: nobody's
    assert_false(tsr_host_is_here("10.77.0.2"));
    own[strcspn(own, ".")] = 0;
    assert_true(tsr_host_is_here(own));
    strcat(own, "x");
    assert_false(tsr_host_is_here(own));
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_list),
        cmocka_unit_test(test_left_out),
        cmocka_unit_test(test_bad_lists),
        cmocka_unit_test(test_slurm_lists),
        cmocka_unit_test(test_bad_slurm_lists),
        cmocka_unit_test(test_slurm_slots),
        cmocka_unit_test(test_slurm_job),
        cmocka_unit_test(test_here),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

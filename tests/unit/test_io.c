#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/error.h"
#include "core/io.h"
#include "tests/unit/scratch.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <time.h>

static void test_join(void **state) {
    static const char *const CASES[][3] = {
        {"a", "b", "a/b"},   {"a/", "b", "a/b"},
        {"a//", "b", "a/b"}, {"", "b", "b"},
        {"a", "", "a"},      {"", "", ""},
        {"/", "b", "/b"},    {"//", "b", "/b"},
        {"a", "/b", "/b"},   {"a/b", "c/d", "a/b/c/d"},
        {"/", "", "/"},      {".", "..", "./.."},
    };
    char out[TSR_PATH_MAX];
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_int_equal(tsr_path_join(out, CASES[i][0], CASES[i][1]), 0);
        assert_string_equal(out, CASES[i][2]);
        strcpy(out, CASES[i][0]); // the result may replace either part
        assert_int_equal(tsr_path_join(out, out, CASES[i][1]), 0);
        assert_string_equal(out, CASES[i][2]);
        strcpy(out, CASES[i][1]);
        assert_int_equal(tsr_path_join(out, CASES[i][0], out), 0);
        assert_string_equal(out, CASES[i][2]);
    }
}

static void test_join_too_long(void **state) {
    char out[TSR_PATH_MAX], a[TSR_PATH_MAX + 10];
    (void)state;
    memset(a, 'x', sizeof a);
    a[TSR_PATH_MAX - 3] = 0;
    assert_int_equal(tsr_path_join(out, a, "y"), 0);
    assert_int_equal(strlen(out), TSR_PATH_MAX - 1);
    assert_int_equal(tsr_path_join(out, a, "yz"), TSR_EUSAGE);
    assert_int_equal(tsr_path_join(out, a, "/z"), 0);
}

static void test_dir_and_base(void **state) {
    static const char *const CASES[][3] = {
        {"a/b", "a", "b"},       {"b", ".", "b"},   {"/b", "/", "b"}, {"a//b", "a", "b"},
        {"/a/b/c", "/a/b", "c"}, {"//b", "/", "b"}, {"", ".", ""},    {"a/", "a", ""},
    };
    char out[TSR_PATH_MAX];
    (void)state;
    for (size_t i = 0; i < sizeof CASES / sizeof *CASES; i++) {
        assert_int_equal(tsr_path_dir(out, CASES[i][0]), 0);
        assert_string_equal(out, CASES[i][1]);
        assert_string_equal(tsr_path_base(CASES[i][0]), CASES[i][2]);
    }
}

static void test_mkdir_p(void **state) {
    char deep[TSR_PATH_MAX];
    (void)state;
    snprintf(deep, sizeof deep, "%s//x/y///z/", scratch_dir);
    assert_int_equal(tsr_mkdir_p(deep), 0);
    assert_int_equal(tsr_mkdir_p(deep), 0); // there already
    assert_true(tsr_path_is_dir(scratch("x/y/z")));
    assert_int_equal(tsr_mkdir_p("/"), 0);
    assert_int_equal(tsr_mkdir_p("."), 0);
    scratch_write(scratch("file"), "", 0);
    assert_int_equal(tsr_mkdir_p(scratch("file")), TSR_EIO);
    assert_int_equal(tsr_mkdir_p(scratch("file/below")), TSR_EIO);
    assert_non_null(strstr(tsr_error_text(), "file"));
}

static void test_remove_tree(void **state) {
    (void)state;
    assert_int_equal(tsr_remove_tree(scratch("missing")), 0);
    assert_int_equal(tsr_mkdir_p(scratch("t/u/v")), 0);
    assert_int_equal(tsr_mkdir_p(scratch("kept")), 0);
    scratch_write(scratch("t/u/f"), "1", 1);
    scratch_write(scratch("kept/f"), "1", 1);
    assert_int_equal(symlink(scratch("kept"), scratch("t/link")), 0);
    assert_int_equal(symlink("nowhere", scratch("t/broken")), 0);
    assert_int_equal(tsr_remove_tree(scratch("t")), 0);
    assert_false(tsr_path_exists(scratch("t")));
    assert_true(tsr_path_exists(scratch("kept/f")));         // a link is removed, not what it names
    assert_int_equal(tsr_remove_tree(scratch("kept/f")), 0); // a lone file
    assert_false(tsr_path_exists(scratch("kept/f")));
}

static void test_read_file(void **state) {
    char *text;
    size_t n = 99;
    (void)state;
    scratch_write(scratch("r"), "a\0b", 3);
    assert_int_equal(tsr_read_file(scratch("r"), 3, TSR_EDATA, &text, &n), 0);
    assert_int_equal(n, 3);
    assert_memory_equal(text, "a\0b", 4);
    free(text);
    assert_int_equal(tsr_read_file(scratch("r"), 2, TSR_EDATA, &text, &n), TSR_EDATA);
    assert_int_equal(tsr_read_file(scratch("gone"), 2, TSR_EMODEL, &text, &n), TSR_EMODEL);
    assert_non_null(strstr(tsr_error_text(), "gone"));
    assert_int_equal(tsr_read_file(scratch_dir, 2, TSR_EUSAGE, &text, &n), TSR_EUSAGE);
    assert_non_null(strstr(tsr_error_text(), "folder"));
    scratch_write(scratch("zero"), "", 0);
    assert_int_equal(tsr_read_file(scratch("zero"), 0, TSR_EDATA, &text, &n), 0);
    assert_int_equal(n, 0);
    assert_string_equal(text, "");
    free(text);
    assert_int_equal(tsr_read_file("/proc/self/status", 1 << 20, TSR_EDATA, &text, NULL), 0);
    assert_non_null(strstr(text, "Pid:")); // its size reads 0
    free(text);
    assert_int_equal(tsr_read_file("/proc/self/status", 10, TSR_EDATA, &text, &n), TSR_EDATA);
}

static void test_buf(void **state) {
    struct tsr_buf b = {0};
    (void)state;
    assert_int_equal(tsr_buf_append(&b, NULL, 0), 0);
    assert_string_equal(b.data, "");
    size_t n = 0;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(tsr_buf_printf(&b, "%d,", i), 0);
        assert_int_equal(tsr_buf_append(&b, "x\0y", 3), 0);
        n += (i < 10 ? 2u : i < 100 ? 3u : 4u) + 3u;
        assert_int_equal(b.len, n);
        assert_int_equal(b.data[n], 0);
    }
    assert_memory_equal(b.data, "0,x\0y1,x\0y", 10);
    assert_int_equal(tsr_buf_append(&b, "", SIZE_MAX - 4), TSR_ENOMEM);
    tsr_buf_free(&b);
    assert_null(b.data);
}

static int count_entries(const char *dir) {
    int n = 0;
    DIR *d = opendir(dir);
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n - 2;
}

static void test_write_file_durable(void **state) {
    char *text;
    size_t n;
    (void)state;
    assert_int_equal(tsr_mkdir_p(scratch("d")), 0);
    assert_int_equal(tsr_write_file_durable(scratch("d/f"), "old", 3), 0);
    assert_int_equal(tsr_write_file_durable(scratch("d/f"), "newer", 5), 0);
    assert_int_equal(tsr_read_file(scratch("d/f"), 9, TSR_EDATA, &text, &n), 0);
    assert_string_equal(text, "newer");
    free(text);
    assert_int_equal(count_entries(scratch("d")), 1); // nothing temporary is left
    assert_int_equal(tsr_write_file_durable(scratch("no/f"), "x", 1), TSR_EIO);
    assert_int_equal(tsr_mkdir_p(scratch("d/sub")), 0);
    assert_int_equal(tsr_write_file_durable(scratch("d/sub"), "x", 1), TSR_EIO); // over a folder
    assert_int_equal(count_entries(scratch("d")), 2);
    assert_int_equal(tsr_fsync_path(scratch("d")), 0);
    assert_int_equal(tsr_fsync_path(scratch("d/f")), 0);
    assert_int_equal(tsr_fsync_path(scratch("d/none")), TSR_EIO);
}

static void test_full_disk(void **state) {
    char big[1 << 16] = {0};
    int fd = open("/dev/full", O_WRONLY);
    (void)state;
    assert_true(fd >= 0);
    assert_int_equal(tsr_write_all(fd, big, sizeof big, "/dev/full"), TSR_ENOSPC);
    assert_int_equal(tsr_pwrite_all(fd, big, sizeof big, 7, "/dev/full"), TSR_ENOSPC);
    assert_non_null(strstr(tsr_error_text(), "/dev/full"));
    close(fd);
    assert_int_equal(tsr_fail_errno(EDQUOT, "cannot write", "f"), TSR_ENOSPC);
    assert_int_equal(tsr_fail_errno(EROFS, "cannot write", "f"), TSR_EIO);
}

// A file that may not grow beyond 10 bytes: the first write is cut short, the second one fails.
static void test_short_write_then_error(void **state) {
    struct rlimit old, small;
    (void)state;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    small = (struct rlimit){10, old.rlim_max};
    int fd = open(scratch("limited"), O_RDWR | O_CREAT, 0666);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    int rc = tsr_write_all(fd, "0123456789abcdef", 16, "limited");
    int rc2 = tsr_pwrite_all(fd, "0123456789abcdef", 16, 4, "limited");
    int rc3 = tsr_write_file_durable(scratch("limited2"), "0123456789abcdef", 16);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &old), 0);
    assert_int_equal(rc, TSR_EIO);
    assert_int_equal(rc2, TSR_EIO);
    assert_int_equal(rc3, TSR_EIO);
    assert_false(tsr_path_exists(scratch("limited2")));
    close(fd);
}

static void test_offsets(void **state) {
    char got[8] = {0};
    int fd = open(scratch("o"), O_RDWR | O_CREAT, 0666);
    (void)state;
    assert_int_equal(tsr_pwrite_all(fd, "world", 5, 3, "o"), 0);
    assert_int_equal(tsr_pread_all(fd, got, 7, 1, "o"), 0);
    assert_memory_equal(got, "\0\0world", 7);
    assert_int_equal(tsr_pread_all(fd, got, 0, 100, "o"), 0);
    assert_int_equal(tsr_pread_all(fd, got, 5, 4, "o"), TSR_EIO); // the end comes too early
    assert_int_equal(tsr_pread_all(fd, got, 1, UINT64_MAX, "o"), TSR_EIO);
    assert_int_equal(tsr_pwrite_all(fd, got, 1, INT64_MAX, "o"), TSR_EIO);
    close(fd);
}

static void on_alarm(int signo) {
    (void)signo;
}

static void *drain(void *arg) {
    int fd = *(int *)arg;
    char buf[4096];
    size_t total = 0;
    struct timespec pause = {0, 200000};
    for (ssize_t n; (n = read(fd, buf, sizeof buf)) != 0;) {
        if (n > 0)
            total += (size_t)n;
        nanosleep(&pause, NULL);
    }
    return (void *)total;
}

// A slow pipe and a timer that fires all the time: writes are cut short and interrupted.
static void test_interrupted_writes(void **state) {
    enum { N = 1 << 20 };
    int fds[2];
    pthread_t reader;
    void *total;
    sigset_t alarm_set;
    struct sigaction sa = {.sa_handler = on_alarm}, old; // without SA_RESTART
    (void)state;
    char *big = calloc(1, N);
    assert_non_null(big);
    assert_int_equal(pipe(fds), 0);
    sigemptyset(&alarm_set);
    sigaddset(&alarm_set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &alarm_set, NULL); // the reader inherits it: signals come here
    assert_int_equal(pthread_create(&reader, NULL, drain, &fds[0]), 0);
    pthread_sigmask(SIG_UNBLOCK, &alarm_set, NULL);
    sigaction(SIGALRM, &sa, &old);
    struct itimerspec every = {{0, 300000}, {0, 300000}};
    timer_t timer;
    assert_int_equal(timer_create(CLOCK_MONOTONIC, NULL, &timer), 0);
    timer_settime(timer, 0, &every, NULL);
    int rc = tsr_write_all(fds[1], big, N, "pipe");
    timer_delete(timer);
    close(fds[1]);
    pthread_join(reader, &total);
    close(fds[0]);
    sigaction(SIGALRM, &old, NULL);
    free(big);
    assert_int_equal(rc, 0);
    assert_int_equal((size_t)total, N);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_join),         cmocka_unit_test(test_join_too_long),
        cmocka_unit_test(test_dir_and_base), cmocka_unit_test(test_mkdir_p),
        cmocka_unit_test(test_remove_tree),  cmocka_unit_test(test_read_file),
        cmocka_unit_test(test_buf),          cmocka_unit_test(test_write_file_durable),
        cmocka_unit_test(test_full_disk),    cmocka_unit_test(test_short_write_then_error),
        cmocka_unit_test(test_offsets),      cmocka_unit_test(test_interrupted_writes),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "core/error.h"
#include "core/log.h"
#include "core/progress_bar.h"
#include "tests/unit/scratch.h"

#include <fcntl.h>
#include <jansson.h>
#include <pthread.h>
#include <pty.h>
#include <string.h>
#include <sys/wait.h>

// Runs fn in a child whose standard error is a pipe or, with `tty`, a terminal; `environment`
// ("NAME=VALUE" or NULL) is set there. Returns what it wrote there.
static void in_child(char *out, size_t size, int tty, const char *environment, void (*fn)(void)) {
    int fds[2];
    struct winsize w = {.ws_row = 24, .ws_col = 60};
    if (tty)
        assert_int_equal(openpty(&fds[0], &fds[1], NULL, NULL, &w), 0);
    else
        assert_int_equal(pipe(fds), 0);
    pid_t child = fork();
    if (child == 0) {
        dup2(fds[1], STDERR_FILENO);
        close(fds[0]);
        close(fds[1]);
        setenv("TERM", "xterm", 1);
        if (environment)
            putenv((char *)(uintptr_t)environment);
        fn();
        _exit(0);
    }
    close(fds[1]);
    size_t used = 0;
    for (ssize_t n; used < size - 1 && (n = read(fds[0], out + used, size - 1 - used)) > 0;)
        used += (size_t)n;
    out[used] = 0;
    close(fds[0]);
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
}

static void say_all_levels(void) {
    tsr_debug("d%d", 1);
    tsr_info("i%d", 2);
    tsr_warn("w%d", 3);
    tsr_error("e%d", 4);
}

static void as_rank_3(void) {
    tsr_log_identity(3, 8, "node7");
    tsr_info("hello");
}

static void with_level_set(void) {
    tsr_log_level(TSR_LOG_ERROR);
    say_all_levels();
}

static void test_human_line(void **state) {
    char out[4096];
    (void)state;
    in_child(out, sizeof out, 0, NULL, say_all_levels);
    int h, m, s, end = 0;
    assert_int_equal(sscanf(out, "%2d:%2d:%2d info  i2\n%n", &h, &m, &s, &end), 3);
    assert_true(end > 0);
    assert_null(strstr(out, "d1"));
    assert_non_null(strstr(out, " warn  w3\n"));
    assert_non_null(strstr(out, " error e4\n"));
    assert_null(strchr(out, '\033'));
    assert_null(strstr(out, "rank"));
    in_child(out, sizeof out, 0, NULL, as_rank_3);
    assert_non_null(strstr(out, " info  [rank 3 node7] hello\n"));
}

static void test_levels(void **state) {
    char out[4096];
    (void)state;
    in_child(out, sizeof out, 0, "TESSERA_LOG=debug", say_all_levels);
    assert_non_null(strstr(out, "debug d1"));
    in_child(out, sizeof out, 0, "TESSERA_LOG=error", say_all_levels);
    assert_null(strstr(out, "w3"));
    assert_non_null(strstr(out, "e4"));
    in_child(out, sizeof out, 0, "TESSERA_LOG=loud", say_all_levels);
    assert_non_null(strstr(out, "\"loud\""));
    assert_non_null(strstr(out, "i2"));
    in_child(out, sizeof out, 0, "TESSERA_LOG=debug", with_level_set);
    assert_null(strstr(out, "w3"));
}

static void test_terminal_colours(void **state) {
    char out[4096];
    (void)state;
    in_child(out, sizeof out, 1, "NO_COLOR=", say_all_levels);
    assert_non_null(strstr(out, "\033[33mwarn \033[0m w3"));
    in_child(out, sizeof out, 1, "NO_COLOR=1", say_all_levels);
    assert_null(strchr(out, '\033'));
}

static void long_message(void) {
    char big[9000];
    memset(big, 'x', sizeof big - 1);
    big[sizeof big - 1] = 0;
    tsr_info("%s", big);
}

static void test_long_message(void **state) {
    char out[12000];
    (void)state;
    in_child(out, sizeof out, 0, NULL, long_message);
    assert_int_equal(strlen(strchr(out, 'x')), 9000); // and its newline
}

static void quiet(int *saved) {
    fflush(stderr);
    *saved = dup(STDERR_FILENO);
    int null = open("/dev/null", O_WRONLY);
    dup2(null, STDERR_FILENO);
    close(null);
}

static void loud(int saved) {
    dup2(saved, STDERR_FILENO);
    close(saved);
}

static void test_json_lines(void **state) {
    static const char NASTY[] = "q\" b\\ n\n t\t e\x1b d\x7f é € 𝄞 "
                                "bad\xff\xc0\xaf\xed\xa0\x80 cut\xe2\x82";
    char *text;
    size_t n;
    int saved;
    (void)state;
    tsr_log_identity(2, 4, "h\"ost");
    assert_int_equal(tsr_log_open(scratch_dir), 0);
    quiet(&saved);
    tsr_warn("%s", NASTY);
    tsr_debug("dropped");
    tsr_info("%s", "");
    loud(saved);
    tsr_log_close();
    tsr_info("not in the file");
    assert_int_equal(tsr_read_file(scratch("log.jsonl"), 1 << 20, TSR_EDATA, &text, &n), 0);
    char *second = strchr(text, '\n') + 1;
    assert_int_equal(second - text + (strchr(second, '\n') + 1 - second), n); // two lines
    json_t *o = json_loadb(text, (size_t)(second - text), 0, NULL);
    assert_non_null(o);
    assert_string_equal(json_string_value(json_object_get(o, "level")), "warn");
    assert_int_equal(json_integer_value(json_object_get(o, "rank")), 2);
    assert_string_equal(json_string_value(json_object_get(o, "host")), "h\"ost");
    assert_string_equal(json_string_value(json_object_get(o, "msg")),
                        "q\" b\\ n\n t\t e\x1b d\x7f é € 𝄞 bad\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD\uFFFD "
                        "cut\uFFFD\uFFFD");
    const char *time = json_string_value(json_object_get(o, "time"));
    int y, mo, d, h, mi, s, ms, end = 0;
    assert_int_equal(
        sscanf(time, "%4d-%2d-%2dT%2d:%2d:%2d.%3dZ%n", &y, &mo, &d, &h, &mi, &s, &ms, &end), 7);
    assert_int_equal(end, 24);
    assert_int_equal(strlen(time), 24);
    json_decref(o);
    free(text);
    assert_int_equal(tsr_log_open(scratch("missing")), TSR_EIO);
}

static void *chatter(void *arg) {
    for (int i = 0; i < 200; i++)
        tsr_info("thread %d line %d %064d", *(int *)arg, i, i);
    return NULL;
}

// Lines of several writers never mix: two descriptors and four threads share one file.
static void test_lines_stay_whole(void **state) {
    pthread_t t[4];
    int id[4], saved, n_lines = 0;
    char *text;
    size_t n;
    (void)state;
    unlink(scratch("log.jsonl"));
    assert_int_equal(tsr_log_open(scratch_dir), 0);
    quiet(&saved);
    pid_t child = fork();
    for (int i = 0; i < 4; i++) {
        id[i] = i;
        pthread_create(&t[i], NULL, chatter, &id[i]);
    }
    for (int i = 0; i < 4; i++)
        pthread_join(t[i], NULL);
    if (child == 0)
        _exit(0);
    waitpid(child, NULL, 0);
    loud(saved);
    tsr_log_close();
    assert_int_equal(tsr_read_file(scratch("log.jsonl"), 1 << 22, TSR_EDATA, &text, &n), 0);
    for (char *line = text, *next; line < text + n; line = next, n_lines++) {
        next = strchr(line, '\n') + 1;
        json_t *o = json_loadb(line, (size_t)(next - line), 0, NULL);
        assert_non_null(o);
        json_decref(o);
    }
    assert_int_equal(n_lines, 2 * 4 * 200);
    free(text);
}

static void run_bar(void) {
    struct tsr_bar bar;
    tsr_bar_begin(&bar, "steps", "steps", 10, 110);
    bar.began_s -= 20;
    bar.shown_s -= 20;
    tsr_bar_update(&bar, 60, "loss 4.5");
    tsr_bar_update(&bar, 61, "too soon to be shown");
    tsr_info("between");
    bar.shown_s -= 20;
    tsr_bar_update(&bar, 999, NULL); // beyond the end
    tsr_bar_end(&bar);
}

static void run_byte_bar(void) {
    struct tsr_bar bar;
    tsr_bar_begin(&bar, "reading", "B", 0, 0);
    bar.began_s -= 7200;
    bar.shown_s -= 20;
    tsr_bar_update(&bar, 12345678, NULL);
    tsr_bar_end(&bar);
}

static void test_bar_without_terminal(void **state) {
    char out[4096];
    (void)state;
    tsr_log_identity(0, 1, "here");
    in_child(out, sizeof out, 0, NULL, run_bar);
    assert_non_null(strstr(out, "steps  54%  60 of 110 steps  2.50/s  ETA 0:20  loss 4.5\n"));
    assert_non_null(strstr(out, "steps 100%  110 of 110 steps"));
    assert_non_null(strstr(out, "steps: 100 steps in 0:20 ("));
    assert_null(strstr(out, "too soon"));
    assert_null(strchr(out, '\r'));
    in_child(out, sizeof out, 0, NULL, run_byte_bar);
    assert_non_null(strstr(out, "reading  12.3 MB  1.71 kB/s\n"));
    assert_non_null(strstr(out, "reading: 12.3 MB in 2:00:00 (1.71 kB/s)\n"));
}

static void test_bar_on_terminal(void **state) {
    char out[4096];
    (void)state;
    in_child(out, sizeof out, 1, NULL, run_bar);
    // 60 columns: the numbers come first, and what they leave is the graph's.
    assert_non_null(strstr(out, "\rsteps  54%  60 of 110 steps  2.50/s  ETA 0:20  loss 4.5\033[K"));
    char *bar = strstr(out, "\rsteps [====");
    assert_non_null(bar);
    assert_non_null(strstr(bar, "] 100%  110 of 110 steps"));
    char *end = strstr(bar, "\033[K");
    assert_non_null(end);
    assert_true(end - bar <= 60);             // the carriage return and at most 59 of 60 columns
    assert_non_null(strstr(out, "\r\033[K")); // wiped before the line between
    assert_non_null(strstr(out, "between\r\n"));
    assert_non_null(strstr(out, "steps: 100 steps in 0:20"));
}

static void share_and_say(void) {
    tsr_log_share();
    tsr_info("first");
    tsr_info("second");
}

// Somebody else's bar may stand before each line.
static void test_shared_terminal(void **state) {
    char out[4096];
    (void)state;
    in_child(out, sizeof out, 1, NULL, share_and_say);
    assert_memory_equal(out, "\r\033[K", 4);
    assert_non_null(strstr(out, "first\r\n\r\033[K"));
    in_child(out, sizeof out, 0, NULL, share_and_say);
    assert_null(strchr(out, '\033'));
    // A rank behind a pipe: the terminal has 61 columns.
    in_child(out, sizeof out, 0, "TESSERA_TERMINAL=61", run_bar);
    assert_non_null(
        strstr(out, "\rsteps  54%  60 of 110 steps  2.50/s  ETA 0:20  loss 4.5\033[K\r"));
    assert_non_null(strstr(out, "\r\033[K"));
    assert_non_null(strstr(out, "\033[32minfo \033[0m between\n"));
    in_child(out, sizeof out, 0, "TERM=dumb", run_bar);
    assert_null(strchr(out, '\033'));
    in_child(out, sizeof out, 1, "TERM=dumb", run_bar);
    assert_null(strchr(out, '\033'));
}

int main(void) {
    // Children first: what the log finds out about standard error it finds out once a process.
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_bar_without_terminal),
        cmocka_unit_test(test_bar_on_terminal),
        cmocka_unit_test(test_shared_terminal),
        cmocka_unit_test(test_human_line),
        cmocka_unit_test(test_levels),
        cmocka_unit_test(test_terminal_colours),
        cmocka_unit_test(test_long_message),
        cmocka_unit_test(test_json_lines),
        cmocka_unit_test(test_lines_stay_whole),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

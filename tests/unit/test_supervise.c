// The supervisor with real processes: starts, ends of every kind, restarts, signals, orphans.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <sys/wait.h>
#include "core/clock.h"
#include "launcher/supervise.h"
#include "scratch.h"
#include "supervise_fake.h"

enum { LIMIT_S = 60 }; // of one supervisor

struct outcome {
    int code;     // of the supervisor; 128 + signal
    char *err;    // its standard error
    char *starts; // layouts and epochs of the starts of the ranks
    double seconds;
};

static char *slurp(const char *name) {
    char *text;
    size_t n;
    return tsr_path_exists(scratch(name)) &&
                   tsr_read_file(scratch(name), 1 << 20, TSR_EDATA, &text, &n) == 0
               ? text
               : strdup("");
}

static int setup(void **state) {
    if (scratch_setup(state) < 0)
        return -1;
    char text[64];
    int n = snprintf(text, sizeof text, "steps: 1\n");
    scratch_write(scratch("run.yaml"), text, (size_t)n);
    return 0;
}

static _Noreturn void supervise(const struct tsr_layouts *elastic, int64_t dp) {
    struct tsr_run r = {0};
    struct tsr_model m = {0};
    r.run.name = (char *)"test";
    r.run.dir = scratch_dir;
    r.parallel.tp = r.parallel.pp = 1;
    r.parallel.dp = dp;
    r.parallel.exact = true;
    r.parallel.elastic = *elastic;
    r.train.global_batch = 8;
    r.train.micro_batch = 1;
    r.data.seq_len = 8;
    r.supervise.restarts = 3;
    r.supervise.heartbeat_ms = 250;
    r.supervise.lost_ms = 3000;
    m.n_layers = m.n_heads = m.n_kv_heads = m.ffn = m.vocab = 8;
    m.max_positions = 64;
    int err = open(scratch("err"), O_WRONLY | O_CREAT | O_TRUNC, 0666);
    dup2(err, STDERR_FILENO);
    close(err);
    const char *override = "train.steps=5";
    struct tsr_supervise_opt opt = {.run = &r,
                                    .model = &m,
                                    .run_file = scratch("run.yaml"),
                                    .overrides = &override,
                                    .n_overrides = 1};
    _exit(tsr_supervise(&opt));
}

static pid_t start(const char *script, const struct tsr_layouts *elastic, int64_t dp) {
    static const struct tsr_layouts none;
    scratch_write(scratch("script"), script, strlen(script));
    fflush(NULL);
    pid_t pid = fork();
    if (pid == 0) {
        for (int sig = 1; sig < NSIG; sig++)
            signal(sig, SIG_DFL); // a crash must not come back into the test program
        alarm(LIMIT_S);
        supervise(elastic ? elastic : &none, dp);
    }
    return pid;
}

static bool lives(pid_t pid) {
    char path[64], text[512] = "";
    snprintf(path, sizeof path, "/proc/%d/stat", (int)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return false;
    ssize_t n = read(fd, text, sizeof text - 1);
    close(fd);
    const char *after = n > 0 ? strrchr(text, ')') : NULL;
    return after && after[2] != 'Z';
}

// None of the processes that left their pid lives `limit_s` from now.
static void assert_all_gone(double limit_s) {
    char *pids = slurp("pids");
    int n = 0;
    for (char *at = pids; *at; at = strchr(at, '\n') + 1, n++)
        for (double end = tsr_now() + limit_s; lives(atoi(at)); nap(0.005))
            if (tsr_now() > end)
                fail_msg("process %d is left behind", atoi(at));
    assert_true(n > 0);
    free(pids);
}

static struct outcome finish(pid_t pid, double began) {
    struct outcome o = {0};
    int status;
    assert_int_equal(waitpid(pid, &status, 0), pid);
    o.code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    o.seconds = tsr_now() - began;
    o.err = slurp("err");
    o.starts = slurp("starts");
    return o;
}

static void forget(struct outcome *o) {
    free(o->err);
    free(o->starts);
}

static void assert_says(const struct outcome *o, const char *needle) {
    if (!strstr(o->err, needle))
        fail_msg("expected \"%s\" in:\n%s", needle, o->err);
}

// Runs a script to its end: exit code and number of starts.
static struct outcome run_script(const char *script, int code, int starts) {
    double began = tsr_now();
    struct outcome o = finish(start(script, NULL, 1), began);
    int n = 0;
    for (const char *at = o.starts; (at = strchr(at, '\n')); at++)
        n++;
    if (o.code != code || n != starts)
        fail_msg("\"%s\": exit code %d after %d starts, expected %d after %d\n%s", script, o.code,
                 n, code, starts, o.err);
    assert_all_gone(0.0);
    return o;
}

static void test_final_codes(void **state) {
    (void)state;
    static const int codes[] = {0, 2, 3, 5};
    for (size_t i = 0; i < sizeof codes / sizeof *codes; i++) {
        char script[32];
        snprintf(script, sizeof script, "exit=%d", codes[i]);
        struct outcome o = run_script(script, codes[i], 1);
        forget(&o);
        unlink(scratch("starts"));
    }
}

static void test_restarts(void **state) {
    (void)state;
    struct outcome o = run_script("kill\nexit=4\ncommit=7 kill\nexit=0\n", 0, 4);
    assert_string_equal(o.starts, "parallel.tp=1 parallel.pp=1 parallel.dp=1 1\n"
                                  "parallel.tp=1 parallel.pp=1 parallel.dp=1 2\n"
                                  "parallel.tp=1 parallel.pp=1 parallel.dp=1 3\n"
                                  "parallel.tp=1 parallel.pp=1 parallel.dp=1 4\n");
    assert_says(&o, "exit code 137: restart 1 of at most 3 without a new checkpoint, from the "
                    "beginning, in 0.2 s");
    assert_says(&o, "exit code 4: restart 2 of at most 3");
    assert_says(&o, "restart 1 of at most 3 without a new checkpoint, from step 7, in 0.2 s");
    forget(&o);
}

static void test_gives_up(void **state) {
    (void)state;
    struct outcome o = run_script("sleep=0.3 kill", 4, 4);
    assert_says(&o, "gave up after 3 restarts without a new checkpoint");
    assert_says(&o, "failed: its process ended; start, collective 0, step 0");
    assert_true(o.seconds > 0.2 + 0.4 + 0.8);
    forget(&o);
}

// On a file system without locks two supervisors may meet: the older one leaves at once.
static void test_taken_over(void **state) {
    (void)state;
    struct outcome o = run_script("takeover commit=7 kill", 4, 1);
    assert_says(&o, "this is incarnation 1 of the run, and incarnation 2 has taken over");
    assert_null(strstr(strstr(o.err, "restart 1 of") + 1, "restart "));
    forget(&o);
}

static void test_bug(void **state) {
    (void)state;
    struct outcome o = run_script("exit=70", 70, 2);
    forget(&o);
}

static void test_elastic(void **state) {
    (void)state;
    struct tsr_layout3 other = {1, 1, 1};
    const struct tsr_layouts elastic = {&other, 1};
    double began = tsr_now();
    struct outcome o = finish(start("sleep=0.05 kill\nkill\nexit=0", &elastic, 2), began);
    assert_int_equal(o.code, 0);
    assert_string_equal(o.starts, "parallel.tp=1 parallel.pp=1 parallel.dp=2 1\n"
                                  "parallel.tp=1 parallel.pp=1 parallel.dp=2 2\n"
                                  "parallel.tp=1 parallel.pp=1 parallel.dp=1 3\n");
    assert_non_null(strstr(o.err, "a line of the rank\n"));
    assert_null(strstr(o.err, "mpirun noticed")); // in log.jsonl instead
    assert_says(&o, "warn  rank 0 on ");
    assert_says(&o, "failed: its process ended; start, collective 0, step 0");
    char *log = slurp("log.jsonl");
    assert_non_null(strstr(log, "mpirun noticed that process rank 0"));
    free(log);
    assert_all_gone(0.0);
    forget(&o);
}

// A rank that ends before the coordinator knows it, while mpirun doesn't notice.
static void test_vanished(void **state) {
    (void)state;
    double began = tsr_now();
    struct outcome o = finish(start("freeze sleep=0.3 kill\nexit=3", NULL, 2), began);
    assert_int_equal(o.code, 3);
    assert_says(&o, "warn  rank 0 on ");
    assert_says(&o, "failed: its process ended; start, collective 0, step 0");
    assert_says(&o, "exit code 4: restart 1 of at most 3");
    assert_true(o.seconds < 20.0);
    assert_all_gone(0.0);
    forget(&o);
}

static void test_failed(void **state) {
    (void)state;
    // The rank itself doesn't end: the coordinator's word counts.
    struct outcome o = run_script("sleep=0.2 report hang\nexit=0", 0, 2);
    assert_says(&o, "rank 0 on elsewhere failed: its connection ended; forward, micro-batch 2, "
                    "step 41");
    forget(&o);
}

static void test_coordinator_dies(void **state) {
    (void)state;
    struct outcome o = run_script("sleep=0.2 nocoord sleep=0.5 exit=0", 0, 1);
    assert_says(&o, "the coordinator ended with exit code 137 and is started again");
    forget(&o);
}

static void test_coordinator_hangs(void **state) {
    (void)state;
    struct outcome o = run_script("sleep=0.2 stopcoord sleep=8 exit=0", 0, 1);
    assert_says(&o, "the coordinator did not answer for ");
    assert_says(&o, "the coordinator ended with exit code 137 and is started again");
    forget(&o);
}

static void test_orphan(void **state) {
    (void)state;
    struct outcome o = run_script("orphan kill\norphan exit=0", 0, 2);
    forget(&o);
}

static void wait_for_start(void) {
    for (double end = tsr_now() + 10.0; !there(scratch_dir, "starts"); nap(0.005))
        assert_true(tsr_now() < end);
}

static void test_stop(void **state) {
    (void)state;
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    for (size_t i = 0; i < sizeof signals / sizeof *signals; i++) {
        double began = tsr_now();
        pid_t pid = start("hang", NULL, 1);
        wait_for_start();
        kill(pid, signals[i]);
        struct outcome o = finish(pid, began);
        assert_int_equal(o.code, 5);
        assert_all_gone(0.0);
        forget(&o);
        unlink(scratch("starts"));
        unlink(scratch("stop"));
    }
}

static void test_stop_at_once(void **state) {
    (void)state;
    double began = tsr_now();
    pid_t pid = start("orphan sleep=100", NULL, 2);
    wait_for_start();
    kill(pid, SIGTERM);
    nap(0.3);
    kill(pid, SIGINT);
    struct outcome o = finish(pid, began);
    assert_int_equal(o.code, 128 + SIGTERM);
    assert_all_gone(0.0);
    forget(&o);
}

static void test_killed(void **state) {
    (void)state;
    for (int64_t dp = 1; dp <= 2; dp++) {
        double began = tsr_now();
        pid_t pid = start("sleep=100", NULL, dp);
        wait_for_start();
        nap(0.1);
        kill(pid, SIGKILL);
        struct outcome o = finish(pid, began);
        assert_all_gone(2.0);
        forget(&o);
        unlink(scratch("starts"));
        // The next one cleans up what is left in shared memory.
        o = run_script("exit=0", 0, 1);
        forget(&o);
        unlink(scratch("starts"));
    }
}

static void test_only_one(void **state) {
    (void)state;
    double began = tsr_now();
    pid_t pid = start("sleep=100", NULL, 1);
    wait_for_start();
    rename(scratch("err"), scratch("err-first"));
    struct outcome o = finish(start("sleep=100", NULL, 1), began); // read by both
    assert_int_equal(o.code, 2);
    assert_says(&o, "is being trained already, by process ");
    forget(&o);
    kill(pid, SIGTERM);
    kill(pid, SIGKILL);
    o = finish(pid, began);
    assert_all_gone(2.0);
    forget(&o);
    unlink(scratch("starts"));
    o = run_script("exit=0", 0, 1); // its lock is gone with it
    forget(&o);
}

int main(int argc, char **argv) {
    if (argc > 1 && strcmp(argv[1], "coordinator") == 0)
        return fake_coordinator(argc, argv);
    if (argc > 1 && strcmp(argv[1], "train") == 0)
        return fake_rank(argc, argv);
#define CASE(name) cmocka_unit_test_setup_teardown(name, setup, scratch_teardown)
    const struct CMUnitTest tests[] = {
        CASE(test_final_codes),       CASE(test_restarts), CASE(test_gives_up),
        CASE(test_taken_over),        CASE(test_bug),      CASE(test_elastic),
        CASE(test_vanished),          CASE(test_failed),   CASE(test_coordinator_dies),
        CASE(test_coordinator_hangs), CASE(test_orphan),   CASE(test_stop),
        CASE(test_stop_at_once),      CASE(test_killed),   CASE(test_only_one),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

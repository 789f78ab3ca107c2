// A save in which one call to the kernel goes wrong: every call of it, one after another, with each
// kind of failure. The test stands between the writer and the kernel.
#include "tests/unit/checkpoint_support.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <sys/stat.h>
#include <unistd.h>

enum kind { NONE, FULL, BROKEN, INTERRUPTED, SHORT };

static struct {
    enum kind kind;
    long at;           // number, from 1, of the call that goes wrong
    atomic_long calls; // below `below` so far
    atomic_bool hit, hit_transfer;
    char below[TSR_PATH_MAX];
} fault;

#define REAL(name) (*(__typeof__(&name))dlsym(RTLD_NEXT, #name))

static bool is_below(const char *path) {
    return fault.kind != NONE && strncmp(path, fault.below, strlen(fault.below)) == 0;
}

static bool fd_is_below(int fd) {
    char link[64], path[TSR_PATH_MAX];
    if (fault.kind == NONE)
        return false;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    path[n > 0 ? n : 0] = 0;
    return is_below(path);
}

// Whether this call goes wrong, and how: an error number, -1: it moves less. A full disk stays
// full; it fails calls that need room only, and an interruption only those that wait.
static int judge(bool counted, bool needs_room, bool waits, bool transfer) {
    if (!counted)
        return 0;
    long n = atomic_fetch_add(&fault.calls, 1) + 1;
    if (fault.kind == FULL && n >= fault.at && needs_room) {
        fault.hit = true;
        return ENOSPC;
    }
    if (n != fault.at || fault.kind == FULL || (fault.kind == INTERRUPTED && !waits) ||
        (fault.kind == SHORT && !transfer))
        return 0;
    fault.hit = true;
    fault.hit_transfer = transfer;
    return fault.kind == BROKEN ? EIO : fault.kind == INTERRUPTED ? EINTR : -1;
}

#define FAIL_IF(error)                                                                             \
    do {                                                                                           \
        int error_ = (error);                                                                      \
        if (error_ > 0) {                                                                          \
            errno = error_;                                                                        \
            return -1;                                                                             \
        }                                                                                          \
    } while (0)

int open(const char *path, int flags, ...) {
    mode_t mode = 0;
    if (flags & O_CREAT) {
        va_list ap;
        va_start(ap, flags);
        mode = va_arg(ap, mode_t);
        va_end(ap);
    }
    FAIL_IF(judge(is_below(path), flags & O_CREAT, true, false));
    return REAL(open)(path, flags, mode);
}

// Less than asked for; whole pages where O_DIRECT wants them.
static size_t less(size_t n) {
    return n > 4096 ? 4096 : n > 1 ? n / 2 : n;
}

#define TRANSFER(name, is_write, ...)                                                              \
    int how = judge(n > 0 && fd_is_below(fd), is_write, true, true);                               \
    FAIL_IF(how);                                                                                  \
    return REAL(name)(fd, buf, how < 0 ? less(n) : n __VA_ARGS__)

ssize_t write(int fd, const void *buf, size_t n) {
    TRANSFER(write, true);
}

ssize_t pwrite(int fd, const void *buf, size_t n, off_t at) {
    TRANSFER(pwrite, true, , at);
}

ssize_t read(int fd, void *buf, size_t n) {
    TRANSFER(read, false);
}

ssize_t pread(int fd, void *buf, size_t n, off_t at) {
    TRANSFER(pread, false, , at);
}

int fsync(int fd) { // the page cache is enough for a test: nothing here pulls a plug
    FAIL_IF(judge(fd_is_below(fd), true, true, false));
    return 0;
}

int ftruncate(int fd, off_t size) {
    FAIL_IF(judge(fd_is_below(fd), true, true, false));
    return REAL(ftruncate)(fd, size);
}

int rename(const char *from, const char *to) {
    FAIL_IF(judge(is_below(to), true, false, false));
    return REAL(rename)(from, to);
}

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    FAIL_IF(judge(is_below(to), true, false, false));
    return REAL(renameat2)(from_fd, from, to_fd, to, flags);
}

int mkdir(const char *path, mode_t mode) {
    bool there = access(path, F_OK) == 0; // then the answer is EEXIST anyway
    FAIL_IF(judge(is_below(path) && !there, true, false, false));
    return REAL(mkdir)(path, mode);
}

int unlink(const char *path) {
    FAIL_IF(judge(is_below(path), false, false, false));
    return REAL(unlink)(path);
}

int close(int fd) {
    int error = judge(fd_is_below(fd), true, true, false);
    int rc = REAL(close)(fd); // it is closed whatever close says
    FAIL_IF(error);
    return rc;
}

// ---- one save, as ranks and coordinator make it

static struct fixture x;
static bool replacing; // there is a checkpoint of this step already

// One rank has the first tensors of the table, the other the last, but for a row that each has of
// the other's: runs of bytes with breaks in them.
static int write_part(struct tsr_checkpoint *c, int rank) {
    static float data[1 << 12];
    for (int k = 0; k < 3 * x.table.n; k++) {
        enum tsr_checkpoint_part part = (enum tsr_checkpoint_part)(k / x.table.n);
        const struct tsr_tensor *t = &x.table.t[k % x.table.n];
        int owner = k % x.table.n < x.table.n / 2 ? 0 : 1;
        int64_t cut = k % x.table.n == 1 ? 1 : 0; // first row: the other's
        struct tsr_region g = {owner == rank ? cut : 0, owner == rank ? t->rows : cut, 0, t->cols};
        assert_true(tsr_region_elems(g) <= (int64_t)(sizeof data / sizeof *data));
        for (int64_t i = 0; i < tsr_region_elems(g); i++)
            data[i] = element(&x, part, t, g.r0 + i / t->cols, i % t->cols);
        TSR_TRY(tsr_checkpoint_write(c, part, t, g, data, t->cols));
    }
    return 0;
}

static int flush(struct tsr_checkpoint *c, struct gathered *g) {
    struct tsr_save_vote v;
    TSR_TRY(tsr_checkpoint_flush(c, &v));
    gather(g, &v);
    return 0;
}

static int digest_rest(struct tsr_checkpoint *c, struct gathered *g) {
    for (uint64_t r = 0; r < g->n_ranges; r++) {
        struct tsr_span span = {r, 1};
        struct tsr_save_vote v;
        if (g->have[r])
            continue;
        TSR_TRY(tsr_checkpoint_digest(c, &span, 1, &v));
        gather(g, &v);
    }
    return 0;
}

static int write_and_publish(struct tsr_checkpoint *c[2], struct gathered *g) {
    TSR_TRY(write_part(c[0], 0));
    TSR_TRY(write_part(c[1], 1));
    TSR_TRY(flush(c[0], g));
    TSR_TRY(flush(c[1], g));
    assert_true(g->elements == g->plan.elements);
    TSR_TRY(digest_rest(c[1], g));
    return publish(&g->publish);
}

static int save(int64_t step) {
    struct tsr_checkpoint *c[2] = {NULL, NULL};
    struct gathered g = {0};
    struct tsr_known_good known = {0};
    x.opt.step = x.state.step = x.state.updates = step;
    x.opt.attempt++;
    for (int i = 0; i < 2; i++)
        expect_ok(tsr_checkpoint_open(&c[i], &x.opt));
    int rc = tsr_checkpoint_begin(c[0], &x.state, NULL, NULL);
    if (rc == 0) {
        open_gathered(&g, &x, c[0]);
        rc = write_and_publish(c, &g);
        char why[2048];
        snprintf(why, sizeof why, "%s", tsr_error_text());
        if (rc < 0 && tsr_publish_remove_temporary(x.dir, g.plan.temporary) == 0)
            rc = tsr_fail((enum tsr_code)rc, "%s", why);
    }
    if (rc == 0)
        rc = tsr_checkpoint_retain(x.dir, 2, &known);
    for (int i = 0; i < 2; i++)
        tsr_checkpoint_close(c[i]);
    free_gathered(&g);
    return rc;
}

// ---- every call

static int n_open(void) {
    int n = 0;
    DIR *d = opendir("/proc/self/fd");
    assert_non_null(d);
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static bool is_good(int64_t step) {
    char dir[TSR_PATH_MAX];
    expect_ok(tsr_checkpoint_path(dir, x.dir, step));
    return tsr_checkpoint_verify(dir, 0, 1) == 0;
}

static void remove_step(int64_t step) {
    char dir[TSR_PATH_MAX];
    expect_ok(tsr_checkpoint_path(dir, x.dir, step));
    expect_ok(tsr_remove_tree(dir));
}

// 49 stays good whatever happens, and 50 is whole or isn't there; a next run finds one of them.
static void check_left(long at, int rc) {
    char dir[TSR_PATH_MAX];
    int64_t step;
    expect_ok(tsr_checkpoint_path(dir, x.dir, 50));
    if (!is_good(49) || (tsr_path_exists(dir) && !is_good(50)))
        fail_msg("call %ld: a checkpoint is damaged: %s", at, tsr_error_text());
    if (rc == 0 && !is_good(50))
        fail_msg("call %ld: no checkpoint after success", at);
    expect_ok(tsr_checkpoint_fence(x.dir, 100));
    assert_int_equal(tsr_checkpoint_latest(x.dir, INT64_MAX, &step, dir), 1);
    assert_true(is_good(step) && step >= 49);
}

static void check_error(long at, int rc, int code, int number) {
    const char *text = tsr_error_text();
    if (rc != code || !strstr(text, x.dir) || !strstr(text, strerror(number)))
        fail_msg("call %ld: expected %s with path and \"%s\", found %s: %s", at,
                 tsr_error_name(code), strerror(number), tsr_error_name(rc), text);
}

static void check_one(enum kind kind, long at) {
    if (!is_good(48))
        expect_ok(save(48));
    if (replacing && !is_good(50))
        expect_ok(save(50));
    int before = n_open();
    fault.calls = 0;
    fault.hit = fault.hit_transfer = false;
    fault.at = at;
    fault.kind = kind;
    int rc = save(50);
    fault.kind = NONE;
    char why[2048];
    snprintf(why, sizeof why, "%s", tsr_error_text());
    assert_int_equal(n_open(), before);
    if (rc < 0 && !fault.hit)
        fail_msg("call %ld: failed without a reason: %s", at, why);
    if (kind == FULL && rc < 0)
        check_error(at, rc, TSR_ENOSPC, ENOSPC);
    if (kind == BROKEN && rc < 0)
        check_error(at, rc, TSR_EIO, EIO);
    if (rc < 0 && fault.hit_transfer && kind != BROKEN)
        fail_msg("call %ld: short and interrupted transfers go on, but: %s", at, why);
    check_left(at, rc);
    if (!replacing)
        remove_step(50);
}

static long count_calls(void) {
    if (replacing)
        expect_ok(save(50));
    fault.calls = 0;
    fault.at = -1;
    fault.kind = BROKEN;
    expect_ok(save(50));
    fault.kind = NONE;
    if (!replacing)
        remove_step(50);
    return fault.calls;
}

// Threads make the count vary a little.
static void check_all(enum kind kind, long least_hits) {
    long n = count_calls(), hits = 0;
    for (long at = 1; at <= n + 3; at++) {
        check_one(kind, at);
        hits += fault.hit;
    }
    print_message("%ld calls, %ld went wrong\n", n, hits);
    assert_true(n > 60 && hits >= least_hits);
}

static void test_full(void **state) {
    (void)state;
    check_all(FULL, 60);
}

static void test_broken(void **state) {
    (void)state;
    check_all(BROKEN, 60);
}

static void test_interrupted(void **state) {
    (void)state;
    check_all(INTERRUPTED, 60);
}

static void test_short(void **state) {
    (void)state;
    check_all(SHORT, 20);
}

// The checkpoint of the step that a run repeats is exchanged, and is there at every moment.
static void test_replaced(void **state) {
    (void)state;
    replacing = true;
    check_all(BROKEN, 60);
    replacing = false;
}

static int start(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    x.opt.max_file_bytes = 0;
    x.opt.range_bytes = 0;
    expect_ok(tsr_path_join(fault.below, x.dir, "checkpoints"));
    expect_ok(save(48));
    expect_ok(save(49));
    return 0;
}

static int finish(void **state) {
    (void)state;
    close_fixture(&x);
    return 0;
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_full),  WITH(test_broken),   WITH(test_interrupted),
        WITH(test_short), WITH(test_replaced),
    };
    return cmocka_run_group_tests_name("checkpoint_faults", tests, NULL, NULL);
}

// Stretches of files that are read in the background, against the bytes that were written: with and
// without O_DIRECT, whatever the kernel does to single calls. The test stands between the two.
#include "tests/unit/direct_support.h"

#include "core/fetch.h"

static struct {
    bool no_direct; // EINVAL, but only when a direct file is read
    long broken_at; // number of the call that fails with EIO; 0: none
} reads;

ssize_t pread(int fd, void *buf, size_t n, off_t offset) {
    const bool direct = is_direct(fd);
    const long k = count_call(direct, buf, n, offset);
    if (k == reads.broken_at || (direct && reads.no_direct)) {
        errno = k == reads.broken_at ? EIO : EINVAL;
        return -1;
    }
    if (is_due(k, kernel.interrupted_every)) {
        errno = EINTR;
        return -1;
    }
    if (is_due(k, kernel.short_every) && n > 2 * DISK_BLOCK)
        n = direct && k % 2 ? n / 2 / DISK_BLOCK * DISK_BLOCK : n / 2 - 77;
    ssize_t done = (ssize_t)syscall(SYS_pread64, fd, buf, n, offset);
    kernel.n_direct += direct && done > 0;
    return done;
}

// ---- a file, and what is read of it

enum { SIZE = (9 << 20) + 1234, N = 12, ROOM = 5 << 20 };

static char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
static char *content, *memory;

static int start(void **state) {
    (void)state;
    memset(&kernel, 0, sizeof kernel);
    memset(&reads, 0, sizeof reads);
    make_temp_dir(dir);
    expect_ok(tsr_path_join(path, dir, "file"));
    content = malloc(SIZE);
    memory = aligned_alloc(4096, (size_t)N * ROOM);
    uint32_t x = 7;
    for (size_t i = 0; i < SIZE; i++)
        content[i] = (char)((x = x * 1664525u + 1013904223u) >> 24);
    expect_ok(tsr_write_file_durable(path, content, SIZE));
    return 0;
}

static int finish(void **state) {
    (void)state;
    free(content);
    free(memory);
    expect_ok(tsr_remove_tree(dir));
    return 0;
}

// Of all sizes around a page and a call, in the middle and up to the file's end.
static int fill_stretches(struct tsr_stretch s[static N], const struct tsr_fetch_file *f) {
    static const size_t sizes[] = {1, 4095, 4096, 4097, 100000, 2 << 20, (2 << 20) + 1, ROOM};
    int n = 0;
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++, n++)
        s[n] = (struct tsr_stretch){.file = f, .offset = 4096 * i * 3, .n_bytes = sizes[i]};
    for (uint64_t at = SIZE / 4096 * 4096; n < N; n++, at -= 1 << 20)
        s[n] = (struct tsr_stretch){.file = f, .offset = at, .n_bytes = (size_t)(SIZE - at)};
    for (int i = 0; i < n; i++)
        s[i].to = memory + (size_t)i * ROOM;
    return n;
}

static int fetch_once(bool buffered, bool staged) {
    struct tsr_fetch_file f;
    struct tsr_fetcher *r;
    struct tsr_stretch s[N];
    int rc = 0;
    memset(memory, 0x55, (size_t)N * ROOM);
    expect_ok(tsr_fetch_file_open(&f, path, buffered));
    expect_ok(tsr_fetch_open(&r, staged));
    const int n = fill_stretches(s, &f);
    for (int i = 0; i < n; i++)
        tsr_fetch_submit(r, &s[i]);
    for (int i = n - 1; i >= 0; i--) { // the order of waits doesn't matter
        int one = tsr_fetch_wait(r, &s[i]);
        if (one == 0)
            assert_memory_equal(s[i].to, content + s[i].offset, s[i].n_bytes);
        rc = one < 0 ? one : rc;
    }
    tsr_fetch_close(r);
    tsr_fetch_file_close(&f);
    assert_int_equal(kernel.n_unaligned, 0);
    return rc;
}

static int fetch_all(bool buffered) {
    int rc = fetch_once(buffered, false);
    return rc < 0 ? rc : fetch_once(buffered, true);
}

static void test_direct(void **state) {
    (void)state;
    expect_ok(fetch_all(false));
    assert_true(kernel.n_direct >= N);
}

static void test_buffered(void **state) {
    (void)state;
    expect_ok(fetch_all(true));
    kernel.no_direct_open = true;
    expect_ok(fetch_all(false));
    kernel.no_direct_open = false;
    reads.no_direct = true;
    expect_ok(fetch_all(false));
    assert_int_equal(kernel.n_direct, 0);
}

static void test_short_and_interrupted(void **state) {
    (void)state;
    for (int every = 1; every <= 5; every++) {
        kernel.short_every = every;
        kernel.interrupted_every = every + 2;
        kernel.n_calls = 0;
        expect_ok(fetch_all(every % 2));
    }
}

static void test_broken(void **state) {
    (void)state;
    expect_ok(fetch_all(false));
    const long n = kernel.n_calls;
    for (long at = 1; at <= n; at++) {
        kernel.n_calls = 0;
        reads.broken_at = at;
        expect_error(fetch_all(false), TSR_EIO, path);
    }
}

static void test_too_short(void **state) {
    (void)state;
    struct tsr_fetch_file f;
    struct tsr_fetcher *r;
    for (int buffered = 0; buffered < 2; buffered++) {
        struct tsr_stretch s = {.file = &f, .offset = SIZE / 4096 * 4096, .to = memory};
        s.n_bytes = (size_t)(SIZE - s.offset) + 1;
        expect_ok(tsr_fetch_file_open(&f, path, buffered));
        expect_ok(tsr_fetch_open(&r, buffered));
        tsr_fetch_submit(r, &s);
        expect_error(tsr_fetch_wait(r, &s), TSR_EIO, path);
        tsr_fetch_close(r);
        tsr_fetch_file_close(&f);
    }
    char missing[TSR_PATH_MAX];
    expect_ok(tsr_path_join(missing, dir, "missing"));
    expect_error(tsr_fetch_file_open(&f, missing, false), TSR_EIO, missing);
}

// Nobody waits for what was asked for: it is dropped.
static void test_dropped(void **state) {
    (void)state;
    for (int i = 0; i < 50; i++) {
        struct tsr_fetch_file f;
        struct tsr_fetcher *r;
        struct tsr_stretch s[N];
        expect_ok(tsr_fetch_file_open(&f, path, false));
        expect_ok(tsr_fetch_open(&r, i % 2));
        const int n = fill_stretches(s, &f);
        for (int k = 0; k < n; k++)
            tsr_fetch_submit(r, &s[k]);
        tsr_fetch_close(r);
        tsr_fetch_file_close(&f);
    }
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_direct), WITH(test_buffered),  WITH(test_short_and_interrupted),
        WITH(test_broken), WITH(test_too_short), WITH(test_dropped),
    };
    return cmocka_run_group_tests_name("fetch", tests, NULL, NULL);
}

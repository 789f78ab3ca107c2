// The key file of a run: made once whoever comes first, for its owner only, refused when it isn't
// what it should be.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include "core/error.h"
#include "launcher/control/secret.h"
#include "tests/unit/scratch.h"

static void made_once_and_kept(void **state) {
    (void)state;
    uint8_t first[TSR_SECRET], again[TSR_SECRET], other[TSR_SECRET];
    struct stat st;
    char *text;
    size_t n;
    const char *path = scratch("run/coordinator/key");
    const mode_t mask = umask(0); // the mode doesn't come from here
    assert_int_equal(tsr_secret_create(path), 0);
    umask(mask);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 07777, 0600);
    assert_int_equal(tsr_read_file(path, 100, TSR_EDATA, &text, &n), 0);
    assert_int_equal(n, 65);
    assert_int_equal(strspn(text, "0123456789abcdef"), 64);
    assert_int_equal(text[64], '\n');
    free(text);
    assert_int_equal(tsr_secret_load(first, path), 0);
    assert_int_equal(tsr_secret_create(path), 0);
    assert_int_equal(tsr_secret_load(again, path), 0);
    assert_memory_equal(first, again, TSR_SECRET);
    assert_int_equal(tsr_secret_create(scratch("other")), 0);
    assert_int_equal(tsr_secret_load(other, scratch("other")), 0);
    assert_memory_not_equal(first, other, TSR_SECRET);
    assert_int_equal(rmdir(scratch("run/coordinator")), -1); // the key is there,
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(scratch("run/coordinator")), 0); // and nothing was left beside it
}

static void digits_are_the_bytes(void **state) {
    (void)state;
    uint8_t key[TSR_SECRET];
    const char *path = scratch("digits");
    scratch_write(path, "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1eff\n", 65);
    assert_int_equal(chmod(path, 0400), 0);
    assert_int_equal(tsr_secret_load(key, path), 0);
    for (int i = 0; i < 31; i++)
        assert_int_equal(key[i], i);
    assert_int_equal(key[31], 255);
}

static void other_modes_are_refused(void **state) {
    (void)state;
    uint8_t key[TSR_SECRET];
    const char *path = scratch("modes");
    assert_int_equal(tsr_secret_create(path), 0);
    for (unsigned mode = 0400; mode <= 0777; mode++) {
        if (!(mode & 0400))
            continue;
        assert_int_equal(chmod(path, mode), 0);
        const int expected = mode & 077 ? TSR_EUSAGE : 0;
        assert_int_equal(tsr_secret_load(key, path), expected);
        assert_int_equal(tsr_secret_create(path), expected);
    }
    assert_int_equal(chmod(path, 0640), 0);
    assert_int_equal(tsr_secret_load(key, path), TSR_EUSAGE);
    assert_non_null(strstr(tsr_error_text(), "expected mode 0600, found 0640"));
    assert_non_null(strstr(tsr_error_text(), path));
}

static void wrong_contents_are_refused(void **state) {
    (void)state;
    static const char good[] =
        "000102030405060708090a0b0c0d0e0f101112131415161718191a1b1c1d1e1f\n\n";
    uint8_t key[TSR_SECRET];
    const char *path = scratch("contents");
    for (size_t n = 0; n <= 66; n++) { // torn, whole, one byte too many
        scratch_write(path, good, n);
        assert_int_equal(chmod(path, 0600), 0);
        assert_int_equal(tsr_secret_load(key, path), n == 65 ? 0 : TSR_EDATA);
        assert_int_equal(tsr_secret_create(path), n == 65 ? 0 : TSR_EDATA); // not replaced
    }
    for (int at = 0; at < 65; at++) {
        char bad[65];
        memcpy(bad, good, 65);
        bad[at] = "gG/:`@A\n "[at % 9];
        if (at == 64)
            bad[at] = '0';
        scratch_write(path, bad, 65);
        assert_int_equal(tsr_secret_load(key, path), TSR_EDATA);
    }
    assert_int_equal(tsr_secret_load(key, scratch("missing")), TSR_EUSAGE);
    assert_int_equal(tsr_secret_load(key, scratch_dir), TSR_EDATA);
    assert_int_equal(mkfifo(scratch("fifo"), 0600), 0);
    assert_int_equal(tsr_secret_load(key, scratch("fifo")), TSR_EDATA); // and does not wait
    scratch_write(scratch("file"), "", 0);
    assert_true(tsr_secret_create(scratch("file/key")) < 0);
    char long_name[300];
    memset(long_name, 'k', sizeof long_name - 1);
    long_name[sizeof long_name - 1] = 0;
    assert_int_equal(tsr_secret_create(scratch(long_name)), TSR_EIO);
}

// Eight processes at once end up with one key.
static void race(void **state) {
    (void)state;
    uint8_t mine[TSR_SECRET], theirs[TSR_SECRET];
    for (int round = 0; round < 5; round++) {
        char name[32];
        int fds[2];
        snprintf(name, sizeof name, "race-%d/key", round);
        const char *path = scratch(name);
        assert_int_equal(pipe(fds), 0);
        for (int i = 0; i < 8; i++)
            if (fork() == 0)
                _exit(tsr_secret_create(path) == 0 && tsr_secret_load(mine, path) == 0 &&
                              write(fds[1], mine, sizeof mine) == sizeof mine
                          ? 0
                          : 1);
        for (int i = 0, status; i < 8; i++) {
            assert_true(wait(&status) > 0);
            assert_int_equal(status, 0);
        }
        assert_int_equal(tsr_secret_load(mine, path), 0);
        for (int i = 0; i < 8; i++) {
            assert_int_equal(read(fds[0], theirs, sizeof theirs), sizeof theirs);
            assert_memory_equal(mine, theirs, sizeof mine);
        }
        close(fds[0]);
        close(fds[1]);
    }
}

static void random_bytes_differ(void **state) {
    (void)state;
    uint8_t a[1000] = {0}, b[1000] = {0};
    int seen[256] = {0}, kinds = 0;
    assert_int_equal(tsr_random_bytes(a, sizeof a), 0);
    assert_int_equal(tsr_random_bytes(b, sizeof b), 0);
    assert_memory_not_equal(a, b, sizeof a);
    for (size_t i = 0; i < sizeof a; i++)
        kinds += seen[a[i]]++ == 0;
    assert_true(kinds > 200); // expected 251, give or take 2
    assert_int_equal(tsr_random_bytes(NULL, 0), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(made_once_and_kept),
        cmocka_unit_test(digits_are_the_bytes),
        cmocka_unit_test(other_modes_are_refused),
        cmocka_unit_test(wrong_contents_are_refused),
        cmocka_unit_test(race),
        cmocka_unit_test(random_bytes_differ),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

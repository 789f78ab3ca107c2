// The folder of checkpoints: newest first, retention, leftovers, and failures while writing.
#include "tests/unit/checkpoint_folder.h"

#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/checkpoint_private.h"
#include "core/log.h"

// Folders of temporaries can't be removed: a file in them is still open on NFS, or they are another
// user's.
static bool stuck;

int rmdir(const char *path) {
    if (stuck && strstr(path, "/.tmp-")) {
        errno = ENOTEMPTY;
        return -1;
    }
    return (*(__typeof__(&rmdir))dlsym(RTLD_NEXT, "rmdir"))(path);
}

static int n_entries_of(const char *path) {
    int n = 0;
    DIR *d = opendir(path);
    assert_non_null(d);
    for (const struct dirent *e; (e = readdir(d));)
        n += strcmp(e->d_name, ".") != 0 && strcmp(e->d_name, "..") != 0;
    closedir(d);
    return n;
}

static void test_latest(void **state) {
    (void)state;
    static const char *const others[] = {
        "step-0000009",  "step-00000009x", "step-+0000009",        "step-000000009",
        "Step-00000009", "step-",          ".tmp-step-00000009-0", "step-99999999999999999999"};
    assert_string_equal(steps(), "");
    expect_ok(tsr_mkdir_p(below("")));
    assert_string_equal(steps(), "");
    for (size_t i = 0; i < sizeof others / sizeof *others; i++)
        assert_int_equal(mkdir(below(others[i]), 0777), 0);
    write_text(below("step-00000007"), "a file");
    assert_string_equal(steps(), "");
    static const int64_t saved[] = {5, 0, 123456789, 60, 99999999};
    for (size_t i = 0; i < sizeof saved / sizeof *saved; i++)
        save_step(saved[i]);
    assert_string_equal(steps(), "123456789 99999999 60 5 0");
    assert_string_equal(in_checkpoint(&x, "x") + strlen(x.dir), "/checkpoints/step-99999999/x");
}

static void test_replace(void **state) {
    (void)state;
    save_step(50);
    write_text(in_checkpoint(&x, "stale"), "of the old one");
    x.state.sequences = 4711;
    save_step(50);
    struct tsr_state s;
    expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
    expect_ok(tsr_state_read(&s, in_checkpoint(&x, "")));
    assert_int_equal(s.sequences, 4711);
    tsr_state_free(&s);
    assert_int_equal(n_entries_of(below("")), 1);
    assert_int_equal(mkdir(below("step-00000060"), 0777), 0); // an empty folder in the way
    save_step(60);
    assert_string_equal(steps(), "60 50");
}

// What stands in a checkpoint's place and is no folder: a link to where somebody has moved the old
// one, one that leads nowhere, a file. A run that repeats the step must get past it.
static void test_replace_a_link(void **state) {
    (void)state;
    char aside[TSR_PATH_MAX];
    struct stat st;
    expect_ok(tsr_path_join(aside, x.dir, "aside"));
    for (int kind = 0; kind < 3; kind++) {
        expect_ok(tsr_remove_tree(below("step-00000050")));
        if (kind == 0) {
            save_step(50);
            assert_int_equal(rename(below("step-00000050"), aside), 0);
            write_text(below("../aside/damage"), "of the old one");
        }
        if (kind < 2)
            assert_int_equal(symlink(kind == 0 ? aside : "/nowhere", below("step-00000050")), 0);
        else
            write_text(below("step-00000050"), "a file");
        save_step(50);
        expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
        assert_int_equal(lstat(below("step-00000050"), &st), 0);
        assert_true(S_ISDIR(st.st_mode));
        assert_int_equal(n_entries_of(below("")), 1);
    }
    assert_true(tsr_path_exists(below("../aside/state.json"))); // the link went, not the old one
}

// What can't be removed stays for a later epoch; the run goes on, and the next one begins.
static void test_stuck(void **state) {
    (void)state;
    tsr_log_level(TSR_LOG_ERROR);
    stuck = true;
    save_step(50);
    save_step(50); // replaced
    expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
    assert_int_equal(n_entries_of(below("")), 3); // the old one and the note about it
    expect_ok(tsr_checkpoint_fence(x.dir, x.opt.epoch + 1));
    expect_ok(tsr_checkpoint_fence(x.dir, x.opt.epoch + 2));
    assert_string_equal(steps(), "50");
    stuck = false;
    expect_ok(tsr_checkpoint_fence(x.dir, x.opt.epoch + 3));
    assert_int_equal(n_entries_of(below("")), 1);
    expect_ok(tsr_checkpoint_verify(in_checkpoint(&x, ""), 0, 1));
    tsr_log_level(TSR_LOG_INFO);
}

static void test_abort(void **state) {
    (void)state;
    struct tsr_checkpoint *handles[2];
    struct gathered g;
    save_step(50);
    x.opt.step = 60;
    write_up_to_digests(&x, (struct layout){2, true, 0}, NULL, NULL, handles, &g);
    free_gathered(&g);
    expect_ok(tsr_checkpoint_abort(handles[1]));
    expect_ok(tsr_checkpoint_abort(handles[0])); // already gone
    tsr_checkpoint_close(handles[0]);
    tsr_checkpoint_close(handles[1]);
    assert_int_equal(n_entries_of(below("")), 1);
    expect_ok(tsr_checkpoint_verify(below("step-00000050"), 0, 1));
}

// A second writer with the same name fails, and leaves the first one's files alone.
static void test_begin_twice(void **state) {
    (void)state;
    struct tsr_checkpoint *a, *b;
    expect_ok(tsr_checkpoint_open(&a, &x.opt));
    expect_ok(tsr_checkpoint_open(&b, &x.opt));
    expect_ok(tsr_checkpoint_begin(a, &x.state, NULL, NULL));
    int n = n_entries_of(a->tmp);
    expect_error(tsr_checkpoint_begin(b, &x.state, NULL, NULL), TSR_EIO, a->tmp);
    assert_int_equal(n_entries_of(a->tmp), n);
    tsr_checkpoint_close(a);
    tsr_checkpoint_close(b);
}

static void test_run_dir_is_a_file(void **state) {
    (void)state;
    struct tsr_checkpoint *c;
    char path[TSR_PATH_MAX];
    expect_ok(tsr_path_join(path, x.dir, "checkpoints"));
    write_text(path, "");
    expect_ok(tsr_checkpoint_open(&c, &x.opt));
    expect_error(tsr_checkpoint_begin(c, &x.state, NULL, NULL), TSR_EIO, path);
    tsr_checkpoint_close(c);
}

// ---- no room: RLIMIT_FSIZE stands for a disk that refuses

static void limit_file_size(rlim_t n_bytes) {
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &limit), 0);
    limit.rlim_cur = n_bytes;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
}

// Saves step 60 with a limit on files in one of begin, write and publish (0, 1, 2). A failure has a
// message with a path; the earlier checkpoint stays and abort leaves nothing behind.
static int save_with_limit(int limited_step, rlim_t n_bytes) {
    struct tsr_checkpoint *c;
    const struct tsr_tensor *t = &x.table.t[0];
    const struct tsr_region whole = {0, t->rows, 0, t->cols};
    float data[11 * 8] = {0};
    expect_ok(tsr_checkpoint_open(&c, &x.opt));
    limit_file_size(limited_step == 0 ? n_bytes : RLIM_INFINITY);
    int rc = tsr_checkpoint_begin(c, &x.state, NULL, NULL);
    assert_true(rc == 0 || n_entries_of(below("")) == 1); // begin cleans up by itself
    limit_file_size(limited_step == 1 ? n_bytes : RLIM_INFINITY);
    struct tsr_save_vote v = {0};
    if (rc == 0)
        rc = tsr_checkpoint_write(c, TSR_CKPT_V, t, whole, data, t->cols);
    if (rc == 0)
        rc = tsr_checkpoint_flush(c, &v);
    limit_file_size(limited_step == 2 ? n_bytes : RLIM_INFINITY);
    if (rc == 0) {
        struct gathered g;
        open_gathered(&g, &x, c);
        gather(&g, &v);
        read_back(&g, &c, 1);
        rc = publish(&g.publish);
        free_gathered(&g);
    }
    if (rc < 0) {
        assert_true(rc == TSR_EIO || rc == TSR_ENOSPC);
        assert_non_null(strstr(tsr_error_text(), below("")));
        expect_ok(tsr_checkpoint_abort(c));
        assert_int_equal(n_entries_of(below("")), 1);
    }
    limit_file_size(RLIM_INFINITY);
    tsr_checkpoint_close(c);
    expect_ok(tsr_checkpoint_verify(below("step-00000050"), 0, 1));
    return rc;
}

static void test_no_room(void **state) {
    (void)state;
    save_step(50);
    x.opt.step = x.state.step = 60;
    for (int limited_step = 0; limited_step < 3; limited_step++) {
        int n_failed = 0;
        rlim_t n_bytes = 0;
        while (save_with_limit(limited_step, n_bytes) < 0) {
            n_failed++;
            n_bytes += 100 + n_bytes / 4;
        }
        assert_true(n_failed > 3);
        assert_string_equal(steps(), "60 50");
        expect_ok(tsr_remove_tree(below("step-00000060")));
    }
}

// ---- state.json

static void test_wrong_state(void **state) {
    (void)state;
    static const char *const keys[] = {"version",        "step", "updates",          "sequences",
                                       "virtual_shards", "seed", "virtual_replicas", "n_params"};
    static const char *const values[] = {"-1", "1.5", "\"1\"", "null", "1e3", "[]"};
    struct tsr_state s;
    struct tsr_buf b = {0};
    char path[TSR_PATH_MAX];
    expect_ok(tsr_path_join(path, x.dir, "state.json"));
    expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, "state.json: cannot open");
    for (size_t k = 0; k < sizeof keys / sizeof *keys; k++)
        for (size_t v = 0; v < sizeof values / sizeof *values; v++) {
            if (strcmp(keys[k], "seed") == 0 && strcmp(values[v], "-1") == 0)
                continue; // a seed may be negative
            b.len = 0;
            expect_ok(tsr_buf_printf(&b, "{\"run\":\"\""));
            for (size_t i = 0; i < sizeof keys / sizeof *keys; i++)
                expect_ok(tsr_buf_printf(&b, ",\"%s\":%s", keys[i], i == k ? values[v] : "1"));
            expect_ok(tsr_buf_printf(&b, "}"));
            write_bytes(path, b.data, b.len);
            expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, keys[k]);
        }
    tsr_buf_free(&b);
    write_text(path, "{\"version\":1,\"step\":1,\"updates\":2,\"sequences\":1,\"seed\":1,"
                     "\"virtual_shards\":1,\"virtual_replicas\":1,\"n_params\":1,\"run\":\"\"}");
    expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, "expected at most 1 updates, found 2");
    write_text(path, "{\"version\":1,\"step\":1,\"updates\":1,\"sequences\":1,\"seed\":1,"
                     "\"virtual_shards\":1,\"virtual_replicas\":1,\"n_params\":1,\"run\":7}");
    expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, "`run`");
    write_text(path, "{\"version\":2}");
    expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, "expected `version` to be 1, found 2");
    static const char *const texts[] = {"", "[]", "{", "{\"version\":1,\"version\":1}"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        write_text(path, texts[i]);
        expect_error(tsr_state_read(&s, x.dir), TSR_EMODEL, "state.json");
    }
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_latest),
        WITH(test_replace),
        WITH(test_replace_a_link),
        WITH(test_stuck),
        WITH(test_abort),
        WITH(test_begin_twice),
        WITH(test_run_dir_is_a_file),
        WITH(test_no_room),
        WITH(test_wrong_state),
    };
    return cmocka_run_group_tests_name("checkpoint_dir", tests, NULL, NULL);
}

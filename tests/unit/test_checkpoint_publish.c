// The coordinator's disk steps: each can be repeated at any point, by a coordinator that took over
// too; nothing half done is ever found; retention keeps what verifies; old epochs are fenced off.
#include "tests/unit/checkpoint_support.h"

#include <errno.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>
#include "core/checkpoint_private.h"

// A file system that can't exchange two names, when asked for.
static bool no_exchange;

int renameat2(int from_fd, const char *from, int to_fd, const char *to, unsigned flags) {
    if (no_exchange) {
        errno = EINVAL;
        return -1;
    }
    return (int)syscall(SYS_renameat2, from_fd, from, to_fd, to, flags);
}

static struct fixture x;
static const struct layout one = {1, false, 1};

static int start(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    x.opt.max_file_bytes = 0;
    x.opt.epoch = 3;
    return 0;
}

static int finish(void **state) {
    (void)state;
    close_fixture(&x);
    return 0;
}

static const char *below(const char *name) {
    static char paths[4][TSR_PATH_MAX + 64];
    static unsigned next;
    char *path = paths[next++ % 4];
    snprintf(path, sizeof paths[0], "%s/checkpoints/%s", x.dir, name);
    return path;
}

static void save_step(int64_t step) {
    x.opt.step = step;
    write_checkpoint(&x, one, NULL, NULL);
}

// Names in the folder of checkpoints, sorted, as one string.
static const char *listing(void) {
    static char text[1024];
    char parent[TSR_PATH_MAX];
    struct tsr_ckpt_names names;
    expect_ok(tsr_ckpt_list_parent(&names, parent, x.dir));
    text[0] = 0;
    for (int pass = 0; pass < names.n; pass++) {
        int least = -1;
        for (int i = 0; i < names.n; i++)
            if (names.v[i][0] && (least < 0 || strcmp(names.v[i], names.v[least]) < 0))
                least = i;
        snprintf(text + strlen(text), sizeof text - strlen(text), "%s%s", text[0] ? " " : "",
                 names.v[least]);
        names.v[least][0] = 0;
    }
    tsr_ckpt_names_free(&names);
    return text;
}

// A save of `step` that waits to be published.
struct pending {
    struct tsr_checkpoint *c[1];
    struct gathered g;
};

static void open_pending(struct pending *p, int64_t step) {
    x.opt.step = step;
    write_up_to_digests(&x, one, NULL, NULL, p->c, &p->g);
}

static void close_pending(struct pending *p) {
    tsr_checkpoint_close(p->c[0]);
    free_gathered(&p->g);
}

static int (*const steps[])(const struct tsr_publish *) = {
    tsr_publish_write_manifest, tsr_publish_sync_manifest, tsr_publish_sync_dirs,
    tsr_publish_rename, tsr_publish_sync_parent};
enum { N_STEPS = 5, RENAME = 3 };

// Does the first `done` steps, then all from the start, as a coordinator that takes over does, and
// then all once more.
static void publish_with_restart(const struct tsr_publish *p, int done) {
    for (int i = 0; i < done; i++)
        expect_ok(steps[i](p));
    expect_ok(publish(p));
    expect_ok(publish(p));
}

static void test_repeated_steps(void **state) {
    (void)state;
    for (int done = 0; done <= N_STEPS; done++) {
        struct pending p;
        open_pending(&p, 50);
        publish_with_restart(&p.g.publish, done);
        close_pending(&p);
        expect_ok(tsr_checkpoint_verify(below("step-00000050"), 0, 1));
        assert_string_equal(listing(), "step-00000050");
        expect_ok(tsr_remove_tree(below("step-00000050")));
    }
}

// The same when a checkpoint of that step is there already: one of other contents, and a damaged
// one with the very same manifest, which must not come back however often a step is repeated.
static void test_repeated_replacement(void **state) {
    (void)state;
    for (int done = 0; done <= N_STEPS; done++)
        for (int same = 0; same < 2; same++) {
            struct pending p;
            struct tsr_state s;
            x.state.sequences = same ? 4711 : 1;
            save_step(50);
            poke(below("step-00000050/model-00001-of-00001.safetensors"), 900, 0x55);
            x.state.sequences = 4711;
            open_pending(&p, 50);
            publish_with_restart(&p.g.publish, done);
            close_pending(&p);
            expect_ok(tsr_checkpoint_verify(below("step-00000050"), 0, 1));
            expect_ok(tsr_state_read(&s, below("step-00000050")));
            assert_int_equal(s.sequences, 4711);
            tsr_state_free(&s);
            assert_string_equal(listing(), "step-00000050");
        }
}

static void test_repeated_replacement_by_two_renames(void **state) {
    no_exchange = true;
    test_repeated_replacement(state);
    no_exchange = false;
}

// Digests may be asked for again when the rename has happened.
static void test_digests_after_rename(void **state) {
    (void)state;
    struct pending p;
    struct tsr_save_vote v;
    struct tsr_span all = {0, 0}, beyond = {1, 0};
    open_pending(&p, 50);
    all.count = beyond.count = p.g.n_ranges;
    expect_ok(publish(&p.g.publish));
    expect_ok(tsr_checkpoint_digest(p.c[0], &all, 1, &v));
    assert_int_equal(v.n_ranges, 1);
    assert_memory_equal(v.ranges[0].digests, p.g.digests, p.g.n_ranges * sizeof *p.g.digests);
    tsr_save_vote_free(&v);
    expect_error(tsr_checkpoint_digest(p.c[0], &beyond, 1, &v), TSR_EPEER, "ranges");
    beyond = (struct tsr_span){UINT64_MAX, 2};
    expect_error(tsr_checkpoint_digest(p.c[0], &beyond, 1, &v), TSR_EPEER, "ranges");
    close_pending(&p);
}

static void test_hint(void **state) {
    (void)state;
    char path[TSR_PATH_MAX];
    size_t n;
    save_step(50);
    save_step(60);
    expect_ok(tsr_path_join(path, x.dir, "LATEST"));
    char *text = read_bytes(path, &n);
    assert_string_equal(text, "step-00000060\n");
    free(text);
}

// ---- what must not be published

static void test_files_differ_from_plan(void **state) {
    (void)state;
    struct pending p;
    char path[TSR_PATH_MAX];
    open_pending(&p, 50);
    expect_ok(tsr_path_join(path, p.c[0]->tmp, "extra"));
    write_text(path, "x");
    expect_error(tsr_publish_write_manifest(&p.g.publish), TSR_EIO, "extra: not the file");
    assert_int_equal(unlink(path), 0);
    expect_ok(tsr_path_join(path, p.c[0]->tmp, "state.json"));
    assert_int_equal(truncate(path, 3), 0);
    expect_error(tsr_publish_write_manifest(&p.g.publish), TSR_EIO, "state.json: expected");
    assert_int_equal(unlink(path), 0);
    expect_error(tsr_publish_write_manifest(&p.g.publish), TSR_EIO, "state.json: the file is");
    assert_false(tsr_path_exists(below("step-00000050")));
    close_pending(&p);
}

static void expect_wrong_plan(const struct tsr_publish *p, const char *word) {
    uint64_t n;
    expect_error(tsr_publish_n_ranges(p, &n), TSR_EIO, word);
    for (int i = 0; i < N_STEPS; i++)
        expect_error(steps[i](p), TSR_EIO, word);
}

static void test_wrong_plans(void **state) {
    (void)state;
    static const char *const names[] = {"step-00000050", ".tmp-x", ".tmp-step-1/../../..", ""};
    static char long_name[300] = ".tmp-step-";
    static const char *const paths[] = {"../x", "/x", "a/b", "optimizer/../x", "", "manifest.json"};
    struct tsr_planned_file files[2] = {{"a", 5}, {"b", 5}};
    const struct tsr_publish good = {.run_dir = x.dir,
                                     .step = 50,
                                     .temporary = ".tmp-step-00000050-e00000003-a1",
                                     .range_bytes = 512,
                                     .files = files,
                                     .n_files = 2};
    struct tsr_publish p = good;
    memset(long_name + 10, '0', sizeof long_name - 11);
    for (size_t i = 0; i <= sizeof names / sizeof *names; i++) {
        p.temporary = i < sizeof names / sizeof *names ? names[i] : long_name;
        expect_wrong_plan(&p, "the plan of this save is wrong");
        expect_error(tsr_publish_remove_temporary(x.dir, p.temporary), TSR_EIO, "not the name");
    }
    for (int i = 0; i < 3; i++) {
        p = good;
        p.range_bytes = (uint64_t)(i == 0 ? 0 : i == 1 ? 513 : 7);
        expect_wrong_plan(&p, "power of two");
    }
    p = good;
    for (size_t i = 0; i < sizeof paths / sizeof *paths; i++) {
        files[0].path = (char *)(uintptr_t)paths[i];
        expect_wrong_plan(&p, "names of its files");
    }
    files[0].path = (char *)(uintptr_t) "b";
    expect_wrong_plan(&p, "names of its files");
    files[0] = (struct tsr_planned_file){(char *)(uintptr_t) "a", UINT64_MAX};
    expect_wrong_plan(&p, "sizes");
    p.range_bytes = 1;
    files[0].size = INT64_MAX;
    expect_wrong_plan(&p, "sizes");
}

// ---- retention

static int retain(int64_t keep, struct tsr_known_good *known) {
    struct tsr_known_good fresh = {0};
    return tsr_checkpoint_retain(x.dir, keep, known ? known : &fresh);
}

static void test_retain(void **state) {
    (void)state;
    struct tsr_known_good known = {0};
    expect_ok(retain(3, NULL)); // nothing there
    for (int64_t step = 10; step <= 50; step += 10)
        save_step(step);
    expect_ok(retain(0, NULL));
    expect_ok(retain(5, NULL));
    expect_ok(retain(7, NULL));
    assert_string_equal(listing(),
                        "step-00000010 step-00000020 step-00000030 step-00000040 step-00000050");
    expect_ok(retain(3, &known));
    assert_string_equal(listing(), "step-00000030 step-00000040 step-00000050");
    assert_int_equal(known.n, 2);
    expect_ok(retain(1, &known));
    assert_int_equal(known.n, 2); // neither was read again
    assert_string_equal(listing(), "step-00000040 step-00000050");
    expect_ok(retain(1, &known));
    assert_string_equal(listing(), "step-00000040 step-00000050");
    for (int64_t step = 60; step <= 110; step += 10) {
        save_step(step);
        expect_ok(retain(1, &known));
    }
    assert_string_equal(listing(), "step-00000100 step-00000110");
}

// Checkpoints that don't verify are no reason to remove one that does.
static void test_retain_with_damage(void **state) {
    (void)state;
    for (int64_t step = 10; step <= 50; step += 10)
        save_step(step);
    poke(below("step-00000050/state.json"), 3, 0x55);
    assert_int_equal(truncate(below("step-00000030/optimizer/m-00001-of-00001.safetensors"), 9), 0);
    expect_ok(retain(1, NULL));
    assert_string_equal(listing(), "step-00000020 step-00000030 step-00000040 step-00000050");
    expect_ok(retain(2, NULL));
    assert_string_equal(listing(), "step-00000020 step-00000030 step-00000040 step-00000050");
    poke(below("step-00000040/model-00001-of-00001.safetensors"), 900, 0x55);
    expect_ok(retain(1, NULL)); // one verifies
    assert_string_equal(listing(), "step-00000020 step-00000030 step-00000040 step-00000050");
    save_step(60);
    save_step(70);
    expect_ok(retain(1, NULL));
    assert_string_equal(listing(), "step-00000060 step-00000070");
}

// What was read once is believed, but not when it has visibly changed since.
static void test_known_good(void **state) {
    (void)state;
    struct tsr_known_good known = {0};
    for (int64_t step = 10; step <= 30; step += 10)
        save_step(step);
    expect_ok(retain(2, &known));
    assert_string_equal(listing(), "step-00000020 step-00000030");
    save_step(40);
    assert_int_equal(truncate(below("step-00000030/state.json"), 9), 0);
    expect_ok(retain(1, &known));
    assert_string_equal(listing(), "step-00000020 step-00000030 step-00000040");
    save_step(30); // replaced by a good one: read anew
    assert_int_equal(known.n, 3);
    save_step(50);
    expect_ok(retain(1, &known));
    assert_string_equal(listing(), "step-00000040 step-00000050");
}

// ---- epochs

static void test_fence(void **state) {
    (void)state;
    struct pending p;
    expect_ok(tsr_checkpoint_fence(x.dir, 9)); // nothing there
    save_step(50);
    open_pending(&p, 60); // of epoch 3
    for (int i = 0; i < RENAME; i++)
        expect_ok(steps[i](&p.g.publish));
    expect_ok(tsr_checkpoint_fence(x.dir, 3)); // its own: a coordinator started again
    assert_true(tsr_path_exists(p.c[0]->tmp));
    expect_ok(tsr_checkpoint_fence(x.dir, 2)); // a late one of an older incarnation
    assert_true(tsr_path_exists(p.c[0]->tmp));
    expect_ok(tsr_checkpoint_fence(x.dir, 4));
    assert_string_equal(listing(), "step-00000050");
    for (int i = 0; i < N_STEPS; i++)
        expect_error(steps[i](&p.g.publish), TSR_EIO, "another incarnation");
    assert_string_equal(listing(), "step-00000050");
    expect_ok(tsr_publish_remove_temporary(x.dir, p.g.publish.temporary)); // fine when gone
    close_pending(&p);
}

// An orphan that goes on writing fails too: the files that it looks for are gone.
static void test_fenced_writer(void **state) {
    (void)state;
    struct tsr_checkpoint *c;
    struct tsr_save_vote v;
    const struct tsr_tensor *t = &x.table.t[0];
    float data[11 * 8] = {0};
    expect_ok(tsr_checkpoint_open(&c, &x.opt));
    expect_ok(tsr_checkpoint_begin(c, &x.state, NULL, NULL));
    expect_ok(tsr_checkpoint_fence(x.dir, 4));
    int rc = tsr_checkpoint_write(c, TSR_CKPT_M, t, (struct tsr_region){0, t->rows, 0, t->cols},
                                  data, t->cols);
    expect_error(rc < 0 ? rc : tsr_checkpoint_flush(c, &v), TSR_EIO, c->tmp);
    tsr_checkpoint_close(c);
    assert_string_equal(listing(), "");
}

// Whatever an older writer left goes, what is the user's or of this epoch stays.
static void test_leftovers(void **state) {
    (void)state;
    static const char *const older[] = {
        ".tmp-step-00000060-e00000003-a1",      ".tmp-step-00000060-e3",
        ".tmp-step-00000060-0123456789abcdef",  ".tmp-gone-step-00000020",
        ".tmp-gone-step-00000060-e00000004-a1", ".tmp-x"};
    static const char *const newer[] = {".tmp-step-00000060-e00000004-a1",
                                        ".tmp-step-00000070-e00000012-a3"};
    save_step(50);
    save_step(70);
    // a replacement that was cut off between its two renames, and one after them
    assert_int_equal(rename(below("step-00000070"), below(".old-step-00000070-e00000003-a7")), 0);
    assert_int_equal(mkdir(below(".old-step-00000050-e00000003-a6"), 0777), 0);
    for (size_t i = 0; i < sizeof older / sizeof *older; i++)
        assert_int_equal(mkdir(below(older[i]), 0777), 0);
    for (size_t i = 0; i < sizeof newer / sizeof *newer; i++)
        assert_int_equal(mkdir(below(newer[i]), 0777), 0);
    write_text(below(".tmp-swap-step-00000060-e00000003-a1"), "5\n");
    write_text(below(".tmp-swap-step-00000060-e00000004-a1"), "5\n");
    write_text(below("notes.txt"), "the user's");
    expect_ok(tsr_checkpoint_fence(x.dir, 4));
    assert_string_equal(listing(), ".tmp-step-00000060-e00000004-a1 "
                                   ".tmp-step-00000070-e00000012-a3 "
                                   ".tmp-swap-step-00000060-e00000004-a1 notes.txt step-00000050 "
                                   "step-00000070");
    expect_ok(tsr_checkpoint_verify(below("step-00000070"), 0, 1));
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_repeated_steps),
        WITH(test_repeated_replacement),
        WITH(test_repeated_replacement_by_two_renames),
        WITH(test_digests_after_rename),
        WITH(test_hint),
        WITH(test_files_differ_from_plan),
        WITH(test_wrong_plans),
        WITH(test_retain),
        WITH(test_retain_with_damage),
        WITH(test_known_good),
        WITH(test_fence),
        WITH(test_fenced_writer),
        WITH(test_leftovers),
    };
    return cmocka_run_group_tests_name("checkpoint_publish", tests, NULL, NULL);
}

// Damage of every kind to the newest of two checkpoints: verification refuses it, an audit names
// the file and the bytes, and resuming falls back to the one before.
#include "tests/unit/checkpoint_support.h"

#include <sys/stat.h>
#include <unistd.h>
#include "core/checkpoint_audit.h"
#include "core/log.h"
#include "dist/store.h"

enum { N_FLIPS = 2000, BEFORE = 50, NEWEST = 51 };

static struct fixture x;
static struct tsr_ctx ctx;
static struct tsr_comm comm;
static struct tsr_net net;
static struct tsr_progress progress;
static char good_dir[TSR_PATH_MAX], dir[TSR_PATH_MAX];
static struct tsr_checkpoint_digests *digests; // of the newest

static int start(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    x.opt.max_file_bytes = 2500;
    x.opt.range_bytes = 512;
    write_checkpoint(&x, (struct layout){.n_ranks = 2, .V = 8}, NULL, NULL);
    expect_ok(tsr_checkpoint_path(good_dir, x.dir, x.opt.step));
    x.opt.step = NEWEST;
    write_checkpoint(&x, (struct layout){.n_ranks = 2, .V = 8}, NULL, NULL);
    expect_ok(tsr_checkpoint_path(dir, x.dir, x.opt.step));
    expect_ok(tsr_checkpoint_digests_open(&digests, dir));
    expect_ok(tsr_cpu_open(&ctx, NULL, 1));
    expect_ok(tsr_comm_open_single(&comm, &progress));
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1, .seed = 1};
    struct tsr_mesh mesh;
    tsr_mesh_place(&mesh, 1, 1, 1, 0);
    mesh.V = mesh.W = 8;
    expect_ok(tsr_net_open(&net, &ctx, &comm, &mesh, &x.model, &opt, 8));
    tsr_log_level(TSR_LOG_ERROR); // each fall-back is a warning
    return 0;
}

static int finish(void **state) {
    (void)state;
    tsr_net_close(&net);
    tsr_comm_close(&comm);
    ctx.ops->close(&ctx);
    tsr_checkpoint_digests_close(digests);
    close_fixture(&x);
    return 0;
}

// ---- what is expected

struct findings {
    int n;
    char file[64], text[512]; // of the first
    uint64_t first, end;
    uint64_t done, total;
};

static void on_problem(void *arg, const char *file, uint64_t first, uint64_t end,
                       const char *text) {
    struct findings *f = arg;
    if (f->n++ > 0)
        return;
    snprintf(f->file, sizeof f->file, "%s", file);
    snprintf(f->text, sizeof f->text, "%s", text);
    f->first = first;
    f->end = end;
}

static void on_progress(void *arg, uint64_t n_bytes, uint64_t total) {
    struct findings *f = arg;
    assert_true(n_bytes > f->done && n_bytes <= total);
    f->done = n_bytes;
    f->total = total;
}

static struct findings audit(void) {
    struct findings f = {0};
    struct tsr_audit a = {.arg = &f, .problem = on_problem, .progress = on_progress};
    expect_ok(tsr_checkpoint_audit(dir, &a));
    assert_int_equal(a.n_problems, f.n);
    return f;
}

static void expect_resumed_from(int64_t step) {
    char found[TSR_PATH_MAX], want[TSR_PATH_MAX];
    const struct tsr_param *p = &net.params[0];
    expect_ok(tsr_checkpoint_path(want, x.dir, step));
    assert_int_equal(tsr_store_resume(&net, x.dir, INT64_MAX, NULL, NULL, found), 1);
    assert_string_equal(found, want);
    x.opt.step = step; // which element's values are those of
    for (int64_t c = 0; c < p->cols; c++)
        assert_true(((const float *)p->w)[c] == element(&x, TSR_CKPT_WEIGHTS, p->t, 0, c));
    x.opt.step = NEWEST;
}

// Refused by all, and the file is named; `at`: the damaged byte, or -1.
static void expect_refused(const char *file, int64_t at) {
    int rc = tsr_checkpoint_verify(dir, 0, 1);
    if (rc != TSR_EMODEL || !strstr(tsr_error_text(), file))
        fail_msg("%s, byte %lld: expected it refused, found %s (%s)", file, (long long)at,
                 tsr_error_name(rc), tsr_error_text());
    struct findings f = audit();
    if (f.n < 1 || strcmp(f.file, file) != 0)
        fail_msg("%s, byte %lld: expected it named, found %d problems, first %s: %s", file,
                 (long long)at, f.n, f.file, f.text);
    if (at >= 0 && strcmp(file, "manifest.json") != 0)
        assert_true(f.n == 1 && f.first <= (uint64_t)at && (uint64_t)at < f.end &&
                    f.end - f.first <= x.opt.range_bytes);
    expect_resumed_from(BEFORE);
}

static void expect_good(void) {
    expect_ok(tsr_checkpoint_verify(dir, 0, 1));
    struct findings f = audit();
    if (f.n > 0)
        fail_msg("expected no problem, found %s: %s", f.file, f.text);
    assert_true(f.done == f.total && f.done > 0);
    expect_resumed_from(NEWEST);
}

// ---- the files of a checkpoint

struct file {
    char name[64];
    char *bytes;
    size_t n;
};

static void add_file(struct file *files, int *n, const char *name) {
    struct file *f = &files[(*n)++];
    snprintf(f->name, sizeof f->name, "%s", name);
    f->bytes = read_bytes(in_checkpoint(&x, name), &f->n);
}

// Every file that a manifest lists, by trying the names that there can be.
static int list_files(struct file *files) {
    static const char *const stems[] = {"model", "optimizer/m", "optimizer/v"};
    int n = 0;
    add_file(files, &n, "config.json");
    add_file(files, &n, "model.safetensors.index.json");
    add_file(files, &n, "state.json");
    for (int s = 0; s < 3; s++)
        for (int of = 1; of < 30; of++)
            for (int i = 1; i <= of; i++) {
                char name[64];
                snprintf(name, sizeof name, "%s-%05d-of-%05d.safetensors", stems[s], i, of);
                if (tsr_path_exists(in_checkpoint(&x, name)))
                    add_file(files, &n, name);
            }
    assert_true(n > 8 && n < 60);
    return n;
}

static void free_files(struct file *files, int n) {
    for (int i = 0; i < n; i++)
        free(files[i].bytes);
}

static uint64_t next_random(uint64_t *s) { // xorshift64* (Vigna 2016)
    *s ^= *s >> 12;
    *s ^= *s << 25;
    *s ^= *s >> 27;
    return *s * 0x2545F4914F6CDD1Du;
}

// ---- tests

static void test_each_byte_of_the_manifest(void **state) {
    (void)state;
    size_t n;
    const char *path = in_checkpoint(&x, "manifest.json");
    char *bytes = read_bytes(path, &n);
    expect_good();
    for (size_t i = 0; i < n; i++) {
        poke(path, i, (char)(bytes[i] ^ 1 << i % 8));
        expect_refused("manifest.json", (int64_t)i);
        poke(path, i, bytes[i]);
    }
    expect_good();
    free(bytes);
}

static void test_random_bits(void **state) {
    (void)state;
    struct file files[64];
    int n_files = list_files(files), hit[64] = {0};
    uint64_t seed = 20240229, total = 0;
    for (int i = 0; i < n_files; i++)
        total += files[i].n;
    for (int k = 0; k < N_FLIPS; k++) {
        uint64_t at = next_random(&seed) % total, bit = next_random(&seed) % 8;
        int i = 0;
        while (at >= files[i].n)
            at -= files[i++].n;
        const char *path = in_checkpoint(&x, files[i].name);
        poke(path, at, (char)(files[i].bytes[at] ^ 1 << bit));
        expect_refused(files[i].name, (int64_t)at);
        poke(path, at, files[i].bytes[at]);
        hit[i]++;
    }
    for (int i = 0; i < n_files; i++)
        assert_true(hit[i] > 0);
    expect_good();
    free_files(files, n_files);
}

static void test_lengths(void **state) {
    (void)state;
    struct file files[64];
    int n_files = list_files(files);
    add_file(files, &n_files, "manifest.json");
    for (int i = 0; i < n_files; i++) {
        const char *path = in_checkpoint(&x, files[i].name);
        const size_t lengths[] = {
            0, 1, files[i].n / 2, files[i].n - 1, files[i].n + 1, files[i].n + 4096};
        for (int k = 0; k < 6; k++) {
            assert_int_equal(truncate(path, (off_t)lengths[k]), 0);
            expect_refused(files[i].name, -1);
            write_bytes(path, files[i].bytes, files[i].n);
        }
    }
    expect_good();
    free_files(files, n_files);
}

static void test_missing_and_extra(void **state) {
    (void)state;
    struct file files[64];
    int n_files = list_files(files);
    add_file(files, &n_files, "manifest.json");
    for (int i = 0; i < n_files; i++) {
        const char *path = in_checkpoint(&x, files[i].name);
        assert_int_equal(unlink(path), 0);
        expect_refused(files[i].name, -1);
        write_bytes(path, files[i].bytes, files[i].n);
    }
    const char *extra = in_checkpoint(&x, "optimizer/m-00099-of-00099.safetensors");
    write_text(extra, "");
    expect_refused("optimizer/m-00099-of-00099.safetensors", -1);
    assert_int_equal(unlink(extra), 0);
    expect_good();
    free_files(files, n_files);
}

// Two files of one checkpoint in each other's place, and one of the checkpoint before.
static void test_exchanged_files(void **state) {
    (void)state;
    struct file files[64];
    int n_files = list_files(files);
    for (int i = 0; i < n_files; i++)
        for (int k = i + 1; k < n_files; k++) {
            char one[TSR_PATH_MAX], other[TSR_PATH_MAX];
            snprintf(one, sizeof one, "%s", in_checkpoint(&x, files[i].name));
            snprintf(other, sizeof other, "%s", in_checkpoint(&x, files[k].name));
            assert_int_equal(renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE), 0);
            struct findings f = audit();
            assert_int_equal(tsr_checkpoint_verify(dir, 0, 1), TSR_EMODEL);
            assert_true(f.n >= 2);
            expect_resumed_from(BEFORE);
            assert_int_equal(renameat2(AT_FDCWD, one, AT_FDCWD, other, RENAME_EXCHANGE), 0);
        }
    for (int i = 0; i < n_files; i++) {
        char from[TSR_PATH_MAX];
        size_t n;
        expect_ok(tsr_path_join(from, good_dir, files[i].name));
        char *older = read_bytes(from, &n);
        if (n != files[i].n || memcmp(older, files[i].bytes, n) != 0) {
            write_bytes(in_checkpoint(&x, files[i].name), older, n);
            expect_refused(files[i].name, -1);
            write_bytes(in_checkpoint(&x, files[i].name), files[i].bytes, files[i].n);
        }
        free(older);
    }
    expect_good();
    free_files(files, n_files);
}

// The manifest of another step, and a whole checkpoint of another step under a newer name.
static void test_another_step(void **state) {
    (void)state;
    char from[TSR_PATH_MAX], newer[TSR_PATH_MAX];
    size_t n, n_own;
    char *own = read_bytes(in_checkpoint(&x, "manifest.json"), &n_own);
    expect_ok(tsr_path_join(from, good_dir, "manifest.json"));
    char *older = read_bytes(from, &n);
    write_bytes(in_checkpoint(&x, "manifest.json"), older, n);
    assert_int_equal(tsr_checkpoint_verify(dir, 0, 1), TSR_EMODEL);
    assert_true(audit().n > 3);
    expect_resumed_from(BEFORE);
    write_bytes(in_checkpoint(&x, "manifest.json"), own, n_own);
    expect_good();
    expect_ok(tsr_checkpoint_path(newer, x.dir, 60));
    assert_int_equal(rename(dir, newer), 0);
    expect_error(tsr_checkpoint_verify(newer, 0, 1), TSR_EMODEL,
                 "expected the manifest of step 60, found that of step 51");
    expect_error(tsr_checkpoint_verify_quick(newer), TSR_EMODEL, "found that of step 51");
    expect_resumed_from(BEFORE);
    assert_int_equal(rename(newer, dir), 0);
    assert_int_equal(symlink("step-00000051", newer), 0); // no copy, but a link
    expect_error(tsr_checkpoint_verify(newer, 0, 1), TSR_EMODEL,
                 "expected the manifest of step 60, found that of step 51");
    expect_resumed_from(NEWEST);
    assert_int_equal(unlink(newer), 0);
    expect_good();
    free(own);
    free(older);
}

// Everything that is wrong is told, not only the first.
static void test_all_problems(void **state) {
    (void)state;
    struct file files[64];
    int n_files = list_files(files);
    for (int i = 0; i < n_files; i++)
        poke(in_checkpoint(&x, files[i].name), 0, (char)(files[i].bytes[0] ^ 1));
    write_text(in_checkpoint(&x, "extra"), "");
    assert_int_equal(audit().n, n_files + 1);
    assert_int_equal(unlink(in_checkpoint(&x, "extra")), 0);
    assert_int_equal(mkdir(in_checkpoint(&x, "folder"), 0777), 0);
    assert_true(audit().n == n_files + 1);
    assert_int_equal(rmdir(in_checkpoint(&x, "folder")), 0);
    for (int i = 0; i < n_files; i++)
        poke(in_checkpoint(&x, files[i].name), 0, files[i].bytes[0]);
    expect_good();
    struct tsr_audit a = {.problem = on_problem};
    expect_error(tsr_checkpoint_audit("/nowhere", &a), TSR_EMODEL, "found nothing");
    free_files(files, n_files);
}

// Two manifests say what is the same without anything being read.
static void test_digests(void **state) {
    (void)state;
    struct tsr_checkpoint_digests *before;
    struct file files[64];
    int n_files = list_files(files), n_differ = 0;
    uint64_t shares = 0, total = 0;
    expect_ok(tsr_checkpoint_digests_open(&before, good_dir));
    for (int i = 0; i < n_files; i++) {
        char from[TSR_PATH_MAX];
        size_t n;
        expect_ok(tsr_path_join(from, good_dir, files[i].name));
        char *older = read_bytes(from, &n);
        for (size_t at = 0; at < files[i].n; at += 512) {
            size_t end = at + 512 < files[i].n ? at + 512 : files[i].n;
            bool same = n == files[i].n && memcmp(older + at, files[i].bytes + at, end - at) == 0;
            n_differ += !same;
            assert_int_equal(tsr_checkpoint_digests_equal(before, digests, files[i].name, at, end),
                             same);
        }
        assert_true(tsr_checkpoint_digests_equal(digests, digests, files[i].name, 0, files[i].n));
        assert_false(
            tsr_checkpoint_digests_equal(digests, digests, files[i].name, 0, files[i].n + 1));
        total += files[i].n;
        free(older);
    }
    assert_false(tsr_checkpoint_digests_equal(digests, digests, "none", 0, 1));
    for (int r = 0; r < 3; r++)
        shares += tsr_checkpoint_digests_share(digests, r, 3);
    assert_true(n_differ > 20 && shares == total);
    tsr_checkpoint_digests_close(before);
    free_files(files, n_files);
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_each_byte_of_the_manifest),
        WITH(test_random_bits),
        WITH(test_lengths),
        WITH(test_missing_and_extra),
        WITH(test_exchanged_files),
        WITH(test_another_step),
        WITH(test_all_problems),
        WITH(test_digests),
    };
    return cmocka_run_group_tests_name("checkpoint_audit", tests, NULL, NULL);
}

// A damaged checkpoint is never taken for a good one, whichever byte of whichever file is wrong.
#include "tests/unit/checkpoint_support.h"

#include <sys/stat.h>
#include <unistd.h>
#include "core/checkpoint_private.h"

static struct fixture x;
static char dir[TSR_PATH_MAX];

static int start(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    x.opt.max_file_bytes = 9000;
    x.opt.range_bytes = 1024;
    write_checkpoint(&x, (struct layout){2, false, 8}, NULL, NULL);
    snprintf(dir, sizeof dir, "%s", in_checkpoint(&x, ""));
    expect_ok(tsr_checkpoint_verify(dir, 0, 1));
    return 0;
}

static int finish(void **state) {
    (void)state;
    close_fixture(&x);
    return 0;
}

static void expect_refused(const char *word) {
    expect_error(tsr_checkpoint_verify(dir, 0, 1), TSR_EMODEL, word);
}

static void test_any_bit_of_the_manifest(void **state) {
    (void)state;
    size_t n;
    const char *path = in_checkpoint(&x, "manifest.json");
    char *bytes = read_bytes(path, &n);
    for (size_t i = 0; i < n; i++) {
        poke(path, i, (char)(bytes[i] ^ 1 << (i % 3 == 0 ? 5 : i % 8))); // 5: upper case
        expect_refused("its own checksum");
        poke(path, i, bytes[i]);
    }
    expect_ok(tsr_checkpoint_verify(dir, 0, 1));
    free(bytes);
}

static void test_truncated_manifest(void **state) {
    (void)state;
    size_t n;
    const char *path = in_checkpoint(&x, "manifest.json");
    char *bytes = read_bytes(path, &n);
    for (size_t k = n; k > 0; k -= k > n - 80 || k < 37 ? 1 : 37) {
        assert_int_equal(truncate(path, (off_t)k - 1), 0);
        expect_refused("its own checksum");
    }
    char more[2] = "\n";
    struct tsr_buf b = {0};
    expect_ok(tsr_buf_append(&b, bytes, n));
    expect_ok(tsr_buf_append(&b, more, 1));
    write_bytes(path, b.data, b.len);
    expect_refused("its own checksum");
    assert_int_equal(unlink(path), 0);
    expect_refused("manifest.json: cannot open");
    tsr_buf_free(&b);
    free(bytes);
}

// Flips a bit of some byte in every range of every file; the message names the file, and the
// range is found by the one rank that has to look at it.
static void test_flipped_bits_everywhere(void **state) {
    (void)state;
    struct tsr_ckpt_names names;
    expect_ok(tsr_ckpt_list(&names, dir));
    int64_t first_range = 0;
    for (int f = 0; f < names.n; f++) {
        if (strcmp(names.v[f], "manifest.json") == 0)
            continue;
        size_t n;
        const char *path = in_checkpoint(&x, names.v[f]);
        char *bytes = read_bytes(path, &n);
        int64_t n_ranges = tsr_ckpt_n_ranges(n, x.opt.range_bytes);
        for (int64_t r = 0; r < n_ranges; r++) {
            size_t lo = (size_t)r * x.opt.range_bytes, hi = lo + x.opt.range_bytes;
            size_t at = r % 3 == 0 ? lo : (hi < n ? hi : n) - 1; // borders of ranges too
            poke(path, at, (char)(bytes[at] ^ 0x10));
            expect_refused(names.v[f]);
            for (int rank = 0; rank < 3; rank++) {
                int rc = tsr_checkpoint_verify(dir, rank, 3);
                assert_int_equal(rc, (first_range + r) % 3 == rank ? TSR_EMODEL : 0);
            }
            poke(path, at, bytes[at]);
        }
        first_range += n_ranges;
        free(bytes);
    }
    assert_true(first_range > 30);
    tsr_ckpt_names_free(&names);
    expect_ok(tsr_checkpoint_verify(dir, 0, 1));
}

static void test_swapped_files(void **state) {
    (void)state;
    char m[TSR_PATH_MAX], v[TSR_PATH_MAX], name[64];
    int n_files = 0;
    while (n_files < 1 || !tsr_path_exists(v)) { // "-of-0000n" by trial
        snprintf(name, sizeof name, "optimizer/v-00001-of-%05d.safetensors", ++n_files);
        snprintf(v, sizeof v, "%s", in_checkpoint(&x, name));
    }
    snprintf(name, sizeof name, "optimizer/m-00001-of-%05d.safetensors", n_files);
    snprintf(m, sizeof m, "%s", in_checkpoint(&x, name));
    const char *aside = in_checkpoint(&x, "optimizer/aside");
    assert_int_equal(rename(m, aside), 0);
    assert_int_equal(rename(v, m), 0);
    assert_int_equal(rename(aside, v), 0);
    expect_refused("damaged");
}

static void test_missing_and_extra(void **state) {
    (void)state;
    const char *path = in_checkpoint(&x, "extra.txt");
    write_text(path, "");
    expect_refused("extra.txt: the manifest doesn't list this file");
    assert_int_equal(unlink(path), 0);
    path = in_checkpoint(&x, "optimizer/zzz");
    write_text(path, "");
    expect_refused("optimizer/zzz: the manifest doesn't list this file");
    assert_int_equal(unlink(path), 0);
    path = in_checkpoint(&x, ".hidden");
    write_text(path, "");
    expect_refused(".hidden: the manifest doesn't list this file");
    assert_int_equal(unlink(path), 0);
    path = in_checkpoint(&x, "folder");
    assert_int_equal(mkdir(path, 0777), 0);
    expect_refused("regular files only");
    assert_int_equal(rmdir(path), 0);
    path = in_checkpoint(&x, "optimizer/optimizer");
    assert_int_equal(mkdir(path, 0777), 0);
    expect_refused("regular files only");
    assert_int_equal(rmdir(path), 0);
    assert_int_equal(unlink(in_checkpoint(&x, "config.json")), 0);
    expect_refused("config.json: the file is missing");
    assert_int_equal(symlink("state.json", in_checkpoint(&x, "config.json")), 0);
    expect_refused("regular files only");
}

static void test_missing_last(void **state) {
    (void)state;
    assert_int_equal(unlink(in_checkpoint(&x, "state.json")), 0);
    expect_refused("state.json: the file is missing");
    expect_ok(tsr_remove_tree(in_checkpoint(&x, "optimizer")));
    expect_refused("optimizer/m-00001-of-");
}

static void test_wrong_sizes(void **state) {
    (void)state;
    const char *path = in_checkpoint(&x, "state.json");
    size_t n;
    char *bytes = read_bytes(path, &n);
    assert_int_equal(truncate(path, (off_t)n - 1), 0);
    expect_refused("bytes, found");
    assert_int_equal(truncate(path, (off_t)n + 1), 0);
    expect_refused("bytes, found");
    assert_int_equal(truncate(path, 0), 0);
    expect_refused("bytes, found 0");
    for (int rank = 0; rank < 4; rank++) // whoever has its ranges, all see the size
        expect_error(tsr_checkpoint_verify(dir, rank, 4), TSR_EMODEL, "found 0");
    free(bytes);
}

// Ends the manifest's text with its checksum and puts it in place.
static void expect_forged_refused(struct tsr_buf *b, const char *word) {
    char hex[TSR_CKPT_HEX + 1];
    expect_ok(tsr_buf_printf(b, "  ],\n  \"manifest_xxh3_128\": \""));
    struct tsr_digest d = tsr_ckpt_digest_bytes(b->data, b->len);
    tsr_ckpt_hex(hex, &d);
    expect_ok(tsr_buf_printf(b, "%s\"\n}\n", hex));
    write_bytes(in_checkpoint(&x, "manifest.json"), b->data, b->len);
    expect_refused(word);
    tsr_buf_free(b);
}

// A manifest with a right checksum and wrong content: it is never followed out of its folder, and
// no number in it is believed.
static void test_forged_manifests(void **state) {
    (void)state;
    static const char format[] = "{\"format\": \"tessera-checkpoint-1\", \"step\": 1, ";
    static const char hash[] = "\"00000000000000000000000000000000\"";
    static const struct {
        const char *body, *word;
    } cases[] = {
        {"\"range_bytes\": 512, \"files\": [{\"path\": \"../x\", \"bytes\": 0, \"xxh3_128\": []}",
         "file of the checkpoint"},
        {"\"range_bytes\": 512, \"files\": [{\"path\": \"/etc/passwd\", \"bytes\": 0, "
         "\"xxh3_128\": []}",
         "file of the checkpoint"},
        {"\"range_bytes\": 512, \"files\": [{\"path\": \"optimizer/../../x\", \"bytes\": 0, "
         "\"xxh3_128\": []}",
         "file of the checkpoint"},
        {"\"range_bytes\": 512, \"files\": [{\"path\": \"manifest.json\", \"bytes\": 0, "
         "\"xxh3_128\": []}",
         "file of the checkpoint"},
        {"\"range_bytes\": 512, \"files\": [{\"path\": \"x\", \"bytes\": -1, \"xxh3_128\": []}",
         "at least 0"},
        {"\"range_bytes\": 512, \"files\": [{\"path\": \"x\", \"bytes\": 9223372036854775807, "
         "\"xxh3_128\": []}",
         "expected 18014398509481984 digests"},
        {"\"range_bytes\": 1, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": [%s]}",
         "expected 2 digests, found 1"},
        {"\"range_bytes\": 0, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": []}",
         "range_bytes"},
        {"\"range_bytes\": -8, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": []}",
         "range_bytes"},
        {"\"range_bytes\": 8, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": [\"0\"]}",
         "hex digits"},
        {"\"range_bytes\": 8, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": [7]}",
         "hex digits"},
        {"\"range_bytes\": 8, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": [%s]}, "
         "{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": [%s]}",
         "in order"},
        {"\"range_bytes\": 8, \"files\": [{\"path\": \"x\", \"bytes\": 2, \"xxh3_128\": [%s]}",
         "doesn't list"},
        {"\"range_bytes\": 8, \"files\": [\"x\"", "file of the checkpoint"},
        {"\"range_bytes\": 8, \"files\": [", "doesn't list"},
        {"\"step\": 2, \"files\": [", "not valid JSON"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tsr_buf b = {0};
        expect_ok(tsr_buf_printf(&b, "%s", format));
        for (const char *p = cases[i].body; *p; p++) {
            bool mark = p[0] == '%' && p[1] == 's';
            expect_ok(tsr_buf_append(&b, mark ? hash : p, mark ? strlen(hash) : 1));
            p += mark;
        }
        expect_forged_refused(&b, cases[i].word);
    }
    struct tsr_buf b = {0};
    expect_ok(tsr_buf_printf(&b, "{\"format\": \"tessera-checkpoint-2\", \"files\": ["));
    expect_forged_refused(&b, "to be tessera-checkpoint-1, found tessera-checkpoint-2");
}

// ---- the optimizer's files

static void expect_no_moments(const char *word) {
    struct tsr_moments *m;
    expect_error(tsr_moments_open(&m, dir, &x.table), TSR_EMODEL, word);
}

static void put_moments(const char *name, struct tsr_st_entry *entries, int n) {
    write_tensors(in_checkpoint(&x, name), entries, n, value_by_name);
}

static void test_wrong_moments(void **state) {
    (void)state;
    expect_ok(tsr_remove_tree(in_checkpoint(&x, "optimizer")));
    assert_int_equal(mkdir(in_checkpoint(&x, "optimizer"), 0777), 0);
    expect_no_moments("optimizer/m-00001-of-");
    struct tsr_st_entry e[64] = {0};
    for (int i = 0; i < x.table.n; i++)
        e[i] = (struct tsr_st_entry){x.table.t[i].name,
                                     TSR_DT_F32,
                                     x.table.t[i].hf_ndim,
                                     {x.table.t[i].rows, x.table.t[i].cols},
                                     0,
                                     0};
    put_moments("optimizer/m-00001-of-00001.safetensors", e, x.table.n);
    expect_no_moments("optimizer/v-00001-of-");
    put_moments("optimizer/v-00001-of-00001.safetensors", e, x.table.n - 1);
    expect_no_moments("\"transformer.ln_f.bias\" is missing");
    put_moments("optimizer/v-00001-of-00001.safetensors", e, x.table.n);
    struct tsr_moments *m;
    expect_ok(tsr_moments_open(&m, dir, &x.table));
    tsr_moments_close(m);
    e[0].dtype = TSR_DT_BF16;
    put_moments("optimizer/v-00001-of-00001.safetensors", e, x.table.n);
    expect_no_moments("expected dtype F32, found BF16");
    e[0].dtype = TSR_DT_F32;
    e[0].shape[0]++;
    put_moments("optimizer/v-00001-of-00001.safetensors", e, x.table.n);
    expect_no_moments("expected shape");
    e[0].shape[0]--;
    e[x.table.n] = (struct tsr_st_entry){"other", TSR_DT_F32, 1, {3}, 0, 0};
    put_moments("optimizer/v-00001-of-00001.safetensors", e, x.table.n + 1);
    expect_no_moments("\"other\" is not part of this model");
    put_moments("optimizer/v-00001-of-00001.safetensors", e, x.table.n);
    put_moments("optimizer/v-00001-of-00002.safetensors", e, 1);
    expect_no_moments("one set of v files");
    assert_int_equal(unlink(in_checkpoint(&x, "optimizer/v-00001-of-00001.safetensors")), 0);
    expect_no_moments("v-00002-of-00002.safetensors: cannot open");
    put_moments("optimizer/v-00002-of-00002.safetensors", e, x.table.n);
    expect_no_moments("is there twice");
}

static void test_verify_quick(void **state) {
    (void)state;
    expect_ok(tsr_checkpoint_verify_quick(dir));
    poke(in_checkpoint(&x, "state.json"), 3, 0x55);
    expect_ok(tsr_checkpoint_verify_quick(dir)); // contents are not read
    expect_refused("state.json");
    assert_int_equal(truncate(in_checkpoint(&x, "state.json"), 3), 0);
    expect_error(tsr_checkpoint_verify_quick(dir), TSR_EMODEL, "state.json");
    assert_int_equal(unlink(in_checkpoint(&x, "state.json")), 0);
    expect_error(tsr_checkpoint_verify_quick(dir), TSR_EMODEL, "state.json");
    poke(in_checkpoint(&x, "manifest.json"), 30, 0x55);
    expect_error(tsr_checkpoint_verify_quick(dir), TSR_EMODEL, "manifest.json");
}

#define WITH(test) cmocka_unit_test_setup_teardown(test, start, finish)

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH(test_any_bit_of_the_manifest),
        WITH(test_truncated_manifest),
        WITH(test_flipped_bits_everywhere),
        WITH(test_swapped_files),
        WITH(test_missing_and_extra),
        WITH(test_missing_last),
        WITH(test_wrong_sizes),
        WITH(test_forged_manifests),
        WITH(test_wrong_moments),
        WITH(test_verify_quick),
    };
    return cmocka_run_group_tests_name("checkpoint_verify", tests, NULL, NULL);
}

// Reading and checking safetensors files: regions, and every way in which a file can be wrong.
#include "tests/unit/files_support.h"

#include <sys/stat.h>
#include <unistd.h>

#ifndef TESSERA_GOLDEN_DIR
#define TESSERA_GOLDEN_DIR "tests/golden"
#endif

static char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];

static int setup(void **state) {
    (void)state;
    make_temp_dir(dir);
    return tsr_path_join(path, dir, "x.safetensors");
}

static int teardown(void **state) {
    (void)state;
    return tsr_remove_tree(dir);
}

// ---- regions

static void check_region(const struct tsr_st_file *f, const struct tsr_st_entry *e, int64_t r0,
                         int64_t r1, int64_t c0, int64_t c1) {
    int64_t cols = e->ndim == 2 ? e->shape[1] : 1, width = c1 - c0, n = (r1 - r0) * width;
    float *out = malloc((size_t)(n + 2) * sizeof *out);
    out[n] = out[n + 1] = 77.0f; // guard
    expect_ok(tsr_st_read_region(f, e, r0, r1, c0, c1, out));
    for (int64_t i = 0; i < n; i++) {
        float want = value_by_name(e->name, (r0 + i / width) * cols + c0 + i % width);
        if (out[i] != want)
            fail_msg("%s: element %d: expected %g, found %g", e->name, (int)i, want, out[i]);
    }
    assert_true(out[n] == 77.0f && out[n + 1] == 77.0f);
    free(out);
}

static void test_regions(void **state) {
    (void)state;
    // small rows, a row with a long gap, a row above the buffer, a run above the buffer
    static const int64_t shapes[][2] = {{7, 5}, {300, 37}, {4, 20000}, {2, 300000}, {1, 1}, {9, 1}};
    enum { N = sizeof shapes / sizeof *shapes };
    static const enum tsr_dtype dtypes[] = {TSR_DT_F32, TSR_DT_F16, TSR_DT_BF16};
    struct tsr_st_entry entries[3 * N + 3] = {0};
    char names[3 * N + 3][32];
    int n = 0;
    for (int d = 0; d < 3; d++) {
        for (int i = 0; i < N; i++, n++) {
            snprintf(names[n], sizeof names[n], "t%d.%d", d, i);
            entries[n] =
                (struct tsr_st_entry){names[n], dtypes[d], 2, {shapes[i][0], shapes[i][1]}, 0, 0};
        }
        snprintf(names[n], sizeof names[n], "v%d", d);
        entries[n] = (struct tsr_st_entry){names[n], dtypes[d], 1, {1000}, 0, 0};
        n++;
    }
    write_tensors(path, entries, n, value_by_name);
    struct tsr_st_file f;
    expect_ok(tsr_st_open(&f, path));
    assert_int_equal(f.n, n);
    for (int i = 0; i < n; i++) {
        const struct tsr_st_entry *e = tsr_st_find(&f, names[i]);
        assert_non_null(e);
        int64_t rows = e->shape[0], cols = e->ndim == 2 ? e->shape[1] : 1;
        check_region(&f, e, 0, rows, 0, cols);
        check_region(&f, e, rows / 2, rows, 0, cols);
        check_region(&f, e, 0, rows, cols / 2, cols);
        check_region(&f, e, 0, rows, 0, (cols + 1) / 2);
        check_region(&f, e, rows / 3, (rows + 1) / 2, cols / 3, (cols + 1) / 2);
        check_region(&f, e, rows - 1, rows, cols - 1, cols);
        check_region(&f, e, rows, rows, 0, cols);
        check_region(&f, e, 0, rows, cols, cols);
    }
    assert_null(tsr_st_find(&f, "t"));
    assert_null(tsr_st_find(&f, "z"));
    tsr_st_close(&f);
}

static void test_header_text(void **state) {
    (void)state;
    struct tsr_st_entry e[] = {{"a\"b", TSR_DT_BF16, 2, {3, 2}, 0, 0},
                               {"c", TSR_DT_F32, 1, {1}, 0, 0}};
    static const char want[] =
        "{\"__metadata__\":{\"format\":\"pt\"},"
        "\"a\\\"b\":{\"dtype\":\"BF16\",\"shape\":[3,2],\"data_offsets\":[0,12]},"
        "\"c\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[12,16]}}";
    struct tsr_buf b = {0};
    expect_ok(tsr_st_header(e, 2, &b));
    assert_int_equal(b.len % 8, 0);
    assert_int_equal((unsigned char)b.data[0], b.len - 8);
    assert_memory_equal(b.data + 8, want, strlen(want));
    for (size_t i = 8 + strlen(want); i < b.len; i++)
        assert_int_equal(b.data[i], ' ');
    tsr_buf_free(&b);
}

// ---- wrong files

static void put(const char *header, size_t n_data) {
    struct tsr_buf b = {0};
    uint64_t n = strlen(header);
    expect_ok(tsr_buf_append(&b, &n, 8));
    expect_ok(tsr_buf_append(&b, header, n));
    for (size_t i = 0; i < n_data; i++)
        expect_ok(tsr_buf_append(&b, "", 1));
    write_bytes(path, b.data, b.len);
    tsr_buf_free(&b);
}

#define T(dtype, shape, offsets)                                                                   \
    "{\"dtype\":\"" dtype "\",\"shape\":" shape ",\"data_offsets\":" offsets "}"

static const struct {
    const char *header;
    size_t n_data;
    const char *word;
} wrong_headers[] = {
    {"[1, 2]", 0, "begin with '{'"},
    {" {}", 0, "begin with '{'"},
    {"{\"a\":", 0, "not valid JSON"},
    {"{} x", 0, "not valid JSON"},
    {"{\"a\":1}", 0, "expected an object"},
    {"{\"\":" T("F32", "[1]", "[0,4]") "}", 4, "tensor names"},
    {"{\"a\\n\":" T("F32", "[1]", "[0,4]") "}", 4, "control character"},
    {"{\"a\\u0000b\":" T("F32", "[1]", "[0,4]") "}", 4, "not valid JSON"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "twice"},
    {"{\"a\":{\"dtype\":\"F32\",\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4,
     "twice"},
    {"{\"a\":" T("F33", "[1]", "[0,4]") "}", 4, "known `dtype`, found F33"},
    {"{\"a\":" T("f32", "[1]", "[0,4]") "}", 4, "known `dtype`"},
    {"{\"a\":" T("\\u0007", "[1]", "[0,4]") "}", 4, "another string"},
    {"{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "known `dtype`"},
    {"{\"a\":" T("F32", "[-1]", "[0,4]") "}", 4, "at least 0"},
    {"{\"a\":" T("F32", "[1.0]", "[0,4]") "}", 4, "at least 0"},
    {"{\"a\":" T("F32", "[\\\"1\\\"]", "[0,4]") "}", 4, "not valid JSON"},
    {"{\"a\":" T("F32", "4", "[0,4]") "}", 4, "array of at most"},
    {"{\"a\":" T("F32", "[1,1,1,1,1,1,1,1,1]", "[0,4]") "}", 4, "array of at most"},
    {"{\"a\":" T("F32", "[9223372036854775808]", "[0,4]") "}", 4, "not valid JSON"},
    {"{\"a\":" T("F32", "[9223372036854775807]", "[0,4]") "}", 4, "too many elements"},
    {"{\"a\":" T("F32", "[4294967296,4294967296]", "[0,0]") "}", 0, "too many elements"},
    {"{\"a\":" T("F32", "[4611686018427387904,4]", "[0,0]") "}", 0, "too many elements"},
    {"{\"a\":" T("F32", "[2]", "[0,4]") "}", 4, "expected 8 bytes"},
    {"{\"a\":" T("F16", "[2]", "[0,8]") "}", 8, "expected 4 bytes"},
    {"{\"a\":" T("F32", "[]", "[0,8]") "}", 8, "expected 4 bytes"},
    {"{\"a\":" T("BOOL", "[1,1,4]", "[0,8]") "}", 8, "expected 4 bytes"},
    {"{\"a\":" T("I64", "[1]", "[0,4]") "}", 4, "expected 8 bytes"},
    {"{\"a\":" T("F32", "[1]", "[0]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0,4,8]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[0.0,4]") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "{}") "}", 4, "two integers"},
    {"{\"a\":" T("F32", "[1]", "[4,0]") "}", 4, "in order"},
    {"{\"a\":" T("F32", "[1]", "[-4,0]") "}", 4, "in order"},
    {"{\"a\":" T("F32", "[2]", "[0,8]") "}", 4, "at most 4"},
    {"{\"a\":" T("F32", "[1]", "[9223372036854775803,9223372036854775807]") "}", 4, "at most 4"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") "}", 8, "4 bytes of data by the header, found 8"},
    {"{\"a\":" T("F32", "[1]", "[4,8]") "}", 8, "leave a hole"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[8,12]") "}", 12, "a hole"},
    {"{\"a\":" T("F32", "[2]", "[0,8]") ",\"b\":" T("F32", "[2]", "[4,12]") "}", 12, "overlap"},
    {"{\"a\":" T("F32", "[1]", "[0,4]") ",\"b\":" T("F32", "[1]", "[0,4]") "}", 4, "overlap"},
    {"{\"a\":" T("F32", "[3]", "[0,12]") ",\"b\":" T("F32", "[1]", "[4,8]") "}", 12, "overlap"},
    {"{}", 1, "0 bytes of data by the header, found 1"},
    {"{\"__metadata__\":[]}", 0, "__metadata__"},
    {"{\"__metadata__\":{\"a\":1}}", 0, "__metadata__"},
};

static void test_wrong_headers(void **state) {
    (void)state;
    struct tsr_st_file f;
    for (size_t i = 0; i < sizeof wrong_headers / sizeof *wrong_headers; i++) {
        put(wrong_headers[i].header, wrong_headers[i].n_data);
        expect_error(tsr_st_open(&f, path), TSR_EMODEL, wrong_headers[i].word);
        assert_non_null(strstr(tsr_error_text(), path));
    }
}

static void test_right_headers(void **state) {
    (void)state;
    static const struct {
        const char *header;
        size_t n_data;
        int n;
    } cases[] = {
        {"{}", 0, 0},
        {"{\"__metadata__\":{}}      ", 0, 0},
        {"{\"b\":" T("F32", "[1]", "[0,4]") ",\"a\":" T("I64", "[]", "[4,12]") "}", 12, 2},
        {"{\"a\":" T("BOOL", "[1,1,2,2]", "[0,4]") ",\"e\":" T("F32", "[0,5]", "[4,4]") "}", 4, 2},
        {"{\"e\":" T("F32", "[0]", "[0,0]") ",\"a\":" T("U8", "[3]", "[0,3]") "}", 3, 2},
        {"{\"a\":" T("F8_E4M3", "[3]", "[0,3]") "}", 3, 1},
    };
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        struct tsr_st_file f;
        put(cases[i].header, cases[i].n_data);
        expect_ok(tsr_st_open(&f, path));
        assert_int_equal(f.n, cases[i].n);
        for (int k = 1; k < f.n; k++)
            assert_true(strcmp(f.entries[k - 1].name, f.entries[k].name) < 0);
        tsr_st_close(&f);
    }
}

static void test_unreadable_tensors(void **state) {
    (void)state;
    struct tsr_st_file f;
    float out[8];
    put("{\"i\":" T("I64", "[1]", "[0,8]") ",\"s\":" T("F32", "[]", "[8,12]") ",\"t\":" T(
            "F32", "[1,1,1]", "[12,16]") ",\"z\":" T("F32", "[0,4]", "[16,16]") "}",
        16);
    expect_ok(tsr_st_open(&f, path));
    expect_error(tsr_st_read_region(&f, tsr_st_find(&f, "i"), 0, 1, 0, 1, out), TSR_EMODEL, "I64");
    expect_error(tsr_st_read_region(&f, tsr_st_find(&f, "s"), 0, 1, 0, 1, out), TSR_EMODEL,
                 "found 0");
    expect_error(tsr_st_read_region(&f, tsr_st_find(&f, "t"), 0, 1, 0, 1, out), TSR_EMODEL,
                 "found 3");
    expect_ok(tsr_st_read_region(&f, tsr_st_find(&f, "z"), 0, 0, 0, 4, out));
    tsr_st_close(&f);
}

static void test_wrong_lengths(void **state) {
    (void)state;
    static const uint64_t lengths[] = {
        0, 1, 3, 9, 100, 1000000000, UINT32_MAX, INT64_MAX, 1ull << 63, UINT64_MAX, UINT64_MAX - 7};
    struct tsr_st_file f;
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        char bytes[10] = "        {}";
        memcpy(bytes, &lengths[i], 8);
        write_bytes(path, bytes, sizeof bytes);
        expect_error(tsr_st_open(&f, path), TSR_EMODEL, "header of 2 to 2 bytes");
    }
    // longer than any header may be, in a sparse file that has the bytes
    uint64_t n = 100000001;
    write_bytes(path, &n, 8);
    assert_int_equal(truncate(path, 200000000), 0);
    expect_error(tsr_st_open(&f, path), TSR_EMODEL, "header of 2 to 100000000 bytes");
}

static void test_not_a_file(void **state) {
    (void)state;
    struct tsr_st_file f;
    expect_error(tsr_st_open(&f, path), TSR_EMODEL, "cannot open");
    expect_error(tsr_st_open(&f, dir), TSR_EMODEL, "regular file");
    assert_int_equal(mkfifo(path, 0600), 0);
    expect_error(tsr_st_open(&f, path), TSR_EMODEL, "regular file");
}

static size_t write_small(char **bytes) {
    struct tsr_st_entry e[] = {{"w", TSR_DT_F32, 2, {2, 3}, 0, 0},
                               {"h", TSR_DT_F16, 1, {4}, 0, 0},
                               {"b", TSR_DT_BF16, 2, {1, 2}, 0, 0}};
    size_t n;
    write_tensors(path, e, 3, value_by_name);
    *bytes = read_bytes(path, &n);
    return n;
}

static void test_truncated_anywhere(void **state) {
    (void)state;
    char *bytes;
    struct tsr_st_file f;
    size_t n = write_small(&bytes);
    for (size_t k = n; k-- > 0;) {
        assert_int_equal(truncate(path, (off_t)k), 0);
        expect_error(tsr_st_open(&f, path), TSR_EMODEL, path);
    }
    free(bytes);
}

// What every opened file promises, whatever its bytes.
static void check_promises(const struct tsr_st_file *f, uint64_t file_size) {
    uint64_t covered = 0;
    assert_true(f->data_offset + f->data_size == file_size);
    for (int i = 0; i < f->n; i++) {
        const struct tsr_st_entry *e = &f->entries[i];
        uint64_t n = tsr_dtype_size(e->dtype);
        for (int d = 0; d < e->ndim; d++)
            n *= (uint64_t)e->shape[d];
        assert_true(e->begin <= e->end && e->end <= f->data_size && n == e->end - e->begin);
        assert_true(i == 0 || strcmp(f->entries[i - 1].name, e->name) < 0);
        covered += n;
        if (e->dtype > TSR_DT_BF16 || e->ndim < 1 || e->ndim > 2)
            continue;
        int64_t cols = e->ndim == 2 ? e->shape[1] : 1;
        float *out = malloc((size_t)n * 2 + 1);
        expect_ok(tsr_st_read_region(f, e, 0, e->shape[0], 0, cols, out));
        free(out);
    }
    assert_true(covered == f->data_size);
}

static void test_flipped_anywhere(void **state) {
    (void)state;
    char *bytes;
    size_t n = write_small(&bytes);
    int n_refused = 0, n_opened = 0;
    for (size_t i = 0; i < n; i++)
        for (int bit = 0; bit < 8; bit++) {
            struct tsr_st_file f;
            poke(path, i, (char)(bytes[i] ^ 1 << bit));
            int rc = tsr_st_open(&f, path);
            poke(path, i, bytes[i]);
            if (rc < 0) {
                assert_int_equal(rc, TSR_EMODEL);
                n_refused++;
                continue;
            }
            n_opened++;
            check_promises(&f, n);
            tsr_st_close(&f);
        }
    assert_true(n_refused > 500 && n_opened >= 36 * 8); // data bytes have no checksum here
    free(bytes);
}

// ---- a file written by the Python library

static void test_golden(void **state) {
    (void)state;
    struct tsr_st_file f;
    char name[64];
    int n, n_lines = 0;
    expect_ok(tsr_st_open(&f, TESSERA_GOLDEN_DIR "/safetensors/tiny.safetensors"));
    FILE *expected = fopen(TESSERA_GOLDEN_DIR "/safetensors/tiny.txt", "r");
    assert_non_null(expected);
    while (fscanf(expected, "%63s %d", name, &n) == 2) {
        const struct tsr_st_entry *e = tsr_st_find(&f, name);
        assert_non_null(e);
        float out[64];
        assert_true(n <= 64);
        int64_t cols = e->ndim == 2 ? e->shape[1] : 1;
        assert_int_equal(e->shape[0] * cols, n);
        expect_ok(tsr_st_read_region(&f, e, 0, e->shape[0], 0, cols, out));
        for (int i = 0; i < n; i++) {
            unsigned want;
            assert_int_equal(fscanf(expected, "%x", &want), 1);
            uint32_t found;
            memcpy(&found, &out[i], sizeof found);
            if (found != want)
                fail_msg("%s[%d]: expected %08x, found %08x", name, i, want, found);
        }
        n_lines++;
    }
    fclose(expected);
    assert_int_equal(n_lines, f.n);
    assert_int_equal(n_lines, 5);
    tsr_st_close(&f);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_regions, setup, teardown),
        cmocka_unit_test(test_header_text),
        cmocka_unit_test_setup_teardown(test_wrong_headers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_right_headers, setup, teardown),
        cmocka_unit_test_setup_teardown(test_unreadable_tensors, setup, teardown),
        cmocka_unit_test_setup_teardown(test_wrong_lengths, setup, teardown),
        cmocka_unit_test_setup_teardown(test_not_a_file, setup, teardown),
        cmocka_unit_test_setup_teardown(test_truncated_anywhere, setup, teardown),
        cmocka_unit_test_setup_teardown(test_flipped_anywhere, setup, teardown),
        cmocka_unit_test(test_golden),
    };
    return cmocka_run_group_tests_name("safetensors", tests, NULL, NULL);
}

// A temporary folder and small safetensors files, for tests that read and write model directories.
#ifndef TSR_TESTS_FILES_SUPPORT_H
#define TSR_TESTS_FILES_SUPPORT_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "core/safetensors.h"

// Fills `out` with a fresh folder below $TMPDIR or /tmp; remove it by tsr_remove_tree.
static inline void make_temp_dir(char out[static TSR_PATH_MAX]) {
    const char *tmp = getenv("TMPDIR");
    snprintf(out, TSR_PATH_MAX, "%s/tsr-test-XXXXXX", tmp && *tmp ? tmp : "/tmp");
    assert_non_null(mkdtemp(out));
}

// A new file, not a shortened one: some file systems write the latter to the disk at once.
static inline void write_bytes(const char *path, const void *p, size_t n) {
    unlink(path);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(p, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

// Puts one byte into a file.
static inline void poke(const char *path, size_t at, char byte) {
    int fd = open(path, O_WRONLY);
    assert_true(fd >= 0);
    assert_int_equal(pwrite(fd, &byte, 1, (off_t)at), 1);
    close(fd);
}

static inline void write_text(const char *path, const char *text) {
    write_bytes(path, text, strlen(text));
}

static inline char *read_bytes(const char *path, size_t *n) {
    char *text = NULL;
    if (tsr_read_file(path, (size_t)1 << 30, TSR_EIO, &text, n) < 0)
        fail_msg("%s", tsr_error_text());
    return text;
}

// Fails the test unless `rc` is `code` and the message has `word`.
static inline void expect_error(int rc, int code, const char *word) {
    if (rc != code)
        fail_msg("expected %s, found %s (%s)", tsr_error_name(code), tsr_error_name(rc),
                 tsr_error_text());
    if (!strstr(tsr_error_text(), word))
        fail_msg("expected a message with \"%s\", found: %s", word, tsr_error_text());
}

static inline void expect_ok(int rc) {
    if (rc < 0)
        fail_msg("expected success, found %s (%s)", tsr_error_name(rc), tsr_error_text());
}

// Writes a file of these tensors; element i of a tensor is value(name, i).
static inline void write_tensors(const char *path, struct tsr_st_entry *entries, int n,
                                 float (*value)(const char *name, int64_t i)) {
    struct tsr_buf b = {0};
    expect_ok(tsr_st_header(entries, n, &b));
    for (int k = 0; k < n; k++) {
        size_t elem = tsr_dtype_size(entries[k].dtype);
        int64_t n_elems = (int64_t)((entries[k].end - entries[k].begin) / elem);
        for (int64_t i = 0; i < n_elems; i++) {
            char bytes[8] = {0};
            float f = value(entries[k].name, i);
            if (entries[k].dtype == TSR_DT_F32 || entries[k].dtype == TSR_DT_F16 ||
                entries[k].dtype == TSR_DT_BF16)
                tsr_dtype_from_f32(entries[k].dtype, bytes, &f, 1);
            expect_ok(tsr_buf_append(&b, bytes, elem));
        }
    }
    write_bytes(path, b.data, b.len);
    tsr_buf_free(&b);
}

// Small whole numbers, exact in every dtype, that differ from tensor to tensor.
static inline float value_by_name(const char *name, int64_t i) {
    uint32_t h = 2166136261u;
    for (; *name; name++)
        h = (h ^ (unsigned char)*name) * 16777619u;
    h = (h ^ (uint32_t)i) * 2654435761u;
    return (float)(int)(h >> 24) - 128.0f;
}

#endif

// Run files in a temporary folder, for tests of the run file.
#ifndef TESTS_RUN_FILE_H
#define TESTS_RUN_FILE_H

#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/io.h"
#include "core/run.h"

static char test_dir[TSR_PATH_MAX];

static int make_test_dir(void **state) {
    (void)state;
    const char *tmp = getenv("TMPDIR");
    char dir[TSR_PATH_MAX];
    snprintf(dir, sizeof dir, "%s/tsr-test-XXXXXX", tmp ? tmp : "/tmp");
    return mkdtemp(dir) && realpath(dir, test_dir) ? 0 : -1;
}

static int remove_test_dir(void **state) {
    (void)state;
    return tsr_remove_tree(test_dir);
}

static const char *write_bytes(const char *text, size_t n) {
    static char path[TSR_PATH_MAX];
    assert_int_equal(tsr_path_join(path, test_dir, "run.yaml"), 0);
    assert_int_equal(tsr_write_file_durable(path, text, n), 0);
    return path;
}

// Loads `text` as a run file with the overrides up to NULL.
static int load_with(struct tsr_run *r, const char *text, const char *const *overrides) {
    int n = 0;
    while (overrides && overrides[n])
        n++;
    return tsr_run_load(r, write_bytes(text, strlen(text)), overrides, n);
}

#define OVERRIDES(...) ((const char *const[]){__VA_ARGS__, NULL})

// The least that a run needs, on three lines.
#define MINIMAL "model: {preset: tiny-llama}\ntrain: {steps: 10}\n"

static struct tsr_run load_good(const char *text, const char *const *overrides) {
    struct tsr_run r;
    if (load_with(&r, text, overrides) != 0)
        fail_msg("expected a good run, found: %s", tsr_error_text());
    return r;
}

// The text must be refused as the user's mistake, with each of the pieces in the message.
static void expect_mistakes(const char *text, const char *const *overrides,
                            const char *const *pieces) {
    struct tsr_run r;
    int rc = load_with(&r, text, overrides);
    if (rc == 0)
        fail_msg("expected a mistake (%s), found none in:\n%s", pieces[0], text);
    assert_int_equal(tsr_exit_code(rc), 2);
    for (int i = 0; pieces[i]; i++)
        if (!strstr(tsr_error_text(), pieces[i]))
            fail_msg("expected \"%s\" in:\n%s", pieces[i], tsr_error_text());
}
#define PIECES(...) ((const char *const[]){__VA_ARGS__, NULL})

#endif

// A folder of its own for a test, below $TMPDIR or /tmp, and files in it.
#ifndef TSR_TESTS_SCRATCH_H
#define TSR_TESTS_SCRATCH_H

#include "core/io.h"

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

static char scratch_dir[TSR_PATH_MAX];

static inline int scratch_setup(void **state) {
    const char *tmp = getenv("TMPDIR");
    (void)state;
    snprintf(scratch_dir, sizeof scratch_dir, "%s/tessera-test-XXXXXX",
             tmp && tmp[0] ? tmp : "/tmp");
    return mkdtemp(scratch_dir) ? 0 : -1;
}

static inline int scratch_teardown(void **state) {
    (void)state;
    return tsr_remove_tree(scratch_dir);
}

// scratch_dir/name; the last eight results stay valid.
static inline const char *scratch(const char *name) {
    static char paths[8][TSR_PATH_MAX];
    static unsigned next;
    char *path = paths[next++ % 8];
    return tsr_path_join(path, scratch_dir, name) == 0 ? path : NULL;
}

static inline void scratch_write(const char *path, const void *bytes, size_t n_bytes) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(bytes, 1, n_bytes, f) != n_bytes || fclose(f) != 0)
        abort();
}

#endif

// One run directory with small checkpoints of several steps, for a test program.
#ifndef TSR_TESTS_CHECKPOINT_FOLDER_H
#define TSR_TESTS_CHECKPOINT_FOLDER_H

#include "tests/unit/checkpoint_support.h"

static struct fixture x;

static inline int start(void **state) {
    (void)state;
    open_fixture(&x, gpt2_json);
    x.opt.max_file_bytes = 0; // one file of each kind
    return 0;
}

static inline int finish(void **state) {
    (void)state;
    close_fixture(&x);
    return 0;
}

static inline void save_step(int64_t step) {
    x.opt.step = step;
    write_checkpoint(&x, (struct layout){1, false, 1}, NULL, NULL);
}

static inline const char *below(const char *name) {
    static char path[TSR_PATH_MAX + 64];
    snprintf(path, sizeof path, "%s/checkpoints/%s", x.dir, name);
    return path;
}

// The steps of the run, newest first, as one string.
static inline const char *steps(void) {
    static char text[256];
    char dir[TSR_PATH_MAX];
    int64_t step, limit = INT64_MAX;
    size_t n = 0;
    text[0] = 0;
    for (;;) {
        int found = tsr_checkpoint_latest(x.dir, limit, &step, dir);
        expect_ok(found);
        if (found == 0)
            return text;
        n += (size_t)snprintf(text + n, sizeof text - n, "%s%d", n ? " " : "", (int)step);
        assert_true(tsr_path_is_dir(dir));
        limit = step;
    }
}

#endif

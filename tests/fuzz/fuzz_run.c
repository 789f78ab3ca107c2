// Input: a run file. What loads must be dumped as a file that loads as the same run.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/run.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put(const char *path, const void *p, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0)
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *tmp = getenv("TMPDIR");
    char path[300];
    struct tsr_run r, again;
    struct tsr_buf first = {0}, second = {0};
    snprintf(path, sizeof path, "%s/fuzz-run-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    int fd = mkstemp(path);
    TSR_ASSERT(fd >= 0 && close(fd) == 0);
    put(path, data, size);
    if (tsr_run_load(&r, path, NULL, 0) == 0) {
        TSR_ASSERT(tsr_run_dump(&r, &first) == 0);
        put(path, first.data, first.len);
        TSR_ASSERT(tsr_run_load(&again, path, NULL, 0) == 0);
        TSR_ASSERT(tsr_run_dump(&again, &second) == 0);
        TSR_ASSERT(strcmp(first.data, second.data) == 0);
        TSR_ASSERT(tsr_run_check_resume(&r, second.data, "dump") == 0);
        tsr_run_free(&again);
        tsr_run_free(&r);
    }
    tsr_buf_free(&first);
    tsr_buf_free(&second);
    unlink(path);
    return 0;
}

// Any bytes as a safetensors file: opening refuses them or keeps its promises, and every tensor
// that can be read is read to its last byte.
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>
#include "core/error.h"
#include "core/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void check_entry(const struct tsr_st_file *f, const struct tsr_st_entry *e) {
    TSR_ASSERT(e->begin <= e->end && e->end <= f->data_size);
    TSR_ASSERT(tsr_st_find(f, e->name) == e);
    if (e->ndim != 1 && e->ndim != 2)
        return;
    const int64_t rows = e->shape[0], cols = e->ndim == 2 ? e->shape[1] : 1;
    const size_t n = (size_t)(e->end - e->begin) / tsr_dtype_size(e->dtype);
    float *out = malloc((n + 1) * sizeof *out);
    TSR_ASSERT(out);
    int rc = tsr_st_read_region(f, e, 0, rows, 0, cols, out);
    TSR_ASSERT((rc == 0) == (e->dtype <= TSR_DT_BF16));
    if (rc == 0)
        TSR_ASSERT(tsr_st_read_region(f, e, rows / 2, rows, cols / 3, cols, out) == 0);
    free(out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    struct tsr_st_file f;
    int fd = memfd_create("safetensors", MFD_CLOEXEC);
    TSR_ASSERT(fd >= 0);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    TSR_ASSERT(tsr_write_all(fd, data, size, path) == 0);
    int rc = tsr_st_open(&f, path);
    TSR_ASSERT(rc == 0 || rc == TSR_EMODEL);
    for (int i = 0; rc == 0 && i < f.n; i++)
        check_entry(&f, &f.entries[i]);
    if (rc == 0)
        tsr_st_close(&f);
    close(fd);
    return 0;
}

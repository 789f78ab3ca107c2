// Input: the .idx bytes, and in the last two bytes how many of those before them are the .bin.
#include "core/error.h"
#include "core/indexed.h"

#include <stdlib.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put(const char *path, const uint8_t *p, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0)
        abort();
}

static void walk(const struct tsr_indexed *x) {
    int32_t ids[257];
    uint8_t start[257];
    for (int64_t at = 0, n; at < tsr_indexed_n_tokens(x); at += n) {
        n = tsr_indexed_n_tokens(x) - at < 257 ? tsr_indexed_n_tokens(x) - at : 257;
        tsr_indexed_read(x, at, n, ids, start);
    }
    tsr_indexed_scan(x, 1000);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *tmp = getenv("TMPDIR");
    char dir[256], prefix[300], idx[320], bin[320];
    struct tsr_indexed *x;
    if (size < 2)
        return 0;
    snprintf(dir, sizeof dir, "%s/fuzz-indexed-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(dir))
        abort();
    snprintf(prefix, sizeof prefix, "%s/x", dir);
    snprintf(idx, sizeof idx, "%s.idx", prefix);
    snprintf(bin, sizeof bin, "%s.bin", prefix);
    size_t n_bin = data[size - 2] | (size_t)data[size - 1] << 8, n = size - 2;
    n_bin = n_bin > n ? n : n_bin;
    put(idx, data, n - n_bin);
    put(bin, data + n - n_bin, n_bin);
    if (tsr_indexed_open(&x, prefix) == 0) {
        walk(x);
        tsr_indexed_close(x);
    }
    unlink(idx);
    unlink(bin);
    rmdir(dir);
    return 0;
}

// Input: a tokenizer.json, then, behind the last NUL byte, a text. What loads must encode any text
// and give back ids of its vocabulary.
#include "core/error.h"
#include "core/log.h"
#include "core/tokenizer.h"

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void put(const char *path, const uint8_t *p, size_t n) {
    FILE *f = fopen(path, "wb");
    if (!f || fwrite(p, 1, n, f) != n || fclose(f) != 0)
        abort();
}

static void use(struct tsr_tokenizer *t, const char *text, size_t n_bytes) {
    for (int flags = 0; flags < 4; flags++) {
        struct tsr_ids ids = {0};
        struct tsr_buf out = {0};
        if (tsr_tokenizer_encode(t, text, n_bytes, flags, &ids) == 0 &&
            tsr_tokenizer_decode(t, ids.v, ids.n, flags & 1, &out) < 0)
            abort();
        for (size_t i = 0; i < ids.n; i++)
            if (ids.v[i] < 0 || ids.v[i] >= tsr_tokenizer_vocab(t))
                abort();
        tsr_ids_free(&ids);
        tsr_buf_free(&out);
    }
    if (tsr_tokenizer_eos(t) >= tsr_tokenizer_vocab(t))
        abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    const char *tmp = getenv("TMPDIR");
    const uint8_t *nul = size ? memrchr(data, 0, size) : NULL;
    size_t n_json = nul ? (size_t)(nul - data) : size;
    char dir[256], path[300];
    struct tsr_tokenizer *t;
    tsr_log_level(TSR_LOG_ERROR);
    snprintf(dir, sizeof dir, "%s/fuzz-tokenizer-XXXXXX", tmp && tmp[0] ? tmp : "/tmp");
    if (!mkdtemp(dir))
        abort();
    snprintf(path, sizeof path, "%s/tokenizer.json", dir);
    put(path, data, n_json);
    if (tsr_tokenizer_load(&t, dir) == 0) {
        use(t, nul ? (const char *)nul + 1 : "", nul ? size - n_json - 1 : 0);
        tsr_tokenizer_free(t);
    }
    unlink(path);
    rmdir(dir);
    return 0;
}

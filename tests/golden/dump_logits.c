// dump_logits MODEL_DIR ID…: fp32 logits after each token, one row of the vocabulary a token, raw
// on standard output. For tests/golden/check_transformers.py.
#include <stdio.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/infer.h"

static int dump(struct tsr_infer *g, int argc, char **argv) {
    const struct tsr_sampling greedy = {.temperature = 0.0};
    for (int i = 2; i < argc; i++) {
        int32_t id = (int32_t)strtol(argv[i], NULL, 10), next;
        TSR_TRY(tsr_infer_next(g, &id, 1, i - 2, &greedy, &next));
        if (fwrite(g->logits, sizeof(float), (size_t)g->m.vocab, stdout) != (size_t)g->m.vocab)
            return tsr_fail(TSR_EIO, "standard output can't be written");
    }
    return 0;
}

int main(int argc, char **argv) {
    struct tsr_progress progress = {0};
    struct tsr_comm comm;
    struct tsr_ctx ctx;
    struct tsr_infer g = {0};
    if (argc < 3)
        return tsr_exit_code(TSR_EUSAGE);
    int rc = tsr_comm_open_single(&comm, &progress);
    if (rc == 0)
        rc = tsr_cpu_open(&ctx, NULL, 2);
    if (rc == 0)
        rc = tsr_infer_open(&g, argv[1], &ctx, &comm, 1, 1, argc, 1);
    if (rc == 0)
        rc = dump(&g, argc, argv);
    if (rc < 0)
        fprintf(stderr, "dump_logits: %s\n", tsr_error_text());
    return tsr_exit_code(rc);
}

// Picks tokens from rows of logits; see core/sampler.h.
#include "kernels/cpu/isa.h"

struct sample_job {
    int32_t *next;
    const float *logits; // (rows, V)
    const struct tsr_sampling *s;
    const uint64_t *index;
    int64_t v;
};

static void sample_row(void *arg, int part, int thread) {
    (void)thread;
    const struct sample_job *q = arg;
    q->next[part] = tsr_sample(&q->s[part], q->logits + part * q->v, q->v, q->index[part]);
}

int tsr_cpu_sample(struct tsr_ctx *ctx, int32_t *next, const float *logits,
                   const struct tsr_sampling *s, const uint64_t *index, int rows, int64_t v) {
    struct sample_job q = {next, logits, s, index, v};
    tsr_pool_run(ctx->stream, rows, sample_row, &q);
    return 0;
}

#include "launcher/random_tokens.h"

int tsr_random_sequence(void *job, uint64_t g, int32_t *tokens, uint8_t *doc_start) {
    const struct tsr_job *j = job;
    struct tsr_rng_key key = tsr_rng_key((uint64_t)j->run.run.seed, TSR_RNG_BENCH, 0, 0);
    int64_t T = j->run.data.seq_len;
    for (int64_t i = 0; i <= T; i++) {
        struct tsr_u32x4 r = tsr_philox(key, (uint32_t)i, (uint32_t)g, (uint32_t)(g >> 32), 0);
        tokens[i] = (int32_t)(((uint64_t)r.v[0] * (uint64_t)j->model.vocab) >> 32);
        if (doc_start)
            doc_start[i] = i == 0;
    }
    return 0;
}

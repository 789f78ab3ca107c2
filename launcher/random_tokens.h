// Made-up training data for commands that look at speed or at arithmetic.
#ifndef TSR_LAUNCHER_RANDOM_TOKENS_H
#define TSR_LAUNCHER_RANDOM_TOKENS_H

#include "launcher/job.h"

// A tsr_sequence_fn; `job` is a struct tsr_job. Tokens are a function of the run's seed and `g`;
// each sequence is one document.
int tsr_random_sequence(void *job, uint64_t g, int32_t *tokens, uint8_t *doc_start);

#endif

// The training step and everything that it holds; one loop (launcher/cmd_train.c) calls it.
#ifndef TSR_DIST_TRAIN_H
#define TSR_DIST_TRAIN_H

#include "core/guard.h"
#include "core/run.h"
#include "dist/executor.h"
#include "dist/update.h"

// Where sequences come from: tokens (T + 1) of global sequence g, and doc_start (T + 1) or NULL.
typedef int (*tsr_sequence_fn)(void *arg, uint64_t g, int32_t *tokens, uint8_t *doc_start);

struct tsr_trainer {
    const struct tsr_run *run;
    const struct tsr_model *m;
    struct tsr_net net;
    struct tsr_model_state state;
    struct tsr_executor executor;
    struct tsr_batch *batches; // one per micro-batch of this rank
    int n_micro, per_replica;  // sequences of one virtual replica
    tsr_sequence_fn sequence;
    void *sequence_arg;
    int32_t *tokens;    // (T + 1) scratch
    uint8_t *doc_start; // (micro_batch, T + 1), isolated packing only
    int64_t step, updates, skipped;
    int64_t sequences; // data position: global index of the next one
    struct tsr_guard guard;
    int n_opened; // batches with rows of their own; planning shares one batch's
};

struct tsr_step_result {
    double loss, grad_norm, lr;
    int64_t target_tokens; // of the global batch
    struct tsr_judgement judged;
    bool stop; // some rank was asked to stop
};

// Lays out and allocates everything for this rank. `fresh`: initialise weights.
int tsr_trainer_open(struct tsr_trainer *t, const struct tsr_run *run, const struct tsr_model *m,
                     struct tsr_ctx *ctx, struct tsr_comm *comm, const struct tsr_mesh *mesh,
                     tsr_sequence_fn sequence, void *sequence_arg);
void tsr_trainer_close(struct tsr_trainer *t);

// Fills micro-batch `index` of this rank with global sequences [g, g + n_seqs) of a source.
int tsr_trainer_load(struct tsr_trainer *t, struct tsr_batch *b, int index, uint64_t g,
                     tsr_sequence_fn sequence, void *arg);

// To be called when the masters are loaded or initialised and t->updates is theirs, before weights
// are used: with stochastic rounding they become what the run had there. Collective.
int tsr_trainer_round(struct tsr_trainer *t);

// One step: gradients of the next global batch, which all ranks judge alike (core/guard.h), then
// the update. A bad step that is skipped counts like a good one. After one that is to be rolled
// back or to stop the run (tsr_step_stands is false), the trainer is as it was before.
int tsr_trainer_step(struct tsr_trainer *t, struct tsr_step_result *out);
bool tsr_step_stands(const struct tsr_step_result *s);

// Mean loss (nats per token) of `n` sequences of a source, without dropout: the same number for
// every layout. Collective.
int tsr_trainer_eval(struct tsr_trainer *t, tsr_sequence_fn sequence, void *arg, int64_t n,
                     double *loss);

// Floating-point operations of one token's forward and backward, by the formula in
// tsr_flops_formula.
double tsr_flops_per_token(const struct tsr_model *m, int64_t seq_len);
extern const char tsr_flops_formula[];

#endif

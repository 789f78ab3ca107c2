#include "dist/train.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/grads.h"
#include "dist/leaves.h"

static struct tsr_net_opt net_options(const struct tsr_run *run, const struct tsr_mesh *mesh) {
    int64_t per_replica = run->train.global_batch / mesh->W, mb = run->train.micro_batch;
    int n_leaves = mesh->W / mesh->dp / (int)(mb > per_replica ? mb / per_replica : 1);
    return (struct tsr_net_opt){
        .sequence_parallel = run->parallel.sequence,
        .training = true,
        .dropout = {(float)run->train.dropout.embedding, (float)run->train.dropout.attention,
                    (float)run->train.dropout.residual, (float)run->train.dropout.ffn},
        .seed = (uint64_t)run->run.seed,
        .n_grad_buffers = tsr_grads_levels(n_leaves)};
}

enum { MAX_ACTIONS = 1 << 24 }; // of a rank's schedule

static int open_batches(struct tsr_trainer *t) {
    int T = (int)t->run->data.seq_len, mb = (int)t->run->train.micro_batch;
    if ((int64_t)t->n_micro * t->net.mesh.chunks > MAX_ACTIONS / 2)
        return tsr_fail(TSR_ECONFIG,
                        "train.micro_batch: %lld makes %d micro-batches a step and rank, expected "
                        "at most %d over %d chunks",
                        (long long)mb, t->n_micro, MAX_ACTIONS / 2, t->net.mesh.chunks);
    t->batches = calloc((size_t)t->n_micro, sizeof *t->batches);
    t->tokens = calloc((size_t)T + 1, sizeof *t->tokens);
    if (t->run->data.packing == TSR_PACK_ISOLATED)
        t->doc_start = calloc((size_t)mb * (size_t)(T + 1), 1);
    if (!t->batches || !t->tokens || (t->run->data.packing == TSR_PACK_ISOLATED && !t->doc_start))
        return tsr_fail(TSR_ENOMEM, "no memory for the micro-batches");
    for (int i = 0; i < t->n_micro; i++) {
        t->batches[i] = t->batches[0];
        if (i == 0 || !t->net.comm->pretend) {
            t->n_opened++;
            TSR_TRY(tsr_batch_open(&t->batches[i], &t->net, mb, T));
        }
        tsr_batch_map(&t->batches[i], &t->net, i, 0, t->per_replica, NULL);
    }
    return 0;
}

// How many micro-batches of each chunk are in flight at once.
static int open_state(struct tsr_trainer *t) {
    const struct tsr_mesh *mesh = &t->net.mesh;
    int n = tsr_schedule_size(t->n_micro, mesh->chunks), slots[TSR_MAX_CHUNKS];
    struct tsr_action *a = calloc((size_t)n, sizeof *a);
    if (!a)
        return tsr_fail(TSR_ENOMEM, "no memory for the schedule");
    enum tsr_pipeline kind = (enum tsr_pipeline)t->run->parallel.schedule;
    int rc = tsr_schedule_fill(kind, mesh->pp, mesh->pp_rank, mesh->chunks, t->n_micro, a);
    for (int c = 0; rc == 0 && c < mesh->chunks; c++)
        slots[c] = tsr_schedule_in_flight(a, n, c);
    free(a);
    if (rc == 0)
        rc = tsr_model_state_open(&t->state, &t->net, &t->batches[0],
                                  (enum tsr_recompute)t->run->train.recompute, slots, true);
    if (rc == 0)
        rc = tsr_executor_open(&t->executor, &t->state, &t->batches[0], kind, t->n_micro);
    return rc;
}

int tsr_trainer_open(struct tsr_trainer *t, const struct tsr_run *run, const struct tsr_model *m,
                     struct tsr_ctx *ctx, struct tsr_comm *comm, const struct tsr_mesh *mesh,
                     tsr_sequence_fn sequence, void *sequence_arg) {
    memset(t, 0, sizeof *t);
    t->run = run;
    t->m = m;
    t->sequence = sequence;
    t->sequence_arg = sequence_arg;
    t->n_micro = (int)(run->train.global_batch / mesh->dp / run->train.micro_batch);
    t->per_replica = (int)(run->train.global_batch / mesh->W);
    struct tsr_net_opt opt = net_options(run, mesh);
    TSR_TRY(tsr_net_open(&t->net, ctx, comm, mesh, m, &opt, run->data.seq_len));
    int rc = open_batches(t);
    return tsr_agree(ctx, comm, rc == 0 ? open_state(t) : rc);
}

void tsr_trainer_close(struct tsr_trainer *t) {
    tsr_executor_close(&t->executor);
    tsr_model_state_close(&t->state);
    for (int i = 0; t->batches && i < t->n_opened; i++)
        tsr_batch_close(&t->batches[i]);
    free(t->batches);
    free(t->tokens);
    free(t->doc_start);
    if (t->net.ctx)
        tsr_net_close(&t->net);
    memset(t, 0, sizeof *t);
}

int tsr_trainer_load(struct tsr_trainer *t, struct tsr_batch *b, int index, uint64_t g,
                     tsr_sequence_fn sequence, void *arg) {
    size_t T = (size_t)b->seq_len;
    for (int s = 0; s < b->n_seqs; s++) {
        uint8_t *start = t->doc_start ? t->doc_start + (size_t)s * (T + 1) : NULL;
        TSR_TRY(sequence(arg, g + (uint64_t)s, t->tokens, start));
        memcpy(b->ids + (size_t)s * T, t->tokens, T * sizeof *b->ids);
        memcpy(b->targets + (size_t)s * T, t->tokens + 1, T * sizeof *b->targets);
    }
    tsr_batch_map(b, &t->net, index, g, t->per_replica, t->doc_start);
    return tsr_batch_upload(b);
}

static int64_t count_targets(const struct tsr_batch *b) {
    int64_t n = 0;
    for (int i = 0; i < b->n; i++)
        n += b->targets[i] >= 0;
    return n;
}

// Loads this rank's part of the global batch and counts the targets of all of it.
static int load_step(struct tsr_trainer *t, int64_t *n_targets) {
    struct tsr_net *net = &t->net;
    int64_t share = t->run->train.global_batch / net->mesh.dp;
    uint64_t mine = (uint64_t)(t->sequences + net->mesh.dp_rank * share);
    int64_t n = 0;
    for (int i = 0; i < t->n_micro; i++) {
        struct tsr_batch *b = &t->batches[i];
        TSR_TRY(tsr_trainer_load(t, b, i, mine + (uint64_t)i * (uint64_t)b->n_seqs, t->sequence,
                                 t->sequence_arg));
        n += count_targets(b);
    }
    *n_targets = t->run->train.global_batch * t->run->data.seq_len;
    if (!t->doc_start || net->mesh.dp == 1) {
        *n_targets = t->doc_start ? n : *n_targets;
        return 0;
    }
    // Masked targets vary: 24-bit halves keep the counts exact in fp32.
    float part[2] = {(float)(n & 0xFFF), (float)(n >> 12)};
    TSR_TRY(net->comm->control->all_reduce(net->ctx, net->comm, &net->dp, part, 2, NULL));
    *n_targets = (int64_t)part[0] + ((int64_t)part[1] << 12);
    return 0;
}

static struct tsr_adamw hyper(const struct tsr_trainer *t, double lr, double grad_norm) {
    const struct tsr_run *r = t->run;
    double n = (double)(t->updates + 1), clip = 1.0;
    if (r->train.clip > 0.0 && r->train.clip / (grad_norm + 1e-6) < 1.0)
        clip = r->train.clip / (grad_norm + 1e-6);
    return (struct tsr_adamw){.lr = (float)lr,
                              .beta1 = (float)r->train.beta1,
                              .beta2 = (float)r->train.beta2,
                              .rest1 = (float)(1.0 - r->train.beta1),
                              .rest2 = (float)(1.0 - r->train.beta2),
                              .eps = (float)r->train.eps,
                              .weight_decay = (float)r->train.weight_decay,
                              .bias1 = (float)(1.0 - pow(r->train.beta1, n)),
                              .bias2_sqrt = (float)sqrt(1.0 - pow(r->train.beta2, n)),
                              .grad_scale = (float)clip};
}

static void publish(const struct tsr_trainer *t, enum tsr_phase phase) {
    struct tsr_progress *p = t->net.comm->progress;
    if (!p)
        return;
    p->phase = phase;
    p->step = (uint64_t)t->step;
}

bool tsr_step_stands(const struct tsr_step_result *s) {
    const struct tsr_judgement *j = &s->judged;
    return j->kind == TSR_STEP_GOOD || (j->action == TSR_ON_BAD_SKIP && !j->worn_out);
}

int tsr_trainer_round(struct tsr_trainer *t) {
    return t->run->train.stochastic_rounding ? tsr_update_round(&t->net, (uint64_t)t->updates) : 0;
}

int tsr_trainer_step(struct tsr_trainer *t, struct tsr_step_result *out) {
    struct tsr_net *net = &t->net;
    struct tsr_progress *progress = net->comm->progress;
    publish(t, TSR_PHASE_DATA);
    TSR_TRY(load_step(t, &out->target_tokens));
    TSR_TRY(tsr_grads_begin(net));
    float scale = (float)(1.0 / (double)out->target_tokens);
    TSR_TRY(tsr_executor_run(&t->executor, t->batches, scale));
    publish(t, TSR_PHASE_REDUCE);
    double begin = tsr_now(), waited = net->comm->seconds;
    TSR_TRY(tsr_grads_finish(net));
    struct tsr_step_sums sums = {.stop = progress && progress->stop};
    TSR_TRY(tsr_step_agree(net, t->executor.loss, &sums));
    out->loss = sums.loss / (double)out->target_tokens;
    out->grad_norm = sums.grad_norm;
    out->lr = tsr_run_lr(t->run, t->step + 1);
    out->judged = tsr_guard_judge(&t->guard, t->run, out->loss, out->grad_norm);
    out->stop = sums.stop;
    if (!tsr_step_stands(out))
        return 0;
    publish(t, TSR_PHASE_OPTIMIZER);
    if (out->judged.kind == TSR_STEP_GOOD) {
        struct tsr_adamw h = hyper(t, out->lr, out->grad_norm);
        const struct tsr_rounding after = {.update = (uint64_t)t->updates + 1};
        h.rounding = t->run->train.stochastic_rounding ? &after : NULL;
        TSR_TRY(tsr_update(net, &h));
        t->updates++;
    } else {
        t->skipped++;
    }
    t->executor.times.communication += net->comm->seconds - waited;
    t->executor.times.optimizer += tsr_now() - begin - (net->comm->seconds - waited);
    tsr_guard_count(&t->guard, t->run, &out->judged);
    t->step++;
    t->sequences += t->run->train.global_batch;
    publish(t, TSR_PHASE_DATA);
    return 0;
}

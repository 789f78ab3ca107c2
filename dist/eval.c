// Validation: forwards only, through the same stages as training.
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/leaves.h"
#include "dist/train.h"

struct eval {
    struct tsr_trainer *t;
    struct tsr_leaves sums; // loss and targets of each sequence: places 2i and 2i + 1
    struct tsr_request send;
    int64_t n;
};

// Receives a chunk's input, or finds it in the output of this rank's chunk before.
static int receive(struct eval *e, int c, size_t n_bytes) {
    struct tsr_net *net = &e->t->net;
    struct tsr_model_state *s = &e->t->state;
    tsr_elem *x = tsr_slot_input(&s->stages[c], 0);
    if (s->stages[c].first)
        return 0;
    if (net->mesh.pp == 1)
        return net->ctx->ops->copy(net->ctx, x, s->stages[c - 1].slots[0].y, n_bytes);
    struct tsr_request r = {0};
    int from = (net->mesh.pp_rank + net->mesh.pp - 1) % net->mesh.pp;
    TSR_TRY(net->comm->ops->recv(net->ctx, net->comm, &net->pp, x, n_bytes, from, c, &r));
    return net->comm->ops->wait(net->ctx, net->comm, &r);
}

static int send_on(struct eval *e, int c, size_t n_bytes) {
    struct tsr_net *net = &e->t->net;
    struct tsr_model_state *s = &e->t->state;
    if (s->stages[c].last || net->mesh.pp == 1)
        return 0;
    int to = (net->mesh.pp_rank + 1) % net->mesh.pp;
    int to_chunk = net->mesh.pp_rank + 1 == net->mesh.pp ? c + 1 : c;
    return net->comm->ops->send(net->ctx, net->comm, &net->pp, s->stages[c].slots[0].y, n_bytes, to,
                                to_chunk, &e->send);
}

// The losses of one micro-batch, counted once: by the first tensor-parallel rank.
static int keep_losses(struct eval *e, const struct tsr_batch *b, int64_t first) {
    if (e->t->net.mesh.tp_rank != 0)
        return 0;
    for (int s = 0; s < b->n_seqs && first + s < e->n; s++) {
        double sum = 0.0, n = 0.0;
        for (int i = s * b->seq_len; i < (s + 1) * b->seq_len; i++) {
            sum += (double)b->loss[i];
            n += b->targets[i] >= 0;
        }
        TSR_TRY(tsr_leaves_push(&e->sums, 2 * (first + s), sum));
        TSR_TRY(tsr_leaves_push(&e->sums, 2 * (first + s) + 1, n));
    }
    return 0;
}

static int run_micro_batch(struct eval *e, const struct tsr_batch *b, int64_t first, bool counted) {
    struct tsr_trainer *t = e->t;
    struct tsr_net *net = &t->net;
    size_t n_bytes = (size_t)(b->n_local * net->m->hidden) * tsr_dtype_size(net->ctx->dtype);
    for (int c = 0; c < net->mesh.chunks; c++) {
        TSR_TRY(receive(e, c, n_bytes));
        TSR_TRY(net->comm->ops->wait(net->ctx, net->comm, &e->send));
        TSR_TRY(tsr_stage_forward(&t->state, c, 0, b, false, 0.0f));
        TSR_TRY(net->ctx->ops->sync(net->ctx));
        TSR_TRY(send_on(e, c, n_bytes));
        if (t->state.stages[c].last && counted)
            TSR_TRY(keep_losses(e, b, first));
    }
    return 0;
}

static int run_all(struct eval *e, tsr_sequence_fn sequence, void *arg) {
    struct tsr_trainer *t = e->t;
    const struct tsr_mesh *mesh = &t->net.mesh;
    struct tsr_batch *b = &t->batches[0];
    int64_t mb = b->n_seqs, rounds = (e->n + mb * mesh->dp - 1) / (mb * mesh->dp);
    for (int64_t r = 0; r < rounds; r++) {
        int64_t first = (r * mesh->dp + mesh->dp_rank) * mb;
        bool counted = first < e->n; // the last round may have nothing left for this rank
        TSR_TRY(tsr_trainer_load(t, b, 0, counted ? (uint64_t)first : 0, sequence, arg));
        TSR_TRY(run_micro_batch(e, b, first, counted));
    }
    TSR_TRY(t->net.comm->ops->wait(t->net.ctx, t->net.comm, &e->send));
    return t->net.ctx->ops->sync(t->net.ctx); // hosts meet next: none with a message on its device
}

int tsr_trainer_eval(struct tsr_trainer *t, tsr_sequence_fn sequence, void *arg, int64_t n,
                     double *loss) {
    struct eval e = {.t = t, .n = n};
    double *all = NULL, sum = 0.0, targets = 0.0;
    if (t->net.comm->progress)
        t->net.comm->progress->phase = TSR_PHASE_EVAL;
    int rc = run_all(&e, sequence, arg);
    if (rc == 0)
        rc = tsr_leaves_gather(t->net.ctx, t->net.comm, &e.sums, 2 * n, &all);
    for (int64_t i = 0; rc == 0 && i < n; i++) {
        sum += all[2 * i];
        targets += all[2 * i + 1];
    }
    *loss = targets > 0.0 ? sum / targets : 0.0;
    free(e.sums.v);
    free(all);
    return rc;
}

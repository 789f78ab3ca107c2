#include "dist/executor.h"

#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/grads.h"

static size_t row_bytes(const struct tsr_executor *x, const struct tsr_batch *b) {
    const struct tsr_net *net = x->s->net;
    return (size_t)(b->n_local * net->m->hidden) * tsr_dtype_size(net->ctx->dtype);
}

static void place(struct tsr_executor *x, const struct tsr_batch *b, struct tsr_arena *arena) {
    const struct tsr_mesh *mesh = &x->s->net->mesh;
    // One stage receives nothing: one buffer turns from the loss's gradient into the input's.
    int ring = mesh->pp > 1 || mesh->chunks > 1 ? TSR_RING : 1;
    for (int d = 0; d < 2; d++) {
        for (int i = 0; i < TSR_RING; i++)
            x->in[d][i] = i < ring ? tsr_arena_take(arena, row_bytes(x, b)) : x->in[d][0];
        for (int c = 0; mesh->pp == 1 && c < mesh->chunks; c++)
            x->mailbox[d][c] = tsr_arena_take(arena, row_bytes(x, b));
    }
}

int tsr_executor_open(struct tsr_executor *x, struct tsr_model_state *s, const struct tsr_batch *b,
                      enum tsr_pipeline kind, int n_micro_batches) {
    struct tsr_net *net = s->net;
    const struct tsr_mesh *mesh = &net->mesh;
    memset(x, 0, sizeof *x);
    x->s = s;
    x->n_micro_batches = n_micro_batches;
    x->n_actions = tsr_schedule_size(n_micro_batches, mesh->chunks);
    x->actions = calloc((size_t)x->n_actions, sizeof *x->actions);
    x->send_y = calloc((size_t)mesh->chunks, sizeof *x->send_y);
    x->mailbox[0] = calloc((size_t)mesh->chunks, sizeof **x->mailbox);
    x->mailbox[1] = calloc((size_t)mesh->chunks, sizeof **x->mailbox);
    x->loss = calloc((size_t)net->Wl, sizeof *x->loss);
    if (!x->actions || !x->send_y || !x->mailbox[0] || !x->mailbox[1] || !x->loss)
        return tsr_fail(TSR_ENOMEM, "no memory for the pipeline");
    for (int c = 0; c < mesh->chunks; c++) {
        x->send_y[c] = calloc((size_t)s->stages[c].n_slots, sizeof **x->send_y);
        if (!x->send_y[c])
            return tsr_fail(TSR_ENOMEM, "no memory for the pipeline");
    }
    TSR_TRY(tsr_schedule_fill(kind, mesh->pp, mesh->pp_rank, mesh->chunks, n_micro_batches,
                              x->actions));
    struct tsr_arena arena;
    tsr_arena_init(&arena, "pipeline", NULL, 0);
    place(x, b, &arena);
    x->slab_bytes = arena.used;
    TSR_TRY(net->ctx->ops->alloc(net->ctx, x->slab_bytes, &x->slab));
    tsr_arena_init(&arena, "pipeline", x->slab, x->slab_bytes);
    place(x, b, &arena);
    return 0;
}

void tsr_executor_close(struct tsr_executor *x) {
    if (!x->s)
        return;
    struct tsr_net *net = x->s->net;
    for (int c = 0; x->send_y && c < net->mesh.chunks; c++)
        free(x->send_y[c]);
    free(x->send_y);
    free(x->actions);
    free(x->mailbox[0]);
    free(x->mailbox[1]);
    free(x->loss);
    net->ctx->ops->free(net->ctx, x->slab, x->slab_bytes);
    memset(x, 0, sizeof *x);
}

// The neighbour in one direction of a chunk's virtual stage: forward data comes from the stage
// before and goes to the one after; backward data the other way. Messages of one edge and
// direction are matched in order, so the tag names only the edge.
struct edge {
    bool exists, local;
    int peer, tag, chunk; // chunk: of the receiver or sender on this rank when local
};

static struct edge edge_of(const struct tsr_executor *x, int chunk, int step, int direction) {
    const struct tsr_mesh *mesh = &x->s->net->mesh;
    int stage = tsr_mesh_stage(mesh, mesh->pp_rank, chunk), other = stage + step;
    int low = step > 0 ? stage : other; // an edge is named by its earlier stage
    if (other < 0 || other >= mesh->pp * mesh->chunks)
        return (struct edge){0};
    return (struct edge){true, mesh->pp == 1, other % mesh->pp, low * 2 + direction,
                         other / mesh->pp};
}

// Where an action's input comes from.
static struct edge source_of(const struct tsr_executor *x, const struct tsr_action *a) {
    return edge_of(x, a->chunk, a->kind == TSR_FORWARD ? -1 : 1, a->kind);
}

static int wait(struct tsr_executor *x, struct tsr_request *r) {
    struct tsr_net *net = x->s->net;
    return net->comm->ops->wait(net->ctx, net->comm, r);
}

// Posts the receive of action i into the next buffer of its ring.
static int post(struct tsr_executor *x, int i, int at, size_t n_bytes) {
    const struct tsr_action *a = &x->actions[i];
    struct edge e = source_of(x, a);
    if (!e.exists || e.local)
        return 0;
    struct tsr_net *net = x->s->net;
    if (a->kind == TSR_BACKWARD)
        TSR_TRY(wait(x, &x->send_dx[at])); // the buffer may still be on its way out
    return net->comm->ops->recv(net->ctx, net->comm, &net->pp, x->in[a->kind][at], n_bytes, e.peer,
                                e.tag, &x->recv[a->kind][at]);
}

// Waits for the input of an action in buffer `at` of its ring.
static int take(struct tsr_executor *x, const struct tsr_action *a, int at, size_t n_bytes) {
    struct edge e = source_of(x, a);
    if (!e.exists)
        return a->kind == TSR_BACKWARD ? wait(x, &x->send_dx[at]) : 0;
    if (e.local)
        return x->s->net->ctx->ops->copy(x->s->net->ctx, x->in[a->kind][at],
                                         x->mailbox[a->kind][a->chunk], n_bytes);
    double t = tsr_now();
    int rc = wait(x, &x->recv[a->kind][at]);
    x->times.bubble += tsr_now() - t;
    return rc;
}

static int give(struct tsr_executor *x, const struct tsr_action *a, const tsr_elem *buf,
                size_t n_bytes, struct tsr_request *r) {
    struct tsr_net *net = x->s->net;
    struct edge e = edge_of(x, a->chunk, a->kind == TSR_FORWARD ? 1 : -1, a->kind);
    if (!e.exists)
        return 0;
    if (e.local)
        return net->ctx->ops->copy(net->ctx, x->mailbox[a->kind][e.chunk], buf, n_bytes);
    return net->comm->ops->send(net->ctx, net->comm, &net->pp, buf, n_bytes, e.peer, e.tag, r);
}

// Sums a micro-batch's token losses into its virtual replicas, in token order and in double.
static void add_losses(struct tsr_executor *x, const struct tsr_batch *b) {
    int per_piece = b->n / b->n_pieces;
    for (int p = 0; p < b->n_pieces; p++) {
        double sum = b->fresh ? 0.0 : x->loss[b->first_piece + p];
        for (int i = p * per_piece; i < (p + 1) * per_piece; i++)
            sum += (double)b->loss[i];
        x->loss[b->first_piece + p] = sum;
    }
}

// Whether a chunk sees no other micro-batch after this one: they come in ascending order.
static bool is_last(const struct tsr_executor *x, const struct tsr_action *a) {
    return a->micro_batch == x->n_micro_batches - 1;
}

static int forward(struct tsr_executor *x, const struct tsr_action *a, const struct tsr_batch *b,
                   int at, float loss_scale) {
    struct tsr_stage *st = &x->s->stages[a->chunk];
    struct tsr_net *net = x->s->net;
    int slot = a->micro_batch % st->n_slots;
    size_t n_bytes = row_bytes(x, b);
    TSR_TRY(wait(x, &x->send_y[a->chunk][slot]));
    if (!st->first)
        TSR_TRY(net->ctx->ops->copy(net->ctx, tsr_slot_input(st, slot), x->in[0][at], n_bytes));
    TSR_TRY(tsr_stage_forward(x->s, a->chunk, slot, b, true, loss_scale));
    if (st->last) // the next micro-batch's forward may come before this one's backward
        TSR_TRY(tsr_grads_done(net, net->head, b, is_last(x, a)));
    return give(x, a, st->slots[slot].y, n_bytes, &x->send_y[a->chunk][slot]);
}

static int backward(struct tsr_executor *x, const struct tsr_action *a, const struct tsr_batch *b,
                    int at) {
    struct tsr_stage *st = &x->s->stages[a->chunk];
    TSR_TRY(tsr_stage_backward(x->s, a->chunk, a->micro_batch % st->n_slots, b, x->in[1][at],
                               is_last(x, a)));
    return give(x, a, x->in[1][at], row_bytes(x, b), &x->send_dx[at]);
}

static int run_action(struct tsr_executor *x, int i, const struct tsr_batch *batches,
                      float loss_scale) {
    const struct tsr_action *a = &x->actions[i];
    const struct tsr_batch *b = &batches[a->micro_batch];
    struct tsr_net *net = x->s->net;
    size_t n_bytes = row_bytes(x, b);
    int at = x->in_at[a->kind];
    x->in_at[a->kind] = (at + 1) % TSR_RING;
    if (!x->warm)
        TSR_TRY(post(x, i, at, n_bytes));
    TSR_TRY(take(x, a, at, n_bytes));
    if (x->warm && i + 1 < x->n_actions)
        TSR_TRY(post(x, i + 1, x->in_at[x->actions[i + 1].kind], n_bytes));
    if (net->comm->progress) {
        net->comm->progress->phase =
            a->kind == TSR_FORWARD ? TSR_PHASE_FORWARD : TSR_PHASE_BACKWARD;
        net->comm->progress->micro_batch = (uint32_t)a->micro_batch;
    }
    double t = tsr_now(), c = net->comm->seconds;
    int rc = a->kind == TSR_FORWARD ? forward(x, a, b, at, loss_scale) : backward(x, a, b, at);
    double spent = tsr_now() - t, waited = net->comm->seconds - c;
    *(a->kind == TSR_FORWARD ? &x->times.forward : &x->times.backward) += spent - waited;
    x->times.communication += waited;
    return rc;
}

// Losses are read once a step: waiting for those of each micro-batch would leave a device idle.
static int add_all_losses(struct tsr_executor *x, const struct tsr_batch *batches) {
    struct tsr_net *net = x->s->net;
    if (!x->s->stages[x->s->n_chunks - 1].last)
        return 0;
    TSR_TRY(net->ctx->ops->sync(net->ctx));
    for (int i = 0; i < x->n_micro_batches; i++)
        add_losses(x, &batches[i]);
    return 0;
}

int tsr_executor_run(struct tsr_executor *x, const struct tsr_batch *batches, float loss_scale) {
    size_t n_bytes = row_bytes(x, &batches[0]);
    if (x->warm)
        TSR_TRY(post(x, 0, x->in_at[x->actions[0].kind], n_bytes));
    for (int i = 0; i < x->n_actions; i++)
        TSR_TRY(run_action(x, i, batches, loss_scale));
    x->warm = true;
    for (int i = 0; i < TSR_RING; i++)
        TSR_TRY(wait(x, &x->send_dx[i]));
    for (int c = 0; c < x->s->n_chunks; c++)
        for (int i = 0; i < x->s->stages[c].n_slots; i++)
            TSR_TRY(wait(x, &x->send_y[c][i]));
    return add_all_losses(x, batches);
}

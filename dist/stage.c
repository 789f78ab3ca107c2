#include "dist/stage.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/ends.h"
#include "dist/grads.h"

static void place_slot(struct tsr_model_state *s, struct tsr_stage *st, struct tsr_slot *slot,
                       const struct tsr_batch *b, struct tsr_arena *arena) {
    size_t rows = (size_t)b->n_local, es = tsr_dtype_size(s->net->ctx->dtype);
    size_t nc = rows * (size_t)s->net->m->hidden * es;
    for (int l = 0; l < st->n_layers; l++)
        tsr_acts_place(&slot->acts[l], s->net, b, s->recompute, arena, &s->shared);
    slot->y = tsr_arena_take(arena, nc);
    if (!st->last)
        return;
    slot->mean = tsr_arena_take(arena, rows * sizeof(float));
    slot->rstd = tsr_arena_take(arena, rows * sizeof(float));
    slot->dh = tsr_arena_take(arena, nc);
}

static void place_ends(struct tsr_model_state *s, const struct tsr_batch *b,
                       struct tsr_arena *arena) {
    struct tsr_ends *e = &s->ends;
    size_t n = (size_t)b->n, es = tsr_dtype_size(s->net->ctx->dtype);
    e->h = tsr_arena_take(arena, (size_t)(b->n_local * s->net->m->hidden) * es);
    e->logits = tsr_arena_take(arena, (size_t)tsr_head_rows(b, 0) *
                                          (size_t)tsr_range_len(s->net->vocab) * es);
    e->max = tsr_arena_take(arena, n * sizeof(float));
    e->loss = tsr_arena_take(arena, n * sizeof(float));
    e->sum_target = tsr_arena_take(arena, 2 * n * sizeof(float));
}

static void place_all(struct tsr_model_state *s, const struct tsr_batch *b, bool training,
                      struct tsr_arena *arena) {
    bool last = tsr_net_is_last(s->net, s->n_chunks - 1);
    tsr_work_place(&s->work, s->net, b, training, arena);
    tsr_acts_place_shared(&s->shared, s->net, b, training ? s->recompute : TSR_RECOMPUTE_FULL,
                          arena);
    if (last)
        place_ends(s, b, arena);
    if (!training)
        s->spare = tsr_arena_take(arena, (size_t)(b->n_local * s->net->m->hidden) *
                                             tsr_dtype_size(s->net->ctx->dtype));
    for (int c = 0; training && c < s->n_chunks; c++)
        for (int i = 0; i < s->stages[c].n_slots; i++)
            place_slot(s, &s->stages[c], &s->stages[c].slots[i], b, arena);
}

static int open_stage(struct tsr_stage *st, const struct tsr_net *net, int c, int n_slots) {
    *st = (struct tsr_stage){.chunk = c,
                             .n_layers = (int)tsr_range_len(tsr_net_layers(net, c)),
                             .n_slots = n_slots,
                             .first = tsr_net_is_first(net, c),
                             .last = tsr_net_is_last(net, c)};
    st->slots = calloc((size_t)(n_slots ? n_slots : 1), sizeof *st->slots);
    if (!st->slots)
        return tsr_fail(TSR_ENOMEM, "no memory for a pipeline stage");
    for (int i = 0; i < n_slots; i++) {
        st->slots[i].acts = calloc((size_t)st->n_layers + 1, sizeof *st->slots[i].acts);
        if (!st->slots[i].acts)
            return tsr_fail(TSR_ENOMEM, "no memory for a pipeline stage");
    }
    return 0;
}

int tsr_model_state_open(struct tsr_model_state *s, struct tsr_net *net, const struct tsr_batch *b,
                         enum tsr_recompute recompute, const int *n_slots, bool training) {
    memset(s, 0, sizeof *s);
    s->net = net;
    s->recompute = recompute;
    s->n_chunks = net->mesh.chunks;
    s->stages = calloc((size_t)s->n_chunks, sizeof *s->stages);
    if (!s->stages)
        return tsr_fail(TSR_ENOMEM, "no memory for the pipeline stages");
    for (int c = 0; c < s->n_chunks; c++)
        TSR_TRY(open_stage(&s->stages[c], net, c, training ? n_slots[c] : 0));
    struct tsr_arena arena;
    tsr_arena_init(&arena, "activations", NULL, 0);
    place_all(s, b, training, &arena);
    s->slab_bytes = arena.used;
    TSR_TRY(net->ctx->ops->alloc(net->ctx, s->slab_bytes, &s->slab));
    tsr_arena_init(&arena, "activations", s->slab, s->slab_bytes);
    place_all(s, b, training, &arena);
    return 0;
}

void tsr_model_state_parts(const struct tsr_model_state *s, const struct tsr_batch *b,
                           size_t *blocks, size_t *head) {
    struct tsr_model_state part = {.net = s->net, .recompute = s->recompute};
    struct tsr_arena arena;
    tsr_arena_init(&arena, "activations", NULL, 0);
    tsr_work_place(&part.work, s->net, b, true, &arena);
    tsr_acts_place_shared(&part.shared, s->net, b, s->recompute, &arena);
    *blocks = arena.used;
    if (tsr_net_is_last(s->net, s->n_chunks - 1))
        place_ends(&part, b, &arena);
    *head = arena.used - *blocks;
}

void tsr_model_state_close(struct tsr_model_state *s) {
    for (int c = 0; s->stages && c < s->n_chunks; c++) {
        for (int i = 0; s->stages[c].slots && i < s->stages[c].n_slots; i++)
            free(s->stages[c].slots[i].acts);
        free(s->stages[c].slots);
    }
    free(s->stages);
    if (s->net)
        s->net->ctx->ops->free(s->net->ctx, s->slab, s->slab_bytes);
    memset(s, 0, sizeof *s);
}

int tsr_stage_forward(struct tsr_model_state *s, int c, int slot, const struct tsr_batch *b,
                      bool training, float loss_scale) {
    struct tsr_stage *st = &s->stages[c];
    struct tsr_slot *sl = &st->slots[slot];
    struct tsr_range layers = tsr_net_layers(s->net, c);
    if (st->first)
        TSR_TRY(tsr_embed_forward(s->net, b, &s->work, training, tsr_slot_input(st, slot)));
    for (int l = 0; l < st->n_layers; l++) {
        tsr_elem *y = l + 1 < st->n_layers ? sl->acts[l + 1].x : sl->y;
        TSR_TRY(
            tsr_block_forward(s->net, (int)layers.lo + l, b, &sl->acts[l], &s->work, training, y));
    }
    if (!st->last)
        return 0;
    return tsr_head_forward(s->net, b, &s->work, &s->ends, sl->y, sl->mean, sl->rstd,
                            training ? sl->dh : NULL, loss_scale);
}

int tsr_stage_infer(struct tsr_model_state *s, int c, const struct tsr_batch *b, tsr_elem *x,
                    struct tsr_segment *segs, tsr_elem **out) {
    struct tsr_range layers = tsr_net_layers(s->net, c);
    tsr_elem *other = s->spare;
    struct tsr_batch of_layer = *b;
    if (s->stages[c].first)
        TSR_TRY(tsr_embed_forward(s->net, b, &s->work, false, x));
    for (int64_t l = layers.lo; l < layers.hi; l++) {
        if (segs)
            of_layer.segs = segs + (l - layers.lo) * b->n_segs;
        s->shared.x = x;
        TSR_TRY(tsr_block_forward(s->net, (int)l, &of_layer, &s->shared, &s->work, false, other));
        tsr_elem *swap = x;
        x = other;
        other = swap;
    }
    *out = x;
    return 0;
}

static int layer_done(struct tsr_net *net, int layer, const struct tsr_batch *b, bool last) {
    for (int k = 0; k < TSR_N_KINDS; k++)
        TSR_TRY(tsr_grads_done(net, net->layer[layer][k], b, last));
    return 0;
}

int tsr_stage_backward(struct tsr_model_state *s, int c, int slot, const struct tsr_batch *b,
                       tsr_elem *dx, bool last) {
    struct tsr_stage *st = &s->stages[c];
    struct tsr_slot *sl = &st->slots[slot];
    struct tsr_net *net = s->net;
    struct tsr_range layers = tsr_net_layers(net, c);
    size_t nc = (size_t)(b->n_local * net->m->hidden) * tsr_dtype_size(net->ctx->dtype);
    if (st->last && net->final_w)
        TSR_TRY(tsr_norm_backward(net, b, dx, NULL, sl->dh, sl->y, sl->mean, sl->rstd, net->final_w,
                                  net->final_b));
    else if (st->last)
        TSR_TRY(net->ctx->ops->copy(net->ctx, dx, sl->dh, nc));
    if (st->last) {
        TSR_TRY(tsr_grads_done(net, net->final_w, b, last));
        TSR_TRY(tsr_grads_done(net, net->final_b, b, last));
    }
    for (int l = st->n_layers - 1; l >= 0; l--) {
        int layer = (int)layers.lo + l;
        TSR_TRY(tsr_block_backward(net, layer, b, &sl->acts[l], &s->work, s->recompute, dx));
        TSR_TRY(layer_done(net, layer, b, last));
    }
    if (!st->first)
        return 0;
    TSR_TRY(tsr_embed_backward(net, b, &s->work, dx));
    TSR_TRY(tsr_grads_done(net, net->pos_embed, b, last));
    return tsr_grads_done(net, net->tok_embed, b, last);
}

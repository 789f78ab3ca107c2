// Where activations and scratch lie. The same functions measure and hand out.
#include <string.h>
#include "dist/block.h"

static tsr_elem *elems(struct tsr_arena *arena, const struct tsr_net *net, int64_t n) {
    return tsr_arena_take(arena, (size_t)n * tsr_dtype_size(net->ctx->dtype));
}

static float *floats(struct tsr_arena *arena, int64_t n) {
    return tsr_arena_take(arena, (size_t)n * sizeof(float));
}

struct dims {
    int64_t N, Nl, C, q, kv, F;
};

static struct dims dims_of(const struct tsr_net *net, const struct tsr_batch *b) {
    int64_t D = net->m->head_dim;
    return (struct dims){b->n,
                         b->n_local,
                         net->m->hidden,
                         tsr_range_len(net->q) * D,
                         tsr_range_len(net->kv) * D,
                         tsr_range_len(net->f)};
}

// Outputs of norms are cheaper to make again than to keep, whatever the mode.
static void place_norms(struct tsr_acts *a, const struct tsr_net *net, struct dims d,
                        struct tsr_arena *arena) {
    a->h1 = elems(arena, net, d.Nl * d.C);
    if (!net->m->post_norm)
        a->h2 = elems(arena, net, d.Nl * d.C);
}

static void place_costly(struct tsr_acts *a, const struct tsr_net *net, struct dims d,
                         struct tsr_arena *arena) {
    a->mean1 = net->m->rms_norm ? NULL : floats(arena, d.Nl);
    a->rstd1 = floats(arena, d.Nl);
    a->q = elems(arena, net, d.N * d.q);
    a->k = elems(arena, net, d.N * d.kv);
    a->v = elems(arena, net, d.N * d.kv);
    a->o = elems(arena, net, d.N * d.q);
    a->lse = floats(arena, tsr_range_len(net->q) * d.N);
    a->mid = elems(arena, net, d.Nl * d.C);
    if (net->m->post_norm)
        a->h2 = elems(arena, net, d.Nl * d.C); // the sum before the second norm
    a->mean2 = net->m->rms_norm ? NULL : floats(arena, d.Nl);
    a->rstd2 = floats(arena, d.Nl);
    a->gate = net->m->gated ? elems(arena, net, d.N * d.F) : NULL;
    a->up = elems(arena, net, d.N * d.F);
}

// A full set, for shared use.
static void place_all(struct tsr_acts *a, const struct tsr_net *net, const struct tsr_batch *b,
                      struct tsr_arena *arena) {
    struct dims d = dims_of(net, b);
    memset(a, 0, sizeof *a);
    a->x = elems(arena, net, d.Nl * d.C);
    place_costly(a, net, d, arena);
    place_norms(a, net, d, arena);
    a->a = elems(arena, net, d.N * d.F);
}

void tsr_acts_place_shared(struct tsr_acts *a, const struct tsr_net *net, const struct tsr_batch *b,
                           enum tsr_recompute mode, struct tsr_arena *arena) {
    struct dims d = dims_of(net, b);
    if (mode == TSR_RECOMPUTE_FULL) {
        place_all(a, net, b, arena);
        return;
    }
    memset(a, 0, sizeof *a);
    place_norms(a, net, d, arena);
    if (mode == TSR_RECOMPUTE_SELECTIVE)
        a->a = elems(arena, net, d.N * d.F);
}

void tsr_acts_place(struct tsr_acts *a, const struct tsr_net *net, const struct tsr_batch *b,
                    enum tsr_recompute mode, struct tsr_arena *own, const struct tsr_acts *shared) {
    struct dims d = dims_of(net, b);
    *a = *shared;
    a->x = elems(own, net, d.Nl * d.C);
    if (mode == TSR_RECOMPUTE_FULL)
        return;
    place_costly(a, net, d, own);
    if (mode == TSR_RECOMPUTE_NONE)
        a->a = elems(own, net, d.N * d.F);
}

void tsr_work_place(struct tsr_work *w, const struct tsr_net *net, const struct tsr_batch *b,
                    bool training, struct tsr_arena *arena) {
    struct dims d = dims_of(net, b);
    int64_t D = net->m->head_dim;
    memset(w, 0, sizeof *w);
    if (net->opt.sequence_parallel && net->mesh.tp > 1) {
        w->whole1 = elems(arena, net, d.N * d.C);
        w->whole2 = elems(arena, net, d.N * d.C);
        w->staged = floats(arena, d.N * d.C);
    }
    w->part = elems(arena, net, d.N * (d.C > d.q ? d.C : d.q));
    if (net->ctx->dtype == TSR_DT_F32)
        w->sum = w->part;
    else if (net->mesh.tp > 1 || (training && net->opt.dropout.residual > 0.0f))
        w->sum = floats(arena, d.N * d.C);
    if (!training)
        return;
    w->dy = elems(arena, net, d.Nl * d.C);
    w->dmid = elems(arena, net, d.Nl * d.C);
    w->dq = elems(arena, net, d.N * d.q);
    w->dk = elems(arena, net, d.N * d.kv);
    w->dv = elems(arena, net, d.N * d.kv);
    w->slot_k = w->dk;
    w->slot_v = w->dv;
    bool summed = net->n_slots != tsr_range_len(net->kv); // else each head has one slot
    if (summed) {
        w->slot_k = elems(arena, net, d.N * net->n_slots * D);
        w->slot_v = elems(arena, net, d.N * net->n_slots * D);
    }
    if (net->n_shared_kv > 0)
        w->shared = floats(arena, 2 * d.N * net->n_shared_kv * D);
    if (net->n_shared_kv > 0 && summed && net->ctx->dtype != TSR_DT_F32)
        w->wide_kv = floats(arena, d.N * d.kv);
    w->da = elems(arena, net, d.N * d.F);
}

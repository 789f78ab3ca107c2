// Which heads, columns and rows a rank's virtual pieces cover.
#include "dist/layout.h"

#include <stdlib.h>
#include "core/error.h"

static int bounds_of(int **out, int64_t n, const struct tsr_net *net) {
    int lo = net->mesh.tp_rank * net->Vl;
    int64_t base = tsr_piece(n, lo, net->mesh.V).lo;
    int *b = malloc(sizeof(int) * (size_t)(net->Vl + 1));
    if (!b)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout");
    for (int v = 0; v < net->Vl; v++)
        b[v] = (int)(tsr_piece(n, lo + v, net->mesh.V).lo - base);
    b[net->Vl] = (int)(tsr_piece(n, lo + net->Vl - 1, net->mesh.V).hi - base);
    *out = b;
    return 0;
}

// The first KV head that a piece owns: the first whose query heads begin at or after `q`.
static int64_t first_owned(int64_t q, int64_t group) {
    return (q + group - 1) / group;
}

static int slots_of(struct tsr_net *net) {
    int64_t group = net->m->n_heads / net->m->n_kv_heads;
    size_t most = (size_t)(net->Vl + tsr_range_len(net->q) + 1);
    net->slots = calloc(most, sizeof *net->slots);
    net->kv_first = calloc((size_t)net->Vl + 1, sizeof *net->kv_first);
    if (!net->slots || !net->kv_first)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout");
    for (int v = 0; v <= net->Vl; v++)
        net->kv_first[v] = (int)(first_owned(net->q.lo + net->q_bound[v], group) - net->kv.lo);
    for (int v = 0; v < net->Vl; v++) {
        struct tsr_range q = {net->q.lo + net->q_bound[v], net->q.lo + net->q_bound[v + 1]};
        struct tsr_range kv = tsr_kv_of_q(q, group);
        for (int64_t h = kv.lo; h < kv.hi; h++) {
            int64_t lo = h * group > q.lo ? h * group : q.lo;
            int64_t hi = (h + 1) * group < q.hi ? (h + 1) * group : q.hi;
            net->slots[net->n_slots++] = (struct tsr_kv_slot){(int)(lo - net->q.lo), (int)(hi - lo),
                                                              (int)(h - net->kv.lo), v};
        }
    }
    return 0;
}

// A KV head is shared when its query heads lie on more than one rank. No virtual piece of the
// head count is needed by fewer ranks than hold it, so all ranks find the same list.
static int shared_of(struct tsr_net *net) {
    int64_t n_kv = net->m->n_kv_heads, group = net->m->n_heads / n_kv;
    net->shared_kv = calloc((size_t)n_kv, sizeof *net->shared_kv);
    if (!net->shared_kv)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout");
    for (int64_t h = 0; h < n_kv; h++) {
        int holders = 0;
        for (int r = 0; r < net->mesh.tp; r++) {
            struct tsr_range q = tsr_piece_of_rank(net->m->n_heads, net->mesh.V, r, net->mesh.tp);
            holders += q.lo < (h + 1) * group && q.hi > h * group;
        }
        if (holders > 1)
            net->shared_kv[net->n_shared_kv++] = (int)h;
    }
    return 0;
}

int tsr_layout_open(struct tsr_net *net) {
    const struct tsr_mesh *mesh = &net->mesh;
    const struct tsr_model *m = net->m;
    net->Vl = mesh->V / mesh->tp;
    net->Wl = mesh->W / mesh->dp;
    net->q = tsr_piece_of_rank(m->n_heads, mesh->V, mesh->tp_rank, mesh->tp);
    net->kv = tsr_kv_of_q(net->q, m->n_heads / m->n_kv_heads);
    net->f = tsr_piece_of_rank(m->ffn, mesh->V, mesh->tp_rank, mesh->tp);
    net->vocab = tsr_piece_of_rank(m->vocab, mesh->V, mesh->tp_rank, mesh->tp);
    TSR_TRY(bounds_of(&net->q_bound, m->n_heads, net));
    TSR_TRY(bounds_of(&net->f_bound, m->ffn, net));
    TSR_TRY(bounds_of(&net->vocab_bound, m->vocab, net));
    TSR_TRY(slots_of(net));
    return shared_of(net);
}

void tsr_layout_close(struct tsr_net *net) {
    free(net->q_bound);
    free(net->f_bound);
    free(net->vocab_bound);
    free(net->kv_first);
    free(net->slots);
    free(net->shared_kv);
}

#include "core/tensor.h"

#include <string.h>
#include "core/error.h"

const struct tsr_tensor *tsr_tensor_find(const struct tsr_tensor_table *tt, int layer,
                                         enum tsr_kind kind) {
    TSR_ASSERT(layer >= -1 && layer < tt->n_layers && kind >= 0 && kind < TSR_N_KINDS);
    int64_t row = layer < 0 ? tt->n_layers : layer;
    int at = tt->index[row * TSR_N_KINDS + (int64_t)kind];
    return at < 0 ? NULL : &tt->t[at];
}

const struct tsr_tensor *tsr_tensor_by_name(const struct tsr_tensor_table *tt, const char *name) {
    for (int i = 0; i < tt->n; i++)
        if (strcmp(tt->t[i].name, name) == 0)
            return &tt->t[i];
    return NULL;
}

static struct tsr_region region_of_units(const struct tsr_tensor *t, struct tsr_range units) {
    int64_t lo = units.lo * t->unit_size, hi = units.hi * t->unit_size;
    if (t->split == TSR_SPLIT_COLS)
        return (struct tsr_region){0, t->rows, lo, hi};
    return (struct tsr_region){lo, hi, 0, t->cols};
}

struct tsr_region tsr_tensor_piece(const struct tsr_tensor *t, int v, int V) {
    TSR_ASSERT(V >= 1 && v >= 0 && v < V);
    if (t->split == TSR_SPLIT_NONE)
        return (struct tsr_region){0, v == 0 ? t->rows : 0, 0, t->cols};
    struct tsr_range p = tsr_piece(t->n_units * t->group, v, V);
    if (t->unit == TSR_UNIT_KV_HEAD) // heads whose first query head, h * group, lies in the piece
        p = (struct tsr_range){(p.lo + t->group - 1) / t->group, (p.hi + t->group - 1) / t->group};
    return region_of_units(t, p);
}

struct tsr_region tsr_tensor_shard(const struct tsr_tensor *t, int V, int rank, int tp) {
    TSR_ASSERT(tp >= 1 && V % tp == 0 && rank >= 0 && rank < tp);
    if (t->split == TSR_SPLIT_NONE)
        return (struct tsr_region){0, t->rows, 0, t->cols};
    struct tsr_range p = tsr_piece_of_rank(t->n_units * t->group, V, rank, tp);
    if (t->unit == TSR_UNIT_KV_HEAD)
        p = tsr_kv_of_q(p, t->group);
    return region_of_units(t, p);
}

#include "dist/update.h"

#include "core/error.h"
#include "dist/zero.h"

static bool is_updated(const struct tsr_param *p) {
    return p->sum != TSR_GRAD_NONE && !p->alias;
}

// The draws of held rows from `row` on after this many updates: numbers of the table's tensor, so
// that whoever holds an element rounds it alike.
static struct tsr_rounding draws_of(const struct tsr_net *net, const struct tsr_param *p,
                                    int64_t row, uint64_t update) {
    uint32_t tensor = (uint32_t)(p->t - net->tensors.t);
    return (struct tsr_rounding){.key = tsr_rng_key(net->opt.seed, TSR_RNG_ROUND, tensor, 0),
                                 .update = update,
                                 .first = (p->held.r0 + row) * p->t->cols + p->held.c0,
                                 .row_elems = p->t->cols};
}

static int update_param(struct tsr_net *net, const struct tsr_adamw *hyper, struct tsr_param *p) {
    struct tsr_adamw h = *hyper;
    int64_t at = 0;
    h.weight_decay = p->t->decay ? hyper->weight_decay : 0.0f;
    for (int s = 0; s < p->n_slices; s++) {
        int64_t rows = tsr_range_len(p->slices[s]), cols = p->cols;
        int64_t first = p->slices[s].lo * cols, n = rows * cols;
        tsr_elem *w = tsr_at(net->ctx, p->w, first);
        float *g = tsr_net_grad(net, p, 0) + first;
        struct tsr_rounding draws = {0};
        if (hyper->rounding) {
            draws = draws_of(net, p, p->slices[s].lo, hyper->rounding->update);
            h.rounding = &draws;
        }
        TSR_TRY(net->ctx->ops->adamw(net->ctx, &h, p->master ? p->master + at : w, cols, p->m + at,
                                     p->v + at, g, cols, rows, cols, p->master ? w : NULL));
        at += n;
    }
    return 0;
}

int tsr_update(struct tsr_net *net, const struct tsr_adamw *hyper) {
    TSR_TRY(tsr_zero_begin(net, TSR_ZERO_WEIGHTS));
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (!is_updated(p))
            continue;
        TSR_TRY(update_param(net, hyper, p));
        TSR_TRY(tsr_zero_ready(net, p));
    }
    TSR_TRY(tsr_zero_end(net));
    return net->ctx->ops->sync(net->ctx);
}

static int round_param(struct tsr_net *net, struct tsr_param *p, uint64_t update) {
    int64_t at = 0;
    TSR_ASSERT(p->master);
    for (int s = 0; s < p->n_slices; s++) {
        int64_t lo = p->slices[s].lo, rows = tsr_range_len(p->slices[s]);
        const struct tsr_rounding draws = draws_of(net, p, lo, update);
        TSR_TRY(net->ctx->ops->round(net->ctx, tsr_at(net->ctx, p->w, lo * p->cols), p->cols,
                                     p->master + at, &draws, rows, p->cols));
        at += rows * p->cols;
    }
    return 0;
}

int tsr_update_round(struct tsr_net *net, uint64_t update) {
    TSR_TRY(tsr_zero_begin(net, TSR_ZERO_WEIGHTS));
    for (int i = 0; i < net->n_params; i++) {
        struct tsr_param *p = &net->params[i];
        if (!is_updated(p))
            continue;
        TSR_TRY(round_param(net, p, update));
        TSR_TRY(tsr_zero_ready(net, p));
    }
    TSR_TRY(tsr_zero_end(net));
    return net->ctx->ops->sync(net->ctx);
}

#include "dist/leaves.h"

#include <stdlib.h>
#include "core/error.h"

int tsr_leaves_push(struct tsr_leaves *l, int64_t place, double value) {
    if (l->n == l->cap) {
        size_t cap = l->cap ? l->cap * 2 : 1024;
        struct tsr_leaf *grown = realloc(l->v, cap * sizeof *grown);
        if (!grown)
            return tsr_fail(TSR_ENOMEM, "no memory for the sums of a step");
        l->v = grown;
        l->cap = cap;
    }
    l->v[l->n++] = (struct tsr_leaf){place, value};
    return 0;
}

// Every rank's leaves on every rank, in rank order.
static int exchange(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_leaves *l) {
    uint64_t *sizes = calloc((size_t)c->world, sizeof *sizes), mine = l->n * sizeof *l->v;
    size_t *counts = calloc((size_t)c->world, sizeof *counts), all = 0;
    int rc = sizes && counts ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the sums of a step");
    for (int r = 0; rc == 0 && r < c->world; r++)
        counts[r] = sizeof *sizes;
    if (rc == 0)
        rc = c->control->all_gather(ctx, c, &c->world_group, sizes, &mine, counts, NULL);
    for (int r = 0; rc == 0 && r < c->world; r++) {
        counts[r] = (size_t)sizes[r];
        all += counts[r];
    }
    struct tsr_leaf *v = rc == 0 ? malloc(all ? all : 1) : NULL;
    if (rc == 0 && !v)
        rc = tsr_fail(TSR_ENOMEM, "no memory for the sums of a step");
    if (rc == 0)
        rc = c->control->all_gather(ctx, c, &c->world_group, v, l->v, counts, NULL);
    free(sizes);
    free(counts);
    if (rc < 0) {
        free(v);
        return rc;
    }
    free(l->v);
    *l = (struct tsr_leaves){v, all / sizeof *v, all / sizeof *v};
    return 0;
}

int tsr_leaves_gather(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_leaves *l,
                      int64_t n_places, double **all) {
    int rc = c->world > 1 ? exchange(ctx, c, l) : 0;
    *all = rc == 0 ? calloc((size_t)n_places + 1, sizeof **all) : NULL;
    if (rc == 0 && !*all)
        rc = tsr_fail(TSR_ENOMEM, "no memory for the sums of a step");
    for (size_t i = 0; rc == 0 && i < l->n; i++) {
        TSR_ASSERT(l->v[i].place >= 0 && l->v[i].place < n_places);
        (*all)[l->v[i].place] = l->v[i].value;
    }
    free(l->v);
    *l = (struct tsr_leaves){0};
    return rc;
}

int tsr_agree(struct tsr_ctx *ctx, struct tsr_comm *c, int rc) {
    if (c->world == 1) {
        c->culprit = rc < 0;
        return rc;
    }
    float worst = (float)-rc;
    TSR_TRY(c->control->all_reduce_max(ctx, c, &c->world_group, &worst, 1));
    if (worst == 0.0f)
        return 0;
    float first = (float)-rc == worst ? (float)(c->world - c->rank) : 0.0f;
    TSR_TRY(c->control->all_reduce_max(ctx, c, &c->world_group, &first, 1));
    int culprit = c->world - (int)first;
    c->culprit = culprit + 1;
    if (culprit == c->rank)
        return rc;
    return tsr_fail((enum tsr_code) - (int)worst, "rank %d failed", culprit);
}

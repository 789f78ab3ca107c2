// What all ranks agree on at the end of a step: loss, gradient norm, and whether both are finite.
// Every number is a leaf with a global place; the leaves are summed in that order on every rank.
#include <math.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/leaves.h"
#include "dist/zero.h"

// Sums of squares of the row blocks of piece v of a parameter that this rank owns.
static int piece_leaves(struct tsr_net *net, const struct tsr_param *p, int v,
                        struct tsr_leaves *out) {
    struct tsr_region r = tsr_tensor_piece(p->t, v, net->mesh.V);
    int64_t bounds[257], tensor = p->t - net->tensors.t;
    double sums[256] = {0}; // a device that only plans leaves them
    int first = net->mesh.dp_rank * net->Wl;
    TSR_ASSERT(net->Wl <= 256);
    if (tsr_region_elems(r) == 0)
        return 0;
    for (int b = 0; b <= net->Wl; b++)
        bounds[b] = r.r0 - p->held.r0 + (r.r1 - r.r0) * (first + b) / net->mesh.W;
    const float *g = tsr_net_grad(net, p, 0) + (r.c0 - p->held.c0);
    TSR_TRY(net->ctx->ops->sumsq(net->ctx, sums, g, p->cols, bounds, net->Wl, r.c1 - r.c0));
    TSR_TRY(net->ctx->ops->sync(net->ctx));
    for (int b = 0; b < net->Wl; b++)
        TSR_TRY(
            tsr_leaves_push(out, (tensor * net->mesh.V + v) * net->mesh.W + first + b, sums[b]));
    return 0;
}

static int own_leaves(struct tsr_net *net, const double *loss, struct tsr_leaves *out) {
    const struct tsr_mesh *m = &net->mesh;
    for (int i = 0; i < net->n_params; i++) {
        const struct tsr_param *p = &net->params[i];
        if (!p->counted || p->sum == TSR_GRAD_NONE)
            continue;
        bool split = p->t->split != TSR_SPLIT_NONE;
        if (!split && m->tp_rank != 0)
            continue;
        int lo = split ? m->tp_rank * net->Vl : 0, n = split ? net->Vl : 1;
        for (int v = lo; v < lo + n; v++)
            TSR_TRY(piece_leaves(net, p, v, out));
    }
    int64_t after = (int64_t)net->tensors.n * m->V * m->W;
    if (m->pp_rank == m->pp - 1 && m->tp_rank == 0)
        for (int w = 0; w < net->Wl; w++)
            TSR_TRY(tsr_leaves_push(out, after + m->dp_rank * net->Wl + w, loss[w]));
    return 0;
}

static double tree(double *v, int n) {
    for (; n > 1; n = (n + 1) / 2)
        for (int i = 0; i < n / 2 + n % 2; i++)
            v[i] = 2 * i + 1 < n ? v[2 * i] + v[2 * i + 1] : v[2 * i];
    return v[0];
}

int tsr_step_agree(struct tsr_net *net, const double *loss, struct tsr_step_sums *out) {
    struct tsr_leaves l = {0};
    int64_t n = (int64_t)net->tensors.n * net->mesh.V * net->mesh.W, W = net->mesh.W;
    double *all = NULL;
    int rc = own_leaves(net, loss, &l);
    if (rc == 0 && out->stop)
        rc = tsr_leaves_push(&l, n + W, 1.0);
    if (rc == 0)
        rc = tsr_leaves_gather(net->ctx, net->comm, &l, n + W + 1, &all);
    if (rc == 0) {
        double sum = 0.0;
        for (int64_t i = 0; i < n; i++)
            sum += all[i];
        out->grad_norm = sqrt(sum);
        out->stop = all[n + W] > 0.0;
        out->loss = tree(all + n, (int)W);
        out->finite = isfinite(out->grad_norm) && isfinite(out->loss);
    }
    free(all);
    free(l.v);
    return rc;
}

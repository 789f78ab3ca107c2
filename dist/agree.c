// What all ranks agree on at the end of a step: loss, gradient norm, and whether to stop.
// Every number is a leaf with a global place; the leaves are summed in that order on every rank.
#include <math.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/leaves.h"
#include "dist/update.h"

int tsr_step_sums_open(struct tsr_net *net) {
    size_t n_bytes = (size_t)net->n_sums * sizeof *net->host_sums;
    net->host_sums = calloc(1, n_bytes + 1);
    if (!net->host_sums)
        return tsr_fail(TSR_ENOMEM, "no memory for the sums of a step");
    return net->ctx->ops->pin(net->ctx, net->host_sums, n_bytes);
}

void tsr_step_sums_close(struct tsr_net *net) {
    if (net->host_sums)
        net->ctx->ops->unpin(net->ctx, net->host_sums,
                             (size_t)net->n_sums * sizeof *net->host_sums);
    free(net->host_sums);
}

// Sums of squares of the row blocks of piece v of a parameter that this rank owns, which stand at
// net->sums[*at]: asked for (`out` is NULL), or read on the host.
static int piece_leaves(struct tsr_net *net, const struct tsr_param *p, int v,
                        struct tsr_leaves *out, int64_t *at) {
    struct tsr_region r = tsr_tensor_piece(p->t, v, net->mesh.V);
    int64_t bounds[257], tensor = p->t - net->tensors.t;
    int first = net->mesh.dp_rank * net->Wl;
    TSR_ASSERT(net->Wl <= 256);
    if (tsr_region_elems(r) == 0)
        return 0;
    TSR_ASSERT(*at + net->Wl <= net->n_sums);
    int64_t here = *at;
    *at += net->Wl;
    for (int b = 0; out && b < net->Wl; b++)
        TSR_TRY(tsr_leaves_push(out, (tensor * net->mesh.V + v) * net->mesh.W + first + b,
                                net->host_sums[here + b]));
    if (out)
        return 0;
    for (int b = 0; b <= net->Wl; b++)
        bounds[b] = r.r0 - p->held.r0 + (r.r1 - r.r0) * (first + b) / net->mesh.W;
    const float *g = tsr_net_grad(net, p, 0) + (r.c0 - p->held.c0);
    return net->ctx->ops->sumsq(net->ctx, net->sums + here, g, p->cols, bounds, net->Wl,
                                r.c1 - r.c0);
}

static int all_pieces(struct tsr_net *net, struct tsr_leaves *out) {
    const struct tsr_mesh *m = &net->mesh;
    int64_t at = 0;
    for (int i = 0; i < net->n_params; i++) {
        const struct tsr_param *p = &net->params[i];
        if (!p->counted || p->sum == TSR_GRAD_NONE)
            continue;
        bool split = p->t->split != TSR_SPLIT_NONE;
        if (!split && m->tp_rank != 0)
            continue;
        int lo = split ? m->tp_rank * net->Vl : 0, n = split ? net->Vl : 1;
        for (int v = lo; v < lo + n; v++)
            TSR_TRY(piece_leaves(net, p, v, out, &at));
    }
    return 0;
}

static int own_leaves(struct tsr_net *net, const double *loss, struct tsr_leaves *out) {
    const struct tsr_mesh *m = &net->mesh;
    const struct tsr_ops *ops = net->ctx->ops;
    TSR_TRY(all_pieces(net, NULL));
    TSR_TRY(
        ops->to_host(net->ctx, net->host_sums, net->sums, (size_t)net->n_sums * sizeof *net->sums));
    TSR_TRY(ops->sync(net->ctx));
    TSR_TRY(all_pieces(net, out));
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
    }
    free(all);
    free(l.v);
    return rc;
}

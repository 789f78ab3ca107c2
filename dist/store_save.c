#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "dist/store.h"

// The first row of a tensor that this rank's own pieces begin with; earlier rows that it holds are
// copies of KV heads that another rank owns.
static bool owns_row(const struct tsr_net *net, const struct tsr_param *p, int64_t row) {
    if (p->t->split == TSR_SPLIT_NONE)
        return net->mesh.tp_rank == 0;
    int first = net->mesh.tp_rank * net->Vl;
    struct tsr_region lo = tsr_tensor_piece(p->t, first, net->mesh.V);
    struct tsr_region hi = tsr_tensor_piece(p->t, first + net->Vl - 1, net->mesh.V);
    return p->t->split == TSR_SPLIT_COLS || (row >= lo.r0 && row < hi.r1);
}

// One of a parameter's own slices: from the device to its places in the files.
static int write_slice(struct tsr_net *net, struct tsr_checkpoint *c, const struct tsr_param *p,
                       struct tsr_range rows, int64_t moments_at, float *host) {
    struct tsr_region r = p->held;
    r.r0 = p->held.r0 + rows.lo;
    r.r1 = p->held.r0 + rows.hi;
    if (!owns_row(net, p, r.r0))
        return 0;
    const float *from[3] = {(const float *)p->w + rows.lo * p->cols, p->m + moments_at,
                            p->v + moments_at};
    int n_parts = p->sum == TSR_GRAD_NONE ? 1 : 3;
    for (int part = 0; part < n_parts; part++) {
        size_t n_bytes = (size_t)tsr_region_elems(r) * sizeof(float);
        TSR_TRY(net->ctx->ops->to_host(net->ctx, host, from[part], n_bytes));
        TSR_TRY(net->ctx->ops->sync(net->ctx));
        TSR_TRY(tsr_checkpoint_write(c, (enum tsr_checkpoint_part)part, p->t, r, host, p->cols));
    }
    return 0;
}

static int write_all(struct tsr_net *net, struct tsr_checkpoint *c) {
    int64_t most = 1;
    for (int i = 0; i < net->n_params; i++)
        if (net->params[i].n_own > most)
            most = net->params[i].n_own;
    float *host = malloc((size_t)most * sizeof *host);
    if (!host)
        return tsr_fail(TSR_ENOMEM, "no memory to stage a checkpoint");
    int rc = 0;
    for (int i = 0; i < net->n_params && rc == 0; i++) {
        const struct tsr_param *p = &net->params[i];
        int64_t at = 0;
        if (!p->counted)
            continue;
        for (int s = 0; s < p->n_slices && rc == 0; s++) {
            rc = write_slice(net, c, p, p->slices[s], at, host);
            at += tsr_range_len(p->slices[s]) * p->cols;
        }
    }
    free(host);
    return rc == 0 ? tsr_checkpoint_fsync(c) : rc;
}

// Every region was written once when the ranks' counts add up.
static int check_coverage(struct tsr_net *net, struct tsr_checkpoint *c) {
    struct tsr_comm *comm = net->comm;
    struct tsr_leaves l = {0};
    double *all = NULL, sum = 0.0;
    int rc = tsr_leaves_push(&l, comm->rank, (double)tsr_checkpoint_elems_written(c));
    if (rc == 0)
        rc = tsr_leaves_gather(net->ctx, comm, &l, comm->world, &all);
    for (int r = 0; rc == 0 && r < comm->world; r++)
        sum += all[r];
    free(all);
    TSR_ASSERT(rc < 0 || sum == (double)tsr_checkpoint_elems(c));
    return rc;
}

// This rank's share of the digests, then everyone's, in rank order.
static int gather_digests(struct tsr_net *net, struct tsr_checkpoint *c, struct tsr_digest **all) {
    struct tsr_comm *comm = net->comm;
    size_t *n_bytes = calloc((size_t)comm->world, sizeof *n_bytes), total = 0;
    if (!n_bytes)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    for (int r = 0; r < comm->world; r++) {
        n_bytes[r] = (size_t)tsr_checkpoint_n_digests(c, r, comm->world) * sizeof **all;
        total += n_bytes[r];
    }
    struct tsr_digest *mine = malloc(n_bytes[comm->rank] + 1);
    *all = malloc(total + 1);
    int rc = mine && *all ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    if (rc == 0)
        rc = tsr_checkpoint_digest(c, comm->rank, comm->world, mine);
    rc = tsr_agree(net->ctx, comm, rc);
    if (rc == 0)
        rc = comm->ops->all_gather(net->ctx, comm, &comm->world_group, *all, mine, n_bytes);
    free(mine);
    free(n_bytes);
    return rc;
}

static int save_opened(struct tsr_net *net, struct tsr_checkpoint *c,
                       const struct tsr_store_save *s) {
    struct tsr_comm *comm = net->comm;
    bool first = comm->rank == 0;
    struct tsr_digest *digests = NULL;
    int rc = tsr_agree(net->ctx, comm, first ? tsr_checkpoint_begin(c) : 0);
    if (rc < 0)
        return rc; // begin left nothing behind
    rc = tsr_agree(net->ctx, comm, write_all(net, c));
    if (rc == 0)
        rc = check_coverage(net, c);
    if (rc == 0)
        rc = gather_digests(net, c, &digests);
    if (rc == 0) {
        int mine = first ? tsr_checkpoint_commit(c, digests, comm->world, &s->state, s->source_dir,
                                                 s->tokenizer_dir)
                         : 0;
        rc = tsr_agree(net->ctx, comm, mine);
    }
    free(digests);
    if (rc < 0 && first) {
        char why[1024];
        snprintf(why, sizeof why, "%s", tsr_error_text());
        if (tsr_checkpoint_abort(c) < 0)
            tsr_warn("an unfinished checkpoint stays behind: %s", tsr_error_text());
        return tsr_fail((enum tsr_code)rc, "%s", why);
    }
    return rc;
}

int tsr_store_save_checkpoint(struct tsr_net *net, const struct tsr_store_save *s) {
    struct tsr_comm *comm = net->comm;
    uint64_t nonce = comm->rank == 0 ? tsr_checkpoint_nonce() : 0;
    TSR_TRY(comm->ops->broadcast(net->ctx, comm, &comm->world_group, &nonce, sizeof nonce, 0));
    struct tsr_checkpoint_opt opt = {.run_dir = s->run_dir,
                                     .model = net->m,
                                     .table = &net->tensors,
                                     .dtype = TSR_DT_F32,
                                     .step = s->state.step,
                                     .nonce = nonce};
    struct tsr_checkpoint *c = NULL;
    int rc = tsr_agree(net->ctx, comm, tsr_checkpoint_open(&c, &opt));
    if (rc == 0)
        rc = save_opened(net, c, s);
    tsr_checkpoint_close(c);
    if (rc == 0 && comm->rank == 0 && tsr_checkpoint_retain(s->run_dir, s->keep) < 0)
        tsr_warn("old checkpoints stay: %s", tsr_error_text());
    return rc;
}

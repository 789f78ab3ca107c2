#include "dist/reshard.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/place.h"
#include "core/weights.h"

struct plan {
    struct tsr_reshard_rank *out;
    const struct tsr_weights *weights;
    const struct tsr_moments *moments;
};

static struct tsr_reshard_file *file_of(struct tsr_reshard_rank *r, const char *folder,
                                        const char *path) {
    char name[sizeof r->files->path];
    snprintf(name, sizeof name, "%s%s", folder, tsr_path_base(path));
    for (int i = 0; i < r->n_files; i++)
        if (strcmp(r->files[i].path, name) == 0)
            return &r->files[i];
    struct tsr_reshard_file *grown = realloc(r->files, (size_t)(r->n_files + 1) * sizeof *grown);
    if (!grown)
        return NULL;
    r->files = grown;
    grown[r->n_files] = (struct tsr_reshard_file){0};
    memcpy(grown[r->n_files].path, name, sizeof name);
    return &grown[r->n_files++];
}

// Counts what tsr_weights_read or tsr_moments_read would read.
static int add_region(struct plan *p, enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                      struct tsr_region region) {
    const struct tsr_st_entry *e = NULL;
    const bool hf = part == TSR_CKPT_WEIGHTS && !tsr_moments_has_master(p->moments);
    const struct tsr_st_file *from =
        hf ? tsr_weights_file(p->weights, t, &e) : tsr_moments_file(p->moments, part, t, &e);
    const struct tsr_place place = hf ? tsr_place_hf(t) : tsr_place_canonical(t);
    if (!from || tsr_region_elems(region) == 0)
        return 0;
    struct tsr_reshard_file *f = file_of(p->out, hf ? "" : "optimizer/", from->path);
    if (!f)
        return tsr_fail(TSR_ENOMEM, "no memory for a plan");
    uint64_t needed = (uint64_t)tsr_region_elems(region) * tsr_dtype_size(e->dtype);
    uint64_t n_bytes = tsr_place_bytes(&place, t, e, region);
    f->needed += needed;
    f->read += n_bytes;
    f->n_regions++;
    p->out->needed += needed;
    p->out->read += n_bytes;
    return 0;
}

// The same walk as tsr_store_load_checkpoint: all that is held, and the moments of own slices.
static int add_net(struct plan *p, const struct tsr_net *net) {
    for (int i = 0; i < net->n_params; i++) {
        const struct tsr_param *q = &net->params[i];
        if (q->alias)
            continue;
        TSR_TRY(add_region(p, TSR_CKPT_WEIGHTS, q->t, q->held));
        for (int s = 0; s < q->n_slices && q->sum != TSR_GRAD_NONE; s++) {
            struct tsr_region r = q->held;
            r.r0 = q->held.r0 + q->slices[s].lo;
            r.r1 = q->held.r0 + q->slices[s].hi;
            TSR_TRY(add_region(p, TSR_CKPT_M, q->t, r));
            TSR_TRY(add_region(p, TSR_CKPT_V, q->t, r));
        }
    }
    return 0;
}

static int plan_net(struct tsr_reshard_rank *out, const char *dir, const struct tsr_net *net) {
    struct tsr_moments *moments = NULL;
    struct tsr_weights *weights = NULL;
    int rc = tsr_moments_open(&moments, dir, &net->tensors);
    if (rc == 0 && !tsr_moments_has_master(moments))
        rc = tsr_weights_open(&weights, dir, net->m, &net->tensors);
    if (rc == 0) {
        struct plan p = {out, weights, moments};
        rc = add_net(&p, net);
    }
    tsr_weights_close(weights);
    tsr_moments_close(moments);
    return rc;
}

static int plan_share(struct tsr_reshard_rank *out, const char *dir, const struct tsr_mesh *mesh) {
    struct tsr_checkpoint_digests *d;
    TSR_TRY(tsr_checkpoint_digests_open(&d, dir));
    out->verified = tsr_checkpoint_digests_share(d, mesh->rank, mesh->world);
    tsr_checkpoint_digests_close(d);
    return 0;
}

int tsr_reshard_plan(struct tsr_reshard_rank *out, const char *dir, const struct tsr_model *m,
                     const struct tsr_mesh *mesh) {
    const struct tsr_net_opt opt = {.training = true, .n_grad_buffers = 1};
    struct tsr_ctx ctx;
    struct tsr_comm comm;
    struct tsr_net net;
    *out = (struct tsr_reshard_rank){0};
    TSR_TRY(plan_share(out, dir, mesh));
    TSR_TRY(tsr_cpu_open_dry(&ctx, NULL, 1));
    int rc = tsr_comm_open_pretend(&comm, mesh->world, mesh->rank, mesh->world, false);
    if (rc == 0) {
        rc = tsr_net_open(&net, &ctx, &comm, mesh, m, &opt, 1);
        if (rc == 0)
            rc = plan_net(out, dir, &net);
        tsr_net_close(&net);
        tsr_comm_close(&comm);
    }
    ctx.ops->close(&ctx);
    return rc;
}

void tsr_reshard_free(struct tsr_reshard_rank *r) {
    free(r->files);
    *r = (struct tsr_reshard_rank){0};
}

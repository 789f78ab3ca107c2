// The state of a training run, from checkpoints and to them.
#include <string.h>
#include "core/error.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "dist/store.h"
#include "launcher/training_private.h"

static int check_state(const struct tsr_training *tr, const struct tsr_state *s, const char *dir) {
    const struct tsr_mesh *mesh = &tr->trainer.net.mesh;
    TSR_TRY(tsr_run_check_resume(&tr->job.run, s->run_yaml, dir));
    if (s->virtual_shards == mesh->V && s->virtual_replicas == mesh->W)
        return 0;
    return tsr_fail(TSR_ECONFIG,
                    "%s was trained with virtual_shards %lld and virtual_replicas %lld; this run "
                    "has %d and %d",
                    dir, (long long)s->virtual_shards, (long long)s->virtual_replicas, mesh->V,
                    mesh->W);
}

// The state in one checkpoint, on its way to the trainer.
struct resuming {
    struct tsr_training *tr;
    struct tsr_state s;
};

// Whether this run may go on from it.
static int check(void *arg, const char *dir) {
    struct resuming *x = arg;
    struct tsr_model stored;
    TSR_TRY(tsr_model_load(&stored, dir));
    int rc = tsr_model_same(x->tr->trainer.m, &stored, dir);
    tsr_model_free(&stored);
    TSR_TRY(rc);
    tsr_state_free(&x->s); // of a checkpoint that wasn't good
    TSR_TRY(tsr_state_read(&x->s, dir));
    return check_state(x->tr, &x->s, dir);
}

static int take_state(struct tsr_training *tr, const struct tsr_state *s) {
    struct tsr_trainer *t = &tr->trainer;
    t->step = s->step;
    t->updates = s->updates;
    t->skipped = s->step - s->updates;
    t->sequences = s->sequences;
    t->guard = s->guard;
    tr->saved_step = s->step;
    return tsr_trainer_round(t);
}

int tsr_training_resume(struct tsr_training *tr, int64_t below, char dir[static TSR_PATH_MAX]) {
    struct resuming x = {.tr = tr};
    int rc = tsr_store_resume(&tr->trainer.net, tr->job.run.run.dir, below, check, &x, dir);
    if (rc == 1) {
        int taken = take_state(tr, &x.s);
        rc = taken < 0 ? taken : rc;
    }
    tsr_state_free(&x.s);
    return rc;
}

// From the one checkpoint that the run file names.
static int resume_from(struct tsr_training *tr, const char *dir) {
    struct tsr_net *net = &tr->trainer.net;
    struct resuming x = {.tr = tr};
    TSR_TRY(tsr_store_verify(net, dir));
    int rc = tsr_agree(net->ctx, net->comm, check(&x, dir));
    if (rc == 0)
        rc = tsr_agree(net->ctx, net->comm, tsr_store_load_checkpoint(net, dir, true));
    if (rc == 0)
        rc = take_state(tr, &x.s);
    tsr_state_free(&x.s);
    return rc;
}

int tsr_training_load(struct tsr_training *tr) {
    const struct tsr_run *r = &tr->job.run;
    struct tsr_net *net = &tr->trainer.net;
    bool automatic = strcmp(r->checkpoint.resume, "auto") == 0;
    char dir[TSR_PATH_MAX];
    int found = 0;
    tr->saved_step = -1;
    if (automatic) {
        TSR_TRY(found = tsr_training_resume(tr, INT64_MAX, dir));
    } else if (strcmp(r->checkpoint.resume, "none") != 0) {
        TSR_TRY(tsr_path_join(dir, r->checkpoint.resume, ""));
        TSR_TRY(resume_from(tr, dir));
        found = 1;
    }
    if (found) {
        if (!automatic) { // it may be of another run
            tr->trainer.guard.anchored = false;
            tr->saved_step = -1;
        }
        if (tsr_is_rank0(tr))
            tsr_info("resuming after step %lld from %s", (long long)tr->trainer.step, dir);
        return 0;
    }
    int rc = r->model.from ? tsr_store_load_weights(net, r->model.from) : tsr_net_init(net);
    TSR_TRY(tsr_agree(net->ctx, net->comm, rc));
    return tsr_trainer_round(&tr->trainer);
}

int tsr_training_save(struct tsr_training *tr, enum tsr_save_kind kind, bool wait) {
    const struct tsr_run *r = &tr->job.run;
    struct tsr_trainer *t = &tr->trainer;
    struct tsr_buf yaml = {0};
    if (kind == TSR_SAVE_PLAIN && tr->saved_step == t->step)
        return wait ? tsr_saver_wait(tr->saver) : 0;
    tr->job.progress.phase = TSR_PHASE_CHECKPOINT;
    if (kind != TSR_SAVE_PLAIN) {
        t->guard.anchored = true;
        t->guard.anchor = t->step;
    }
    if (kind == TSR_SAVE_ANCHOR)
        t->guard.retries = 0;
    TSR_TRY(tsr_run_dump(r, &yaml));
    struct tsr_state state = {.step = t->step,
                              .updates = t->updates,
                              .sequences = t->sequences,
                              .seed = r->run.seed,
                              .virtual_shards = t->net.mesh.V,
                              .virtual_replicas = t->net.mesh.W,
                              .run_yaml = yaml.data,
                              .guard = t->guard};
    int rc = tsr_saver_save(tr->saver, &state, wait);
    tsr_buf_free(&yaml);
    if (rc == 0)
        tr->saved_step = t->step;
    return rc;
}

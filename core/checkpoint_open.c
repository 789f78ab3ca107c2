// The handle: open and close.
#include "core/checkpoint_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

int tsr_checkpoint_path(char out[static TSR_PATH_MAX], const char *run_dir, int64_t step) {
    char name[64];
    snprintf(name, sizeof name, "checkpoints/step-%08" PRId64, step);
    return tsr_path_join(out, run_dir, name);
}

void tsr_ckpt_temporary(char out[static TSR_CKPT_NAME], int64_t step, uint64_t epoch,
                        uint32_t attempt) {
    snprintf(out, TSR_CKPT_NAME, ".tmp-step-%08" PRId64 "-e%08" PRIu64 "-a%" PRIu32, step, epoch,
             attempt);
}

static int set_paths(struct tsr_checkpoint *c, const char *run_dir) {
    char name[TSR_CKPT_NAME];
    tsr_ckpt_temporary(name, c->opt.step, c->opt.epoch, c->opt.attempt);
    TSR_TRY(tsr_path_join(c->parent, run_dir, "checkpoints"));
    TSR_TRY(tsr_path_join(c->tmp, c->parent, name));
    return tsr_checkpoint_path(c->dir, run_dir, c->opt.step);
}

int tsr_checkpoint_open(struct tsr_checkpoint **out, const struct tsr_checkpoint_opt *opt) {
    TSR_ASSERT(opt->step >= 0 && opt->table->n > 0);
    struct tsr_checkpoint *c = calloc(1, sizeof *c);
    if (!c)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint");
    c->opt = *opt;
    c->opt.run_dir = NULL;
    tsr_ckpt_runs_init(c);
    c->block = malloc(TSR_CKPT_BLOCK * sizeof *c->block);
    c->narrow = opt->dtype == TSR_DT_F32 ? NULL : malloc(TSR_CKPT_BLOCK * sizeof *c->narrow);
    int rc = 0;
    if (!c->block || (opt->dtype != TSR_DT_F32 && !c->narrow))
        rc = tsr_fail(TSR_ENOMEM, "no memory for a checkpoint");
    if (rc == 0)
        rc = set_paths(c, opt->run_dir);
    if (rc == 0)
        rc = tsr_ckpt_layout(c);
    if (rc < 0) {
        tsr_checkpoint_close(c);
        return rc;
    }
    *out = c;
    return 0;
}

void tsr_checkpoint_close(struct tsr_checkpoint *c) {
    if (!c)
        return;
    tsr_ckpt_runs_free(c);
    tsr_ckpt_layout_free(c);
    free(c->done);
    free(c->block);
    free(c->narrow);
    free(c);
}

const char *tsr_checkpoint_dir(const struct tsr_checkpoint *c) {
    return c->dir;
}

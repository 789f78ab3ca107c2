#include "launcher/plan_job.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/leaves.h"
#include "launcher/machine.h"

// The ranks of the run file's layout; dp is 1 unless it is given.
static int world_of(int *world, const char *path, const char *const *overrides, int n) {
    struct tsr_run r;
    TSR_TRY(tsr_run_load(&r, path, overrides, n));
    int64_t dp = r.parallel.dp ? r.parallel.dp : 1;
    int64_t ranks = 0;
    bool over = __builtin_mul_overflow(r.parallel.tp * r.parallel.pp, dp, &ranks);
    tsr_run_free(&r);
    if (over || ranks > TSR_MAX_RANKS)
        return tsr_fail(TSR_ECONFIG, "parallel: expected tp * pp * dp of at most %d ranks",
                        TSR_MAX_RANKS);
    *world = (int)ranks;
    return 0;
}

static int rank_threads(const struct tsr_run *r, int per_host) {
    int64_t n = r->device.threads ? r->device.threads : tsr_machine_cores() / per_host;
    return n < 1 ? 1 : (int)n;
}

static int host_memory(uint64_t *out) {
    struct tsr_machine_memory m;
    TSR_TRY(tsr_machine_memory(&m, ""));
    *out = m.available;
    return 0;
}

int tsr_planned_open(struct tsr_planned *p, const char *command, const char *path,
                     const char *const *overrides, int n_overrides, int64_t per_host,
                     uint64_t memory) {
    struct tsr_job *j = &p->job;
    int world = 1;
    memset(p, 0, sizeof *p);
    j->command = command;
    TSR_TRY(world_of(&world, path, overrides, n_overrides));
    TSR_TRY(tsr_comm_open_pretend(&j->comm, world, 0, world));
    TSR_TRY(tsr_job_load_run(j, path, overrides, n_overrides));
    p->memory = memory;
    if (memory == 0)
        TSR_TRY(host_memory(&p->memory));
    p->opt.isa = getenv("TESSERA_CPU");
    p->opt.per_host = per_host > 0 && per_host < world ? (int)per_host : world;
    p->opt.threads = rank_threads(&j->run, p->opt.per_host);
    TSR_TRY(tsr_plan_open(&p->plan, &j->run, &j->model, &j->mesh, &p->opt));
    p->host_bytes = tsr_plan_host(&p->plan, p->opt.per_host, &p->full_host);
    if (p->host_bytes > p->memory)
        p->n_advice = tsr_plan_advise(p->advice, &j->run, &j->model, &p->plan, &p->opt, p->memory);
    return 0;
}

void tsr_planned_close(struct tsr_planned *p) {
    tsr_plan_close(&p->plan);
    if (p->job.model_open)
        tsr_model_free(&p->job.model);
    if (p->job.run_open)
        tsr_run_free(&p->job.run);
    tsr_comm_close(&p->job.comm);
}

static int refuse(const struct tsr_run *run, const struct tsr_model *m, const struct tsr_plan *plan,
                  const struct tsr_plan_opt *opt, int n, size_t need,
                  const struct tsr_machine_memory *memory) {
    struct tsr_advice advice[TSR_MAX_ADVICE];
    char need_text[32], rank[32], have[32], then[32], hint[400] = "";
    int n_advice = tsr_plan_advise(advice, run, m, plan, opt, memory->available);
    const struct tsr_advice *best = tsr_plan_best(advice, n_advice);
    if (best)
        snprintf(hint, sizeof hint, "; with %s it would %s%s (see tessera plan)", best->change,
                 best->fits ? "fit: " : "still need ",
                 tsr_bytes_text(then, (double)best->host_bytes));
    return tsr_fail(TSR_ENOMEM,
                    "this run can't fit: its %d rank%s on this host need %s (the largest %s), but "
                    "%s of memory are available%s%s",
                    n, n == 1 ? "" : "s", tsr_bytes_text(need_text, (double)need),
                    tsr_bytes_text(rank, (double)tsr_plan_largest(plan)->total),
                    tsr_bytes_text(have, (double)memory->available),
                    memory->limited ? " to its control group" : "", hint);
}

int tsr_plan_refuse(const struct tsr_run *run, const struct tsr_model *m,
                    const struct tsr_mesh *mesh, int first, int n, int threads) {
    struct tsr_plan plan;
    struct tsr_machine_memory memory;
    struct tsr_run r = *run;
    struct tsr_plan_opt opt = {
        .isa = getenv("TESSERA_CPU"), .threads = threads < 1 ? 1 : threads, .per_host = n};
    if (tsr_machine_memory(&memory, "") < 0)
        return 0; // what can't be measured can't be refused
    r.parallel.dp = mesh->dp;
    TSR_TRY(tsr_plan_open(&plan, &r, m, mesh, &opt));
    size_t need = tsr_plan_sum(&plan, first, n);
    int rc = 0;
    if (need > memory.available)
        rc = refuse(&r, m, &plan, &opt, n, need, &memory);
    tsr_plan_close(&plan);
    return rc;
}

// The purposes that lie on the device when that isn't the host.
static size_t on_device(const struct tsr_memory *m) {
    return m->weights + m->gradients + m->accumulators + m->moments + m->masters + m->activations +
           m->scratch + m->logits + m->kernels;
}

// The ranks of this host that share this rank's device, against what is free there.
static int refuse_device(struct tsr_job *j) {
    const struct tsr_comm *c = &j->comm;
    struct tsr_run r = j->run;
    struct tsr_plan plan;
    struct tsr_plan_opt opt = {.isa = getenv("TESSERA_CPU"), .threads = 1, .per_host = c->world};
    size_t need = 0, free_bytes = 0, total = 0;
    int n = 0, first = c->rank - c->local_rank, step = j->device.n_devices;
    TSR_TRY(j->ctx.ops->memory(&j->ctx, &free_bytes, &total));
    r.parallel.dp = j->mesh.dp;
    r.device.backend = TSR_BACKEND_CUDA; // that `auto` found
    TSR_TRY(tsr_plan_open(&plan, &r, &j->model, &j->mesh, &opt));
    for (int l = c->local_rank % step; l < c->local_size; l += step, n++)
        need += on_device(&plan.classes[plan.class_of[first + l]].memory);
    tsr_plan_close(&plan);
    if (need <= free_bytes)
        return 0;
    char need_text[32], free_text[32], total_text[32];
    return tsr_fail(
        TSR_ENOMEM,
        "this run can't fit: %d rank%s on device %d (%s) need%s %s, but %s of its %s are "
        "free (tessera plan RUN.yaml --memory shows what would fit)",
        n, n == 1 ? "" : "s", c->local_rank % step, j->ctx.ops->describe(&j->ctx),
        n == 1 ? "s" : "", tsr_bytes_text(need_text, (double)need),
        tsr_bytes_text(free_text, (double)free_bytes), tsr_bytes_text(total_text, (double)total));
}

int tsr_plan_refuse_job(struct tsr_job *j) {
    struct tsr_comm *c = &j->comm;
    int rc = 0;
    if (j->ctx.ops->memory)
        rc = c->local_rank < j->device.n_devices ? refuse_device(j) : 0;
    else if (c->local_rank == 0) // ranks of one host have consecutive numbers
        rc = tsr_plan_refuse(&j->run, &j->model, &j->mesh, c->rank, c->local_size,
                             rank_threads(&j->run, c->local_size));
    return tsr_agree(&j->ctx, c, rc);
}

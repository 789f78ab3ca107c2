// Before a run starts: whether it fits where it is.
#include <stdio.h>
#include <stdlib.h>
#include "core/error.h"
#include "dist/leaves.h"
#include "launcher/machine.h"
#include "launcher/plan_job.h"

// The ranks of a job that share a place.
struct tenants {
    struct tsr_job *job;
    struct tsr_run run; // as it is run here
    struct tsr_plan plan;
    struct tsr_plan_opt opt;
    struct tsr_room room;
    int n;                // how many they are
    size_t need, largest; // of all of them, of one
};

static int open_tenants(struct tenants *t, struct tsr_job *j) {
    const struct tsr_comm *c = &j->comm;
    *t = (struct tenants){.job = j, .run = j->run};
    t->run.parallel.dp = j->mesh.dp;
    t->room = (struct tsr_room){UINT64_MAX, UINT64_MAX, 0};
    if (j->ctx.ops->memory) { // that `auto` found
        t->run.device.backend = TSR_BACKEND_CUDA;
        t->room.devices = j->device.n_devices;
    }
    t->opt = tsr_plan_options(&t->run, c->local_size);
    return tsr_plan_open(&t->plan, &t->run, &j->model, &j->mesh, &t->opt);
}

// Ranks of one host have consecutive numbers.
static void add(struct tenants *t, int local_rank, bool on_device) {
    const int rank = t->job->comm.rank - t->job->comm.local_rank + local_rank;
    const struct tsr_plan_class *c = &t->plan.classes[t->plan.class_of[rank]];
    size_t slabs = t->room.devices > 0 ? c->memory.slabs : 0;
    size_t need = on_device ? slabs : c->total - slabs;
    t->n++;
    t->need += need;
    t->largest = need > t->largest ? need : t->largest;
}

// What would help, as the end of a sentence.
static void hint(char out[static 400], const struct tenants *t) {
    struct tsr_advice advice[TSR_MAX_ADVICE];
    char then[32];
    out[0] = 0;
    int n = tsr_plan_advise(advice, &t->run, &t->job->model, &t->plan, &t->opt, &t->room);
    const struct tsr_advice *best = tsr_plan_best(advice, n);
    if (best)
        snprintf(out, 400, "; with %s it would %s%s (see tessera plan)", best->change,
                 best->fits ? "fit: " : "still need ",
                 tsr_bytes_text(then, (double)best->scarce_bytes));
}

static int check_host(struct tenants *t) {
    const struct tsr_comm *c = &t->job->comm;
    struct tsr_machine_memory memory;
    char need[32], largest[32], have[32], help[400];
    if (tsr_machine_memory(&memory, "") < 0)
        return 0; // what can't be measured can't be refused
    for (int l = 0; l < c->local_size; l++)
        add(t, l, false);
    if (t->need <= memory.available)
        return 0;
    t->room.host_bytes = memory.available;
    hint(help, t);
    return tsr_fail(
        TSR_ENOMEM,
        "this run can't fit: its %d rank%s on this host need%s %s%s (the largest %s), "
        "but %s of memory are available%s%s",
        t->n, t->n == 1 ? "" : "s", t->n == 1 ? "s" : "", tsr_bytes_text(need, (double)t->need),
        t->room.devices > 0 ? " beside the devices" : "",
        tsr_bytes_text(largest, (double)t->largest), tsr_bytes_text(have, (double)memory.available),
        memory.limited ? " to its control group" : "", help);
}

static int check_device(struct tenants *t) {
    struct tsr_job *j = t->job;
    const struct tsr_comm *c = &j->comm;
    const int n_devices = j->device.n_devices, device = c->local_rank % n_devices;
    size_t free_bytes = 0, total = 0;
    char need[32], largest[32], have[32], all[32], help[400];
    TSR_TRY(j->ctx.ops->memory(&j->ctx, &free_bytes, &total));
    for (int l = device; l < c->local_size; l += n_devices)
        add(t, l, true);
    if (t->need <= free_bytes)
        return 0;
    t->room.device_bytes = free_bytes;
    hint(help, t);
    return tsr_fail(
        TSR_ENOMEM,
        "this run can't fit: %d rank%s on device %d (%s) need%s %s (the largest %s), "
        "but %s of its %s are free%s",
        t->n, t->n == 1 ? "" : "s", device, j->ctx.ops->describe(&j->ctx), t->n == 1 ? "s" : "",
        tsr_bytes_text(need, (double)t->need), tsr_bytes_text(largest, (double)t->largest),
        tsr_bytes_text(have, (double)free_bytes), tsr_bytes_text(all, (double)total), help);
}

static int check(struct tsr_job *j, int (*fn)(struct tenants *)) {
    struct tenants t;
    TSR_TRY(open_tenants(&t, j));
    int rc = fn(&t);
    tsr_plan_close(&t.plan);
    return rc;
}

int tsr_plan_refuse(struct tsr_job *j) {
    const struct tsr_comm *c = &j->comm;
    int rc = c->local_rank == 0 ? check(j, check_host) : 0; // one of each host's ranks
    if (rc == 0 && j->ctx.ops->memory && c->local_rank < j->device.n_devices)
        rc = check(j, check_device); // one of each device's
    return tsr_agree(&j->ctx, &j->comm, rc);
}

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

// Whether the ranks will compute on a CUDA device, as far as can be told here: `auto` takes what it
// finds, and with devices that are `asked` about it will find some.
static int find_device(struct tsr_run *r, struct tsr_room *room, bool asked) {
    int n = 0;
    uint64_t free_bytes = 0;
    bool found = r->device.backend != TSR_BACKEND_CPU && tsr_device_survey(&n, &free_bytes) == 0;
    if (asked && r->device.backend == TSR_BACKEND_CPU)
        return tsr_fail(TSR_EUSAGE, "--devices-per-host, --device-memory: this run computes on the "
                                    "CPU (device.backend: cpu)");
    if (found || (asked && r->device.backend == TSR_BACKEND_AUTO))
        r->device.backend = TSR_BACKEND_CUDA;
    *room = (struct tsr_room){.devices = found ? n : 0,
                              .device_bytes = found ? free_bytes : UINT64_MAX};
    return 0;
}

// How a run is planned that is `run` once `auto` is decided.
struct tsr_plan_opt tsr_plan_options(const struct tsr_run *run, int per_host) {
    int64_t threads = run->device.threads ? run->device.threads : tsr_machine_cores() / per_host;
    return (struct tsr_plan_opt){.isa = getenv("TESSERA_CPU"),
                                 .threads = threads < 1 ? 1 : (int)threads,
                                 .per_host = per_host,
                                 .nccl = tsr_plan_on_device(run) && !tsr_device_through_host()};
}

static int find_room(struct tsr_planned *p, const struct tsr_planned_for *where, int per_host) {
    struct tsr_machine_memory m;
    bool asked = where->devices > 0 || where->device_bytes > 0;
    TSR_TRY(find_device(&p->job.run, &p->room, asked));
    if (where->devices > 0)
        p->room.devices = (int)where->devices;
    else if (p->room.devices == 0)
        p->room.devices = per_host;
    if (!tsr_plan_on_device(&p->job.run))
        p->room.devices = 0;
    if (where->device_bytes > 0)
        p->room.device_bytes = where->device_bytes;
    p->room.host_bytes = where->host_bytes;
    if (where->host_bytes > 0)
        return 0;
    TSR_TRY(tsr_machine_memory(&m, ""));
    p->room.host_bytes = m.available;
    return 0;
}

int tsr_planned_open(struct tsr_planned *p, const char *command, const char *path,
                     const char *const *overrides, int n_overrides,
                     const struct tsr_planned_for *where) {
    struct tsr_job *j = &p->job;
    int world = 1;
    memset(p, 0, sizeof *p);
    j->command = command;
    TSR_TRY(world_of(&world, path, overrides, n_overrides));
    TSR_TRY(tsr_comm_open_pretend(&j->comm, world, 0, world, false));
    TSR_TRY(tsr_job_load_run(j, path, overrides, n_overrides));
    int per_host = where->per_host > 0 && where->per_host < world ? (int)where->per_host : world;
    TSR_TRY(find_room(p, where, per_host));
    p->opt = tsr_plan_options(&j->run, per_host);
    TSR_TRY(tsr_plan_open(&p->plan, &j->run, &j->model, &j->mesh, &p->opt));
    p->fill = tsr_plan_fill(&p->plan, p->opt.per_host, p->room.devices);
    p->fits = tsr_plan_fits(&p->fill, &p->room);
    if (!p->fits)
        p->n_advice = tsr_plan_advise(p->advice, &j->run, &j->model, &p->plan, &p->opt, &p->room);
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

// ---- what fits

struct tsr_fill tsr_plan_fill(const struct tsr_plan *plan, int per_host, int devices) {
    struct tsr_fill most = {0, 0};
    const int world = plan->mesh.world;
    for (int first = 0; first < world; first += per_host) {
        const int end = first + per_host < world ? first + per_host : world;
        size_t host = 0;
        for (int r = first; r < end; r++) {
            const struct tsr_plan_class *c = &plan->classes[plan->class_of[r]];
            host += c->total - (devices > 0 ? c->memory.slabs : 0);
        }
        for (int d = first; d < first + devices && d < end; d++) {
            size_t device = 0;
            for (int r = d; r < end; r += devices)
                device += plan->classes[plan->class_of[r]].memory.slabs;
            most.device_bytes = device > most.device_bytes ? device : most.device_bytes;
        }
        most.host_bytes = host > most.host_bytes ? host : most.host_bytes;
    }
    return most;
}

bool tsr_plan_fits(const struct tsr_fill *fill, const struct tsr_room *room) {
    return fill->host_bytes <= room->host_bytes && fill->device_bytes <= room->device_bytes;
}

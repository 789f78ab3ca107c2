// What to change when a run doesn't fit: each change is planned like the run itself.
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "launcher/plan_job.h"

struct advisor {
    struct tsr_advice *out;
    int n;
    const struct tsr_run *run;
    const struct tsr_model *m;
    const struct tsr_plan *plan;
    const struct tsr_plan_opt *opt;
    const struct tsr_room *room;
    bool device;         // that is what the run doesn't fit into
    size_t scarce_bytes; // of the run as it is
};

// What there is too little of.
static size_t scarce(const struct advisor *a, const struct tsr_fill *fill) {
    return a->device ? fill->device_bytes : fill->host_bytes;
}

// A changed run over the ranks of its layout; false when it can't be run so, or saves nothing.
static bool try_run(struct advisor *a, struct tsr_run *r, int per_host, struct tsr_advice *out) {
    struct tsr_plan plan;
    struct tsr_mesh mesh;
    struct tsr_plan_opt opt = *a->opt;
    int V, W;
    int64_t tp = r->parallel.tp, pp = r->parallel.pp, dp;
    if (tsr_run_check_world(r, tp * pp * r->parallel.dp, &dp) < 0 ||
        tsr_run_shards(r, tp, dp, &V, &W) < 0 || tsr_run_check_model(r, a->m, tp, pp) < 0)
        return false;
    tsr_mesh_place(&mesh, (int)tp, (int)pp, (int)dp, 0);
    mesh.chunks = r->parallel.schedule == TSR_PIPE_INTERLEAVED ? (int)r->parallel.chunks : 1;
    mesh.V = V;
    mesh.W = W;
    opt.per_host = per_host;
    if (tsr_plan_open(&plan, r, a->m, &mesh, &opt) < 0)
        return false;
    out->rank_bytes = tsr_plan_largest(&plan)->total;
    out->fill = tsr_plan_fill(&plan, per_host, a->room->devices);
    out->scarce_bytes = scarce(a, &out->fill);
    out->fits = tsr_plan_fits(&out->fill, a->room);
    out->other_numbers = r->parallel.exact && W != a->plan->mesh.W;
    tsr_plan_close(&plan);
    return true;
}

__attribute__((format(printf, 4, 5))) static void propose(struct advisor *a, struct tsr_run *r,
                                                          int per_host, const char *fmt, ...) {
    struct tsr_advice *out = &a->out[a->n];
    va_list args;
    if (a->n == TSR_MAX_ADVICE || !try_run(a, r, per_host, out) ||
        out->scarce_bytes >= a->scarce_bytes)
        return;
    for (int i = 0; i < a->n; i++) // a list of changes that gains nothing over a shorter one
        if (a->out[i].scarce_bytes == out->scarce_bytes)
            return;
    va_start(args, fmt);
    vsnprintf(out->change, sizeof out->change, fmt, args);
    va_end(args);
    a->n++;
}

// The next smaller micro-batch that the batch can be dealt out in, or 0.
static int64_t smaller_micro(const struct tsr_run *run) {
    for (int64_t m = run->train.micro_batch - 1; m >= 1; m--) {
        struct tsr_run r = *run;
        int64_t dp;
        r.train.micro_batch = m;
        if (tsr_run_check_world(&r, r.parallel.tp * r.parallel.pp * r.parallel.dp, &dp) == 0)
            return m;
    }
    return 0;
}

static void advise_batch(struct advisor *a) {
    struct tsr_run r = *a->run;
    if (a->run->parallel.tp > 1 && !a->run->parallel.sequence) {
        r.parallel.sequence = true;
        propose(a, &r, a->opt->per_host, "parallel.sequence=true");
    }
    r = *a->run;
    if (a->run->parallel.pp > 1 && a->run->parallel.schedule != TSR_PIPE_1F1B) {
        r.parallel.schedule = TSR_PIPE_1F1B;
        r.parallel.chunks = 1;
        propose(a, &r, a->opt->per_host, "parallel.schedule=1f1b parallel.chunks=1");
    }
    r = *a->run;
    for (int i = 0; i < 3 && (r.train.micro_batch = smaller_micro(&r)) > 0; i++)
        propose(a, &r, a->opt->per_host, "train.micro_batch=%lld", (long long)r.train.micro_batch);
}

static void advise_recompute(struct advisor *a) {
    static const char *const names[] = {"none", "selective", "full"};
    struct tsr_run r = *a->run;
    while (++r.train.recompute <= TSR_RECOMPUTE_FULL)
        propose(a, &r, a->opt->per_host, "train.recompute=%s", names[r.train.recompute]);
}

// The same ranks dealt out otherwise.
static void advise_layout(struct advisor *a) {
    static const int moves[][3] = {{2, 1, -2}, {1, 2, -2}, {2, -2, 1}, {-2, 2, 1},
                                   {1, -2, 2}, {4, 1, -4}, {1, 4, -4}, {2, 2, -4}};
    for (size_t i = 0; i < sizeof moves / sizeof *moves; i++) {
        struct tsr_run r = *a->run;
        int64_t *size[3] = {&r.parallel.tp, &r.parallel.pp, &r.parallel.dp};
        bool whole = true;
        for (int k = 0; k < 3; k++) {
            int by = moves[i][k];
            whole = whole && (by > 0 || *size[k] % -by == 0);
            *size[k] = by > 0 ? *size[k] * by : *size[k] / -by;
        }
        if (whole)
            propose(a, &r, a->opt->per_host, "parallel.tp=%lld parallel.pp=%lld parallel.dp=%lld",
                    (long long)r.parallel.tp, (long long)r.parallel.pp, (long long)r.parallel.dp);
    }
}

static void advise_replicas(struct advisor *a) {
    struct tsr_run r = *a->run;
    if (!r.parallel.exact || a->plan->mesh.W == a->plan->mesh.dp)
        return;
    r.parallel.virtual_replicas = r.parallel.dp;
    propose(a, &r, a->opt->per_host, "parallel.virtual_replicas=%lld", (long long)r.parallel.dp);
}

// Everything that costs time and no ranks, then with one gradient buffer as well.
static void advise_all(struct advisor *a) {
    struct tsr_run r = *a->run;
    int64_t m;
    r.train.recompute = TSR_RECOMPUTE_FULL;
    r.parallel.sequence = r.parallel.sequence || r.parallel.tp > 1;
    while ((m = smaller_micro(&r)) > 0)
        r.train.micro_batch = m;
    const char *sequence = r.parallel.sequence ? " parallel.sequence=true" : "";
    propose(a, &r, a->opt->per_host, "train.recompute=full train.micro_batch=%lld%s",
            (long long)r.train.micro_batch, sequence);
    if (!r.parallel.exact || a->plan->mesh.W == a->plan->mesh.dp)
        return;
    r.parallel.virtual_replicas = r.parallel.dp;
    r.train.micro_batch = 1;
    propose(a, &r, a->opt->per_host,
            "train.recompute=full train.micro_batch=1%s parallel.virtual_replicas=%lld", sequence,
            (long long)r.parallel.dp);
}

// A run on so many hosts that it fits.
static void spread(struct advisor *a, struct tsr_run *r, const char *changes) {
    int world = a->plan->mesh.world;
    for (int per = a->opt->per_host - 1; per >= 1; per--) {
        struct tsr_advice probe;
        if (world % per != 0 || !try_run(a, r, per, &probe) || !probe.fits)
            continue;
        propose(a, r, per, "%s%d hosts with %d rank%s on each", changes, world / per, per,
                per == 1 ? "" : "s");
        return;
    }
}

static void advise_hosts(struct advisor *a) {
    struct tsr_run r = *a->run;
    spread(a, &r, "");
    if (r.train.recompute == TSR_RECOMPUTE_FULL)
        return;
    r.train.recompute = TSR_RECOMPUTE_FULL;
    spread(a, &r, "train.recompute=full on ");
}

// Twice the ranks on twice the hosts.
static void advise_ranks(struct advisor *a) {
    static const char *const names[] = {"tp", "pp"};
    for (int k = 0; k < 2; k++) {
        struct tsr_run r = *a->run;
        int64_t *size = k == 0 ? &r.parallel.tp : &r.parallel.pp;
        *size *= 2;
        propose(a, &r, a->opt->per_host, "parallel.%s=%lld on twice the hosts", names[k],
                (long long)*size);
    }
}

int tsr_plan_advise(struct tsr_advice *out, const struct tsr_run *run, const struct tsr_model *m,
                    const struct tsr_plan *plan, const struct tsr_plan_opt *opt,
                    const struct tsr_room *room) {
    struct advisor a = {.out = out, .run = run, .m = m, .plan = plan, .opt = opt, .room = room};
    const struct tsr_fill fill = tsr_plan_fill(plan, opt->per_host, room->devices);
    a.device = fill.device_bytes > room->device_bytes;
    a.scarce_bytes = scarce(&a, &fill);
    advise_batch(&a);
    advise_recompute(&a);
    advise_layout(&a);
    advise_replicas(&a);
    advise_all(&a);
    advise_hosts(&a);
    advise_ranks(&a);
    return a.n;
}

const struct tsr_advice *tsr_plan_best(const struct tsr_advice *a, int n) {
    const struct tsr_advice *best = NULL;
    for (int i = 0; i < n; i++) {
        if (a[i].fits)
            return &a[i];
        if (!best || a[i].scarce_bytes < best->scarce_bytes)
            best = &a[i];
    }
    return best;
}

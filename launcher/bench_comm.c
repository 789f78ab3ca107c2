// `tessera bench comm`: the collectives that training uses, between the ranks it was started with.
#include <stdio.h>
#include <stdlib.h>
#include "core/clock.h"
#include "core/error.h"
#include "launcher/bench.h"
#include "launcher/job.h"
#include "launcher/options.h"

enum { REPEATS = 7, MAX_RANKS = 4096, N_SIZES = 5 };

struct bench {
    struct tsr_job job;
    struct tsr_device_want want;
    struct tsr_group group;
    float *buf, *other; // on the device
    size_t most, n;     // bytes of each; elements of the call under way
    size_t counts[MAX_RANKS], n_bytes[MAX_RANKS];
};

static int all_reduce(struct bench *b) {
    struct tsr_job *j = &b->job;
    return j->comm.ops->all_reduce(&j->ctx, &j->comm, &b->group, b->buf, b->n, NULL);
}

static int reduce_scatter(struct bench *b) {
    struct tsr_job *j = &b->job;
    return j->comm.ops->reduce_scatter(&j->ctx, &j->comm, &b->group, b->other, b->buf, b->counts,
                                       NULL);
}

static int all_gather(struct bench *b) {
    struct tsr_job *j = &b->job;
    return j->comm.ops->all_gather(&j->ctx, &j->comm, &b->group, b->buf, b->other, b->n_bytes,
                                   NULL);
}

static int broadcast(struct bench *b) {
    struct tsr_job *j = &b->job;
    return j->comm.ops->broadcast(&j->ctx, &j->comm, &b->group, b->buf, b->n * sizeof *b->buf, 0);
}

// There and back between ranks 0 and 1.
static int ping_pong(struct bench *b) {
    struct tsr_job *j = &b->job;
    const struct tsr_comm_ops *o = j->comm.ops;
    struct tsr_request r = {0};
    const size_t n_bytes = b->n * sizeof *b->buf;
    int me = j->comm.rank;
    for (int i = 0; i < 2 && me < 2; i++) {
        if (i == me)
            TSR_TRY(o->send(&j->ctx, &j->comm, &b->group, b->buf, n_bytes, 1 - me, 0, &r));
        else
            TSR_TRY(o->recv(&j->ctx, &j->comm, &b->group, b->buf, n_bytes, 1 - me, 0, &r));
        TSR_TRY(o->wait(&j->ctx, &j->comm, &r));
    }
    return 0;
}

static const struct {
    const char *name;
    int (*once)(struct bench *);
    double times; // that the bytes are moved one way in one call
} calls[] = {{"all_reduce", all_reduce, 1},
             {"reduce_scatter", reduce_scatter, 1},
             {"all_gather", all_gather, 1},
             {"broadcast", broadcast, 1},
             {"send and receive", ping_pong, 2}};

enum { N_CALLS = sizeof calls / sizeof *calls };

// The best of several repetitions: seconds of one call, on this rank.
static int measure(struct bench *b, int (*once)(struct bench *), size_t n_bytes, double *best) {
    struct tsr_job *j = &b->job;
    const int world = j->comm.world;
    b->n = n_bytes / sizeof *b->buf;
    for (int r = 0; r < world; r++) {
        b->counts[r] = b->n * (size_t)(r + 1) / (size_t)world - b->n * (size_t)r / (size_t)world;
        b->n_bytes[r] = b->counts[r] * sizeof *b->buf;
    }
    int n = n_bytes < 4096 ? 1000 : n_bytes < (1 << 20) ? 100 : n_bytes < (16 << 20) ? 10 : 2;
    *best = 1e9;
    for (int repeat = 0; repeat < REPEATS; repeat++) {
        TSR_TRY(j->comm.control->barrier(&j->ctx, &j->comm, &j->comm.world_group, "bench", 60));
        double begin = tsr_now();
        for (int i = 0; i < n; i++)
            TSR_TRY(once(b));
        TSR_TRY(j->ctx.ops->sync(&j->ctx));
        double took = (tsr_now() - begin) / n;
        *best = took < *best ? took : *best;
    }
    return 0;
}

static int measure_all(struct bench *b, bool json) {
    static const size_t sizes[N_SIZES] = {4, 4096, 64 << 10, 3 << 20, 64 << 20};
    struct tsr_job *j = &b->job;
    const bool speaks = j->comm.rank == 0;
    const char *between = "";
    if (speaks && json)
        printf("{\"device\": \"%s\", \"transport\": \"%s\", \"ranks\": %d, \"calls\": [",
               j->ctx.ops->describe(&j->ctx), j->comm.ops->name, j->comm.world);
    else if (speaks)
        printf("%s, %s, %d ranks; GB/s count the whole buffer once\n\n",
               j->ctx.ops->describe(&j->ctx), j->comm.ops->name, j->comm.world);
    for (int c = 0; c < N_CALLS; c++)
        for (int i = 0; i < N_SIZES && sizes[i] <= b->most; i++) {
            double s;
            TSR_TRY(measure(b, calls[c].once, sizes[i], &s));
            s /= calls[c].times;
            double gbs = (double)sizes[i] / s * 1e-9;
            if (speaks && json)
                printf("%s{\"name\": \"%s\", \"bytes\": %zu, \"us\": %.9g, \"gb_per_s\": %.9g}",
                       between, calls[c].name, sizes[i], s * 1e6, gbs);
            else if (speaks)
                printf("%-18s %10zu B %12.2f us %8.2f GB/s\n", calls[c].name, sizes[i], s * 1e6,
                       gbs);
            between = ", ";
        }
    if (speaks && json)
        printf("]}\n");
    return fflush(stdout) == 0 ? 0 : tsr_fail(TSR_EIO, "standard output can't be written");
}

static int open_buffers(struct bench *b) {
    struct tsr_job *j = &b->job;
    void *p = NULL;
    TSR_TRY(j->ctx.ops->alloc(&j->ctx, b->most, &p));
    b->buf = p;
    p = NULL;
    TSR_TRY(j->ctx.ops->alloc(&j->ctx, b->most, &p));
    b->other = p;
    return 0;
}

static int run(struct bench *b, bool json) {
    struct tsr_job *j = &b->job;
    int ranks[MAX_RANKS];
    if (j->comm.world < 2 || j->comm.world > MAX_RANKS)
        return tsr_fail(TSR_EUSAGE, "expected 2 to %d ranks (mpirun -np N), found %d", MAX_RANKS,
                        j->comm.world);
    TSR_TRY(tsr_device_open(&j->device, &j->ctx, &j->comm, &b->want));
    for (int i = 0; i < j->comm.world; i++)
        ranks[i] = i;
    TSR_TRY(j->comm.ops->group_open(&j->comm, &b->group, "bench", ranks, j->comm.world,
                                    TSR_TRAFFIC_OTHER));
    int rc = open_buffers(b);
    if (rc == 0)
        rc = measure_all(b, json);
    j->ctx.ops->free(&j->ctx, b->buf, b->most);
    j->ctx.ops->free(&j->ctx, b->other, b->most);
    if (rc == 0)
        j->comm.ops->group_close(&j->comm, &b->group);
    return rc;
}

int tsr_bench_comm(int argc, char **argv) {
    struct bench *b = calloc(1, sizeof *b);
    const char *args[1];
    int n_args;
    int64_t most = 64 << 20;
    bool json = false;
    const char *device = "auto";
    const struct tsr_option options[] = {
        {"device", 0, TSR_OPT_STRING, &device, "D", 0, 0, "auto, cpu or cuda (auto)"},
        {"largest", 0, TSR_OPT_INT, &most, "BYTES", 4096, 1 << 30, "largest buffer (64 MiB)"},
        {"json", 0, TSR_OPT_FLAG, &json, NULL, 0, 0, "one JSON object"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera bench comm",
        .usage = "[options]  (under mpirun or srun)",
        .about = "Times what training's ranks say to each other, on buffers of several sizes: the\n"
                 "same calls in the same fixed order of sums.",
        .options = options,
        .n_options = sizeof options / sizeof *options};
    TSR_ASSERT(b);
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0) {
        free(b);
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    }
    b->most = (size_t)most;
    b->want.exact = true;
    rc = tsr_job_open(&b->job, cl.command);
    if (rc == 0)
        rc = tsr_device_parse(&b->want, device, "fp32");
    if (rc == 0)
        rc = run(b, json);
    int code = tsr_job_close(&b->job, rc);
    free(b);
    return code;
}

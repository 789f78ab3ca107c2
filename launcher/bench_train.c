// `tessera bench train`: the training step's speed on random tokens.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "dist/memory.h"
#include "launcher/bench.h"
#include "launcher/job.h"
#include "launcher/machine.h"
#include "launcher/options.h"
#include "launcher/random_tokens.h"

enum { MAX_OVERRIDES = 256 };

// What each rank measures of itself.
enum figure {
    PEAK_FLOPS,
    PEAK_RSS,
    FIRST_STEP,
    FORWARD, // seconds of all timed steps
    BACKWARD,
    COMMUNICATION,
    BUBBLE,
    OPTIMIZER,
    SENT_TP, // bytes a step
    SENT_PP,
    SENT_DP,
    WEIGHTS, // bytes of slabs
    GRADIENTS,
    MOMENTS,
    MASTERS,
    ACTIVATIONS,
    BLOCK_WEIGHTS, // bytes of them for decoder blocks
    BLOCK_GRADIENTS,
    BLOCK_MOMENTS,
    BLOCK_MASTERS,
    ALLOCATED, // bytes by the device's own count
    MEMORY,    // bytes by purpose (dist/memory.h)
    N_FIGURES = MEMORY + TSR_N_MEMORY
};

struct bench {
    struct tsr_job job;
    struct tsr_trainer trainer;
    int64_t steps;
    bool json;
    double first_step_s, *step_s;
    double sum[N_FIGURES], largest[N_FIGURES]; // over ranks
    double *all;                               // (world, N_FIGURES)
};

// Seconds since this process started: field 22 of /proc/self/stat, in clock ticks since boot.
static double process_age(void) {
    char text[2048];
    FILE *f = fopen("/proc/self/stat", "r");
    size_t n = f ? fread(text, 1, sizeof text - 1, f) : 0;
    if (f)
        fclose(f);
    text[n] = 0;
    const char *p = strrchr(text, ')');
    for (int field = 2; p && field < 22; field++)
        p = strchr(p + 1, ' ');
    if (!p)
        return 0.0;
    return tsr_clock(CLOCK_BOOTTIME) - strtod(p + 1, NULL) / (double)sysconf(_SC_CLK_TCK);
}

// The most memory that this process ever held, in bytes. Not getrusage's figure, which a process
// inherits from the one that started it.
static double peak_rss(void) {
    int64_t kib = tsr_machine_value("/proc/self/status", "VmHWM");
    return kib < 0 ? 0.0 : (double)kib * 1024.0;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int64_t n) {
    qsort(v, (size_t)n, sizeof *v, by_size);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

static void measure_blocks(const struct tsr_net *net, double *mine) {
    for (int i = 0; i < net->n_params; i++) {
        const struct tsr_param *p = &net->params[i];
        double n = (double)(p->rows * p->cols);
        if (p->t->layer < 0)
            continue;
        mine[BLOCK_WEIGHTS] += n * (double)tsr_dtype_size(net->ctx->dtype);
        mine[BLOCK_GRADIENTS] += n * (double)(sizeof(float) * (size_t)net->opt.n_grad_buffers);
        mine[BLOCK_MOMENTS] += (double)p->n_own * 2.0 * sizeof(float);
        mine[BLOCK_MASTERS] += p->master ? (double)p->n_own * sizeof(float) : 0.0;
    }
}

static void measure(struct bench *b, double *mine) {
    const struct tsr_job *j = &b->job;
    const struct tsr_trainer *tr = &b->trainer;
    const struct tsr_times *t = &tr->executor.times;
    mine[PEAK_FLOPS] = b->job.ctx.ops->measure_peak(&b->job.ctx, TSR_PEAK_CAREFUL) * 1e9;
    mine[PEAK_RSS] = peak_rss();
    mine[FIRST_STEP] = b->first_step_s;
    mine[FORWARD] = t->forward;
    mine[BACKWARD] = t->backward;
    mine[COMMUNICATION] = t->communication;
    mine[BUBBLE] = t->bubble;
    mine[OPTIMIZER] = t->optimizer;
    mine[SENT_TP] = (double)j->comm.bytes_sent[TSR_TRAFFIC_TP];
    mine[SENT_PP] = (double)j->comm.bytes_sent[TSR_TRAFFIC_PP];
    mine[SENT_DP] = (double)j->comm.bytes_sent[TSR_TRAFFIC_DP];
    mine[WEIGHTS] = (double)tr->net.weights_bytes;
    mine[GRADIENTS] = (double)(tr->net.gradients_bytes + tr->net.accumulators_bytes);
    mine[MOMENTS] = (double)tr->net.moments_bytes;
    mine[MASTERS] = (double)tr->net.masters_bytes;
    mine[ACTIVATIONS] = (double)(tr->state.slab_bytes + tr->executor.slab_bytes);
    measure_blocks(&tr->net, mine);
    struct tsr_memory memory;
    tsr_memory_of(tr, &memory);
    memory.kernels = j->ctx.ops->scratch(&j->ctx);
    TSR_ASSERT(memory.slabs == j->ctx.ops->allocated(&j->ctx)); // no purpose is left out
    mine[ALLOCATED] = (double)j->ctx.ops->allocated(&j->ctx);
    for (int i = 0; i < TSR_N_MEMORY; i++)
        mine[MEMORY + i] = (double)tsr_memory_get(&memory, i);
}

static int gather(struct bench *b) {
    struct tsr_job *j = &b->job;
    struct tsr_leaves l = {0};
    double mine[N_FIGURES] = {0};
    measure(b, mine);
    for (int i = 0; i < N_FIGURES; i++)
        TSR_TRY(tsr_leaves_push(&l, (int64_t)j->comm.rank * N_FIGURES + i, mine[i]));
    TSR_TRY(tsr_leaves_gather(&j->ctx, &j->comm, &l, (int64_t)j->comm.world * N_FIGURES, &b->all));
    for (int r = 0; r < j->comm.world; r++)
        for (int i = 0; i < N_FIGURES; i++) {
            double v = b->all[(ptrdiff_t)r * N_FIGURES + i];
            b->sum[i] += v;
            b->largest[i] = v > b->largest[i] ? v : b->largest[i];
        }
    return 0;
}

// One figure of each rank, as a JSON array.
static void print_ranks(const struct bench *b, const char *name, int figure) {
    printf("\"%s\": [", name);
    for (int r = 0; r < b->job.comm.world; r++)
        printf("%s%.0f", r ? ", " : "", b->all[(ptrdiff_t)r * N_FIGURES + figure]);
    printf("], ");
}

static void print_json(const struct bench *b, double rate, double step, double share) {
    const double *sum = b->sum, *most = b->largest;
    double per = 1.0 / (double)(b->steps * b->job.comm.world);
    printf("{\"tokens_per_s\": %.9g, \"step_ms\": %.9g, \"peak_fraction\": %.9g, "
           "\"measured_peak_gflops\": %.9g, \"phases\": {\"forward\": %.9g, \"backward\": %.9g, "
           "\"communication\": %.9g, \"bubble\": %.9g, \"optimizer\": %.9g}, "
           "\"peak_rss_bytes\": %.0f, \"first_step_s\": %.9g, ",
           rate, step * 1e3, share, sum[PEAK_FLOPS] * 1e-9, sum[FORWARD] * per, sum[BACKWARD] * per,
           sum[COMMUNICATION] * per, sum[BUBBLE] * per, sum[OPTIMIZER] * per, most[PEAK_RSS],
           most[FIRST_STEP]);
    printf("\"bytes_sent\": {\"tp\": %.0f, \"pp\": %.0f, \"dp\": %.0f}, "
           "\"weights_bytes\": %.0f, \"gradients_bytes\": %.0f, \"moments_bytes\": %.0f, "
           "\"masters_bytes\": %.0f, \"activations_bytes\": %.0f, \"block_bytes\": {\"weights\": "
           "%.0f, "
           "\"gradients\": %.0f, \"moments\": %.0f, \"masters\": %.0f}, ",
           sum[SENT_TP], sum[SENT_PP], sum[SENT_DP], most[WEIGHTS], most[GRADIENTS], most[MOMENTS],
           most[MASTERS], most[ACTIVATIONS], most[BLOCK_WEIGHTS], most[BLOCK_GRADIENTS],
           most[BLOCK_MOMENTS], most[BLOCK_MASTERS]);
    printf("\"rank_bytes\": {");
    for (int i = 0; i < TSR_N_MEMORY; i++)
        print_ranks(b, tsr_memory_names[i], MEMORY + i);
    print_ranks(b, "slabs", ALLOCATED);
    printf("\"ranks\": %d}, \"mfu_formula\": \"%s\"}\n", b->job.comm.world, tsr_flops_formula);
}

static void print(struct bench *b) {
    const struct tsr_run *r = &b->job.run;
    double step = median(b->step_s, b->steps);
    double rate = (double)(r->train.global_batch * r->data.seq_len) / step;
    double peak = b->sum[PEAK_FLOPS];
    double share = rate * tsr_flops_per_token(&b->job.model, r->data.seq_len) / peak;
    double per_ms = 1e3 / (double)(b->steps * b->job.comm.world);
    if (b->json) {
        print_json(b, rate, step, share);
        return;
    }
    printf(
        "tokens/s        %10.1f\n"
        "step            %10.1f ms (first after %.2f s)\n"
        "share of peak   %10.1f %%  of %.1f GFLOP/s\n"
        "forward         %10.1f ms\nbackward        %10.1f ms\ncommunication   %10.1f ms\n"
        "bubble          %10.1f ms\noptimizer       %10.1f ms\npeak memory     %10.1f MiB a rank\n",
        rate, step * 1e3, b->largest[FIRST_STEP], share * 100.0, peak * 1e-9,
        b->sum[FORWARD] * per_ms, b->sum[BACKWARD] * per_ms, b->sum[COMMUNICATION] * per_ms,
        b->sum[BUBBLE] * per_ms, b->sum[OPTIMIZER] * per_ms, b->largest[PEAK_RSS] / 1048576.0);
}

static int run(struct bench *b, const char *path, const char *const *overrides, int n) {
    struct tsr_job *j = &b->job;
    struct tsr_trainer *t = &b->trainer;
    struct tsr_step_result s = {0};
    TSR_TRY(tsr_job_load_run(j, path, overrides, n));
    TSR_TRY(tsr_job_device(j));
    TSR_TRY(tsr_trainer_open(t, &j->run, &j->model, &j->ctx, &j->comm, &j->mesh,
                             tsr_random_sequence, j));
    TSR_TRY(tsr_net_init(&t->net));
    TSR_TRY(tsr_trainer_round(t));
    TSR_TRY(tsr_trainer_step(t, &s));
    b->first_step_s = process_age();
    t->executor.times = (struct tsr_times){0};
    memset(j->comm.bytes_sent, 0, sizeof j->comm.bytes_sent);
    b->step_s = calloc((size_t)b->steps, sizeof *b->step_s);
    if (!b->step_s)
        return tsr_fail(TSR_ENOMEM, "no memory for %lld timings", (long long)b->steps);
    for (int64_t i = 0; i < b->steps; i++) {
        double begin = tsr_now();
        TSR_TRY(tsr_trainer_step(t, &s));
        b->step_s[i] = tsr_now() - begin;
        if (j->comm.rank == 0)
            tsr_info("step %lld of %lld: %.1f ms", (long long)i + 1, (long long)b->steps,
                     b->step_s[i] * 1e3);
    }
    for (int k = 0; k < TSR_N_TRAFFIC; k++) // of one step
        j->comm.bytes_sent[k] /= (uint64_t)b->steps;
    TSR_TRY(gather(b));
    if (j->comm.rank == 0)
        print(b);
    return fflush(stdout) == 0 ? 0 : tsr_fail(TSR_EIO, "standard output can't be written");
}

int tsr_bench_train(int argc, char **argv) {
    const char *args[MAX_OVERRIDES + 1];
    int n_args;
    struct bench b = {.steps = 5};
    const struct tsr_option options[] = {
        {"steps", 'n', TSR_OPT_INT, &b.steps, "N", 1, 100000, "steps to time after the first (5)"},
        {"json", 0, TSR_OPT_FLAG, &b.json, NULL, 0, 0, "one JSON object; times in seconds a step"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera bench train",
        .usage = "RUN.yaml [key=value …] [options]",
        .about =
            "Times the training step of a run file on random tokens, with fresh weights: tokens\n"
            "per second, the share of this machine's measured peak of fused multiply-adds, time\n"
            "by phase (means over ranks), memory.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = MAX_OVERRIDES + 1};
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    rc = tsr_job_open(&b.job, cl.command);
    if (rc == 0)
        rc = run(&b, args[0], args + 1, n_args - 1);
    tsr_job_settle(&b.job, rc);
    free(b.step_s);
    free(b.all);
    tsr_trainer_close(&b.trainer);
    return tsr_job_close(&b.job, rc);
}

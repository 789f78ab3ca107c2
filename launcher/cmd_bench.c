// `tessera bench train`: the training step's speed on random tokens.
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>
#include <time.h>
#include "core/error.h"
#include "core/log.h"
#include "dist/leaves.h"
#include "dist/train.h"
#include "launcher/commands.h"
#include "launcher/job.h"
#include "launcher/options.h"

enum { MAX_OVERRIDES = 256 };

struct bench {
    struct tsr_job job;
    struct tsr_trainer trainer;
    int64_t steps;
    bool json;
    double first_step_s, *step_s;
    double peak_flops, peak_rss; // sums over ranks; the largest rank
    struct tsr_times times;      // means over ranks, per step
};

static double now(clockid_t clock) {
    struct timespec t;
    clock_gettime(clock, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

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
    return now(CLOCK_BOOTTIME) - strtod(p + 1, NULL) / (double)sysconf(_SC_CLK_TCK);
}

static int random_sequence(void *arg, uint64_t g, int32_t *tokens, uint8_t *doc_start) {
    const struct bench *b = arg;
    struct tsr_rng_key key = tsr_rng_key((uint64_t)b->job.run.run.seed, TSR_RNG_BENCH, 0, 0);
    int64_t T = b->job.run.data.seq_len;
    for (int64_t i = 0; i <= T; i++) {
        struct tsr_u32x4 r = tsr_philox(key, (uint32_t)i, (uint32_t)g, (uint32_t)(g >> 32), 0);
        tokens[i] = (int32_t)(((uint64_t)r.v[0] * (uint64_t)b->job.model.vocab) >> 32);
        if (doc_start)
            doc_start[i] = i == 0;
    }
    return 0;
}

static int by_size(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

static double median(double *v, int64_t n) {
    qsort(v, (size_t)n, sizeof *v, by_size);
    return n % 2 ? v[n / 2] : 0.5 * (v[n / 2 - 1] + v[n / 2]);
}

// Peak, memory and phases of all ranks.
static int gather(struct bench *b) {
    enum { N = 8 };
    struct tsr_job *j = &b->job;
    const struct tsr_times *t = &b->trainer.executor.times;
    struct rusage usage;
    getrusage(RUSAGE_SELF, &usage);
    double mine[N] = {tsr_cpu_measure_peak(&j->ctx) * 1e9,
                      (double)usage.ru_maxrss * 1024.0,
                      t->forward,
                      t->backward,
                      t->communication,
                      t->bubble,
                      t->optimizer,
                      b->first_step_s};
    struct tsr_leaves l = {0};
    double *all = NULL;
    for (int i = 0; i < N; i++)
        TSR_TRY(tsr_leaves_push(&l, (int64_t)j->comm.rank * N + i, mine[i]));
    TSR_TRY(tsr_leaves_gather(&j->ctx, &j->comm, &l, (int64_t)j->comm.world * N, &all));
    double per = 1.0 / (double)(b->steps * j->comm.world);
    for (int r = 0; r < j->comm.world; r++) {
        const double *v = all + (ptrdiff_t)r * N;
        b->peak_flops += v[0];
        b->peak_rss = v[1] > b->peak_rss ? v[1] : b->peak_rss;
        b->times.forward += v[2] * per;
        b->times.backward += v[3] * per;
        b->times.communication += v[4] * per;
        b->times.bubble += v[5] * per;
        b->times.optimizer += v[6] * per;
        b->first_step_s = v[7] > b->first_step_s ? v[7] : b->first_step_s;
    }
    free(all);
    return 0;
}

static void print(struct bench *b) {
    const struct tsr_run *r = &b->job.run;
    double step = median(b->step_s, b->steps);
    double rate = (double)(r->train.global_batch * r->data.seq_len) / step;
    double share = rate * tsr_flops_per_token(&b->job.model, r->data.seq_len) / b->peak_flops;
    const struct tsr_times *t = &b->times;
    if (b->json) {
        printf("{\"tokens_per_s\": %.9g, \"step_ms\": %.9g, \"peak_fraction\": %.9g, "
               "\"measured_peak_gflops\": %.9g, \"phases\": {\"forward\": %.9g, \"backward\": %.9g, "
               "\"communication\": %.9g, \"bubble\": %.9g, \"optimizer\": %.9g}, "
               "\"peak_rss_bytes\": %.0f, \"first_step_s\": %.9g, \"bytes_sent\": {\"tp\": %llu, "
               "\"pp\": %llu, \"dp\": %llu}, \"mfu_formula\": \"%s\"}\n",
               rate, step * 1e3, share, b->peak_flops * 1e-9, t->forward, t->backward,
               t->communication, t->bubble, t->optimizer, b->peak_rss, b->first_step_s,
               (unsigned long long)b->job.comm.bytes_sent[TSR_TRAFFIC_TP],
               (unsigned long long)b->job.comm.bytes_sent[TSR_TRAFFIC_PP],
               (unsigned long long)b->job.comm.bytes_sent[TSR_TRAFFIC_DP], tsr_flops_formula);
        return;
    }
    printf("tokens/s        %10.1f\n"
           "step            %10.1f ms (first after %.2f s)\n"
           "share of peak   %10.1f %%  of %.1f GFLOP/s\n"
           "forward         %10.1f ms\nbackward        %10.1f ms\ncommunication   %10.1f ms\n"
           "bubble          %10.1f ms\noptimizer       %10.1f ms\npeak memory     %10.1f MiB a rank\n",
           rate, step * 1e3, b->first_step_s, share * 100.0, b->peak_flops * 1e-9,
           t->forward * 1e3, t->backward * 1e3, t->communication * 1e3, t->bubble * 1e3,
           t->optimizer * 1e3, b->peak_rss / 1048576.0);
}

static int run(struct bench *b, const char *path, const char *const *overrides, int n) {
    struct tsr_job *j = &b->job;
    struct tsr_trainer *t = &b->trainer;
    struct tsr_step_result s = {0};
    TSR_TRY(tsr_job_load_run(j, path, overrides, n));
    TSR_TRY(tsr_job_device(j, j->run.device.threads));
    TSR_TRY(tsr_trainer_open(t, &j->run, &j->model, &j->ctx, &j->comm, &j->mesh, random_sequence, b));
    TSR_TRY(tsr_net_init(&t->net));
    TSR_TRY(tsr_trainer_step(t, &s));
    b->first_step_s = process_age();
    t->executor.times = (struct tsr_times){0};
    memset(j->comm.bytes_sent, 0, sizeof j->comm.bytes_sent);
    b->step_s = calloc((size_t)b->steps, sizeof *b->step_s);
    if (!b->step_s)
        return tsr_fail(TSR_ENOMEM, "no memory for %lld timings", (long long)b->steps);
    for (int64_t i = 0; i < b->steps; i++) {
        double begin = now(CLOCK_MONOTONIC);
        TSR_TRY(tsr_trainer_step(t, &s));
        b->step_s[i] = now(CLOCK_MONOTONIC) - begin;
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

static int bench_train(int argc, char **argv) {
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
        .about = "Times the training step of a run file on random tokens, with fresh weights: tokens\n"
                 "per second, the share of this machine's measured peak of fused multiply-adds, time\n"
                 "by phase (means over ranks), memory.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = MAX_OVERRIDES + 1};
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report(cl.command, rc);
    rc = tsr_job_open(&b.job, cl.command);
    if (rc == 0)
        rc = run(&b, args[0], args + 1, n_args - 1);
    free(b.step_s);
    tsr_trainer_close(&b.trainer);
    return tsr_job_close(&b.job, rc);
}

int tsr_cmd_bench(int argc, char **argv) {
    static const char text[] = "usage: tessera bench train RUN.yaml [key=value …] [options]\n\n"
                               "Measures speed as a share of this machine's measured peak.\n";
    if (argc >= 2 && strcmp(argv[1], "train") == 0)
        return bench_train(argc - 1, argv + 1);
    if (argc >= 2 && (strcmp(argv[1], "--help") == 0 || strcmp(argv[1], "-h") == 0)) {
        fputs(text, stdout);
        return 0;
    }
    tsr_fail(TSR_EUSAGE, "expected `tessera bench train`, found \"%s\"", argc >= 2 ? argv[1] : "");
    return tsr_report("tessera bench", TSR_EUSAGE);
}

// `tessera bench ops`: each operation of a device beside its own ceilings.
#include "launcher/bench_ops.h"
#include <inttypes.h>
#include <stdio.h>
#include "core/error.h"
#include "launcher/bench.h"
#include "launcher/job.h"
#include "launcher/options.h"

struct arguments {
    const char *preset, *device, *dtype;
    struct tsr_device_want want;
    int64_t tokens, seq_len;
    double seconds;
    bool json;
};

static int copy(struct tsr_bench_ops *b) {
    return b->ctx->ops->copy(b->ctx, b->m2, b->m1, b->grad_elems * sizeof(float));
}

// The ceilings: products by the device's own measure, memory by a plain copy.
static int measure_ceilings(struct tsr_bench_ops *b) {
    b->peak_gflops = b->ctx->ops->measure_peak(b->ctx, TSR_PEAK_CAREFUL);
    TSR_TRY(tsr_bench_time(b, "copy", 0, 2.0 * sizeof(float) * (double)b->grad_elems, copy));
    b->copy_gbs = b->lines[0].bytes / b->lines[0].seconds * 1e-9;
    return 0;
}

static void print_json(const struct tsr_bench_ops *b) {
    printf("{\"device\": \"%s\", \"dtype\": \"%s\", \"tokens\": %d, \"peak_gflops\": %.9g, "
           "\"copy_gb_per_s\": %.9g, \"ops\": [",
           b->ctx->ops->describe(b->ctx), tsr_dtype_name(b->ctx->dtype), b->n, b->peak_gflops,
           b->copy_gbs);
    for (int i = 0; i < b->n_lines; i++) {
        const struct tsr_bench_line *l = &b->lines[i];
        double gflops = l->flops / l->seconds * 1e-9, gbs = l->bytes / l->seconds * 1e-9;
        printf("%s{\"name\": \"%s\", \"ms\": %.9g, \"gflops\": %.9g, \"gb_per_s\": %.9g, "
               "\"peak_fraction\": %.9g, \"copy_fraction\": %.9g}",
               i ? ", " : "", l->name, l->seconds * 1e3, gflops, gbs, gflops / b->peak_gflops,
               gbs / b->copy_gbs);
    }
    printf("]}\n");
}

static void print(const struct tsr_bench_ops *b) {
    printf("%s, %s, %d tokens: peak of products %.1f GFLOP/s, copy %.1f GB/s\n\n",
           b->ctx->ops->describe(b->ctx), tsr_dtype_name(b->ctx->dtype), b->n, b->peak_gflops,
           b->copy_gbs);
    printf("%-24s %12s %12s %10s   %s\n", "operation", "ms", "GFLOP/s", "GB/s", "of the ceiling");
    for (int i = 0; i < b->n_lines; i++) {
        const struct tsr_bench_line *l = &b->lines[i];
        double gflops = l->flops / l->seconds * 1e-9, gbs = l->bytes / l->seconds * 1e-9;
        printf("%-24s %12.4f ", l->name, l->seconds * 1e3);
        if (l->flops > 0)
            printf("%12.1f %10s   %5.1f %% of the peak\n", gflops, "",
                   gflops / b->peak_gflops * 100);
        else
            printf("%12s %10.1f   %5.1f %% of copying\n", "", gbs, gbs / b->copy_gbs * 100);
    }
}

static int run(struct tsr_job *j, const struct arguments *a) {
    const char *json = tsr_preset_json(a->preset);
    if (!json)
        return tsr_fail(TSR_EUSAGE, "there is no preset \"%s\"", a->preset);
    TSR_TRY(tsr_device_open(&j->device, &j->ctx, &j->comm, &a->want));
    TSR_TRY(tsr_model_parse(&j->model, json, a->preset));
    j->model_open = true;
    if (a->tokens % a->seq_len != 0)
        return tsr_fail(TSR_EUSAGE, "--tokens %" PRId64 " is no multiple of --seq-len %" PRId64,
                        a->tokens, a->seq_len);
    struct tsr_bench_ops b = {.ctx = &j->ctx,
                              .m = &j->model,
                              .n = (int)a->tokens,
                              .seq_len = (int)a->seq_len,
                              .n_segs = (int)(a->tokens / a->seq_len),
                              .es = tsr_dtype_size(j->ctx.dtype),
                              .limit_s = a->seconds};
    b.head_rows = b.n < TSR_BENCH_HEAD_ROWS ? b.n : TSR_BENCH_HEAD_ROWS;
    int rc = tsr_bench_ops_open(&b);
    if (rc == 0)
        rc = measure_ceilings(&b);
    if (rc == 0)
        rc = tsr_bench_ops_all(&b);
    if (rc == 0 && a->json)
        print_json(&b);
    else if (rc == 0)
        print(&b);
    tsr_bench_ops_close(&b);
    TSR_TRY(rc);
    return fflush(stdout) == 0 ? 0 : tsr_fail(TSR_EIO, "standard output can't be written");
}

int tsr_bench_ops(int argc, char **argv) {
    struct arguments a = {.preset = "smollm2-135m",
                          .device = "auto",
                          .dtype = "fp32",
                          .want = {.exact = true},
                          .tokens = 1024,
                          .seq_len = 1024,
                          .seconds = 0.5};
    struct tsr_job j;
    const char *args[1];
    int n_args;
    const struct tsr_option options[] = {
        {"preset", 0, TSR_OPT_STRING, &a.preset, "NAME", 0, 0, "model shape (smollm2-135m)"},
        {"tokens", 0, TSR_OPT_INT, &a.tokens, "N", 1, 1 << 20, "rows of activations (1024)"},
        {"seq-len", 0, TSR_OPT_INT, &a.seq_len, "T", 1, 1 << 20, "tokens of a sequence (1024)"},
        {"seconds", 0, TSR_OPT_REAL, &a.seconds, "S", 0, 60, "for each operation (0.5)"},
        {"threads", 0, TSR_OPT_INT, &a.want.threads, "N", 0, 4096, "of a CPU (all cores)"},
        {"device", 0, TSR_OPT_STRING, &a.device, "D", 0, 0, "auto, cpu or cuda (auto)"},
        {"dtype", 0, TSR_OPT_STRING, &a.dtype, "D", 0, 0, "of the arithmetic: fp32 or bf16 (fp32)"},
        {"json", 0, TSR_OPT_FLAG, &a.json, NULL, 0, 0, "one JSON object"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera bench ops",
        .usage = "[options]",
        .about = "Times each operation of a training step and of decoding on random numbers, as a\n"
                 "share of the device's measured peak of products, or of a plain copy's bandwidth.",
        .options = options,
        .n_options = sizeof options / sizeof *options};
    int rc = tsr_options_parse(&cl, argc, argv, args, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    rc = tsr_job_open(&j, cl.command);
    if (rc == 0)
        rc = tsr_device_parse(&a.want, a.device, a.dtype);
    if (rc == 0 && j.comm.world > 1)
        rc = tsr_fail(TSR_EUSAGE, "expected one process, found %d", j.comm.world);
    if (rc == 0)
        rc = run(&j, &a);
    return tsr_job_close(&j, rc);
}

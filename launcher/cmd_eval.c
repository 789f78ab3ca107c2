// `tessera eval`: loss and perplexity of a model on a text.
#include <jansson.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/progress_bar.h"
#include "dist/infer.h"
#include "dist/leaves.h"
#include "launcher/commands.h"
#include "launcher/job.h"
#include "launcher/options.h"

struct evaluation {
    struct tsr_job job;
    struct tsr_infer infer;
    const char *dir, *data, *device, *dtype;
    struct tsr_device_want want;
    int64_t seq_len, tp, pp;
    bool json; // the report is JSON anyway
    char cache[TSR_PATH_MAX];
    int32_t *tokens; // (T + 1)
};

// The dataset's tokenized text lives in a folder of its own for the time of the command.
static int make_cache(struct evaluation *e) {
    const char *tmp = getenv("TMPDIR");
    int n = snprintf(e->cache, sizeof e->cache, "%s/tessera-eval-XXXXXX", tmp ? tmp : "/tmp");
    if (n < 0 || (size_t)n >= sizeof e->cache)
        return tsr_fail(TSR_EUSAGE, "TMPDIR is too long");
    if (!mkdtemp(e->cache)) {
        e->cache[0] = 0;
        return tsr_fail(TSR_EIO, "no temporary folder can be made in %s", tmp ? tmp : "/tmp");
    }
    return 0;
}

static void remove_cache(struct evaluation *e) {
    if (e->cache[0])
        tsr_remove_tree(e->cache);
    e->cache[0] = 0;
}

static int open_data(struct evaluation *e) {
    struct tsr_job *j = &e->job;
    struct tsr_model m;
    struct tsr_source source = {(char *)(uintptr_t)e->data, 1.0};
    struct tsr_sources sources = {&source, 1};
    char file[TSR_PATH_MAX];
    TSR_TRY(tsr_device_parse(&e->want, e->device, e->dtype));
    if (!e->data)
        return tsr_fail(TSR_EUSAGE,
                        "--data is missing: expected a .txt, .jsonl or .bin/.idx prefix");
    TSR_TRY(tsr_check_model_dir(e->dir));
    TSR_TRY(tsr_path_join(file, e->dir, "tokenizer.json"));
    if (tsr_path_exists(file))
        TSR_TRY(tsr_tokenizer_load(&j->tokenizer, e->dir));
    TSR_TRY(tsr_model_load(&m, e->dir));
    struct tsr_dataset_opt opt = {.sources = &sources,
                                  .cache_dir = e->cache,
                                  .tokenizer = j->tokenizer,
                                  .tokenizer_dir = j->tokenizer ? e->dir : NULL,
                                  .vocab = m.vocab,
                                  .seq_len = 1,
                                  .part = TSR_PART_ALL};
    if (e->seq_len == 0)
        e->seq_len = m.max_positions < 1024 ? m.max_positions : 1024;
    tsr_model_free(&m);
    TSR_TRY(make_cache(e));
    TSR_TRY(tsr_dataset_prepare(&opt));
    TSR_TRY(tsr_dataset_open(&j->train, &opt));
    e->tokens = calloc((size_t)e->seq_len + 1, sizeof *e->tokens);
    if (!e->tokens)
        return tsr_fail(TSR_ENOMEM, "no memory for a window of %lld tokens", (long long)e->seq_len);
    remove_cache(e); // its files are open
    return 0;
}

static int evaluate(struct evaluation *e, int64_t n_tokens, double *sum) {
    struct tsr_bar bar;
    int64_t predicted = n_tokens - 1, T = e->seq_len;
    *sum = 0.0;
    tsr_bar_begin(&bar, "eval", "tokens", 0, (uint64_t)predicted);
    for (int64_t at = 0; at < predicted; at += T) {
        int n = (int)(predicted - at < T ? predicted - at : T);
        double window = 0.0;
        TSR_TRY(tsr_dataset_read(e->job.train, at, n + 1, e->tokens, NULL));
        TSR_TRY(tsr_infer_loss(&e->infer, e->tokens, e->tokens + 1, n, &window));
        *sum += window;
        if (e->job.comm.rank == 0)
            tsr_bar_update(&bar, (uint64_t)(at + n), NULL);
    }
    tsr_bar_stop(&bar);
    return 0;
}

// JSON has no NaN and no infinity, which a damaged model's loss may be: null.
static const char *number(char out[static 32], double v) {
    snprintf(out, 32, isfinite(v) ? "%.9g" : "null", v);
    return out;
}

static int run(struct evaluation *e) {
    struct tsr_job *j = &e->job;
    char loss_text[32], perplexity[32];
    double sum;
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, open_data(e)));
    TSR_TRY(tsr_device_open(&j->device, &j->ctx, &j->comm, &e->want));
    int64_t n = tsr_dataset_n_tokens(j->train);
    TSR_TRY(tsr_infer_open(&e->infer, e->dir, &j->ctx, &j->comm, (int)e->tp, (int)e->pp, 0,
                           (int)e->seq_len));
    TSR_TRY(evaluate(e, n, &sum));
    if (j->comm.rank != 0)
        return 0;
    double loss = sum / (double)(n - 1);
    printf("{\"tokens\": %lld, \"loss\": %s, \"perplexity\": %s}\n", (long long)(n - 1),
           number(loss_text, loss), number(perplexity, exp(loss)));
    return fflush(stdout) == 0 ? 0 : tsr_fail(TSR_EIO, "standard output can't be written");
}

int tsr_cmd_eval(int argc, char **argv) {
    struct evaluation e = {
        .tp = 1, .pp = 1, .device = "auto", .dtype = "fp32", .want = {.exact = true}};
    const struct tsr_option options[] = {
        {"data", 'd', TSR_OPT_STRING, &e.data, "FILE", 0, 0, ".txt, .jsonl or a .bin/.idx prefix"},
        {"seq-len", 'T', TSR_OPT_INT, &e.seq_len, "T", 1, 1 << 24,
         "tokens of a window (the model's positions, at most 1024)"},
        {"tp", 0, TSR_OPT_INT, &e.tp, "N", 1, 4096, "tensor-parallel ranks, under mpirun (1)"},
        {"pp", 0, TSR_OPT_INT, &e.pp, "N", 1, 4096, "pipeline stages, under mpirun (1)"},
        {"threads", 0, TSR_OPT_INT, &e.want.threads, "N", 0, 4096,
         "of each rank (0: cores / ranks here)"},
        {"device", 0, TSR_OPT_STRING, &e.device, "D", 0, 0, "auto, cpu or cuda (auto)"},
        {"dtype", 0, TSR_OPT_STRING, &e.dtype, "D", 0, 0, "of the arithmetic: fp32 or bf16 (fp32)"},
        {"json", 0, TSR_OPT_FLAG, &e.json, NULL, 0, 0, "one JSON object (as always)"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera eval",
        .usage = "MODEL_DIR --data FILE [options]",
        .about =
            "Prints a JSON object: tokens predicted, loss (nats per token), perplexity. Windows\n"
            "are [iT, iT+T]; the last, shorter one counts too.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = 1};
    int n_args, rc = tsr_options_parse(&cl, argc, argv, &e.dir, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    rc = tsr_job_open(&e.job, cl.command);
    if (rc == 0)
        rc = run(&e);
    remove_cache(&e);
    tsr_job_settle(&e.job, rc);
    free(e.tokens);
    tsr_infer_close(&e.infer);
    return tsr_job_close(&e.job, rc);
}

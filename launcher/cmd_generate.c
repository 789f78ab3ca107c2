// `tessera generate`: continues a text or a list of token ids.
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/infer.h"
#include "dist/leaves.h"
#include "launcher/commands.h"
#include "launcher/job.h"
#include "launcher/options.h"

enum { PREFILL_TOKENS = 512 };

struct generation {
    struct tsr_job job;
    struct tsr_infer infer;
    const char *dir, *prompt, *ids, *device, *dtype;
    struct tsr_device_want want;
    int64_t max_tokens, tp, pp, seed;
    bool ignore_eos;
    struct tsr_sampling sampling;
    struct tsr_ids prompt_ids;
    struct tsr_buf bytes; // decoded but not printed: part of a character
    double prefill_s, decode_s;
};

static int parse_ids(struct generation *g) {
    for (const char *p = g->ids; *p;) {
        char *end;
        long id = strtol(p, &end, 10);
        bool ends_well = *end == 0 || (*end == ',' && end[1]);
        if (*p < '0' || *p > '9' || !ends_well || id > INT32_MAX)
            return tsr_fail(TSR_EUSAGE, "--ids takes numbers separated by commas, not \"%s\"",
                            g->ids);
        TSR_TRY(tsr_ids_push(&g->prompt_ids, (int32_t)id));
        p = *end ? end + 1 : end;
    }
    return 0;
}

static int read_prompt(struct generation *g) {
    if (g->ids) {
        TSR_TRY(parse_ids(g));
    } else {
        TSR_TRY(tsr_tokenizer_load(&g->job.tokenizer, g->dir));
        TSR_TRY(tsr_tokenizer_encode(g->job.tokenizer, g->prompt, strlen(g->prompt),
                                     TSR_ENCODE_ADD_SPECIAL, &g->prompt_ids));
        int32_t start = tsr_tokenizer_bos(g->job.tokenizer);
        if (start < 0)
            start = tsr_tokenizer_eos(g->job.tokenizer);
        if (g->prompt_ids.n == 0 && start >= 0)
            TSR_TRY(tsr_ids_push(&g->prompt_ids, start));
    }
    if (g->prompt_ids.n == 0)
        return tsr_fail(TSR_EUSAGE, "the prompt is empty: expected at least one token");
    return 0;
}

static int check_ids(const struct generation *g) {
    for (size_t i = 0; i < g->prompt_ids.n; i++)
        if (g->prompt_ids.v[i] >= g->infer.m.vocab)
            return tsr_fail(TSR_EUSAGE, "token %d of the prompt is not in the vocabulary of %lld",
                            g->prompt_ids.v[i], (long long)g->infer.m.vocab);
    return 0;
}

// Prints what is whole characters by now; `last`: the rest too, broken bytes as U+FFFD.
static int flush_text(struct generation *g, bool last) {
    struct tsr_buf *b = &g->bytes;
    size_t at = 0;
    while (at < b->len) {
        size_t whole = tsr_utf8_whole_prefix(b->data + at, b->len - at);
        size_t good = tsr_utf8_valid_prefix(b->data + at, whole);
        fwrite(b->data + at, 1, good, stdout);
        at += good;
        if (at == b->len || (good == whole && !last))
            break;
        fputs("\xEF\xBF\xBD", stdout);
        at++;
    }
    memmove(b->data, b->data + at, b->len - at);
    b->len -= at;
    if (fflush(stdout) != 0)
        return tsr_fail(TSR_EIO, "standard output can't be written");
    return 0;
}

static int print_token(struct generation *g, int32_t id, int64_t index) {
    if (g->job.comm.rank != 0)
        return 0;
    if (g->ids) {
        printf(index ? " %d" : "%d", id);
        return fflush(stdout) == 0 ? 0 : tsr_fail(TSR_EIO, "standard output can't be written");
    }
    TSR_TRY(tsr_tokenizer_decode(g->job.tokenizer, &id, 1, true, &g->bytes));
    return g->bytes.len ? flush_text(g, false) : 0;
}

static bool is_eos(const struct generation *g, int32_t id) {
    for (int i = 0; i < g->infer.m.n_eos; i++)
        if (g->infer.m.eos[i] == id)
            return !g->ignore_eos;
    return false;
}

static int generate(struct generation *g) {
    const int32_t *tokens = g->prompt_ids.v;
    int n = (int)g->prompt_ids.n, position = 0;
    int64_t made = 0;
    int32_t next = 0;
    double begin = tsr_now();
    while (made < g->max_tokens) {
        TSR_TRY(tsr_infer_next(&g->infer, tokens, n, position, &g->sampling, &next));
        if (made == 0) {
            g->prefill_s = tsr_now() - begin;
            begin = tsr_now();
        }
        if (is_eos(g, next))
            break;
        TSR_TRY(print_token(g, next, made++));
        position += n;
        tokens = &next;
        n = 1;
    }
    g->decode_s = tsr_now() - begin;
    if (g->job.comm.rank != 0)
        return 0;
    if (!g->ids && g->bytes.len)
        TSR_TRY(flush_text(g, true));
    if (g->ids || isatty(1))
        putchar('\n');
    fprintf(stderr, "%sprompt: %zu tokens in %.3f s; output: %lld tokens, %.1f tokens/s\n",
            g->ids || isatty(1) ? "" : "\n", // after the text, which needn't end a line
            g->prompt_ids.n, g->prefill_s, (long long)made,
            made > 1 ? (double)(made - 1) / g->decode_s : 0.0);
    return fflush(stdout) == 0 ? 0 : tsr_fail(TSR_EIO, "standard output can't be written");
}

static int prepare(struct generation *g) {
    if (!g->prompt == !g->ids)
        return tsr_fail(TSR_EUSAGE, "expected either --prompt or --ids");
    TSR_TRY(tsr_device_parse(&g->want, g->device, g->dtype));
    g->sampling.seed = (uint64_t)g->seed;
    TSR_TRY(tsr_check_model_dir(g->dir));
    return read_prompt(g);
}

static int run(struct generation *g) {
    struct tsr_job *j = &g->job;
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, prepare(g)));
    TSR_TRY(tsr_device_open(&j->device, &j->ctx, &j->comm, &g->want));
    int64_t capacity = (int64_t)g->prompt_ids.n + g->max_tokens;
    int most = g->prompt_ids.n < PREFILL_TOKENS ? (int)g->prompt_ids.n : PREFILL_TOKENS;
    TSR_TRY(tsr_infer_open(&g->infer, g->dir, &j->ctx, &j->comm, (int)g->tp, (int)g->pp,
                           (int)capacity, most));
    TSR_TRY(tsr_agree(&j->ctx, &j->comm, check_ids(g)));
    return generate(g);
}

int tsr_cmd_generate(int argc, char **argv) {
    struct generation g = {.max_tokens = 128,
                           .tp = 1,
                           .pp = 1,
                           .device = "auto",
                           .dtype = "fp32",
                           .want = {.exact = true}};
    struct tsr_sampling *s = &g.sampling;
    *s = (struct tsr_sampling){.temperature = 1.0, .top_p = 1.0};
    const struct tsr_option options[] = {
        {"prompt", 'p', TSR_OPT_STRING, &g.prompt, "TEXT", 0, 0, "the text to continue"},
        {"ids", 0, TSR_OPT_STRING, &g.ids, "LIST", 0, 0,
         "token ids (1,2,3) to continue; prints ids"},
        {"max-tokens", 'n', TSR_OPT_INT, &g.max_tokens, "N", 1, 1 << 24,
         "most tokens to generate (128)"},
        {"temperature", 't', TSR_OPT_REAL, &s->temperature, "T", 0, 100, "0: greedy; default 1"},
        {"top-k", 0, TSR_OPT_INT, &s->top_k, "K", 0, 1 << 30,
         "only the K likeliest tokens (0: all)"},
        {"top-p", 0, TSR_OPT_REAL, &s->top_p, "P", 0, 1,
         "only the likeliest tokens that reach probability P (1: all)"},
        {"min-p", 0, TSR_OPT_REAL, &s->min_p, "P", 0, 1,
         "only tokens of at least P times the largest probability"},
        {"seed", 's', TSR_OPT_INT, &g.seed, "S", 0, 9e18, "of sampling (0)"},
        {"ignore-eos", 0, TSR_OPT_FLAG, &g.ignore_eos, NULL, 0, 0,
         "go on after an end-of-text token"},
        {"tp", 0, TSR_OPT_INT, &g.tp, "N", 1, 4096, "tensor-parallel ranks, under mpirun (1)"},
        {"pp", 0, TSR_OPT_INT, &g.pp, "N", 1, 4096, "pipeline stages, under mpirun (1)"},
        {"threads", 0, TSR_OPT_INT, &g.want.threads, "N", 0, 4096,
         "of each rank (0: cores / ranks here)"},
        {"device", 0, TSR_OPT_STRING, &g.device, "D", 0, 0, "auto, cpu or cuda (auto)"},
        {"dtype", 0, TSR_OPT_STRING, &g.dtype, "D", 0, 0, "of the arithmetic: fp32 or bf16 (fp32)"},
    };
    const struct tsr_command_line cl = {
        .command = "tessera generate",
        .usage = "MODEL_DIR -p TEXT [options]",
        .about =
            "Continues a text with a model directory (Hugging Face or a checkpoint) and prints\n"
            "the continuation as it is made. Timing goes to standard error.",
        .options = options,
        .n_options = sizeof options / sizeof *options,
        .min_args = 1,
        .max_args = 1};
    int n_args, rc = tsr_options_parse(&cl, argc, argv, &g.dir, &n_args);
    if (rc != 0)
        return rc == 1 ? 0 : tsr_report_once(cl.command, rc);
    rc = tsr_job_open(&g.job, cl.command);
    if (rc == 0)
        rc = run(&g);
    tsr_job_settle(&g.job, rc);
    tsr_infer_close(&g.infer);
    tsr_ids_free(&g.prompt_ids);
    tsr_buf_free(&g.bytes);
    return tsr_job_close(&g.job, rc);
}

// The one table of the run file's fields, and what can be said of a field from the table alone.
#include "core/run_private.h"

#include <stdio.h>
#include <string.h>
#include "core/error.h"
#include "core/guard.h"

static const char *const packings[] = {"crossing", "isolated", NULL};
static const char *const lr_schedules[] = {"constant", "linear", "cosine", "wsd", NULL};
static const char *const precisions[] = {"fp32", "bf16", NULL};
static const char *const recomputes[] = {"none", "selective", "full", NULL};
static const char *const pipelines[] = {"gpipe", "1f1b", "interleaved", NULL};
static const char *const on_bads[] = {"skip", "rollback", "stop", NULL};
static const char *const backends[] = {"auto", "cpu", "cuda", NULL};
static const char *const resumes[] = {"auto", "none", NULL};

#define AT(member)    .offset = offsetof(struct tsr_run, member)
#define INT(a, b)     .type = TSR_FIELD_INT, .lo = (a), .hi = (b)
#define REAL(a, b)    .type = TSR_FIELD_REAL, .lo = (a), .hi = (b)
#define PROBABILITY   REAL(0, 1), .open_hi = true, .dflt = "0"
#define ENUM(w)       .type = TSR_FIELD_ENUM, .words = (w)
#define NO_LIMIT      9223372036854775808.0
#define MAX_SEQUENCES 1073741824.0 // of a batch
#define MAX_TOKENS    1073741824.0 // of a sequence
#define MAX_RANKS     65536

// clang-format off
const struct tsr_field tsr_fields[TSR_N_FIELDS] = {
    {"run.name", TSR_FIELD_STRING, AT(run.name), .dflt_in_words = "the run file's name",
     .help = "what the run is called in messages and reports"},
    {"run.dir", TSR_FIELD_PATH, AT(run.dir), .dflt_in_words = "runs/<run.name>",
     .help = "the run directory: config.yaml, metrics.jsonl, log.jsonl, checkpoints/"},
    {"run.seed", INT(0, NO_LIMIT), AT(run.seed), .dflt = "1", .fixed = true,
     .help = "of initial weights, order of the data and dropout"},

    {"model.from", TSR_FIELD_PATH, AT(model.from),
     .help = "Hugging Face model folder to continue from: its config.json and its weights"},
    {"model.preset", TSR_FIELD_STRING, AT(model.preset), .fixed = true,
     .help = "name of a built-in model shape, with fresh weights"},
    {"model.config", TSR_FIELD_JSON, AT(model.config), .fixed = true,
     .help = "keys of a Hugging Face config.json, with fresh weights; `position: sinusoidal` "
             "gives a GPT model fixed positions"},
    {"model.tokenizer", TSR_FIELD_PATH, AT(model.tokenizer),
     .dflt_in_words = "model.from, when it has a tokenizer.json",
     .help = "folder with a tokenizer.json; needed for text, not for .bin data"},

    {"data.train", TSR_FIELD_SOURCES, AT(data.train),
     .help = "training data: a list of paths or {path, weight}; .txt, .jsonl or the prefix of a "
             ".bin/.idx pair"},
    {"data.valid", TSR_FIELD_SOURCES, AT(data.valid),
     .dflt_in_words = "every 20th 8 KiB block of the text in data.train",
     .help = "validation data, written like data.train"},
    {"data.seq_len", INT(1, MAX_TOKENS), AT(data.seq_len), .dflt = "1024", .fixed = true,
     .help = "tokens in a sequence"},
    {"data.shuffle", TSR_FIELD_BOOL, AT(data.shuffle), .dflt = "true", .fixed = true,
     .help = "take the sequences of each epoch in random order; false: as they stand"},
    {"data.packing", ENUM(packings), AT(data.packing), .dflt = "crossing", .fixed = true,
     .help = "whether attention and loss cross document borders inside a sequence"},

    {"train.steps", INT(1, NO_LIMIT), AT(train.steps), .required = true,
     .help = "optimizer steps of the whole run"},
    {"train.global_batch", INT(1, MAX_SEQUENCES), AT(train.global_batch), .dflt = "8",
     .fixed = true, .help = "sequences in a step, over all ranks"},
    {"train.micro_batch", INT(1, MAX_SEQUENCES), AT(train.micro_batch), .dflt = "1",
     .help = "sequences that a rank computes at once; changes memory and speed, not results"},
    {"train.lr", REAL(0, 1e6), AT(train.lr), .dflt = "3e-4", .help = "highest learning rate"},
    {"train.schedule", ENUM(lr_schedules), AT(train.schedule), .dflt = "constant",
     .help = "learning rate after the warm-up; wsd: constant, then linear over the last steps"},
    {"train.warmup", INT(0, NO_LIMIT), AT(train.warmup), .dflt = "0",
     .help = "first steps, in which the learning rate rises linearly"},
    {"train.decay", INT(-1, NO_LIMIT), AT(train.decay), .dflt = "-1",
     .dflt_in_words = "a fifth of train.steps",
     .help = "last steps, in which the wsd schedule falls; -1: a fifth of train.steps"},
    {"train.min_lr", REAL(0, 1e6), AT(train.min_lr), .dflt = "0",
     .help = "learning rate at the end of the linear, cosine and wsd schedules"},
    {"train.beta1", REAL(0, 1), .open_hi = true, AT(train.beta1), .dflt = "0.9",
     .help = "AdamW: decay of the first moment"},
    {"train.beta2", REAL(0, 1), .open_hi = true, AT(train.beta2), .dflt = "0.95",
     .help = "AdamW: decay of the second moment"},
    {"train.eps", REAL(0, 1), AT(train.eps), .dflt = "1e-8",
     .help = "AdamW: added to the root of the second moment"},
    {"train.weight_decay", REAL(0, 1e6), AT(train.weight_decay), .dflt = "0.1",
     .help = "AdamW: decoupled decay of matrices and embeddings, not of norms and biases"},
    {"train.clip", REAL(0, 1e30), AT(train.clip), .dflt = "1",
     .help = "largest norm of the whole gradient; 0: no clipping"},
    {"train.precision", ENUM(precisions), AT(train.precision), .dflt = "fp32",
     .help = "of activations and gradients; master weights are always fp32"},
    {"train.stochastic_rounding", TSR_FIELD_BOOL, AT(train.stochastic_rounding), .dflt = "false",
     .fixed = true,
     .help = "bf16 only: round updated weights up or down at random, with the mean unchanged; "
             "false: to nearest"},
    {"train.recompute", ENUM(recomputes), AT(train.recompute), .dflt = "none",
     .help = "activations to compute again in backward instead of keeping them"},
    {"train.eval_every", INT(0, NO_LIMIT), AT(train.eval_every), .dflt = "0",
     .help = "steps between validation losses; 0: never"},
    {"train.dropout.embedding", PROBABILITY, AT(train.dropout.embedding),
     .help = "dropout after the embedding"},
    {"train.dropout.attention", PROBABILITY, AT(train.dropout.attention),
     .help = "dropout on attention weights"},
    {"train.dropout.residual", PROBABILITY, AT(train.dropout.residual),
     .help = "dropout before each residual add"},
    {"train.dropout.ffn", PROBABILITY, AT(train.dropout.ffn),
     .help = "dropout after the activation of the FFN"},
    {"train.on_nonfinite", ENUM(on_bads), AT(train.on_nonfinite), .dflt = "skip",
     .help = "after a step whose loss or gradient norm isn't finite: skip its update; rollback to "
             "the last periodic checkpoint and go on with the data after it; or stop"},
    {"train.max_skips", INT(0, NO_LIMIT), AT(train.max_skips), .dflt = "10",
     .help = "skips in a row, or rollbacks to the same checkpoint; at one more the run ends"},
    {"train.spike.grad_norm", REAL(0, 1e30), AT(train.spike.grad_norm), .dflt = "0",
     .help = "a step is a spike when its gradient norm is more than this times the median of the "
             "window; 0: off"},
    {"train.spike.loss", REAL(0, 1e30), AT(train.spike.loss), .dflt = "0",
     .help = "the same for the loss; 0: off"},
    {"train.spike.window", INT(1, TSR_GUARD_WINDOW), AT(train.spike.window), .dflt = "100",
     .help = "good steps of the window; there are no spikes before it is full"},
    {"train.spike.action", ENUM(on_bads), AT(train.spike.action), .dflt = "skip",
     .help = "after a spike, as train.on_nonfinite"},

    {"parallel.tp", INT(1, MAX_RANKS), AT(parallel.tp), .dflt = "1",
     .help = "tensor-parallel ranks: shares of each block"},
    {"parallel.pp", INT(1, MAX_RANKS), AT(parallel.pp), .dflt = "1",
     .help = "pipeline-parallel ranks: shares of the depth"},
    {"parallel.dp", INT(0, MAX_RANKS), AT(parallel.dp), .dflt = "0",
     .dflt_in_words = "ranks / (tp pp)",
     .help = "data-parallel ranks: copies of the model; 0: ranks / (tp pp)"},
    {"parallel.schedule", ENUM(pipelines), AT(parallel.schedule), .dflt = "1f1b",
     .help = "order of micro-batches in the pipeline"},
    {"parallel.chunks", INT(1, 4096), AT(parallel.chunks), .dflt = "1",
     .help = "virtual stages of a rank in the interleaved schedule; 1 in the others"},
    {"parallel.sequence", TSR_FIELD_BOOL, AT(parallel.sequence), .dflt = "false",
     .help = "sequence parallelism: tp ranks share the tokens between blocks"},
    {"parallel.exact", TSR_FIELD_BOOL, AT(parallel.exact), .dflt = "true", .fixed = true,
     .help = "results that don't depend on the layout, to the last bit; false: virtual_shards is "
             "tp, virtual_replicas is dp"},
    {"parallel.virtual_shards", INT(0, 1024), AT(parallel.virtual_shards), .dflt = "0",
     .fixed = true, .dflt_in_words = "8",
     .help = "pieces of a sum that tensor parallelism may cut (V); 0: 8"},
    {"parallel.virtual_replicas", INT(0, MAX_SEQUENCES), AT(parallel.virtual_replicas),
     .dflt = "0", .fixed = true,
     .dflt_in_words = "the largest power of two <= 8 that divides train.global_batch",
     .help = "pieces of the global batch that data parallelism may deal out (W); 0: derived"},
    {"parallel.elastic", TSR_FIELD_LAYOUTS, AT(parallel.elastic),
     .help = "layouts to go on with when the one above can't be run, in order of preference"},

    {"checkpoint.every", INT(0, NO_LIMIT), AT(checkpoint.every), .dflt = "0",
     .help = "steps between checkpoints; 0: only after the last step"},
    {"checkpoint.keep", INT(0, NO_LIMIT), AT(checkpoint.keep), .dflt = "0",
     .help = "newest checkpoints to keep; 0: all"},
    {"checkpoint.async", TSR_FIELD_BOOL, AT(checkpoint.async), .dflt = "true",
     .help = "write checkpoints while training goes on, from a copy in memory; false: training waits, "
             "and there is no copy"},
    {"checkpoint.resume", TSR_FIELD_RESUME, AT(checkpoint.resume), .words = resumes,
     .dflt = "auto",
     .help = "auto: from the newest good checkpoint of run.dir, if any; none: start again; or a "
             "checkpoint's folder"},

    {"supervise.restarts", INT(0, 1e6), AT(supervise.restarts), .dflt = "10",
     .help = "restarts after a failure without a new checkpoint between them; then the run ends"},
    {"supervise.heartbeat_ms", INT(10, 60000), AT(supervise.heartbeat_ms), .dflt = "250",
     .help = "between two signs of life of a rank"},
    {"supervise.lost_ms", INT(100, 600000), AT(supervise.lost_ms), .dflt = "3000",
     .help = "silence after which a rank counts as dead"},
    {"supervise.stall_ms", INT(100, 864e5), AT(supervise.stall_ms), .dflt = "3000",
     .help = "standing still that counts as hung; 5 times the longest so far when that is more"},
    {"supervise.first_ms", INT(3000, 864e5), AT(supervise.first_ms), .dflt = "120000",
     .help = "standing still in a phase that was never completed, after which a rank counts as hung"},
    {"supervise.metrics_port", INT(0, 65535), AT(supervise.metrics_port), .dflt = "0",
     .help = "loopback port of /metrics for Prometheus; 0: none"},

    {"device.backend", ENUM(backends), AT(device.backend), .dflt = "auto",
     .help = "where to compute"},
    {"device.threads", INT(0, 4096), AT(device.threads), .dflt = "0",
     .dflt_in_words = "cores / ranks on this host",
     .help = "threads of a rank; 0: cores / ranks on this host"},
};
// clang-format on

int tsr_field_find(const char *path) {
    for (int i = 0; i < TSR_N_FIELDS; i++)
        if (strcmp(tsr_fields[i].path, path) == 0)
            return i;
    return -1;
}

bool tsr_field_is_section(const char *path) {
    size_t n = strlen(path);
    for (int i = 0; i < TSR_N_FIELDS; i++)
        if (strncmp(tsr_fields[i].path, path, n) == 0 && tsr_fields[i].path[n] == '.')
            return true;
    return false;
}

static void words_text(const char *const *words, char *buf, size_t n_buf) {
    size_t at = 0;
    for (int i = 0; words[i] && at < n_buf; i++)
        at += (size_t)snprintf(buf + at, n_buf - at, "%s%s", i ? "|" : "", words[i]);
}

static void range_text(const struct tsr_field *f, const char *kind, double top, char *buf,
                       size_t n_buf) {
    const char *more = f->open_lo ? ">" : ">=", *less = f->open_hi ? "<" : "<=";
    if (f->hi < top)
        snprintf(buf, n_buf, "%s %s %.10g and %s %.10g", kind, more, f->lo, less, f->hi);
    else
        snprintf(buf, n_buf, "%s %s %.10g", kind, more, f->lo);
}

const char *tsr_field_type_text(const struct tsr_field *f, char buf[static 200]) {
    char words[100] = "";
    if (f->words)
        words_text(f->words, words, sizeof words);
    switch (f->type) {
    case TSR_FIELD_INT:
        range_text(f, "integer", NO_LIMIT, buf, 200);
        return buf;
    case TSR_FIELD_REAL:
        range_text(f, "number", 1e6, buf, 200);
        return buf;
    case TSR_FIELD_BOOL:
        return "true|false";
    case TSR_FIELD_ENUM:
        return strcpy(buf, words);
    case TSR_FIELD_RESUME:
        snprintf(buf, 200, "%s|path", words);
        return buf;
    case TSR_FIELD_STRING:
        return "text";
    case TSR_FIELD_PATH:
        return "path";
    case TSR_FIELD_JSON:
        return "mapping of config.json keys";
    case TSR_FIELD_LAYOUTS:
        return "list of {tp, pp, dp}";
    case TSR_FIELD_SOURCES:
        break;
    }
    return "list of paths or {path, weight}";
}

void tsr_run_fields_each(void (*fn)(const char *path, const char *type, const char *dflt,
                                    const char *help, bool fixed, void *arg),
                         void *arg) {
    for (int i = 0; i < TSR_N_FIELDS; i++) {
        const struct tsr_field *f = &tsr_fields[i];
        char type[200];
        const char *dflt = f->dflt_in_words ? f->dflt_in_words : f->dflt;
        if (f->required)
            dflt = "(required)";
        fn(f->path, tsr_field_type_text(f, type), dflt ? dflt : "none", f->help, f->fixed, arg);
    }
}

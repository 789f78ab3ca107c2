// Rules of a run file that span fields. A rule is skipped when one of its fields was a mistake
// already: its value there is only the default.
#include "core/run_private.h"

#include <string.h>
#include "core/error.h"
#include "core/guard.h"
#include "core/model.h"

// The place of the first of these fields that was given, for the message; false when one of them
// is bad. Ends with NULL.
static bool fields_are_good(const struct tsr_reader *rd, const char *const *paths,
                            struct tsr_mark *at) {
    at->argument = -1;
    for (int i = 0; paths[i]; i++) {
        int field = tsr_field_find(paths[i]);
        TSR_ASSERT(field >= 0);
        if (rd->bad[field])
            return false;
        if (at->argument < 0)
            *at = rd->marks[field];
    }
    return true;
}
#define FIELDS(...) ((const char *const[]){__VA_ARGS__, NULL})

static void check_required(struct tsr_reader *rd) {
    for (int i = 0; i < TSR_N_FIELDS; i++) {
        const struct tsr_field *f = &tsr_fields[i];
        char type[200];
        if (f->required && rd->marks[i].argument < 0)
            tsr_mistake(rd, rd->marks[i], "%s: missing: expected %s", f->path,
                        tsr_field_type_text(f, type));
    }
}

struct names {
    const char *items[128];
    int n;
};

static void add_name(const char *name, void *arg) {
    struct names *names = arg;
    if (names->n < (int)(sizeof names->items / sizeof names->items[0]))
        names->items[names->n++] = name;
}

static void check_preset(struct tsr_reader *rd, struct tsr_mark at) {
    const char *preset = rd->r->model.preset;
    struct names names = {.n = 0};
    if (tsr_preset_json(preset))
        return;
    tsr_preset_each(add_name, &names);
    const char *near = tsr_nearest(preset, names.items, names.n);
    if (near) {
        tsr_mistake(rd, at, "model.preset: unknown preset %.60s; did you mean %s?", preset, near);
        return;
    }
    struct tsr_buf list = {0};
    for (int i = 0; i < names.n; i++)
        rd->no_memory |= tsr_buf_printf(&list, "%s%s", i ? ", " : "", names.items[i]) < 0;
    tsr_mistake(rd, at, "model.preset: unknown preset %.60s; expected one of %s", preset,
                list.data ? list.data : "none");
    tsr_buf_free(&list);
}

static void check_model(struct tsr_reader *rd) {
    const struct tsr_run *r = rd->r;
    struct tsr_mark at;
    struct tsr_model m;
    int n = !!r->model.from + !!r->model.preset + !!r->model.config;
    if (!fields_are_good(rd, FIELDS("model.config", "model.preset", "model.from"), &at))
        return;
    if (n != 1) {
        tsr_mistake(rd, at,
                    "model: expected exactly one of model.from, model.preset and model.config, "
                    "found %s%s%s%s",
                    n == 0 ? "none" : "", r->model.from ? "from " : "",
                    r->model.preset ? "preset " : "", r->model.config ? "config" : "");
        return;
    }
    if (r->model.preset)
        check_preset(rd, at);
    if (!r->model.config)
        return;
    if (tsr_model_parse(&m, r->model.config, "model.config") < 0)
        tsr_mistake(rd, at, "%s", tsr_error_text());
    else
        tsr_model_free(&m);
}

static void check_lr(struct tsr_reader *rd) {
    const struct tsr_run *r = rd->r;
    struct tsr_mark at;
    long long steps = r->train.steps, warmup = r->train.warmup, decay = r->train.decay;
    bool steps_known = fields_are_good(rd, FIELDS("train.steps"), &at) && at.argument >= 0;
    if (fields_are_good(rd, FIELDS("train.warmup", "train.steps"), &at) && steps_known) {
        if (warmup > steps)
            tsr_mistake(rd, at, "train.warmup: expected at most train.steps (%lld), found %lld",
                        steps, warmup);
        else if (r->train.schedule == TSR_LR_WSD && decay > steps - warmup)
            tsr_mistake(rd, at,
                        "train.decay: expected at most train.steps - train.warmup (%lld), found "
                        "%lld",
                        steps - warmup, decay);
    }
    if (fields_are_good(rd, FIELDS("train.min_lr", "train.lr"), &at) &&
        r->train.min_lr > r->train.lr)
        tsr_mistake(rd, at, "train.min_lr: expected at most train.lr (%g), found %g", r->train.lr,
                    r->train.min_lr);
}

static void check_factor(struct tsr_reader *rd, const char *path, double factor) {
    struct tsr_mark at;
    if (fields_are_good(rd, (const char *const[]){path, NULL}, &at) && factor > 0.0 &&
        factor <= 1.0)
        tsr_mistake(rd, at, "%s: expected 0 or a number > 1, found %g", path, factor);
}

static void check_bad_steps(struct tsr_reader *rd) {
    const struct tsr_run *r = rd->r;
    const char *path =
        r->train.on_nonfinite == TSR_ON_BAD_ROLLBACK ? "train.on_nonfinite" : "train.spike.action";
    struct tsr_mark at;
    check_factor(rd, "train.spike.grad_norm", r->train.spike.grad_norm);
    check_factor(rd, "train.spike.loss", r->train.spike.loss);
    if (fields_are_good(rd,
                        FIELDS(path, "checkpoint.every", "train.on_nonfinite", "train.spike.action",
                               "train.spike.grad_norm", "train.spike.loss"),
                        &at) &&
        tsr_guard_may_roll_back(r) && r->checkpoint.every == 0)
        tsr_mistake(rd, at, "%s: rollback needs periodic checkpoints: set checkpoint.every", path);
}

static void check_layout(struct tsr_reader *rd) {
    const struct tsr_run *r = rd->r;
    struct tsr_mark at;
    if (fields_are_good(rd, FIELDS("parallel.chunks", "parallel.schedule"), &at) &&
        r->parallel.schedule == TSR_PIPE_INTERLEAVED && r->parallel.chunks < 2)
        tsr_mistake(rd, at,
                    "parallel.chunks: the interleaved schedule needs at least 2 chunks, found %lld",
                    (long long)r->parallel.chunks);
    if (fields_are_good(rd,
                        FIELDS("train.micro_batch", "train.global_batch", "parallel.dp",
                               "parallel.tp", "parallel.pp", "parallel.virtual_shards",
                               "parallel.virtual_replicas", "parallel.exact", "parallel.schedule"),
                        &at) &&
        tsr_run_check_layout(r) < 0)
        tsr_mistake(rd, at, "%s", tsr_error_text());
    if (fields_are_good(rd, FIELDS("train.micro_batch", "data.seq_len"), &at) &&
        r->train.micro_batch * r->data.seq_len > INT32_MAX)
        tsr_mistake(rd, at,
                    "train.micro_batch: expected at most 2^31 - 1 tokens in a micro-batch, found "
                    "%lld * %lld",
                    (long long)r->train.micro_batch, (long long)r->data.seq_len);
}

// Each layout to go on with must fit the batch, and give the same results as the first one.
static void check_elastic(struct tsr_reader *rd) {
    const struct tsr_layouts *list = &rd->r->parallel.elastic;
    struct tsr_mark at;
    if (list->n == 0 || !fields_are_good(rd,
                                         FIELDS("parallel.elastic", "train.micro_batch",
                                                "train.global_batch", "parallel.virtual_shards",
                                                "parallel.virtual_replicas", "parallel.schedule"),
                                         &at))
        return;
    if (!rd->r->parallel.exact) {
        tsr_mistake(rd, at,
                    "parallel.elastic: needs parallel.exact: true, or another layout would "
                    "give other results");
        return;
    }
    for (int i = 0; i < list->n; i++) {
        struct tsr_run other = *rd->r; // shares all that it points to
        const struct tsr_layout3 *l = &list->items[i];
        other.parallel.tp = l->tp;
        other.parallel.pp = l->pp;
        other.parallel.dp = l->dp;
        if (tsr_run_check_layout(&other) < 0)
            tsr_mistake(rd, at, "parallel.elastic: layout %d (tp %lld, pp %lld, dp %lld): %s",
                        i + 1, (long long)l->tp, (long long)l->pp, (long long)l->dp,
                        tsr_error_text());
    }
}

static bool ends_with(const char *s, const char *end) {
    size_t n = strlen(s), n_end = strlen(end);
    return n >= n_end && strcmp(s + n - n_end, end) == 0;
}

static void check_text(struct tsr_reader *rd, const struct tsr_sources *list, const char *path) {
    struct tsr_mark at;
    if (rd->r->model.tokenizer ||
        !fields_are_good(rd, (const char *const[]){path, "model.tokenizer", NULL}, &at))
        return;
    for (int i = 0; i < list->n; i++) {
        const char *source = list->items[i].path;
        if (!ends_with(source, ".txt") && !ends_with(source, ".jsonl"))
            continue;
        tsr_mistake(rd, at, "%s: text (%.200s) needs a model.tokenizer", path, source);
        return;
    }
}

static void check_device(struct tsr_reader *rd) {
    struct tsr_mark at;
    // Whether `auto` finds a device is known when it is opened.
    if (fields_are_good(rd, FIELDS("train.precision", "device.backend"), &at) &&
        rd->r->train.precision == TSR_BF16 && rd->r->device.backend == TSR_BACKEND_CPU)
        tsr_mistake(rd, at, "train.precision: bf16 needs a CUDA device: on the cpu use fp32");
    if (fields_are_good(rd, FIELDS("train.stochastic_rounding", "train.precision"), &at) &&
        rd->r->train.stochastic_rounding && rd->r->train.precision != TSR_BF16)
        tsr_mistake(rd, at,
                    "train.stochastic_rounding: needs train.precision: bf16; fp32 weights aren't "
                    "rounded");
}

void tsr_run_check(struct tsr_reader *rd) {
    check_required(rd);
    check_model(rd);
    check_lr(rd);
    check_bad_steps(rd);
    check_layout(rd);
    check_elastic(rd);
    check_text(rd, &rd->r->data.train, "data.train");
    check_text(rd, &rd->r->data.valid, "data.valid");
    check_device(rd);
}

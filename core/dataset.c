#include "core/dataset.h"
#include "core/dataset_cache.h"
#include "core/error.h"
#include "core/log.h"
#include "core/mix.h"

#include <math.h>
#include <string.h>

struct source {
    struct tsr_indexed *tokens;
    char *path;          // as the user wrote it, for messages
    int64_t n_sequences; // in one epoch of this source
};

struct tsr_dataset {
    int n;
    struct source *sources;
    struct tsr_mix mix;
    int64_t T, vocab, n_sequences, n_tokens;
    bool shuffle;
    uint64_t seed;
};

// A .bin has no text to hold out; it is trained on as a whole.
static bool gives_nothing(const struct tsr_dataset_opt *opt, enum tsr_source_kind kind) {
    return opt->part == TSR_PART_HELD_OUT && kind == TSR_SOURCE_INDEXED;
}

// One source of a held-out part may be too short to give a sequence; one that the user named may
// not, as its weight could not be kept.
static bool too_short(const struct tsr_dataset_opt *opt, const struct tsr_indexed *x) {
    return tsr_indexed_n_tokens(x) < opt->seq_len + 1;
}

static int fail_short(const struct tsr_dataset_opt *opt, const struct tsr_indexed *x,
                      const char *path) {
    return tsr_fail(
        TSR_EDATA,
        "%s: expected at least %lld tokens (one sequence of %lld and one more), found %lld", path,
        (long long)opt->seq_len + 1, (long long)opt->seq_len, (long long)tsr_indexed_n_tokens(x));
}

static int prepare_one(const struct tsr_dataset_opt *opt, const char *given) {
    enum tsr_source_kind kind;
    char path[TSR_PATH_MAX];
    struct tsr_indexed *x;
    TSR_TRY(tsr_source_resolve(given, &kind, path));
    if (gives_nothing(opt, kind))
        return 0;
    if (kind == TSR_SOURCE_INDEXED)
        return tsr_cache_check_indexed(opt, path);
    TSR_TRY(tsr_cache_prepare(opt, kind, path));
    TSR_TRY(tsr_cache_open(opt, kind, path, &x));
    if (opt->part == TSR_PART_HELD_OUT && too_short(opt, x))
        tsr_warn("%s: %lld tokens are held out, less than one sequence of %lld and one more: "
                 "no validation loss from it",
                 given, (long long)tsr_indexed_n_tokens(x), (long long)opt->seq_len);
    tsr_indexed_close(x);
    return 0;
}

int tsr_dataset_prepare(const struct tsr_dataset_opt *opt) {
    for (int i = 0; i < opt->sources->n; i++)
        TSR_TRY(prepare_one(opt, opt->sources->items[i].path));
    return 0;
}

// Adds a source, unless it gives nothing to this part.
static int add_source(struct tsr_dataset *d, const struct tsr_dataset_opt *opt,
                      const struct tsr_source *given, double *weight) {
    enum tsr_source_kind kind;
    char path[TSR_PATH_MAX];
    struct tsr_indexed *x;
    if (!(given->weight > 0) || !isfinite(given->weight))
        return tsr_fail(TSR_EDATA, "%s: expected a weight above 0, found %g", given->path,
                        given->weight);
    TSR_TRY(tsr_source_resolve(given->path, &kind, path));
    if (gives_nothing(opt, kind))
        return 0;
    if (kind == TSR_SOURCE_INDEXED)
        TSR_TRY(tsr_indexed_open(&x, path));
    else
        TSR_TRY(tsr_cache_open(opt, kind, path, &x));
    if (too_short(opt, x)) {
        int rc = opt->part == TSR_PART_HELD_OUT ? 0 : fail_short(opt, x, given->path);
        tsr_indexed_close(x);
        return rc;
    }
    struct source *s = &d->sources[d->n];
    weight[d->n++] = given->weight;
    s->tokens = x;
    s->n_sequences = (tsr_indexed_n_tokens(x) - 1) / opt->seq_len;
    d->n_sequences += s->n_sequences;
    d->n_tokens += tsr_indexed_n_tokens(x);
    s->path = strdup(given->path);
    return s->path ? 0 : tsr_fail(TSR_ENOMEM, "%s: out of memory", given->path);
}

static int add_all(struct tsr_dataset *d, const struct tsr_dataset_opt *opt) {
    int n = opt->sources->n, rc = 0;
    double *weights = calloc((size_t)n, sizeof *weights);
    d->sources = calloc((size_t)n, sizeof *d->sources);
    if (!weights || !d->sources)
        rc = tsr_fail(TSR_ENOMEM, "out of memory: %d data sources", n);
    for (int i = 0; i < n && rc == 0; i++)
        rc = add_source(d, opt, &opt->sources->items[i], weights);
    if (rc == 0 && d->n > 0)
        rc = tsr_mix_init(&d->mix, weights, d->n);
    free(weights);
    return rc;
}

int tsr_dataset_open(struct tsr_dataset **out, const struct tsr_dataset_opt *opt) {
    TSR_ASSERT(opt->sources->n > 0 && opt->seq_len > 0 && opt->vocab > 0);
    *out = NULL;
    struct tsr_dataset *d = calloc(1, sizeof *d);
    if (!d)
        return tsr_fail(TSR_ENOMEM, "out of memory: a dataset");
    d->T = opt->seq_len;
    d->vocab = opt->vocab;
    d->shuffle = opt->shuffle;
    d->seed = opt->seed;
    int rc = add_all(d, opt);
    if (rc < 0 || d->n == 0) {
        tsr_dataset_close(d);
        return rc;
    }
    *out = d;
    return 0;
}

void tsr_dataset_close(struct tsr_dataset *d) {
    if (!d)
        return;
    for (int i = 0; i < d->n; i++) {
        tsr_indexed_close(d->sources[i].tokens);
        free(d->sources[i].path);
    }
    tsr_mix_free(&d->mix);
    free(d->sources);
    free(d);
}

int64_t tsr_dataset_n_sequences(const struct tsr_dataset *d) {
    return d->n_sequences;
}

int64_t tsr_dataset_n_tokens(const struct tsr_dataset *d) {
    return d->n_tokens;
}

static int read_tokens(const struct tsr_dataset *d, const struct source *s, int64_t at, int64_t n,
                       int32_t *tokens, uint8_t *doc_start) {
    TSR_TRY(tsr_indexed_read(s->tokens, at, n, tokens, doc_start));
    for (int64_t i = 0; i < n; i++)
        if (tokens[i] >= d->vocab)
            return tsr_fail(TSR_EDATA, "%s: position %lld: token id %d, but the vocabulary is %lld",
                            s->path, (long long)(at + i), tokens[i], (long long)d->vocab);
    return 0;
}

int tsr_dataset_read(const struct tsr_dataset *d, int64_t at, int64_t n, int32_t *tokens,
                     uint8_t *doc_start) {
    TSR_ASSERT(d->n == 1);
    return read_tokens(d, &d->sources[0], at, n, tokens, doc_start);
}

int tsr_dataset_sequence(const struct tsr_dataset *d, uint64_t g, int32_t *tokens,
                         uint8_t *doc_start) {
    struct tsr_pick pick = tsr_mix_at(&d->mix, g);
    const struct source *s = &d->sources[pick.source];
    uint64_t n = (uint64_t)s->n_sequences, epoch = pick.index / n, i = pick.index % n;
    if (d->shuffle) // each source has its own order; the first one's is that of a lone source
        i = tsr_permute(i, n, d->seed, epoch | (uint64_t)pick.source << 48);
    return read_tokens(d, s, (int64_t)i * d->T, d->T + 1, tokens, doc_start);
}

#include "core/dataset_cache.h"
#include "core/error.h"
#include "core/indexed.h"

struct joiner {
    struct tsr_indexed_writer *w;
    int32_t eos;  // -1: none
    bool pending; // a document has ended; its EOS waits for the next one
};

// Ends the document that waits, with its EOS when something follows or EOS is appended to all.
static int settle(struct joiner *j, bool with_eos) {
    if (!j->pending)
        return 0;
    j->pending = false;
    if (with_eos && j->eos >= 0)
        TSR_TRY(tsr_indexed_add_tokens(j->w, &j->eos, 1));
    return tsr_indexed_end_document(j->w);
}

static int on_tokens(void *arg, const int32_t *ids, int64_t n) {
    struct joiner *j = arg;
    TSR_TRY(settle(j, true));
    return tsr_indexed_add_tokens(j->w, ids, n);
}

static int on_end(void *arg) {
    struct joiner *j = arg;
    j->pending = true;
    return 0;
}

static int each_path(struct joiner *j, const char *const *paths, int n_paths, int part,
                     struct tsr_tokenizer *t) {
    struct tsr_text_sink sink = {j, on_tokens, on_end};
    for (int i = 0; i < n_paths; i++) {
        enum tsr_source_kind kind;
        char path[TSR_PATH_MAX];
        TSR_TRY(tsr_source_resolve(paths[i], &kind, path));
        if (kind == TSR_SOURCE_INDEXED)
            return tsr_fail(TSR_EDATA, "%s: expected text, found tokens", paths[i]);
        TSR_TRY(tsr_text_each(path, kind, part, t, &sink));
    }
    return 0;
}

int tsr_text_to_indexed(const char *prefix, int64_t vocab, int32_t eos, bool append,
                        const char *const *paths, int n_paths, int part, struct tsr_tokenizer *t) {
    struct joiner j = {.eos = eos};
    TSR_TRY(tsr_indexed_create(&j.w, prefix, vocab));
    int rc = each_path(&j, paths, n_paths, part, t);
    if (rc == 0)
        rc = settle(&j, append);
    if (rc == 0)
        return tsr_indexed_finish(j.w);
    tsr_indexed_abort(j.w);
    return rc;
}

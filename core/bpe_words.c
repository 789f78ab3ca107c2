#include "core/bpe_train.h"
#include "core/error.h"
#include "core/pretokenize.h"
#include "core/progress_bar.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>

void tsr_word_counts_free(struct tsr_word_counts *w) {
    tsr_strmap_free(&w->words);
    free(w->count);
    *w = (struct tsr_word_counts){0};
}

static int count_word(void *arg, const char *word, size_t n_bytes) {
    struct tsr_word_counts *w = arg;
    uint32_t index;
    size_t n_before = w->words.n;
    TSR_TRY(tsr_strmap_add(&w->words, word, n_bytes, &index));
    if (index == n_before) {
        if (index == w->cap) {
            size_t cap = w->cap ? 2 * w->cap : 1024;
            int64_t *count = realloc(w->count, cap * sizeof *count);
            if (!count)
                return tsr_fail(TSR_ENOMEM, "no memory to count %zu words", cap);
            w->count = count;
            w->cap = cap;
        }
        w->count[index] = 0;
    }
    w->count[index]++;
    return 0;
}

// A file that is being counted, and the text's bytes before it.
struct source {
    const char *path;
    struct tsr_pretok *pretok;
    struct tsr_bar *bar;
    uint64_t *n_read;
};

static int count_lines(struct tsr_word_counts *w, const struct source *src, FILE *f) {
    char *line = NULL;
    size_t cap = 0;
    uint64_t offset = 0;
    int rc = 0;
    for (ssize_t n; rc == 0 && (errno = 0, n = getline(&line, &cap, f)) > 0;) {
        size_t n_bytes = (size_t)n, valid = tsr_utf8_valid_prefix(line, n_bytes);
        if (valid != n_bytes) {
            rc = tsr_fail(TSR_EDATA,
                          "%s: expected UTF-8 text, found an invalid byte 0x%02x at offset %llu",
                          src->path, (unsigned)(unsigned char)line[valid],
                          (unsigned long long)(offset + valid));
            break;
        }
        offset += n_bytes;
        *src->n_read += n_bytes;
        rc = tsr_pretok_run(src->pretok, line, n_bytes, true, count_word, w);
        tsr_bar_update(src->bar, *src->n_read, NULL);
    }
    if (rc == 0 && errno == ENOMEM)
        rc = tsr_fail(TSR_ENOMEM, "%s: no memory for a line", src->path);
    else if (rc == 0 && ferror(f))
        rc = tsr_fail(errno == EISDIR ? TSR_EDATA : TSR_EIO, "%s: cannot read: %s", src->path,
                      strerror(errno));
    free(line);
    return rc;
}

static uint64_t total_bytes(const struct tsr_bpe_train *opt) {
    uint64_t total = 0;
    for (int i = 0; i < opt->n_files; i++) {
        struct stat st;
        if (stat(opt->files[i], &st) == 0 && S_ISREG(st.st_mode))
            total += (uint64_t)st.st_size;
    }
    return total;
}

static int read_all(struct tsr_word_counts *w, const struct tsr_bpe_train *opt,
                    struct tsr_pretok *pretok, struct tsr_bar *bar) {
    uint64_t n_read = 0;
    for (int i = 0; i < opt->n_files; i++) {
        struct source src = {opt->files[i], pretok, bar, &n_read};
        FILE *f = fopen(src.path, "rb");
        if (!f)
            return tsr_fail(TSR_EDATA, "%s: cannot open: %s", src.path, strerror(errno));
        int rc = count_lines(w, &src, f);
        fclose(f);
        TSR_TRY(rc);
    }
    if (n_read == 0)
        return tsr_fail(TSR_EDATA, "%s%s: expected text to train a tokenizer on, found nothing",
                        opt->files[0], opt->n_files > 1 ? " and the other files" : "");
    return 0;
}

int tsr_word_counts_read(struct tsr_word_counts *w, const struct tsr_bpe_train *opt) {
    json_error_t e;
    struct tsr_pretok *pretok;
    struct tsr_bar bar;
    json_t *json = json_loads(tsr_bpe_pretokenizer(opt->llama3_pattern), 0, &e);
    if (!json)
        return tsr_fail(TSR_ENOMEM, "no memory for a pre-tokenizer");
    int rc = tsr_pretok_parse(&pretok, json, "the trainer");
    json_decref(json);
    TSR_TRY(rc);
    tsr_bar_begin(&bar, "reading text", "B", 0, total_bytes(opt));
    rc = read_all(w, opt, pretok, &bar);
    if (rc == 0)
        tsr_bar_end(&bar);
    else
        tsr_bar_stop(&bar);
    tsr_pretok_free(pretok);
    return rc;
}

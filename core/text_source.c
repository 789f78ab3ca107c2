#include "core/text_source.h"
#include "core/error.h"
#include "core/held_out.h"
#include "core/progress_bar.h"

#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static const size_t PIECE_BYTES = (size_t)1 << 20;

struct reader {
    const char *path, *text; // mapped
    size_t size;
    int part;
    struct tsr_held_out held;
    struct tsr_tokenizer *tokenizer;
    const struct tsr_text_sink *sink;
    struct tsr_bar bar;
    size_t run_at;       // where the text being encoded begins in the file
    int64_t in_document; // tokens
};

static bool ends_with(const char *s, const char *tail) {
    size_t n = strlen(s), m = strlen(tail);
    return n > m && strcmp(s + n - m, tail) == 0;
}

int tsr_source_resolve(const char *path, enum tsr_source_kind *kind,
                       char out[static TSR_PATH_MAX]) {
    char idx[TSR_PATH_MAX];
    size_t n = strlen(path);
    if (n + 4 >= TSR_PATH_MAX)
        return tsr_fail(TSR_EUSAGE, "path is too long: %.200s…", path);
    memcpy(out, path, n + 1);
    if (ends_with(path, ".jsonl") || ends_with(path, ".json")) {
        *kind = TSR_SOURCE_JSONL;
        return 0;
    }
    *kind = TSR_SOURCE_TEXT;
    if (ends_with(path, ".txt"))
        return 0;
    bool named = ends_with(path, ".bin") || ends_with(path, ".idx");
    if (named)
        out[n - 4] = 0;
    snprintf(idx, sizeof idx, "%.*s.idx", TSR_PATH_MAX - 5, out);
    if (named || tsr_path_exists(idx))
        *kind = TSR_SOURCE_INDEXED;
    else if (!tsr_path_exists(path))
        return tsr_fail(TSR_EDATA,
                        "%s: expected a .txt or .jsonl file or the prefix of a .bin and .idx file, "
                        "found nothing of that name",
                        path);
    return 0;
}

static int on_ids(void *arg, const struct tsr_ids *ids, size_t n_done) {
    struct reader *r = arg;
    if (ids->n > 0)
        TSR_TRY(r->sink->tokens(r->sink->arg, ids->v, (int64_t)ids->n));
    r->in_document += (int64_t)ids->n;
    tsr_bar_update(&r->bar, r->run_at + n_done, NULL);
    return 0;
}

static int end_document(struct reader *r) {
    bool any = r->in_document > 0;
    r->in_document = 0;
    return any ? r->sink->end(r->sink->arg) : 0;
}

static int each_run(struct reader *r) {
    size_t k = 0, lo, hi;
    while (tsr_held_out_next(&r->held, r->part, &k, &lo, &hi)) {
        r->run_at = lo;
        int rc = tsr_text_encode(r->tokenizer, r->text + lo, hi - lo, lo, PIECE_BYTES, on_ids, r);
        if (rc < 0)
            return tsr_fail_prefix(rc, "%s", r->path);
        TSR_TRY(end_document(r));
    }
    return 0;
}

static int fail_line(const struct reader *r, int64_t number, const char *found) {
    return tsr_fail(TSR_EDATA, "%s: line %lld: expected an object with a string \"text\", found %s",
                    r->path, (long long)number, found);
}

// One line: {"text": "..."} and whatever else.
static int line_document(struct reader *r, const char *line, size_t n_bytes, int64_t number) {
    json_error_t e;
    size_t n_valid = tsr_utf8_valid_prefix(line, n_bytes);
    if (n_valid < n_bytes)
        return tsr_fail(TSR_EDATA, "%s: line %lld: invalid UTF-8 at byte %zu", r->path,
                        (long long)number, r->run_at + n_valid);
    json_t *root = json_loadb(line, n_bytes, JSON_ALLOW_NUL, &e);
    if (!root)
        return tsr_fail(TSR_EDATA, "%s: line %lld, column %d: expected a JSON object: %s", r->path,
                        (long long)number, e.column, e.text);
    int rc;
    json_t *text = json_object_get(root, "text");
    if (!text)
        rc = fail_line(r, number, json_is_object(root) ? "no such key" : "no object");
    else if (!json_is_string(text))
        rc = fail_line(r, number, "something else under that key");
    else if ((rc = tsr_text_encode(r->tokenizer, json_string_value(text), json_string_length(text),
                                   0, PIECE_BYTES, on_ids, r)) < 0)
        rc = tsr_fail_prefix(rc, "%s: line %lld", r->path, (long long)number);
    json_decref(root);
    return rc < 0 ? rc : end_document(r);
}

static bool is_blank(const char *s, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (s[i] != ' ' && s[i] != '\t' && s[i] != '\r')
            return false;
    return true;
}

static int each_line(struct reader *r) {
    int64_t number = 1;
    for (size_t at = 0; at < r->size; number++) {
        const char *line = r->text + at, *newline = memchr(line, '\n', r->size - at);
        size_t n = newline ? (size_t)(newline - line) : r->size - at;
        r->run_at = at;
        if (!is_blank(line, n) && tsr_held_out_has_line(&r->held, r->part, at))
            TSR_TRY(line_document(r, line, n, number));
        at += n + 1;
    }
    return 0;
}

static int map_text(const char *path, struct reader *r) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail(TSR_EDATA, "%s: cannot open: %s", path, strerror(errno));
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) < 0) {
        rc = tsr_fail_errno(errno, "cannot read", path);
    } else if (!S_ISREG(st.st_mode)) {
        rc = tsr_fail(TSR_EDATA, "%s: expected a file, found a folder, pipe or device", path);
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
        if (p == MAP_FAILED) {
            rc = tsr_fail_errno(errno, "cannot map", path);
        } else {
            madvise(p, (size_t)st.st_size, MADV_SEQUENTIAL);
            r->text = p;
            r->size = (size_t)st.st_size;
        }
    }
    close(fd);
    return rc;
}

int tsr_text_each(const char *path, enum tsr_source_kind kind, int part, struct tsr_tokenizer *t,
                  const struct tsr_text_sink *sink) {
    struct reader r = {.path = path, .part = part, .tokenizer = t, .sink = sink};
    char label[96];
    TSR_TRY(map_text(path, &r));
    if (r.size == 0)
        return 0;
    tsr_held_out_init(&r.held, r.text, r.size, kind == TSR_SOURCE_JSONL);
    snprintf(label, sizeof label, "tokenizing %.60s%s", tsr_path_base(path),
             part == TSR_PART_HELD_OUT ? " (held out)" : "");
    tsr_bar_begin(&r.bar, label, "B", 0, r.size);
    int rc = kind == TSR_SOURCE_JSONL ? each_line(&r) : each_run(&r);
    if (rc == 0)
        tsr_bar_update(&r.bar, r.size, NULL);
    if (rc == 0)
        tsr_bar_end(&r.bar);
    else
        tsr_bar_stop(&r.bar);
    munmap((void *)(uintptr_t)r.text, r.size);
    return rc;
}

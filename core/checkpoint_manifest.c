// manifest.json: what a checkpoint consists of, with a checksum of the manifest itself, so that
// every flipped bit of the whole directory is noticed.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"

enum { MAX_MANIFEST = 256 << 20 }; // bytes; enough for the ranges of 100 TB

#define FORMAT "tessera-checkpoint-1"
static const char before_checksum[] = "  ],\n  \"manifest_xxh3_128\": \"";
static const char after_checksum[] = "\"\n}\n";

static int append_file(const struct tsr_ckpt_listed *f, bool last, struct tsr_buf *out) {
    TSR_TRY(tsr_buf_printf(out, "    {\"path\": \"%s\", \"bytes\": %" PRIu64 ", \"xxh3_128\": [",
                           f->path, f->size));
    for (int64_t i = 0; i < f->n_ranges; i++) {
        char hex[TSR_CKPT_HEX + 1];
        tsr_ckpt_hex(hex, &f->digests[i]);
        TSR_TRY(tsr_buf_printf(out, "%s\"%s\"", i > 0 ? ", " : "", hex));
    }
    return tsr_buf_printf(out, "]}%s\n", last ? "" : ",");
}

int tsr_ckpt_manifest_text(const struct tsr_ckpt_manifest *m, struct tsr_buf *out) {
    char hex[TSR_CKPT_HEX + 1];
    TSR_TRY(tsr_buf_printf(out,
                           "{\n  \"format\": \"" FORMAT "\",\n  \"step\": %" PRId64
                           ",\n  \"range_bytes\": %" PRIu64 ",\n  \"files\": [\n",
                           m->step, m->range_bytes));
    for (int i = 0; i < m->n; i++)
        TSR_TRY(append_file(&m->files[i], i == m->n - 1, out));
    TSR_TRY(tsr_buf_append(out, before_checksum, strlen(before_checksum)));
    struct tsr_digest d = tsr_ckpt_digest_bytes(out->data, out->len);
    tsr_ckpt_hex(hex, &d);
    return tsr_buf_printf(out, "%s%s", hex, after_checksum);
}

// The checksum stands at the very end, so the text itself says what it covers.
static int check_checksum(const char *text, size_t n, const char *path) {
    const size_t n_tail = TSR_CKPT_HEX + strlen(after_checksum);
    char hex[TSR_CKPT_HEX + 1], tail[TSR_CKPT_HEX + sizeof after_checksum];
    if (n > n_tail) {
        struct tsr_digest d = tsr_ckpt_digest_bytes(text, n - n_tail);
        tsr_ckpt_hex(hex, &d);
        snprintf(tail, sizeof tail, "%s%s", hex, after_checksum);
        if (memcmp(text + n - n_tail, tail, n_tail) == 0)
            return 0;
    }
    return tsr_fail(TSR_EMODEL,
                    "%s: expected a manifest that ends with its own checksum, found "
                    "a damaged or unfinished one",
                    path);
}

bool tsr_ckpt_is_plain_path(const char *path) {
    const char *name = strncmp(path, "optimizer/", 10) == 0 ? path + 10 : path;
    size_t n = strlen(name);
    return n > 0 && n < 200 && name[0] != '.' &&
           strspn(name, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-") == n &&
           strcmp(path, TSR_CKPT_MANIFEST) != 0;
}

static int parse_digests(const json_t *list, uint64_t range_bytes, struct tsr_ckpt_listed *f,
                         const char *where) {
    f->n_ranges = tsr_ckpt_n_ranges(f->size, range_bytes);
    if (!json_is_array(list) || json_array_size(list) != (uint64_t)f->n_ranges)
        return tsr_fail(TSR_EMODEL, "%s: %s: expected %" PRId64 " digests, found %zu", where,
                        f->path, f->n_ranges, json_array_size(list));
    // as many as the text has, so no more than was read
    f->digests = calloc((size_t)f->n_ranges + 1, sizeof *f->digests);
    if (!f->digests)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for its digests", where);
    for (int64_t i = 0; i < f->n_ranges; i++) {
        const char *hex = json_string_value(json_array_get(list, (size_t)i));
        if (!hex || !tsr_ckpt_unhex(&f->digests[i], hex))
            return tsr_fail(TSR_EMODEL, "%s: %s: expected digest %" PRId64 " to be %d hex digits",
                            where, f->path, i, TSR_CKPT_HEX);
    }
    return 0;
}

static int parse_file(const json_t *value, uint64_t range_bytes, struct tsr_ckpt_listed *f,
                      const char *where) {
    const char *path = json_string_value(json_object_get(value, "path"));
    const json_t *size = json_object_get(value, "bytes");
    if (!path || !tsr_ckpt_is_plain_path(path))
        return tsr_fail(TSR_EMODEL, "%s: expected every `path` to be a file of the checkpoint",
                        where);
    if (!json_is_integer(size) || json_integer_value(size) < 0)
        return tsr_fail(TSR_EMODEL, "%s: %s: expected `bytes` to be an integer of at least 0",
                        where, path);
    f->path = strdup(path);
    if (!f->path)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for its paths", where);
    f->size = (uint64_t)json_integer_value(size);
    return parse_digests(json_object_get(value, "xxh3_128"), range_bytes, f, where);
}

static int parse_files(struct tsr_ckpt_manifest *m, const json_t *list, const char *where) {
    if (!json_is_array(list) || json_array_size(list) > INT32_MAX)
        return tsr_fail(TSR_EMODEL, "%s: expected an array `files`", where);
    m->files = calloc(json_array_size(list) + 1, sizeof *m->files);
    if (!m->files)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for its files", where);
    for (size_t i = 0; i < json_array_size(list); i++) {
        m->n++; // before the parse: on failure it is freed with the others
        TSR_TRY(parse_file(json_array_get(list, i), m->range_bytes, &m->files[i], where));
        if (i > 0 && strcmp(m->files[i - 1].path, m->files[i].path) >= 0)
            return tsr_fail(TSR_EMODEL, "%s: expected files in order, found %s after %s", where,
                            m->files[i].path, m->files[i - 1].path);
    }
    return 0;
}

static int parse(struct tsr_ckpt_manifest *m, const json_t *root, const char *where) {
    const char *format = json_string_value(json_object_get(root, "format"));
    const json_t *step = json_object_get(root, "step");
    const json_t *range = json_object_get(root, "range_bytes");
    if (!format || strcmp(format, FORMAT) != 0)
        return tsr_fail(TSR_EMODEL, "%s: expected `format` to be " FORMAT ", found %.100s", where,
                        format ? format : "none");
    if (!json_is_integer(step) || json_integer_value(step) < 0)
        return tsr_fail(TSR_EMODEL, "%s: expected `step` to be an integer of at least 0", where);
    if (!json_is_integer(range) || json_integer_value(range) < 1)
        return tsr_fail(TSR_EMODEL, "%s: expected `range_bytes` to be an integer of at least 1",
                        where);
    m->step = json_integer_value(step);
    m->range_bytes = (uint64_t)json_integer_value(range);
    return parse_files(m, json_object_get(root, "files"), where);
}

// One that may not be read is not damaged: whoever resumes must not take it for none.
static int read_manifest(const char *path, char **text, size_t *n) {
    int rc = tsr_read_regular_file(path, MAX_MANIFEST, TSR_EMODEL, text, n);
    if (rc == TSR_EMODEL && access(path, R_OK) < 0 && errno == EACCES)
        return tsr_fail_errno(errno, "cannot open", path);
    return rc;
}

int tsr_ckpt_manifest_read(struct tsr_ckpt_manifest *m, const char *dir) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    *m = (struct tsr_ckpt_manifest){0};
    TSR_TRY(tsr_path_join(path, dir, TSR_CKPT_MANIFEST));
    TSR_TRY(read_manifest(path, &text, &n));
    int rc = check_checksum(text, n, path);
    json_t *root = rc == 0 ? json_loadb(text, n, JSON_REJECT_DUPLICATES, NULL) : NULL;
    free(text);
    if (rc < 0)
        return rc;
    rc = root ? parse(m, root, path) : tsr_fail(TSR_EMODEL, "%s: not valid JSON", path);
    json_decref(root);
    if (rc < 0)
        tsr_ckpt_manifest_free(m);
    return rc;
}

int tsr_ckpt_manifest_digest(const char *dir, struct tsr_digest *out) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    TSR_TRY(tsr_path_join(path, dir, TSR_CKPT_MANIFEST));
    TSR_TRY(read_manifest(path, &text, &n));
    *out = tsr_ckpt_digest_bytes(text, n);
    free(text);
    return 0;
}

void tsr_ckpt_manifest_free(struct tsr_ckpt_manifest *m) {
    for (int i = 0; i < m->n; i++) {
        free(m->files[i].path);
        free(m->files[i].digests);
    }
    free(m->files);
    *m = (struct tsr_ckpt_manifest){0};
}

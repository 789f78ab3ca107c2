#include "core/safetensors.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <stdbool.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"

enum {
    MAX_HEADER = 100 * 1000 * 1000, // bytes; the cap of the format's reference implementation
    MAX_NAME = 512,
};

static int parse_shape(const char *path, const json_t *shape, struct tsr_st_entry *e) {
    if (!json_is_array(shape) || json_array_size(shape) > TSR_ST_MAX_DIMS)
        return tsr_fail(TSR_EMODEL,
                        "%s: tensor \"%s\": expected `shape` to be an array of at most %d sizes",
                        path, e->name, TSR_ST_MAX_DIMS);
    e->ndim = (int)json_array_size(shape);
    for (int i = 0; i < e->ndim; i++) {
        const json_t *size = json_array_get(shape, (size_t)i);
        if (!json_is_integer(size) || json_integer_value(size) < 0)
            return tsr_fail(TSR_EMODEL,
                            "%s: tensor \"%s\": expected size %d of `shape` to be an integer of at "
                            "least 0",
                            path, e->name, i);
        e->shape[i] = json_integer_value(size);
    }
    return 0;
}

static int parse_range(const char *path, const json_t *range, uint64_t data_size,
                       struct tsr_st_entry *e) {
    const json_t *begin = json_array_get(range, 0), *end = json_array_get(range, 1);
    if (json_array_size(range) != 2 || !json_is_integer(begin) || !json_is_integer(end))
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected `data_offsets` to be two integers",
                        path, e->name);
    json_int_t b = json_integer_value(begin), t = json_integer_value(end);
    if (b < 0 || t < b || (uint64_t)t > data_size)
        return tsr_fail(TSR_EMODEL,
                        "%s: tensor \"%s\": expected data offsets in order and at most %" PRIu64
                        " (the end of the file), found [%" PRId64 ", %" PRId64 "]",
                        path, e->name, data_size, (int64_t)b, (int64_t)t);
    e->begin = (uint64_t)b;
    e->end = (uint64_t)t;
    return 0;
}

static int parse_dtype(const char *path, const json_t *dtype, struct tsr_st_entry *e) {
    const char *name = json_is_string(dtype) ? json_string_value(dtype) : "no string";
    for (int i = 0; i < TSR_N_DTYPES; i++)
        if (strcmp(name, tsr_dtype_name((enum tsr_dtype)i)) == 0) {
            e->dtype = (enum tsr_dtype)i;
            return 0;
        }
    bool plain = strspn(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_ ") ==
                 strlen(name);
    return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected a known `dtype`, found %.32s", path,
                    e->name, plain ? name : "another string");
}

static int check_size(const char *path, const struct tsr_st_entry *e) {
    uint64_t n_bytes = tsr_dtype_size(e->dtype);
    bool overflow = false;
    for (int i = 0; i < e->ndim; i++)
        overflow |= __builtin_mul_overflow(n_bytes, (uint64_t)e->shape[i], &n_bytes);
    if (overflow)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": its shape has too many elements", path,
                        e->name);
    if (n_bytes != e->end - e->begin)
        return tsr_fail(TSR_EMODEL,
                        "%s: tensor \"%s\": expected %" PRIu64 " bytes by its shape and dtype %s, "
                        "found %" PRIu64 " by its data offsets",
                        path, e->name, n_bytes, tsr_dtype_name(e->dtype), e->end - e->begin);
    return 0;
}

static int check_name(const char *path, const char *name) {
    size_t n = strlen(name);
    if (n < 1 || n > MAX_NAME)
        return tsr_fail(TSR_EMODEL, "%s: expected tensor names of 1 to %d bytes, found one of %zu",
                        path, MAX_NAME, n);
    for (size_t i = 0; i < n; i++)
        if ((unsigned char)name[i] < 0x20 || name[i] == 0x7f)
            return tsr_fail(TSR_EMODEL, "%s: a tensor name has a control character at byte %zu",
                            path, i);
    return 0;
}

static int parse_entry(const struct tsr_st_file *f, const char *name, const json_t *value,
                       struct tsr_st_entry *e) {
    TSR_TRY(check_name(f->path, name));
    e->name = strdup(name);
    if (!e->name)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for a tensor name", f->path);
    if (!json_is_object(value))
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected an object", f->path, name);
    TSR_TRY(parse_dtype(f->path, json_object_get(value, "dtype"), e));
    TSR_TRY(parse_shape(f->path, json_object_get(value, "shape"), e));
    TSR_TRY(parse_range(f->path, json_object_get(value, "data_offsets"), f->data_size, e));
    return check_size(f->path, e);
}

static int check_metadata(const char *path, json_t *metadata) {
    const char *key;
    json_t *value;
    if (!json_is_object(metadata))
        return tsr_fail(TSR_EMODEL, "%s: expected `__metadata__` to be an object", path);
    json_object_foreach(metadata, key, value) {
        if (!json_is_string(value))
            return tsr_fail(TSR_EMODEL, "%s: expected every value of `__metadata__` to be a string",
                            path);
    }
    return 0;
}

static int by_offset(const void *a, const void *b) {
    const struct tsr_st_entry *x = a, *y = b;
    if (x->begin != y->begin)
        return x->begin < y->begin ? -1 : 1;
    return x->end < y->end ? -1 : x->end > y->end;
}

static int by_name(const void *a, const void *b) {
    return strcmp(((const struct tsr_st_entry *)a)->name, ((const struct tsr_st_entry *)b)->name);
}

// In the order of their bytes, each tensor begins where the one before ends.
static int check_coverage(const struct tsr_st_file *f) {
    uint64_t at = 0;
    for (int i = 0; i < f->n; i++) {
        const struct tsr_st_entry *e = &f->entries[i];
        if (e->begin != at)
            return tsr_fail(TSR_EMODEL,
                            "%s: tensor \"%s\": expected its data at %" PRIu64 ", found it at "
                            "%" PRIu64 ": tensors %s",
                            f->path, e->name, at, e->begin,
                            e->begin < at ? "overlap" : "leave a hole");
        at = e->end;
    }
    if (at != f->data_size)
        return tsr_fail(TSR_EMODEL,
                        "%s: expected %" PRIu64 " bytes of data by the header, found %" PRIu64,
                        f->path, at, f->data_size);
    return 0;
}

static int parse_header(struct tsr_st_file *f, json_t *root) {
    const char *name;
    json_t *value;
    if (!json_is_object(root))
        return tsr_fail(TSR_EMODEL, "%s: expected the header to be a JSON object", f->path);
    // At most one entry for every few bytes of a header that is in memory already.
    f->entries = calloc(json_object_size(root) + 1, sizeof *f->entries);
    if (!f->entries)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for %zu tensors", f->path,
                        json_object_size(root));
    json_object_foreach(root, name, value) {
        if (strcmp(name, "__metadata__") == 0) {
            TSR_TRY(check_metadata(f->path, value));
            continue;
        }
        f->n++; // before the parse: on failure close() frees what the entry has
        TSR_TRY(parse_entry(f, name, value, &f->entries[f->n - 1]));
    }
    qsort(f->entries, (size_t)f->n, sizeof *f->entries, by_offset);
    TSR_TRY(check_coverage(f));
    qsort(f->entries, (size_t)f->n, sizeof *f->entries, by_name);
    return 0;
}

static int read_header(struct tsr_st_file *f, char *header, size_t n_bytes) {
    json_error_t err;
    TSR_TRY(tsr_pread_all(f->fd, header, n_bytes, 8, f->path));
    if (header[0] != '{')
        return tsr_fail(TSR_EMODEL, "%s: expected the header to begin with '{'", f->path);
    json_t *root = json_loadb(header, n_bytes, JSON_REJECT_DUPLICATES, &err);
    if (!root && json_error_code(&err) == json_error_out_of_memory)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for its header", f->path);
    if (!root)
        return tsr_fail(TSR_EMODEL, "%s: the header is not valid JSON: %s at byte %d", f->path,
                        json_error_code(&err) == json_error_duplicate_key ? "a name stands twice"
                                                                          : "syntax error",
                        err.position);
    int rc = parse_header(f, root);
    json_decref(root);
    return rc;
}

static int open_file(struct tsr_st_file *f, const char *path, uint64_t *size) {
    struct stat st;
    f->path = strdup(path);
    if (!f->path)
        return tsr_fail(TSR_ENOMEM, "no memory to open %s", path);
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); // a pipe must not block
    if (f->fd < 0 && (errno == ENOENT || errno == ENOTDIR || errno == EACCES || errno == ELOOP))
        return tsr_fail(TSR_EMODEL, "%s: cannot open: %s", path, strerror(errno));
    if (f->fd < 0 || fstat(f->fd, &st) < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    if (!S_ISREG(st.st_mode))
        return tsr_fail(TSR_EMODEL, "%s: expected a regular file", path);
    *size = (uint64_t)st.st_size;
    return 0;
}

static int open_checked(struct tsr_st_file *f, const char *path) {
    unsigned char word[8];
    uint64_t size = 0, n_header = 0;
    TSR_TRY(open_file(f, path, &size));
    if (size < sizeof word)
        return tsr_fail(TSR_EMODEL,
                        "%s: expected a safetensors file of at least 8 bytes, found %" PRIu64, path,
                        size);
    TSR_TRY(tsr_pread_all(f->fd, word, sizeof word, 0, path));
    for (int i = 7; i >= 0; i--)
        n_header = n_header << 8 | word[i];
    if (n_header < 2 || n_header > size - 8 || n_header > MAX_HEADER)
        return tsr_fail(TSR_EMODEL,
                        "%s: expected a header of 2 to %" PRIu64 " bytes, found length %" PRIu64,
                        path, size - 8 < MAX_HEADER ? size - 8 : MAX_HEADER, n_header);
    f->data_offset = 8 + n_header;
    f->data_size = size - f->data_offset;
    char *header = malloc(n_header);
    if (!header)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for a header of %" PRIu64 " bytes", path,
                        n_header);
    int rc = read_header(f, header, n_header);
    free(header);
    return rc;
}

int tsr_st_open(struct tsr_st_file *f, const char *path) {
    *f = (struct tsr_st_file){.fd = -1};
    int rc = open_checked(f, path);
    if (rc < 0)
        tsr_st_close(f);
    return rc;
}

void tsr_st_close(struct tsr_st_file *f) {
    for (int i = 0; i < f->n; i++)
        free(f->entries[i].name);
    free(f->entries);
    free(f->path);
    if (f->fd >= 0)
        close(f->fd);
    *f = (struct tsr_st_file){.fd = -1};
}

const struct tsr_st_entry *tsr_st_find(const struct tsr_st_file *f, const char *name) {
    int lo = 0, hi = f->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2, order = strcmp(f->entries[mid].name, name);
        if (order == 0)
            return &f->entries[mid];
        if (order < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return NULL;
}

#include "core/indexed.h"
#include "core/error.h"
#include "core/progress_bar.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "the files are mapped as they are");

struct map {
    char path[TSR_PATH_MAX];
    const unsigned char *p; // NULL when the file is empty
    size_t size;            // bytes
};

struct tsr_indexed {
    struct map idx, bin;
    int dtype;
    size_t token_size; // bytes
    int64_t n_sequences, n_documents, n_tokens;
    const unsigned char *lengths, *pointers, *borders; // unaligned, inside idx
};

static const struct {
    const char *name;
    size_t size; // bytes
} DTYPE[] = {
    [TSR_IDX_U8] = {"uint8", 1},    [TSR_IDX_I8] = {"int8", 1},   [TSR_IDX_I16] = {"int16", 2},
    [TSR_IDX_I32] = {"int32", 4},   [TSR_IDX_I64] = {"int64", 8}, [TSR_IDX_F64] = {"float64", 8},
    [TSR_IDX_F32] = {"float32", 4}, [TSR_IDX_U16] = {"uint16", 2}};

const char *tsr_idx_dtype_name(int code) {
    return code >= TSR_IDX_U8 && code <= TSR_IDX_U16 ? DTYPE[code].name : NULL;
}

size_t tsr_idx_dtype_size(int code) {
    TSR_ASSERT(tsr_idx_dtype_name(code));
    return DTYPE[code].size;
}

static uint64_t get_u64(const unsigned char *p) {
    uint64_t v;
    memcpy(&v, p, sizeof v);
    return v;
}

static int64_t get_i64(const unsigned char *p, int64_t i) {
    return (int64_t)get_u64(p + 8 * i);
}

static int32_t get_i32(const unsigned char *p, int64_t i) {
    int32_t v;
    memcpy(&v, p + 4 * i, sizeof v);
    return v;
}

static int map_open(struct map *m, const char *prefix, const char *suffix) {
    if (snprintf(m->path, sizeof m->path, "%s%s", prefix, suffix) >= (int)sizeof m->path)
        return tsr_fail(TSR_EUSAGE, "path is too long: %.200s…", prefix);
    int fd = open(m->path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail(TSR_EDATA, "%s: cannot open: %s", m->path, strerror(errno));
    struct stat st;
    int rc = 0;
    if (fstat(fd, &st) < 0) {
        rc = tsr_fail_errno(errno, "cannot read", m->path);
    } else if (!S_ISREG(st.st_mode)) {
        rc = tsr_fail(TSR_EDATA, "%s: expected a file, found a folder or device", m->path);
    } else if (st.st_size > 0) {
        void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0);
        if (p == MAP_FAILED)
            rc = tsr_fail_errno(errno, "cannot map", m->path);
        else
            m->p = p, m->size = (size_t)st.st_size;
    }
    close(fd);
    return rc;
}

static void map_close(struct map *m) {
    if (m->p)
        munmap((void *)(uintptr_t)m->p, m->size);
}

// The fixed head of the .idx, and the sizes that it implies against the size that the file has.
static int check_head(struct tsr_indexed *x) {
    const char *path = x->idx.path;
    const unsigned char *p = x->idx.p;
    if (x->idx.size < TSR_IDX_HEADER)
        return tsr_fail(TSR_EDATA, "%s: expected at least %d bytes of header, found %zu", path,
                        TSR_IDX_HEADER, x->idx.size);
    if (memcmp(p, TSR_IDX_MAGIC, 9) != 0)
        return tsr_fail(TSR_EDATA, "%s: expected a Megatron index (\"MMIDIDX\"), found other bytes",
                        path);
    if (get_u64(p + 9) != 1)
        return tsr_fail(TSR_EDATA, "%s: expected version 1, found %llu", path,
                        (unsigned long long)get_u64(p + 9));
    x->dtype = p[17];
    const char *name = tsr_idx_dtype_name(x->dtype);
    if (!name || x->dtype == TSR_IDX_F32 || x->dtype == TSR_IDX_F64)
        return tsr_fail(TSR_EDATA, "%s: expected an integer dtype (1 to 5 or 8), found %d (%s)",
                        path, x->dtype, name ? name : "unknown");
    x->token_size = DTYPE[x->dtype].size;
    uint64_t n = get_u64(p + 18), d = get_u64(p + 26), room = x->idx.size - TSR_IDX_HEADER;
    bool fits = n <= room / 12 && d >= 1 && d <= (room - 12 * n) / 8;
    uint64_t rest = fits ? room - 12 * n - 8 * d : 1;
    if (!fits || (rest != 0 && rest != n)) // n bytes more: the modes of multimodal data
        return tsr_fail(TSR_EDATA,
                        "%s: %llu sequences and %llu document borders don't fit %zu bytes: "
                        "the file is cut short or damaged",
                        path, (unsigned long long)n, (unsigned long long)d, x->idx.size);
    x->n_sequences = (int64_t)n;
    x->n_documents = (int64_t)d - 1;
    x->lengths = p + TSR_IDX_HEADER;
    x->pointers = x->lengths + 4 * n;
    x->borders = x->pointers + 8 * n;
    return 0;
}

// Sequences lie one after the other and fill the .bin: then a document is a run of tokens, and
// token i of the concatenation is simply element i. Megatron's builders write nothing else.
static int check_sequences(struct tsr_indexed *x) {
    uint64_t at = 0; // bytes
    for (int64_t i = 0; i < x->n_sequences; i++) {
        int32_t length = get_i32(x->lengths, i);
        if (length < 0 || (uint64_t)get_i64(x->pointers, i) != at)
            return tsr_fail(TSR_EDATA,
                            "%s: sequence %lld: expected it at byte %llu, found %d tokens at %lld",
                            x->idx.path, (long long)i, (unsigned long long)at, length,
                            (long long)get_i64(x->pointers, i));
        at += (uint64_t)length * x->token_size;
        if (at > x->bin.size)
            break;
    }
    if (at != x->bin.size)
        return tsr_fail(TSR_EDATA, "%s: expected %s%llu bytes (%s says so), found %zu", x->bin.path,
                        at > x->bin.size ? "at least " : "", (unsigned long long)at, x->idx.path,
                        x->bin.size);
    x->n_tokens = (int64_t)(at / x->token_size);
    return 0;
}

static int check_documents(const struct tsr_indexed *x) {
    int64_t last = 0;
    for (int64_t j = 0; j <= x->n_documents; j++) {
        int64_t b = get_i64(x->borders, j);
        if (b < last || b > x->n_sequences || (j == 0 && b != 0))
            return tsr_fail(TSR_EDATA,
                            "%s: document border %lld: expected %lld to %lld, found %lld",
                            x->idx.path, (long long)j, (long long)last,
                            j == 0 ? 0LL : (long long)x->n_sequences, (long long)b);
        last = b;
    }
    if (last != x->n_sequences)
        return tsr_fail(TSR_EDATA, "%s: the last document ends at sequence %lld, expected %lld",
                        x->idx.path, (long long)last, (long long)x->n_sequences);
    return 0;
}

int tsr_indexed_open(struct tsr_indexed **out, const char *prefix) {
    struct tsr_indexed *x = calloc(1, sizeof *x);
    if (!x)
        return tsr_fail(TSR_ENOMEM, "%s: out of memory", prefix);
    int rc = map_open(&x->idx, prefix, ".idx");
    if (rc == 0)
        rc = map_open(&x->bin, prefix, ".bin");
    if (rc == 0)
        rc = check_head(x);
    if (rc == 0)
        rc = check_sequences(x);
    if (rc == 0)
        rc = check_documents(x);
    if (rc < 0) {
        tsr_indexed_close(x);
        return rc;
    }
    *out = x;
    return 0;
}

void tsr_indexed_close(struct tsr_indexed *x) {
    if (!x)
        return;
    map_close(&x->idx);
    map_close(&x->bin);
    free(x);
}

int64_t tsr_indexed_n_tokens(const struct tsr_indexed *x) {
    return x->n_tokens;
}

int64_t tsr_indexed_n_sequences(const struct tsr_indexed *x) {
    return x->n_sequences;
}

int64_t tsr_indexed_n_documents(const struct tsr_indexed *x) {
    return x->n_documents;
}

int tsr_indexed_dtype(const struct tsr_indexed *x) {
    return x->dtype;
}

static int64_t element(const struct tsr_indexed *x, int64_t i) {
    const unsigned char *p = x->bin.p + (size_t)i * x->token_size;
    int16_t i16;
    uint16_t u16;
    switch (x->dtype) {
    case TSR_IDX_U8:
        return *p;
    case TSR_IDX_I8:
        return (signed char)*p;
    case TSR_IDX_I16:
        memcpy(&i16, p, 2);
        return i16;
    case TSR_IDX_U16:
        memcpy(&u16, p, 2);
        return u16;
    case TSR_IDX_I32:
        return get_i32(p, 0);
    default:
        return get_i64(p, 0);
    }
}

// The first token of document j; of j = n_documents, the end.
static int64_t document_start(const struct tsr_indexed *x, int64_t j) {
    int64_t sequence = get_i64(x->borders, j);
    if (sequence == x->n_sequences)
        return x->n_tokens;
    return get_i64(x->pointers, sequence) / (int64_t)x->token_size;
}

// Marks the document starts within [at, at + n).
static void mark_starts(const struct tsr_indexed *x, int64_t at, int64_t n, uint8_t *start) {
    int64_t lo = 0, hi = x->n_documents; // the first document at or behind `at`
    memset(start, 0, (size_t)n);
    while (lo < hi) {
        int64_t mid = lo + (hi - lo) / 2;
        if (document_start(x, mid) < at)
            lo = mid + 1;
        else
            hi = mid;
    }
    for (; lo < x->n_documents; lo++) {
        int64_t s = document_start(x, lo);
        if (s >= at + n)
            return;
        start[s - at] = 1; // an empty document marks what follows it, which begins one anyway
    }
}

int tsr_indexed_read(const struct tsr_indexed *x, int64_t at, int64_t n, int32_t *tokens,
                     uint8_t *start) {
    TSR_ASSERT(at >= 0 && n >= 0 && at <= x->n_tokens && n <= x->n_tokens - at);
    for (int64_t i = 0; i < n; i++) {
        int64_t id = element(x, at + i);
        if (id < 0 || id > INT32_MAX)
            return tsr_fail(TSR_EDATA, "%s: position %lld: expected a token id, found %lld",
                            x->bin.path, (long long)(at + i), (long long)id);
        tokens[i] = (int32_t)id;
    }
    if (start && n > 0)
        mark_starts(x, at, n, start);
    return 0;
}

int tsr_indexed_scan(const struct tsr_indexed *x, int64_t vocab) {
    enum { STEP = 1 << 20 };
    struct tsr_bar bar;
    tsr_bar_begin(&bar, "checking tokens", "tokens", 0, (uint64_t)x->n_tokens);
    for (int64_t i = 0; i < x->n_tokens; i++) {
        if (i % STEP == 0)
            tsr_bar_update(&bar, (uint64_t)i, NULL);
        int64_t id = element(x, i);
        if (id >= 0 && id < vocab)
            continue;
        tsr_bar_stop(&bar);
        return tsr_fail(TSR_EDATA, "%s: position %lld: token id %lld, but the vocabulary is %lld",
                        x->bin.path, (long long)i, (long long)id, (long long)vocab);
    }
    tsr_bar_stop(&bar);
    return 0;
}

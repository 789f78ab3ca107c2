// The very bytes that Megatron's IndexedDatasetBuilder writes: one sequence a document, ids as
// uint16 when the vocabulary is below 65500, else int32.
#include "core/indexed.h"
#include "core/error.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUFFER_BYTES = 1 << 20, UINT16_BELOW = 65500, STALE_S = 600 };

struct tsr_indexed_writer {
    char bin[TSR_PATH_MAX], idx[TSR_PATH_MAX];         // where the files go in the end
    char bin_tmp[TSR_PATH_MAX], idx_tmp[TSR_PATH_MAX]; // where they are until then
    int fd;
    int64_t vocab;
    int dtype;
    int64_t n_tokens, in_document;   // written; of the document being written
    struct tsr_buf lengths, borders; // i32[], i64[]
    size_t used;                     // bytes of buffer
    unsigned char buffer[BUFFER_BYTES];
};

static int set_paths(struct tsr_indexed_writer *w, const char *prefix) {
    static atomic_uint counter;
    struct timespec now;
    char tail[64];
    clock_gettime(CLOCK_REALTIME, &now);
    snprintf(tail, sizeof tail, ".tmp-%d-%x-%x", (int)getpid(), (unsigned)now.tv_nsec,
             atomic_fetch_add(&counter, 1));
    size_t n = strlen(prefix);
    if (n + 4 + strlen(tail) >= TSR_PATH_MAX)
        return tsr_fail(TSR_EUSAGE, "path is too long: %.200s…", prefix);
    snprintf(w->bin, sizeof w->bin, "%s.bin", prefix);
    snprintf(w->idx, sizeof w->idx, "%s.idx", prefix);
    snprintf(w->bin_tmp, sizeof w->bin_tmp, "%s.bin%s", prefix, tail);
    snprintf(w->idx_tmp, sizeof w->idx_tmp, "%s.idx%s", prefix, tail);
    return 0;
}

// Removes what a killed process left of an earlier attempt at these files: temporary ones that
// nobody has written to for ten minutes. Failing to do so harms nothing.
static void remove_stale(const struct tsr_indexed_writer *w) {
    char dir[TSR_PATH_MAX], path[TSR_PATH_MAX];
    const char *name = tsr_path_base(w->bin);
    size_t n = strlen(name) - strlen("bin");
    DIR *d = tsr_path_dir(dir, w->bin) == 0 ? opendir(dir) : NULL;
    for (struct dirent *e; d && (e = readdir(d));) {
        struct stat st;
        const char *tail = e->d_name + n;
        if (strncmp(e->d_name, name, n) != 0 ||
            (strncmp(tail, "bin.tmp-", 8) != 0 && strncmp(tail, "idx.tmp-", 8) != 0))
            continue;
        if (tsr_path_join(path, dir, e->d_name) == 0 && stat(path, &st) == 0 &&
            st.st_mtime + STALE_S < time(NULL))
            unlink(path);
    }
    if (d)
        closedir(d);
}

int tsr_indexed_create(struct tsr_indexed_writer **out, const char *prefix, int64_t vocab) {
    struct tsr_indexed_writer *w = calloc(1, sizeof *w);
    if (!w)
        return tsr_fail(TSR_ENOMEM, "%s: out of memory", prefix);
    w->fd = -1;
    w->vocab = vocab;
    w->dtype = vocab < UINT16_BELOW ? TSR_IDX_U16 : TSR_IDX_I32;
    int64_t zero = 0;
    int rc = set_paths(w, prefix);
    if (rc == 0)
        rc = tsr_buf_append(&w->borders, &zero, sizeof zero);
    if (rc == 0) {
        remove_stale(w);
        w->fd = open(w->bin_tmp, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (w->fd < 0)
            rc = tsr_fail_errno(errno, "cannot create", w->bin_tmp);
    }
    if (rc < 0) {
        tsr_indexed_abort(w);
        return rc;
    }
    *out = w;
    return 0;
}

static int flush(struct tsr_indexed_writer *w) {
    size_t n = w->used;
    w->used = 0;
    return tsr_write_all(w->fd, w->buffer, n, w->bin_tmp);
}

int tsr_indexed_add_tokens(struct tsr_indexed_writer *w, const int32_t *tokens, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        if (tokens[i] < 0 || tokens[i] >= w->vocab)
            return tsr_fail(TSR_EDATA, "token %lld: id %d, but the vocabulary is %lld",
                            (long long)(w->n_tokens + i), tokens[i], (long long)w->vocab);
        if (w->used + 4 > BUFFER_BYTES)
            TSR_TRY(flush(w));
        uint16_t half = (uint16_t)tokens[i];
        if (w->dtype == TSR_IDX_U16)
            memcpy(w->buffer + w->used, &half, 2);
        else
            memcpy(w->buffer + w->used, &tokens[i], 4);
        w->used += tsr_idx_dtype_size(w->dtype);
    }
    w->n_tokens += n;
    w->in_document += n;
    return 0;
}

int tsr_indexed_end_document(struct tsr_indexed_writer *w) {
    do { // a length is 32 bits: a longer document is several sequences
        int32_t length = w->in_document < INT32_MAX ? (int32_t)w->in_document : INT32_MAX;
        TSR_TRY(tsr_buf_append(&w->lengths, &length, sizeof length));
        w->in_document -= length;
    } while (w->in_document > 0);
    int64_t border = (int64_t)(w->lengths.len / sizeof(int32_t));
    return tsr_buf_append(&w->borders, &border, sizeof border);
}

int tsr_indexed_add_document(struct tsr_indexed_writer *w, const int32_t *tokens, int64_t n) {
    TSR_ASSERT(w->in_document == 0);
    TSR_TRY(tsr_indexed_add_tokens(w, tokens, n));
    return tsr_indexed_end_document(w);
}

// Header, lengths, pointers (running sums of the lengths) and borders.
static int index_bytes(const struct tsr_indexed_writer *w, struct tsr_buf *out) {
    uint64_t n = w->lengths.len / sizeof(int32_t), d = w->borders.len / sizeof(int64_t);
    uint64_t version = 1;
    unsigned char dtype = (unsigned char)w->dtype;
    TSR_TRY(tsr_buf_append(out, TSR_IDX_MAGIC, 9));
    TSR_TRY(tsr_buf_append(out, &version, 8));
    TSR_TRY(tsr_buf_append(out, &dtype, 1));
    TSR_TRY(tsr_buf_append(out, &n, 8));
    TSR_TRY(tsr_buf_append(out, &d, 8));
    TSR_TRY(tsr_buf_append(out, w->lengths.data, w->lengths.len));
    int64_t at = 0; // bytes
    for (uint64_t i = 0; i < n; i++) {
        int32_t length;
        memcpy(&length, w->lengths.data + 4 * i, 4);
        TSR_TRY(tsr_buf_append(out, &at, 8));
        at += length * (int64_t)tsr_idx_dtype_size(w->dtype);
    }
    return tsr_buf_append(out, w->borders.data, w->borders.len);
}

static int write_index(const struct tsr_indexed_writer *w) {
    struct tsr_buf b = {0};
    int rc = index_bytes(w, &b);
    if (rc == 0)
        rc = tsr_write_file_durable(w->idx_tmp, b.data, b.len);
    tsr_buf_free(&b);
    return rc;
}

static int finish(struct tsr_indexed_writer *w) {
    TSR_TRY(flush(w));
    if (fsync(w->fd) < 0)
        return tsr_fail_errno(errno, "cannot sync", w->bin_tmp);
    int fd = w->fd;
    w->fd = -1;
    if (close(fd) < 0)
        return tsr_fail_errno(errno, "cannot write", w->bin_tmp);
    TSR_TRY(write_index(w));
    // The .bin first: a reader that finds the new index finds its data.
    if (rename(w->bin_tmp, w->bin) < 0)
        return tsr_fail_errno(errno, "cannot rename to", w->bin);
    w->bin_tmp[0] = 0;
    if (rename(w->idx_tmp, w->idx) < 0) {
        int err = errno;
        if (!tsr_path_exists(w->idx))
            unlink(w->bin); // half a pair is of no use
        return tsr_fail_errno(err, "cannot rename to", w->idx);
    }
    w->idx_tmp[0] = 0;
    char dir[TSR_PATH_MAX];
    TSR_TRY(tsr_path_dir(dir, w->idx));
    return tsr_fsync_path(dir);
}

int tsr_indexed_finish(struct tsr_indexed_writer *w) {
    TSR_ASSERT(w->in_document == 0);
    int rc = finish(w);
    tsr_indexed_abort(w); // removes what is still temporary
    return rc;
}

void tsr_indexed_abort(struct tsr_indexed_writer *w) {
    if (!w)
        return;
    if (w->fd >= 0)
        close(w->fd);
    if (w->bin_tmp[0])
        unlink(w->bin_tmp);
    if (w->idx_tmp[0])
        unlink(w->idx_tmp);
    tsr_buf_free(&w->lengths);
    tsr_buf_free(&w->borders);
    free(w);
}

#include "core/dataset_cache.h"
#include "core/error.h"
#include "core/indexed.h"
#include "core/log.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>

// Raise it when the tokens of the same text and tokenizer change (splitting, held-out rule).
enum { CACHE_VERSION = 1 };

// Texts up to this size are hashed as a whole. Of longer ones, path, time and samples are: reading
// many GB at each start would cost more than the rare needless second tokenizing.
static const uint64_t WHOLE_BYTES = (uint64_t)64 << 20;
enum { N_SAMPLES = 64, SAMPLE_BYTES = 1 << 16 };

static int hash_range(XXH3_state_t *h, int fd, uint64_t from, uint64_t n_bytes, const char *path) {
    char buf[SAMPLE_BYTES];
    while (n_bytes > 0) {
        size_t n = n_bytes < sizeof buf ? (size_t)n_bytes : sizeof buf;
        TSR_TRY(tsr_pread_all(fd, buf, n, from, path));
        XXH3_128bits_update(h, buf, n);
        from += n;
        n_bytes -= n;
    }
    return 0;
}

static int hash_open_text(XXH3_state_t *h, int fd, const char *path) {
    struct stat st;
    if (fstat(fd, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", path);
    if (!S_ISREG(st.st_mode))
        return tsr_fail(TSR_EDATA, "%s: expected a file, found a folder, pipe or device", path);
    uint64_t size = (uint64_t)st.st_size;
    XXH3_128bits_update(h, &size, sizeof size);
    if (size <= WHOLE_BYTES)
        return hash_range(h, fd, 0, size, path);
    XXH3_128bits_update(h, path, strlen(path));
    XXH3_128bits_update(h, &st.st_mtim.tv_sec, sizeof st.st_mtim.tv_sec);
    XXH3_128bits_update(h, &st.st_mtim.tv_nsec, sizeof st.st_mtim.tv_nsec);
    for (uint64_t i = 0; i < N_SAMPLES; i++)
        TSR_TRY(
            hash_range(h, fd, i * ((size - SAMPLE_BYTES) / (N_SAMPLES - 1)), SAMPLE_BYTES, path));
    return 0;
}

static int hash_text(XXH3_state_t *h, const char *path) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail(TSR_EDATA, "%s: cannot open: %s", path, strerror(errno));
    int rc = hash_open_text(h, fd, path);
    close(fd);
    return rc;
}

static int hash_tokenizer(XXH3_state_t *h, const struct tsr_dataset_opt *opt) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    TSR_TRY(tsr_path_join(path, opt->tokenizer_dir, "tokenizer.json"));
    TSR_TRY(tsr_read_regular_file(path, (size_t)1 << 30, TSR_EMODEL, &text, &n));
    XXH3_128bits_update(h, text, n);
    free(text);
    int32_t eos = tsr_tokenizer_eos(opt->tokenizer);
    XXH3_128bits_update(h, &eos, sizeof eos);
    return 0;
}

static int hash_all(XXH3_state_t *h, const struct tsr_dataset_opt *opt, enum tsr_source_kind kind,
                    const char *path) {
    int64_t numbers[] = {CACHE_VERSION, (int64_t)kind, (int64_t)opt->part, opt->vocab};
    XXH3_128bits_reset(h);
    XXH3_128bits_update(h, numbers, sizeof numbers);
    TSR_TRY(hash_tokenizer(h, opt));
    return hash_text(h, path);
}

// CACHE_DIR/NAME-part-hash
static int cache_name(char out[static TSR_PATH_MAX], const struct tsr_dataset_opt *opt,
                      const char *name, const char *part, XXH3_state_t *h) {
    XXH128_hash_t d = XXH3_128bits_digest(h);
    char file[160];
    snprintf(file, sizeof file, "%.80s-%s-%016" PRIx64 "%016" PRIx64, tsr_path_base(name), part,
             (uint64_t)d.high64, (uint64_t)d.low64);
    return tsr_path_join(out, opt->cache_dir, file);
}

static int cache_prefix(char out[static TSR_PATH_MAX], const struct tsr_dataset_opt *opt,
                        enum tsr_source_kind kind, const char *path) {
    static const char *const PART[] = {"all", "train", "held-out"};
    if (!opt->tokenizer)
        return tsr_fail(TSR_ECONFIG, "%s: text needs a tokenizer: set model.tokenizer", path);
    TSR_ASSERT(opt->tokenizer_dir && opt->cache_dir);
    XXH3_state_t *h = XXH3_createState();
    if (!h)
        return tsr_fail(TSR_ENOMEM, "%s: out of memory", path);
    int rc = hash_all(h, opt, kind, path);
    if (rc == 0)
        rc = cache_name(out, opt, path, PART[opt->part], h);
    XXH3_freeState(h);
    return rc;
}

// What the stamp holds: size and time of both files, and the vocabulary they were checked for.
static int stamp_text(struct tsr_buf *out, const char *prefix, int64_t vocab) {
    static const char *const SUFFIX[] = {".bin", ".idx"};
    TSR_TRY(tsr_buf_printf(out, "vocabulary %lld\n", (long long)vocab));
    for (int i = 0; i < 2; i++) {
        char path[TSR_PATH_MAX];
        struct stat st;
        if (snprintf(path, sizeof path, "%s%s", prefix, SUFFIX[i]) >= (int)sizeof path)
            return tsr_fail(TSR_EUSAGE, "path is too long: %.200s…", prefix);
        if (stat(path, &st) < 0)
            return tsr_fail(TSR_EDATA, "%s: cannot open: %s", path, strerror(errno));
        TSR_TRY(tsr_buf_printf(out, "%s %lld bytes %lld.%09ld\n", SUFFIX[i], (long long)st.st_size,
                               (long long)st.st_mtim.tv_sec, st.st_mtim.tv_nsec));
    }
    return 0;
}

static bool stamp_holds(const char *stamp, const char *prefix, int64_t vocab) {
    struct tsr_buf now = {0};
    char *then = NULL;
    size_t n = 0;
    bool holds = tsr_path_exists(stamp) && stamp_text(&now, prefix, vocab) == 0 &&
                 tsr_read_file(stamp, 4096, TSR_EDATA, &then, &n) == 0 && n == now.len &&
                 memcmp(then, now.data, n) == 0;
    free(then);
    tsr_buf_free(&now);
    return holds;
}

static int write_stamp(const char *stamp, const char *prefix, int64_t vocab) {
    struct tsr_buf b = {0};
    int rc = stamp_text(&b, prefix, vocab);
    if (rc == 0)
        rc = tsr_write_file_durable(stamp, b.data, b.len);
    tsr_buf_free(&b);
    return rc;
}

int tsr_cache_prepare(const struct tsr_dataset_opt *opt, enum tsr_source_kind kind,
                      const char *path) {
    char prefix[TSR_PATH_MAX], stamp[TSR_PATH_MAX + 8];
    struct tsr_indexed *x;
    TSR_TRY(cache_prefix(prefix, opt, kind, path));
    snprintf(stamp, sizeof stamp, "%s.stamp", prefix);
    if (stamp_holds(stamp, prefix, opt->vocab)) {
        int rc = tsr_indexed_open(&x, prefix);
        if (rc == 0)
            tsr_indexed_close(x);
        if (rc != TSR_EDATA)
            return rc;
        tsr_warn("%s; tokenizing again", tsr_error_text());
    }
    TSR_TRY(tsr_mkdir_p(opt->cache_dir));
    TSR_TRY(tsr_text_to_indexed(prefix, opt->vocab, tsr_tokenizer_eos(opt->tokenizer), false, &path,
                                1, opt->part, opt->tokenizer));
    return write_stamp(stamp, prefix, opt->vocab);
}

int tsr_cache_open(const struct tsr_dataset_opt *opt, enum tsr_source_kind kind, const char *path,
                   struct tsr_indexed **out) {
    char prefix[TSR_PATH_MAX];
    TSR_TRY(cache_prefix(prefix, opt, kind, path));
    if (tsr_indexed_open(out, prefix) < 0)
        return tsr_fail_prefix(
            TSR_EIO,
            "the tokens of %s aren't in the cache: expected them to be put there "
            "by another process (is %s the same folder on every host?)",
            path, opt->cache_dir);
    return 0;
}

int tsr_cache_check_indexed(const struct tsr_dataset_opt *opt, const char *prefix) {
    char stamp[TSR_PATH_MAX] = "", real[TSR_PATH_MAX], idx[TSR_PATH_MAX];
    struct tsr_indexed *x;
    TSR_TRY(tsr_indexed_open(&x, prefix));
    int rc = 0;
    snprintf(idx, sizeof idx, "%.*s.idx", TSR_PATH_MAX - 5, prefix);
    if (opt->cache_dir && realpath(idx, real)) {
        char file[64];
        XXH128_hash_t d = XXH3_128bits(real, strlen(real));
        snprintf(file, sizeof file, "checked-%016" PRIx64 "%016" PRIx64 ".stamp",
                 (uint64_t)d.high64, (uint64_t)d.low64);
        rc = tsr_path_join(stamp, opt->cache_dir, file);
    }
    if (rc == 0 && !(stamp[0] && stamp_holds(stamp, prefix, opt->vocab))) {
        rc = tsr_indexed_scan(x, opt->vocab);
        // A stamp that can't be written only costs a second check.
        if (rc == 0 && stamp[0] &&
            (tsr_mkdir_p(opt->cache_dir) < 0 || write_stamp(stamp, prefix, opt->vocab) < 0))
            tsr_debug("%s", tsr_error_text());
    }
    tsr_indexed_close(x);
    return rc;
}

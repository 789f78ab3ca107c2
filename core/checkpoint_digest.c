#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <xxhash.h>
#include "core/error.h"

enum { CHUNK = 1 << 20 }; // bytes read at once

static struct tsr_digest canonical(XXH128_hash_t h) {
    struct tsr_digest d;
    XXH128_canonical_t bytes;
    XXH128_canonicalFromHash(&bytes, h);
    memcpy(d.b, bytes.digest, sizeof d.b);
    return d;
}

struct tsr_digest tsr_ckpt_digest_bytes(const void *p, size_t n_bytes) {
    return canonical(XXH3_128bits(p, n_bytes));
}

static int digest_stream(XXH3_state_t *state, char *chunk, int fd, const char *path, uint64_t at,
                         uint64_t n_bytes) {
    XXH3_128bits_reset(state);
    while (n_bytes > 0) {
        size_t n = n_bytes < CHUNK ? (size_t)n_bytes : CHUNK;
        TSR_TRY(tsr_pread_all(fd, chunk, n, at, path));
        XXH3_128bits_update(state, chunk, n);
        at += n;
        n_bytes -= n;
    }
    return 0;
}

int tsr_ckpt_digest_range(int fd, const char *path, uint64_t at, uint64_t n_bytes,
                          struct tsr_digest *out) {
    XXH3_state_t *state = XXH3_createState();
    char *chunk = malloc(n_bytes < CHUNK ? (size_t)n_bytes + 1 : CHUNK);
    int rc = state && chunk ? digest_stream(state, chunk, fd, path, at, n_bytes)
                            : tsr_fail(TSR_ENOMEM, "%s: no memory for a digest", path);
    if (rc == 0)
        *out = canonical(XXH3_128bits_digest(state));
    XXH3_freeState(state);
    free(chunk);
    return rc;
}

void tsr_ckpt_hex(char out[static TSR_CKPT_HEX + 1], const struct tsr_digest *d) {
    for (int i = 0; i < 16; i++)
        snprintf(out + 2 * i, 3, "%02x", d->b[i]);
}

static int digit(char c) {
    return c >= '0' && c <= '9' ? c - '0' : c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool tsr_ckpt_unhex(struct tsr_digest *out, const char *hex) {
    if (strlen(hex) != TSR_CKPT_HEX)
        return false;
    for (int i = 0; i < 16; i++) {
        int hi = digit(hex[2 * i]), lo = digit(hex[2 * i + 1]);
        if (hi < 0 || lo < 0)
            return false;
        out->b[i] = (uint8_t)(hi << 4 | lo);
    }
    return true;
}

int64_t tsr_checkpoint_n_digests(const struct tsr_checkpoint *c, int rank, int n_ranks) {
    TSR_ASSERT(n_ranks >= 1 && rank >= 0 && rank < n_ranks);
    return tsr_ckpt_n_of_rank(c->n_ranges, rank, n_ranks);
}

static int digest_file(const struct tsr_checkpoint *c, const struct tsr_ckpt_file *f, int rank,
                       int n_ranks, struct tsr_digest *out) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, c->tmp, f->path));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc = 0;
    for (int64_t i = 0; rc == 0 && i < f->n_ranges; i++) {
        int64_t r = f->first_range + i;
        uint64_t at = (uint64_t)i * c->opt.range_bytes, left = f->size - at;
        if (r % n_ranks == rank)
            rc = tsr_ckpt_digest_range(fd, path, at,
                                       left < c->opt.range_bytes ? left : c->opt.range_bytes,
                                       &out[r / n_ranks]);
    }
    close(fd);
    return rc;
}

int tsr_checkpoint_digest(struct tsr_checkpoint *c, int rank, int n_ranks, struct tsr_digest *out) {
    TSR_ASSERT(n_ranks >= 1 && rank >= 0 && rank < n_ranks);
    for (int i = 0; i < c->n_files; i++)
        TSR_TRY(digest_file(c, &c->files[i], rank, n_ranks, out));
    return 0;
}

#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
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

struct tsr_digest tsr_ckpt_digest_of(const XXH3_state_t *state) {
    return canonical(XXH3_128bits_digest(state));
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
    // Of this range and the next one: the disk works while the processor does.
    posix_fadvise(fd, (off_t)at, (off_t)(n_bytes < INT32_MAX ? 2 * n_bytes : n_bytes),
                  POSIX_FADV_WILLNEED);
    char *chunk = malloc(n_bytes < CHUNK ? (size_t)n_bytes + 1 : CHUNK);
    int rc = state && chunk ? digest_stream(state, chunk, fd, path, at, n_bytes)
                            : tsr_fail(TSR_ENOMEM, "%s: no memory for a digest", path);
    if (rc == 0)
        *out = tsr_ckpt_digest_of(state);
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

// Runs of bytes: what comes one after another goes out in large pieces, and ranges that go by from
// their first byte to their last are digested on the way, while they are in the cache.
#include "core/checkpoint_private.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum {
    CHUNK = 128 << 10,    // bytes copied, then digested
    MIN_HANDED = 32 << 10 // a shorter run is written at once: a hand-over costs more
};

void tsr_ckpt_runs_init(struct tsr_checkpoint *c) {
    for (int i = 0; i < TSR_CKPT_MAX_SETS; i++)
        c->runs[i] = (struct tsr_ckpt_run){.file = -1, .sink = {.fd = -1, .direct = -1}};
}

void tsr_ckpt_runs_free(struct tsr_checkpoint *c) {
    tsr_ckpt_io_close(c->io); // before the files: its threads write to them
    c->io = NULL;
    for (int i = 0; i < TSR_CKPT_MAX_SETS; i++) {
        tsr_ckpt_sink_close(&c->runs[i].sink);
        XXH3_freeState(c->runs[i].hash);
    }
    tsr_ckpt_runs_init(c);
}

static void hand_over(struct tsr_checkpoint *c, struct tsr_ckpt_run *r) {
    if (r->buf)
        tsr_ckpt_io_submit(c->io, &r->sink, r->buf, r->base, r->lo, r->hi);
    r->buf = NULL;
    r->lo = r->hi = 0;
}

// The run ends here. A short one leaves its buffer for the next.
static int end_run(struct tsr_checkpoint *c, struct tsr_ckpt_run *r) {
    const size_t n = r->hi - r->lo;
    if (n >= MIN_HANDED) {
        hand_over(c, r);
        return 0;
    }
    r->hi = r->lo;
    return tsr_pwrite_all(r->sink.fd, r->buf + r->lo, n, r->base + r->lo, r->sink.path);
}

static int close_file(struct tsr_checkpoint *c, struct tsr_ckpt_run *r) {
    hand_over(c, r);
    if (r->file < 0)
        return 0;
    r->file = -1;
    int rc = tsr_ckpt_io_drain(c->io); // the threads may still be writing to it
    int closed = tsr_ckpt_sink_close(&r->sink);
    return rc < 0 ? rc : closed;
}

int tsr_ckpt_runs_finish(struct tsr_checkpoint *c) {
    for (int i = 0; i < c->n_sets; i++)
        TSR_TRY(close_file(c, &c->runs[i]));
    return 0;
}

// ---- digests on the way

static int add_done(struct tsr_checkpoint *c, int file, int64_t range, XXH3_state_t *hash) {
    if (c->n_done == c->cap_done) {
        size_t cap = c->cap_done == 0 ? 64 : 2 * c->cap_done;
        struct tsr_ckpt_done *done = realloc(c->done, cap * sizeof *done);
        if (!done)
            return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
        c->done = done;
        c->cap_done = cap;
    }
    c->done[c->n_done++] = (struct tsr_ckpt_done){file, range, tsr_ckpt_digest_of(hash)};
    return 0;
}

// Begins a range at `at` when that is where its first byte is, or where the header that begin
// wrote ends: every handle knows the header.
static int begin_range(struct tsr_checkpoint *c, struct tsr_ckpt_run *r, int k, uint64_t at) {
    const struct tsr_ckpt_file *f = &c->files[k];
    uint64_t first = at - at % c->opt.range_bytes;
    if (at != first && at != f->header.len)
        return 0;
    if (!r->hash)
        r->hash = XXH3_createState();
    if (!r->hash)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    XXH3_128bits_reset(r->hash);
    if (at != first)
        XXH3_128bits_update(r->hash, f->header.data + first, at - first);
    r->hashing = true;
    r->hash_file = k;
    r->hash_at = at;
    return 0;
}

// Takes n bytes of file k at `at`, which end at the range's end or before.
static int digest_part(struct tsr_checkpoint *c, struct tsr_ckpt_run *r, int k, uint64_t at,
                       const char *p, size_t n) {
    if (!r->hashing || r->hash_file != k || r->hash_at != at) {
        r->hashing = false;
        TSR_TRY(begin_range(c, r, k, at));
        if (!r->hashing)
            return 0;
    }
    XXH3_128bits_update(r->hash, p, n);
    r->hash_at = at + n;
    if (r->hash_at % c->opt.range_bytes != 0 && r->hash_at != c->files[k].size)
        return 0;
    r->hashing = false;
    return add_done(c, k, (int64_t)(at / c->opt.range_bytes), r->hash);
}

static int digest(struct tsr_checkpoint *c, struct tsr_ckpt_run *r, int k, uint64_t at,
                  const char *p, size_t n) {
    while (n > 0) {
        uint64_t left = c->opt.range_bytes - at % c->opt.range_bytes;
        size_t part = n < left ? n : (size_t)left;
        TSR_TRY(digest_part(c, r, k, at, p, part));
        at += part;
        p += part;
        n -= part;
    }
    return 0;
}

// ---- runs

static int switch_to(struct tsr_checkpoint *c, struct tsr_ckpt_run *r, int k) {
    if (r->file == k)
        return 0;
    TSR_TRY(close_file(c, r));
    if (!c->io)
        TSR_TRY(tsr_ckpt_io_open(&c->io));
    TSR_TRY(tsr_ckpt_sink_open(&r->sink, c->tmp, c->files[k].path, c->opt.buffered));
    r->file = k;
    c->files[k].dirty = true;
    return 0;
}

int tsr_ckpt_put(struct tsr_checkpoint *c, int set, int k, uint64_t offset, const void *data,
                 size_t n) {
    struct tsr_ckpt_run *r = &c->runs[set];
    const char *p = data;
    TSR_ASSERT(offset >= c->files[k].header.len && offset + n <= c->files[k].size);
    TSR_TRY(switch_to(c, r, k));
    if (r->buf && r->base + r->hi != offset)
        TSR_TRY(end_run(c, r));
    while (n > 0) {
        if (!r->buf)
            TSR_TRY(tsr_ckpt_io_take(c->io, &r->buf));
        if (r->hi == r->lo) {
            r->lo = r->hi = (size_t)(offset % TSR_CKPT_PAGE);
            r->base = offset - r->lo;
        }
        size_t room = TSR_CKPT_BUFFER - r->hi, part = n < room ? n : room;
        part = part < CHUNK ? part : CHUNK;
        memcpy(r->buf + r->hi, p, part);
        TSR_TRY(digest(c, r, k, offset, r->buf + r->hi, part));
        r->hi += part;
        offset += part;
        p += part;
        n -= part;
        if (r->hi == TSR_CKPT_BUFFER)
            hand_over(c, r);
    }
    return 0;
}

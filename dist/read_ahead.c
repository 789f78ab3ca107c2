#include "dist/read_ahead.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "core/error.h"
#include "core/fetch.h"
#include "dist/host_memory.h"
#include "dist/leaves.h"
#include "dist/read_ahead_plan.h"

enum {
    LEAST = 64 << 20, // bytes below which two passes through the page cache are as good
    SLOTS = 4,        // pieces of a rank: one is copied from, the others come
    MAX_ERROR = 1024,
};

struct tsr_read_ahead {
    struct tsr_ahead_opt opt;
    struct tsr_st_source source;
    struct tsr_fetch_file *direct;    // (n_files)
    struct tsr_checkpoint_digests *d; // or NULL
    struct tsr_ahead_plan plan;       // of this host
    struct tsr_host_memory memory;    // of each rank: what it needs, then its slots
    struct tsr_fetcher *fetcher;
    struct tsr_stretch mine[SLOTS]; // of rounds, in turns
    XXH3_state_t *hash;             // of the range that this rank digests
    int64_t n_rounds, round;        // of the world; the one that is there now, -1: none
    bool meet;                      // there are hosts of several ranks
    bool broken;                    // the ranks can't meet any more
    int rc;                         // the first failure, and its text
    char error[MAX_ERROR];
};

bool tsr_read_ahead_pays(uint64_t n_bytes) {
    return n_bytes >= LEAST;
}

static void note(struct tsr_read_ahead *a, int rc) {
    if (rc < 0 && a->rc == 0) {
        a->rc = rc;
        snprintf(a->error, sizeof a->error, "%s", tsr_error_text());
    }
}

// ---- rounds

static char *slot(const struct tsr_read_ahead *a, int rank, int64_t round) {
    return a->memory.at[rank] + a->plan.units_bytes + (size_t)(round % SLOTS) * TSR_AHEAD_PIECE;
}

// That a rank of this host reads in a round, or NULL.
static const struct tsr_ahead_piece *piece_of(const struct tsr_read_ahead *a, int rank,
                                              int64_t round) {
    const int64_t k = round * a->memory.n + rank;
    return k < a->plan.n_pieces ? &a->plan.pieces[k] : NULL;
}

static void begin_round(struct tsr_read_ahead *a, int64_t round) {
    const struct tsr_ahead_piece *x = piece_of(a, a->memory.mine, round);
    struct tsr_stretch *s = &a->mine[round % SLOTS];
    if (!x)
        return;
    *s = (struct tsr_stretch){.file = &a->direct[x->file],
                              .offset = x->offset,
                              .n_bytes = x->n_bytes,
                              .to = slot(a, a->memory.mine, round)};
    tsr_fetch_submit(a->fetcher, s);
}

static int check_digest(const struct tsr_read_ahead *a, const struct tsr_ahead_piece *x) {
    const struct tsr_ahead_listed *f = &a->plan.files[x->file];
    const struct tsr_digest *want = tsr_checkpoint_digests_of(a->d, f->name, x->range);
    const uint64_t at = (uint64_t)x->range * a->plan.range_bytes;
    XXH128_canonical_t found;
    XXH128_canonicalFromHash(&found, XXH3_128bits_digest(a->hash));
    if (want && memcmp(want->b, found.digest, sizeof want->b) == 0)
        return 0;
    return tsr_fail(TSR_EMODEL,
                    "%s/%s: damaged: bytes %" PRIu64 " to %" PRIu64
                    ": their XXH3-128 isn't the manifest's",
                    a->opt.verify, f->name, at, x->offset + x->n_bytes);
}

// The ranks digest whole ranges in turns, whoever has read their pieces.
static void digest_round(struct tsr_read_ahead *a) {
    for (int i = 0; i < a->memory.n; i++) {
        const struct tsr_ahead_piece *x = piece_of(a, i, a->round);
        if (!x || x->range < 0 || x->range % a->memory.n != a->memory.mine)
            continue;
        if (x->first)
            XXH3_128bits_reset(a->hash);
        XXH3_128bits_update(a->hash, slot(a, i, a->round), x->n_bytes);
        if (x->last)
            note(a, check_digest(a, x));
    }
}

// The next round is there on all ranks, and none of them copies from the one before any more.
static void advance(struct tsr_read_ahead *a) {
    struct tsr_comm *c = a->opt.comm;
    const int64_t next = a->round + 1;
    if (piece_of(a, a->memory.mine, next))
        note(a, tsr_fetch_wait(a->fetcher, &a->mine[next % SLOTS]));
    if (a->meet && !a->broken) {
        int rc = c->control->barrier(a->opt.ctx, c, &c->world_group, "reading files", c->timeout_s);
        a->broken = rc < 0;
        note(a, rc);
    }
    if (next > 0)
        begin_round(a, next - 1 + SLOTS);
    a->round = next;
    if (a->d && !a->broken)
        digest_round(a);
}

// The piece that has the byte at `offset`, or NULL.
static const struct tsr_ahead_piece *find_piece(const struct tsr_ahead_plan *p, int file,
                                                uint64_t offset) {
    int64_t lo = 0, hi = p->n_pieces;
    while (lo < hi) { // the first that ends behind it
        int64_t mid = lo + (hi - lo) / 2;
        const struct tsr_ahead_piece *x = &p->pieces[mid];
        if (x->file < file || (x->file == file && x->offset + x->n_bytes <= offset))
            lo = mid + 1;
        else
            hi = mid;
    }
    const struct tsr_ahead_piece *x = &p->pieces[lo];
    return lo < p->n_pieces && x->file == file && x->offset <= offset ? x : NULL;
}

// Waits for the byte at `offset`. 1, and *at and *n say where it and those behind it lie, or 0: it
// has gone by.
static int reach(struct tsr_read_ahead *a, int file, uint64_t offset, const char **at, size_t *n) {
    const struct tsr_ahead_piece *x = find_piece(&a->plan, file, offset);
    const int64_t k = x ? x - a->plan.pieces : 0, round = k / a->memory.n;
    if (!x || round < a->round)
        return 0;
    while (a->round < round)
        advance(a);
    if (a->broken)
        return tsr_fail((enum tsr_code)a->rc, "%s", a->error);
    *at = slot(a, (int)(k % a->memory.n), round) + (offset - x->offset);
    *n = (size_t)(x->offset + x->n_bytes - offset);
    return 1;
}

static int read_ahead(void *arg, const struct tsr_st_file *f, void *buf, size_t n,
                      uint64_t offset) {
    struct tsr_read_ahead *a = arg;
    const char *at;
    size_t part;
    int file = 0;
    while (a->opt.files[file].f != f)
        file++;
    for (char *to = buf; n > 0; to += part, offset += part, n -= part) {
        int rc = reach(a, file, offset, &at, &part);
        if (rc < 0)
            return rc;
        if (rc == 0)
            return tsr_pread_all(f->fd, to, n, offset, f->path);
        part = part < n ? part : n;
        memcpy(to, at, part);
    }
    return 0;
}

int tsr_read_ahead_copy(struct tsr_read_ahead *a, const struct tsr_ahead_need *what, void *device) {
    struct tsr_ctx *ctx = a->opt.ctx;
    const char *at;
    size_t part;
    for (uint64_t done = 0; done < what->n_bytes; done += part) {
        int rc = reach(a, what->file, what->offset + done, &at, &part);
        if (rc <= 0)
            return rc;
        part = part < what->n_bytes - done ? part : (size_t)(what->n_bytes - done);
        TSR_TRY(ctx->ops->to_device(ctx, (char *)device + done, at, part));
        TSR_TRY(ctx->ops->sync(ctx)); // what it lies in will be filled again
    }
    return 1;
}

// ---- open

static int open_files(struct tsr_read_ahead *a) {
    a->direct = calloc((size_t)a->opt.n_files + 1, sizeof *a->direct);
    if (!a->direct)
        return tsr_fail(TSR_ENOMEM, "no memory to read files");
    for (int i = 0; i < a->opt.n_files; i++)
        a->direct[i].fd = a->direct[i].direct = -1;
    for (int i = 0; i < a->opt.n_files; i++)
        TSR_TRY(tsr_fetch_file_open(&a->direct[i], a->opt.files[i].f->path, false));
    return 0;
}

static int prepare(struct tsr_read_ahead *a) {
    TSR_TRY(open_files(a));
    if (a->opt.verify) {
        a->hash = XXH3_createState();
        if (!a->hash)
            return tsr_fail(TSR_ENOMEM, "no memory to read files");
        TSR_TRY(tsr_checkpoint_digests_open(&a->d, a->opt.verify));
    }
    return tsr_ahead_plan_open(&a->plan, &a->opt, a->d);
}

// What the ranks of this host need together becomes the plan; how many rounds the longest has.
static int plan_rounds(struct tsr_read_ahead *a) {
    struct tsr_comm *c = a->opt.comm;
    tsr_ahead_plan_mark(&a->plan, &a->opt, (unsigned char *)a->memory.at[a->memory.mine]);
    int rc = c->control->barrier(a->opt.ctx, c, &c->world_group, "reading files", c->timeout_s);
    if (rc == 0)
        rc = tsr_ahead_plan_make(&a->plan, a->memory.at, a->memory.n);
    if (rc == 0)
        rc = tsr_fetch_open(&a->fetcher, a->memory.shared);
    TSR_TRY(tsr_agree(a->opt.ctx, c, rc));
    const int64_t rounds = (a->plan.n_pieces + a->memory.n - 1) / a->memory.n;
    float most[2] = {(float)rounds, (float)a->memory.n};
    TSR_ASSERT(rounds < 1 << 24); // whole in a float
    TSR_TRY(c->control->all_reduce_max(a->opt.ctx, c, &c->world_group, most, 2));
    a->n_rounds = (int64_t)most[0];
    a->meet = most[1] > 1.0f;
    return 0;
}

static void free_all(struct tsr_read_ahead *a) {
    tsr_fetch_close(a->fetcher); // before the memory: its threads write to it
    for (int i = 0; i < a->opt.n_files; i++) {
        a->opt.files[i].f->source = NULL;
        if (a->direct)
            tsr_fetch_file_close(&a->direct[i]);
    }
    tsr_host_memory_close(&a->memory);
    tsr_ahead_plan_close(&a->plan);
    tsr_checkpoint_digests_close(a->d);
    XXH3_freeState(a->hash);
    free(a->direct);
    free(a);
}

int tsr_read_ahead_open(struct tsr_read_ahead **out, const struct tsr_ahead_opt *opt) {
    struct tsr_read_ahead *a = calloc(1, sizeof *a);
    int rc = a ? 0 : tsr_fail(TSR_ENOMEM, "no memory to read files");
    if (a) {
        a->opt = *opt;
        a->round = -1;
        rc = prepare(a);
    }
    rc = tsr_agree(opt->ctx, opt->comm, rc);
    if (rc == 0)
        rc = tsr_host_memory_open(&a->memory, opt->ctx, opt->comm,
                                  a->plan.units_bytes + (size_t)SLOTS * TSR_AHEAD_PIECE);
    if (rc == 0)
        rc = plan_rounds(a);
    if (rc < 0) {
        if (a)
            free_all(a);
        return rc;
    }
    for (int i = 0; i < SLOTS; i++)
        begin_round(a, i);
    a->source = (struct tsr_st_source){read_ahead, a};
    for (int i = 0; i < opt->n_files; i++)
        opt->files[i].f->source = &a->source;
    *out = a;
    return 0;
}

// ---- close

struct rest {
    const struct tsr_ahead_plan *plan;
    const struct tsr_comm *comm;
};

// Ranges of tensors that no rank has digested on the way: each rank takes its share.
static bool is_left(void *arg, const char *file, int64_t range, int64_t r) {
    const struct rest *x = arg;
    return tsr_checkpoint_is_tensors(file) && r % x->comm->world == x->comm->rank &&
           !tsr_ahead_plan_digested(x->plan, file, range);
}

static int verify_rest(struct tsr_read_ahead *a) {
    struct tsr_comm *c = a->opt.comm;
    struct rest rest = {&a->plan, c};
    if (a->plan.n_ranges > 0)
        TSR_TRY(c->control->all_reduce_max(a->opt.ctx, c, &c->world_group, a->plan.digested,
                                           (size_t)a->plan.n_ranges));
    return tsr_checkpoint_verify_some(a->opt.verify, is_left, &rest);
}

int tsr_read_ahead_close(struct tsr_read_ahead *a) {
    while (a->round + 1 < a->n_rounds)
        advance(a);
    if (a->d && !a->broken)
        note(a, verify_rest(a));
    int rc = a->rc < 0 ? tsr_fail((enum tsr_code)a->rc, "%s", a->error) : 0;
    free_all(a);
    return rc;
}

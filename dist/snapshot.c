#include "dist/snapshot.h"

#include <stdlib.h>
#include <string.h>
#include "core/arena.h"
#include "core/error.h"
#include "dist/host_memory.h"
#include "dist/leaves.h"

enum {
    SHARES = 16,             // of each rank of this host, when there are several
    LEAST_SHARED = 64 << 20, // bytes on one host below which each has one
};

// Consecutive rows of a parameter that this rank owns, and where they lie in the buffer.
struct owned {
    const struct tsr_param *p;
    const struct tsr_tensor *t;
    struct tsr_region region;
    int n_parts;  // 1: weights only
    size_t at[3]; // bytes, by enum tsr_checkpoint_part
};

// One copy from the device: neighbours there stay neighbours here, so that there are few.
struct copy {
    const char *from;
    size_t at, n_bytes;
};

// What stands in front of the copied bytes, for the other ranks of this host.
struct entry {
    int64_t tensor; // of the table
    struct tsr_region region;
    int64_t n_parts;
    uint64_t at[3]; // from the segment's start
};
struct head {
    int64_t n_entries;
    struct entry entries[];
};

struct tsr_snapshot {
    struct tsr_net *net;
    struct tsr_host_memory memory;
    uint32_t n_takes;
    char *host; // of the copied bytes, in the own segment
    size_t n_bytes;
    struct owned *owned; // in order of the tensor table, then rows
    int n_owned;
    struct copy *copies;
    int n_copies;
};

// ---- what is owned, and where it lies

// The first row of a tensor that this rank's own pieces begin with; earlier rows that it holds are
// copies of KV heads that another rank owns.
static bool owns_row(const struct tsr_net *net, const struct tsr_param *p, int64_t row) {
    if (p->t->split == TSR_SPLIT_NONE)
        return net->mesh.tp_rank == 0;
    int first = net->mesh.tp_rank * net->Vl;
    struct tsr_region lo = tsr_tensor_piece(p->t, first, net->mesh.V);
    struct tsr_region hi = tsr_tensor_piece(p->t, first + net->Vl - 1, net->mesh.V);
    return p->t->split == TSR_SPLIT_COLS || (row >= lo.r0 && row < hi.r1);
}

// Calls fn for each own slice of each part: all weights first, then moments, as they lie in memory.
typedef void (*slice_fn)(void *arg, const struct tsr_param *p, struct tsr_range rows, int part,
                         const float *from);

static void walk_param(const struct tsr_net *net, const struct tsr_param *p, int part, slice_fn fn,
                       void *arg) {
    const float *from[3] = {p->master ? p->master : p->w, p->m, p->v};
    int64_t at = 0;
    for (int i = 0; i < p->n_slices; i++) {
        struct tsr_range rows = p->slices[i];
        if (part == TSR_CKPT_WEIGHTS && !p->master)
            at = rows.lo * p->cols;
        if (owns_row(net, p, p->held.r0 + rows.lo))
            fn(arg, p, rows, part, from[part] + at);
        at += tsr_range_len(rows) * p->cols;
    }
}

static void walk(const struct tsr_net *net, slice_fn fn, void *arg) {
    for (int i = 0; i < net->n_params; i++)
        if (net->params[i].counted)
            walk_param(net, &net->params[i], TSR_CKPT_WEIGHTS, fn, arg);
    for (int i = 0; i < net->n_params; i++)
        for (int part = TSR_CKPT_M; part <= TSR_CKPT_V; part++)
            if (net->params[i].counted && net->params[i].sum != TSR_GRAD_NONE)
                walk_param(net, &net->params[i], part, fn, arg);
}

// ---- where it goes

// The end of the buffer so far, and on the device.
struct end {
    uintptr_t from;
    size_t at;
    bool moments; // another slab than the weights, wherever it happens to lie
};

// Where the next n_bytes go. They are `joined` to those before them when the device has them one
// after another, with no more than an arena's padding between, which is then copied too.
static size_t advance(struct end *e, const void *from, size_t n_bytes, int part, bool *joined) {
    const uintptr_t begin = (uintptr_t)from;
    const bool moments = part != TSR_CKPT_WEIGHTS;
    *joined = e->at > 0 && moments == e->moments && begin >= e->from && begin - e->from < TSR_ALIGN;
    size_t at = *joined ? e->at + (begin - e->from) : tsr_align_up(e->at);
    *e = (struct end){begin + n_bytes, at + n_bytes, moments};
    return at;
}

static size_t slice_bytes(const struct tsr_param *p, struct tsr_range rows) {
    return (size_t)(tsr_range_len(rows) * p->cols) * sizeof(float);
}

static void count_slice(void *arg, const struct tsr_param *p, struct tsr_range rows, int part,
                        const float *from) {
    bool joined;
    advance(arg, from, slice_bytes(p, rows), part, &joined);
}

size_t tsr_snapshot_bytes(const struct tsr_net *net) {
    struct end e = {0};
    walk(net, count_slice, &e);
    return e.at;
}

struct layout {
    struct tsr_snapshot *s;
    struct end end;
    int k; // entry of the last moments
};

// The entry of a slice: weights come first and make it, or enlarge the one before.
static struct owned *entry_of(struct layout *l, const struct tsr_param *p, struct tsr_region r,
                              int part) {
    struct tsr_snapshot *s = l->s;
    if (part != TSR_CKPT_WEIGHTS) {
        while (l->k > 0 && s->owned[l->k - 1].p == p) // V begins again where M did
            l->k--;
        while (s->owned[l->k].p != p || s->owned[l->k].region.r1 < r.r1)
            l->k = (l->k + 1) % s->n_owned;
        return &s->owned[l->k];
    }
    struct owned *last = &s->owned[s->n_owned - 1];
    if (s->n_owned > 0 && last->p == p && last->region.r1 == r.r0) {
        last->region.r1 = r.r1;
        return last;
    }
    s->owned[s->n_owned] =
        (struct owned){.p = p, .t = p->t, .region = r, .n_parts = p->sum == TSR_GRAD_NONE ? 1 : 3};
    return &s->owned[s->n_owned++];
}

static void place_slice(void *arg, const struct tsr_param *p, struct tsr_range rows, int part,
                        const float *from) {
    struct layout *l = arg;
    struct tsr_snapshot *s = l->s;
    struct tsr_region r = p->held;
    r.r0 = p->held.r0 + rows.lo;
    r.r1 = p->held.r0 + rows.hi;
    struct owned *o = entry_of(l, p, r, part);
    bool joined;
    size_t n = slice_bytes(p, rows), at = advance(&l->end, from, n, part, &joined);
    if (o->region.r0 == r.r0)
        o->at[part] = at;
    if (joined)
        s->copies[s->n_copies - 1].n_bytes = at + n - s->copies[s->n_copies - 1].at;
    else
        s->copies[s->n_copies++] = (struct copy){(const char *)from, at, n};
}

static int order_of_owned(const void *a, const void *b) {
    const struct owned *x = a, *y = b;
    if (x->t != y->t)
        return x->t < y->t ? -1 : 1;
    return x->region.r0 < y->region.r0 ? -1 : x->region.r0 > y->region.r0;
}

static int lay_out(struct tsr_snapshot *s) {
    const struct tsr_net *net = s->net;
    struct layout l = {.s = s};
    size_t n = 1;
    for (int i = 0; i < net->n_params; i++)
        n += (size_t)net->params[i].n_slices;
    s->owned = malloc(n * sizeof *s->owned);
    s->copies = malloc(3 * n * sizeof *s->copies);
    if (!s->owned || !s->copies)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout of a snapshot");
    walk(net, place_slice, &l);
    s->n_bytes = l.end.at;
    if (s->n_owned > 0)
        qsort(s->owned, (size_t)s->n_owned, sizeof *s->owned, order_of_owned);
    return 0;
}

// ---- interface

static size_t head_bytes(const struct tsr_snapshot *s) {
    return tsr_align_up(sizeof(struct head) + (size_t)s->n_owned * sizeof(struct entry));
}

static void fill_head(struct tsr_snapshot *s) {
    struct head *h = (struct head *)(void *)s->memory.at[s->memory.mine];
    s->host = (char *)h + head_bytes(s);
    h->n_entries = s->n_owned;
    for (int i = 0; i < s->n_owned; i++) {
        const struct owned *o = &s->owned[i];
        struct entry *e = &h->entries[i];
        *e = (struct entry){o->t - s->net->tensors.t, o->region, o->n_parts, {0}};
        for (int part = 0; part < o->n_parts; part++)
            e->at[part] = head_bytes(s) + o->at[part];
    }
}

int tsr_snapshot_open(struct tsr_snapshot **out, struct tsr_net *net) {
    struct tsr_snapshot *s = calloc(1, sizeof *s);
    int rc = s ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a snapshot");
    if (rc == 0) {
        s->net = net;
        rc = lay_out(s);
    }
    rc = tsr_agree(net->ctx, net->comm, rc);
    if (rc == 0)
        rc = tsr_host_memory_open(&s->memory, net->ctx, net->comm, head_bytes(s) + s->n_bytes);
    if (rc < 0) {
        tsr_snapshot_close(s);
        return rc;
    }
    fill_head(s);
    rc = tsr_agree(net->ctx, net->comm, net->ctx->ops->pin(net->ctx, s->host, s->n_bytes));
    if (rc < 0) {
        s->host = NULL;
        tsr_snapshot_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void tsr_snapshot_close(struct tsr_snapshot *s) {
    if (!s)
        return;
    if (s->host)
        s->net->ctx->ops->unpin(s->net->ctx, s->host, s->n_bytes);
    tsr_host_memory_close(&s->memory);
    free(s->owned);
    free(s->copies);
    free(s);
}

// The counter of shares: which take they are of, and how many have been given away.
static uint64_t counter_of(const struct tsr_snapshot *s, uint64_t n) {
    return (uint64_t)s->n_takes << 32 | n;
}

int tsr_snapshot_take(struct tsr_snapshot *s) {
    struct tsr_ctx *ctx = s->net->ctx;
    s->n_takes++;
    if (s->memory.mine == 0)
        atomic_store(s->memory.counter, counter_of(s, 0));
    for (int i = 0; i < s->n_copies; i++) {
        const struct copy *c = &s->copies[i];
        TSR_TRY(ctx->ops->to_host(ctx, s->host + c->at, c->from, c->n_bytes));
    }
    return ctx->ops->sync(ctx);
}

// What all ranks of this host have, in their order.
static int find_sources(const struct tsr_snapshot *s, struct tsr_checkpoint_source **out, int *n) {
    const struct tsr_host_memory *m = &s->memory;
    size_t most = 1;
    for (int i = 0; i < m->n; i++)
        most += 3 * (size_t)((const struct head *)(const void *)m->at[i])->n_entries;
    *n = 0;
    *out = malloc(most * sizeof **out);
    if (!*out)
        return tsr_fail(TSR_ENOMEM, "no memory to write a checkpoint");
    for (int i = 0; i < m->n; i++) {
        const struct head *h = (const struct head *)(const void *)m->at[i];
        for (int64_t k = 0; k < h->n_entries; k++)
            for (int part = 0; part < h->entries[k].n_parts; part++) {
                const struct entry *e = &h->entries[k];
                const float *data = (const float *)(const void *)(m->at[i] + e->at[part]);
                (*out)[(*n)++] = (struct tsr_checkpoint_source){
                    (enum tsr_checkpoint_part)part, &s->net->tensors.t[e->tensor], e->region, data,
                    e->region.c1 - e->region.c0};
            }
    }
    return 0;
}

struct dealing {
    const struct tsr_snapshot *s;
    int n_shares, n_taken;
};

// What is small is dealt out beforehand: then each rank has something to write, and always the
// same.
static int own_share(void *arg) {
    struct dealing *d = arg;
    return d->n_taken++ == 0 ? d->s->memory.mine : d->n_shares;
}

// A rank that is faster than another takes more: the save is done when the last one is. One that is
// late with a save that has failed elsewhere gets none of the next one's.
static int next_share(void *arg) {
    const struct tsr_snapshot *s = ((struct dealing *)arg)->s;
    uint64_t seen = atomic_load(s->memory.counter);
    do
        if (seen < counter_of(s, 0) || seen >= counter_of(s, INT32_MAX))
            return tsr_fail(TSR_EPEER, "another rank of this host is not at the same checkpoint");
    while (!atomic_compare_exchange_weak(s->memory.counter, &seen, seen + 1));
    return (int)(seen - counter_of(s, 0));
}

int tsr_snapshot_write(const struct tsr_snapshot *s, struct tsr_checkpoint *c) {
    struct tsr_checkpoint_source *sources;
    size_t n_bytes = 0;
    int n;
    TSR_TRY(find_sources(s, &sources, &n));
    for (int i = 0; i < s->memory.n; i++)
        n_bytes += s->memory.n_bytes[i];
    const bool small = s->memory.n == 1 || n_bytes < LEAST_SHARED;
    struct dealing d = {s, s->memory.n * (small ? 1 : SHARES), 0};
    int rc =
        tsr_checkpoint_write_shares(c, sources, n, d.n_shares, small ? own_share : next_share, &d);
    free(sources);
    return rc;
}

uint64_t tsr_snapshot_elements(const struct tsr_snapshot *s) {
    int64_t n = 0;
    for (int i = 0; i < s->n_owned; i++)
        n += tsr_region_elems(s->owned[i].region) * s->owned[i].n_parts;
    return (uint64_t)n;
}

int tsr_snapshot_each(const struct tsr_snapshot *s, tsr_shard_fn fn, void *arg) {
    for (int i = 0; i < s->n_owned; i++)
        TSR_TRY(fn(arg, s->owned[i].t, s->owned[i].region));
    return 0;
}

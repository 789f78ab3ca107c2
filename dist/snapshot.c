#include <stdlib.h>
#include <string.h>
#include "core/arena.h"
#include "core/error.h"
#include "dist/leaves.h"
#include "dist/snapshot_private.h"
#include "kernels/cpu/pages.h"

enum { STAGE = 16 << 20 }; // bytes on their way from a device to the file, when nothing is copied

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
static struct tsr_owned *entry_of(struct layout *l, const struct tsr_param *p, struct tsr_region r,
                                  int part) {
    struct tsr_snapshot *s = l->s;
    if (part != TSR_CKPT_WEIGHTS) {
        while (l->k > 0 && s->owned[l->k - 1].p == p) // V begins again where M did
            l->k--;
        while (s->owned[l->k].p != p || s->owned[l->k].region.r1 < r.r1)
            l->k = (l->k + 1) % s->n_owned;
        return &s->owned[l->k];
    }
    struct tsr_owned *last = &s->owned[s->n_owned - 1];
    if (s->n_owned > 0 && last->p == p && last->region.r1 == r.r0) {
        last->region.r1 = r.r1;
        return last;
    }
    s->owned[s->n_owned] = (struct tsr_owned){
        .p = p, .t = p->t, .region = r, .n_parts = p->sum == TSR_GRAD_NONE ? 1 : 3};
    return &s->owned[s->n_owned++];
}

static void place_slice(void *arg, const struct tsr_param *p, struct tsr_range rows, int part,
                        const float *from) {
    struct layout *l = arg;
    struct tsr_snapshot *s = l->s;
    struct tsr_region r = p->held;
    r.r0 = p->held.r0 + rows.lo;
    r.r1 = p->held.r0 + rows.hi;
    struct tsr_owned *o = entry_of(l, p, r, part);
    bool joined;
    size_t n = slice_bytes(p, rows), at = advance(&l->end, from, n, part, &joined);
    if (o->region.r0 == r.r0) {
        o->at[part] = at;
        o->from[part] = from;
    }
    if (joined)
        s->copies[s->n_copies - 1].n_bytes = at + n - s->copies[s->n_copies - 1].at;
    else
        s->copies[s->n_copies++] = (struct tsr_owned_copy){(const char *)from, at, n};
}

static int order_of_owned(const void *a, const void *b) {
    const struct tsr_owned *x = a, *y = b;
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
    return tsr_align_up(sizeof(struct tsr_snapshot_head) +
                        (size_t)s->n_owned * sizeof(struct tsr_snapshot_entry));
}

static void fill_head(struct tsr_snapshot *s) {
    struct tsr_snapshot_head *h = (struct tsr_snapshot_head *)(void *)s->memory.at[s->memory.mine];
    s->host = (char *)h + head_bytes(s);
    h->n_entries = s->n_owned;
    for (int i = 0; i < s->n_owned; i++) {
        const struct tsr_owned *o = &s->owned[i];
        struct tsr_snapshot_entry *e = &h->entries[i];
        *e = (struct tsr_snapshot_entry){o->t - s->net->tensors.t, o->region, o->n_parts, {0}};
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

// At least a row, at most STAGE otherwise.
static void count_stage(void *arg, const struct tsr_param *p, struct tsr_range rows, int part,
                        const float *from) {
    size_t row = (size_t)p->cols * sizeof(float), n = slice_bytes(p, rows), *most = arg;
    (void)part;
    (void)from;
    n = n < STAGE ? n : row > STAGE ? row : STAGE / row * row;
    *most = n > *most ? n : *most;
}

size_t tsr_snapshot_direct_bytes(const struct tsr_net *net, bool device) {
    size_t most = 0;
    if (device)
        walk(net, count_stage, &most);
    return most;
}

static int open_stage(struct tsr_snapshot *s) {
    struct tsr_ctx *ctx = s->net->ctx;
    s->n_stage = tsr_snapshot_direct_bytes(s->net, tsr_snapshot_is_apart(ctx));
    if (s->n_stage == 0)
        return 0;
    s->stage = tsr_pages_map(s->n_stage);
    if (!s->stage)
        return tsr_fail(TSR_ENOMEM, "no memory (%zu bytes) to write checkpoints", s->n_stage);
    return ctx->ops->pin(ctx, s->stage, s->n_stage);
}

int tsr_snapshot_open_direct(struct tsr_snapshot **out, struct tsr_net *net) {
    struct tsr_snapshot *s = calloc(1, sizeof *s);
    int rc = s ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a snapshot");
    if (rc == 0) {
        s->net = net;
        s->direct = true;
        rc = lay_out(s);
    }
    if (rc == 0)
        rc = open_stage(s);
    rc = tsr_agree(net->ctx, net->comm, rc);
    if (rc < 0)
        tsr_snapshot_close(s);
    else
        *out = s;
    return rc;
}

void tsr_snapshot_close(struct tsr_snapshot *s) {
    if (!s)
        return;
    if (s->host)
        s->net->ctx->ops->unpin(s->net->ctx, s->host, s->n_bytes);
    if (s->stage)
        s->net->ctx->ops->unpin(s->net->ctx, s->stage, s->n_stage);
    tsr_pages_unmap(s->stage, s->n_stage);
    tsr_host_memory_close(&s->memory);
    free(s->owned);
    free(s->copies);
    free(s);
}

int tsr_snapshot_take(struct tsr_snapshot *s) {
    struct tsr_ctx *ctx = s->net->ctx;
    if (s->direct)
        return ctx->ops->sync(ctx);
    s->n_takes++;
    if (s->memory.mine == 0)
        atomic_store(s->memory.counter, tsr_snapshot_count(s, 0));
    for (int i = 0; i < s->n_copies; i++) {
        const struct tsr_owned_copy *c = &s->copies[i];
        TSR_TRY(ctx->ops->to_host(ctx, s->host + c->at, c->from, c->n_bytes));
    }
    return ctx->ops->sync(ctx);
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

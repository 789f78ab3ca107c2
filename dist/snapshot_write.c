// A snapshot on its way to a checkpoint: out of the second buffers of all ranks of this host, or
// straight from the net.
#include <stdlib.h>
#include "core/error.h"
#include "dist/snapshot_private.h"

enum {
    SHARES = 16,             // of each rank of this host, when there are several
    LEAST_SHARED = 64 << 20, // bytes on one host below which each has one
};

// What all ranks of this host have, in their order.
static int find_sources(const struct tsr_snapshot *s, struct tsr_checkpoint_source **out, int *n) {
    const struct tsr_host_memory *m = &s->memory;
    size_t most = 1;
    for (int i = 0; i < m->n; i++)
        most += 3 * (size_t)((const struct tsr_snapshot_head *)(const void *)m->at[i])->n_entries;
    *n = 0;
    *out = malloc(most * sizeof **out);
    if (!*out)
        return tsr_fail(TSR_ENOMEM, "no memory to write a checkpoint");
    for (int i = 0; i < m->n; i++) {
        const struct tsr_snapshot_head *h =
            (const struct tsr_snapshot_head *)(const void *)m->at[i];
        for (int64_t k = 0; k < h->n_entries; k++)
            for (int part = 0; part < h->entries[k].n_parts; part++) {
                const struct tsr_snapshot_entry *e = &h->entries[k];
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
        if (seen < tsr_snapshot_count(s, 0) || seen >= tsr_snapshot_count(s, INT32_MAX))
            return tsr_fail(TSR_EPEER, "another rank of this host is not at the same checkpoint");
    while (!atomic_compare_exchange_weak(s->memory.counter, &seen, seen + 1));
    return (int)(seen - tsr_snapshot_count(s, 0));
}

// From where it lies, which the writer can read.
static int write_own(const struct tsr_snapshot *s, struct tsr_checkpoint *c) {
    struct tsr_checkpoint_source *sources = malloc(3 * ((size_t)s->n_owned + 1) * sizeof *sources);
    struct dealing d = {s, 1, 0};
    int n = 0;
    if (!sources)
        return tsr_fail(TSR_ENOMEM, "no memory to write a checkpoint");
    for (int i = 0; i < s->n_owned; i++)
        for (int part = 0; part < s->owned[i].n_parts; part++) {
            const struct tsr_owned *o = &s->owned[i];
            sources[n++] =
                (struct tsr_checkpoint_source){(enum tsr_checkpoint_part)part, o->t, o->region,
                                               o->from[part], o->region.c1 - o->region.c0};
        }
    int rc = tsr_checkpoint_write_shares(c, sources, n, 1, own_share, &d);
    free(sources);
    return rc;
}

static int write_staged(const struct tsr_snapshot *s, struct tsr_checkpoint *c,
                        const struct tsr_owned *o, int part) {
    struct tsr_ctx *ctx = s->net->ctx;
    const int64_t width = o->region.c1 - o->region.c0;
    const int64_t most = (int64_t)(s->n_stage / sizeof(float)) / (width > 0 ? width : 1);
    const float *from = o->from[part];
    for (struct tsr_region r = o->region; r.r0 < o->region.r1; r.r0 = r.r1) {
        r.r1 = o->region.r1 - r.r0 < most ? o->region.r1 : r.r0 + most;
        TSR_TRY(ctx->ops->to_host(ctx, s->stage, from, (size_t)tsr_region_elems(r) * sizeof *from));
        TSR_TRY(ctx->ops->sync(ctx));
        TSR_TRY(tsr_checkpoint_write(c, (enum tsr_checkpoint_part)part, o->t, r,
                                     (const float *)(const void *)s->stage, width));
        from += tsr_region_elems(r);
    }
    return 0;
}

static int write_direct(const struct tsr_snapshot *s, struct tsr_checkpoint *c) {
    if (!tsr_snapshot_is_apart(s->net->ctx))
        return write_own(s, c);
    for (int part = TSR_CKPT_WEIGHTS; part <= TSR_CKPT_V; part++) // in the order of the files
        for (int i = 0; i < s->n_owned; i++)
            if (part < s->owned[i].n_parts)
                TSR_TRY(write_staged(s, c, &s->owned[i], part));
    return 0;
}

int tsr_snapshot_write(const struct tsr_snapshot *s, struct tsr_checkpoint *c) {
    struct tsr_checkpoint_source *sources;
    size_t n_bytes = 0;
    int n;
    if (s->direct)
        return write_direct(s, c);
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

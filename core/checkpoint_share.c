// How several processes that can read each other's memory divide the work: each writes whole ranges
// one after another, so that runs are long and digests are made on the way.
#include "core/checkpoint_private.h"

#include <stdlib.h>
#include "core/error.h"

// What sources have of each range: bytes, taking a region's as spread evenly from its first to its
// last. ranges (n): of all tensor files in order.
static void add_source(const struct tsr_checkpoint *c, const struct tsr_ckpt_set *s,
                       const struct tsr_checkpoint_source *x, const int64_t *first_range,
                       double *ranges) {
    const struct tsr_place place = s->hf ? tsr_place_hf(x->t) : tsr_place_canonical(x->t);
    const int entry = s->entry_of[x->t - c->opt.table->t];
    const double range = (double)c->opt.range_bytes;
    if (x->part != s->part || entry < 0 || tsr_region_elems(x->region) == 0)
        return;
    int k = s->first_file;
    while (&s->entries[entry] >= c->files[k].entries + c->files[k].n_entries)
        k++;
    struct tsr_region r = tsr_place_region(&place, x->t, x->region);
    const size_t elem = tsr_dtype_size(s->dtype);
    const uint64_t base = c->files[k].header.len + s->entries[entry].begin;
    const uint64_t lo = base + (uint64_t)(r.r0 * place.cols + r.c0) * elem;
    const uint64_t hi = base + (uint64_t)((r.r1 - 1) * place.cols + r.c1) * elem;
    const double density = (double)tsr_region_elems(r) * (double)elem / (double)(hi - lo);
    for (uint64_t at = lo, i = lo / c->opt.range_bytes; at < hi; i++) {
        double end = (double)(i + 1) * range < (double)hi ? (double)(i + 1) * range : (double)hi;
        ranges[first_range[k] + (int64_t)i] += density * (end - (double)at);
        at = (uint64_t)end;
    }
}

// The first range of a share: that before which share / n_shares of the bytes lie.
static int64_t cut(const double *ranges, int64_t n, double total, int share, int n_shares) {
    double sum = 0.0, want = total * share / n_shares;
    int64_t r = 0;
    if (share == n_shares)
        return n;
    while (r < n && sum + 0.5 * ranges[r] < want)
        sum += ranges[r++];
    return r;
}

int tsr_ckpt_shares_open(struct tsr_ckpt_shares *s, const struct tsr_checkpoint *c,
                         const struct tsr_checkpoint_source *sources, int n) {
    *s = (struct tsr_ckpt_shares){.first = malloc(((size_t)c->n_files + 1) * sizeof *s->first)};
    for (int k = 0; s->first && k < c->n_files; k++) {
        s->first[k] = s->n_ranges;
        s->n_ranges += tsr_ckpt_n_ranges(c->files[k].size, c->opt.range_bytes);
    }
    s->bytes = calloc((size_t)s->n_ranges + 1, sizeof *s->bytes);
    if (!s->first || !s->bytes)
        return tsr_fail(TSR_ENOMEM, "no memory to write a checkpoint");
    for (int i = 0; i < c->n_sets; i++)
        for (int k = 0; k < n; k++)
            add_source(c, &c->sets[i], &sources[k], s->first, s->bytes);
    for (int64_t r = 0; r < s->n_ranges; r++)
        s->total += s->bytes[r];
    return 0;
}

void tsr_ckpt_shares_close(struct tsr_ckpt_shares *s) {
    free(s->first);
    free(s->bytes);
}

void tsr_ckpt_share(const struct tsr_ckpt_shares *s, const struct tsr_checkpoint *c, int share,
                    int n_shares, struct tsr_ckpt_window *w) {
    const int64_t lo = cut(s->bytes, s->n_ranges, s->total, share, n_shares);
    const int64_t hi = cut(s->bytes, s->n_ranges, s->total, share + 1, n_shares);
    for (int k = 0; k < c->n_files; k++) {
        int64_t from = lo > s->first[k] ? lo - s->first[k] : 0;
        int64_t to = hi > s->first[k] ? hi - s->first[k] : 0;
        w[k].from = (uint64_t)from * c->opt.range_bytes;
        w[k].to = (uint64_t)to * c->opt.range_bytes; // may lie beyond the file's end
    }
}

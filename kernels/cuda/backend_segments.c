// Segments as kernels read them: caches resolved, block tables on the device.
#include <stdlib.h>
#include <string.h>
#include "kernels/cuda/backend_private.h"

int64_t tsr_cuda_table_length(const struct tsr_segment *s) {
    if (s->cache == NULL || s->length == 0)
        return 0;
    int64_t positions = (int64_t)s->position + s->length;
    TSR_ASSERT(positions <= (int64_t)s->cache->n_blocks * s->cache->block_tokens);
    return (positions + s->cache->block_tokens - 1) / s->cache->block_tokens;
}

void tsr_cuda_fill_segment(struct tsr_cuda_segment *to, const struct tsr_segment *s,
                           const int32_t *blocks) {
    memset(to, 0, sizeof *to); // its padding, too: uploads are compared as bytes
    to->start = s->start;
    to->length = s->length;
    to->position = s->position;
    to->sequence_lo = (uint32_t)s->sequence;
    to->sequence_hi = (uint32_t)(s->sequence >> 32);
    if (s->cache != NULL) {
        to->k = s->cache->k;
        to->v = s->cache->v;
        to->blocks = blocks;
        to->block_tokens = s->cache->block_tokens;
    }
}

// All tables one after the other.
static int upload_tables(struct tsr_cuda *c, const struct tsr_segment *segs, int n_segs,
                         const int32_t **dev) {
    int64_t n = 0, at = 0;
    const void *where = NULL;
    for (int i = 0; i < n_segs; i++)
        n += tsr_cuda_table_length(&segs[i]);
    *dev = NULL;
    if (n == 0)
        return 0;
    int32_t *all = malloc((size_t)n * sizeof *all);
    if (all == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for block tables of %lld entries", (long long)n);
    for (int i = 0; i < n_segs; i++) {
        int64_t len = tsr_cuda_table_length(&segs[i]);
        if (len > 0)
            memcpy(all + at, segs[i].cache->blocks, (size_t)len * sizeof *all);
        at += len;
    }
    int rc = tsr_cuda_upload(c, all, (size_t)n * sizeof *all, &where);
    free(all);
    *dev = where;
    return rc;
}

static int upload_segments(struct tsr_cuda *c, const struct tsr_segment *segs, int n_segs,
                           const struct tsr_cuda_segment **dev) {
    const int32_t *tables = NULL;
    const void *where = NULL;
    TSR_TRY(upload_tables(c, segs, n_segs, &tables));
    struct tsr_cuda_segment *all = malloc((size_t)n_segs * sizeof *all);
    if (all == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for %d segments", n_segs);
    for (int i = 0; i < n_segs; i++) {
        tsr_cuda_fill_segment(&all[i], &segs[i], tables);
        if (tables != NULL)
            tables += tsr_cuda_table_length(&segs[i]);
    }
    int rc = tsr_cuda_upload(c, all, (size_t)n_segs * sizeof *all, &where);
    free(all);
    *dev = where;
    return rc;
}

int tsr_cuda_segments(struct tsr_cuda *c, const struct tsr_segment *segs, int n_segs,
                      const struct tsr_cuda_segment **dev, int *max_length) {
    *dev = NULL;
    *max_length = 0;
    for (int i = 0; i < n_segs; i++)
        *max_length = segs[i].length > *max_length ? segs[i].length : *max_length;
    if (n_segs <= 0)
        return 0;
    return c->recording != NULL ? tsr_cuda_graph_segments(c, segs, n_segs, dev)
                                : upload_segments(c, segs, n_segs, dev);
}

// Segments of few queries, and the keys that the longest of their tables has room for: a recorded
// operation is done again when there are more.
static void count_few(const struct tsr_attn *a, struct tsr_cuda_attn *out) {
    for (int i = 0; i < a->n_segs; i++) {
        const struct tsr_kv_cache *cache = a->segs[i].cache;
        if (cache == NULL || a->segs[i].length > TSR_CUDA_FEW)
            continue;
        int64_t keys = (int64_t)cache->n_blocks * cache->block_tokens;
        keys = keys < INT32_MAX / 2 ? keys : INT32_MAX / 2; // more than positions can count
        out->n_few++;
        out->n_keys = keys > out->n_keys ? (int)keys : out->n_keys;
    }
}

int tsr_cuda_attn_of(struct tsr_cuda *c, const struct tsr_attn *a, struct tsr_cuda_attn *out) {
    *out = (struct tsr_cuda_attn){.q0 = a->q0,
                                  .nq = a->nq,
                                  .kv0 = a->kv0,
                                  .nkv = a->nkv,
                                  .group = a->group,
                                  .head_dim = a->head_dim,
                                  .scale = a->scale,
                                  .window = a->window,
                                  .drop = a->drop,
                                  .drop_threshold = tsr_drop_threshold((double)a->drop.p),
                                  .n_segs = a->n_segs,
                                  .n_tokens = a->n_tokens,
                                  .ldq = a->ldq,
                                  .ldk = a->ldk,
                                  .ldv = a->ldv,
                                  .ldo = a->ldo};
    count_few(a, out);
    return tsr_cuda_segments(c, a->segs, a->n_segs, &out->segs, &out->max_length);
}

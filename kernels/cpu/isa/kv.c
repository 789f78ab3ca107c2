// Keys and values: storing new rows in the paged cache, and joining the pieces of a KV head's
// gradient.
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/tree.h"

struct store_job {
    struct tsr_split split; // of the segments' rows, counted through
    const struct tsr_attn *a;
    const float *k, *v; // (N, nkv, D), rows ldk and ldv apart
};

struct slot_job {
    struct tsr_split split; // of tokens
    float *dkv;             // (N, nkv, D)
    const float *values;    // (N, n_slots, D)
    const int *slot_of;     // (nkv, n_pieces): slot, or -1
    int n_slots, n_pieces, nkv, d;
};

static void store_part(void *arg, int part, int thread) {
    (void)thread;
    const struct store_job *q = arg;
    const struct tsr_attn *a = q->a;
    struct tsr_range rows = tsr_split_part(q->split, part);
    size_t width = (size_t)a->nkv * (size_t)a->head_dim;
    int64_t before = 0; // rows of earlier segments
    for (int s = 0; s < a->n_segs && before < rows.hi; s++) {
        const struct tsr_segment *g = &a->segs[s];
        int64_t lo = rows.lo > before ? rows.lo - before : 0;
        int64_t hi = rows.hi - before < g->length ? rows.hi - before : g->length;
        const struct tsr_kv_cache *cache = g->cache;
        for (int64_t t = lo; t < hi && cache != NULL; t++) {
            int64_t p = g->position + t;
            int64_t row = (int64_t)cache->blocks[p / cache->block_tokens] * cache->block_tokens +
                          p % cache->block_tokens;
            memcpy((float *)cache->k + (size_t)row * width, q->k + (g->start + t) * a->ldk,
                   width * sizeof(float));
            memcpy((float *)cache->v + (size_t)row * width, q->v + (g->start + t) * a->ldv,
                   width * sizeof(float));
        }
        before += g->length;
    }
}

int TSR_FN(tsr_kv_store)(struct tsr_ctx *ctx, const struct tsr_attn *a, const tsr_elem *k,
                         const tsr_elem *v) {
    int64_t rows = 0;
    for (int s = 0; s < a->n_segs; s++)
        rows += a->segs[s].length;
    struct store_job q = {tsr_split_of(ctx, rows, (int64_t)a->nkv * a->head_dim * 2), a, k, v};
    tsr_pool_run(ctx->stream, q.split.n_parts, store_part, &q);
    return 0;
}

static void slot_part(void *arg, int part, int thread) {
    (void)thread;
    const struct slot_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    for (int64_t i = rows.lo; i < rows.hi; i++)
        for (int h = 0; h < q->nkv; h++) {
            float *out = q->dkv + (i * q->nkv + h) * q->d;
            const float *values = q->values + i * q->n_slots * q->d;
            const int *slot_of = q->slot_of + (ptrdiff_t)h * q->n_pieces;
            for (int j = 0; j < q->d; j += 16) {
                struct v16_tree tree;
                tree.top = 0;
                for (int p = 0; p < q->n_pieces; p++)
                    if (slot_of[p] >= 0)
                        v16_tree_leaf(&tree, (unsigned)p,
                                      v16_load_tail(values + (ptrdiff_t)slot_of[p] * q->d + j,
                                                    q->d - j, 0.0f));
                v16 sum = v16_add(v16_tree_root(&tree), v16_zero()); // for the absent pieces
                v16_store_tail(out + j, q->d - j, sum);
            }
        }
}

int TSR_FN(tsr_kv_slot_sum)(struct tsr_ctx *ctx, void *dkv, bool f32, const tsr_elem *slot_values,
                            const struct tsr_kv_slot *slots, int n_slots, int n_pieces, int nkv,
                            int n, int d) {
    (void)f32; // as everything here
    size_t n_bytes = (size_t)nkv * (size_t)n_pieces * sizeof(int);
    int *slot_of = tsr_pool_shared(ctx->stream, n_bytes > 0 ? n_bytes : sizeof(int));
    if (slot_of == NULL)
        return tsr_fail(TSR_ENOMEM, "cannot allocate %zu bytes of memory", n_bytes);
    for (int i = 0; i < nkv * n_pieces; i++)
        slot_of[i] = -1;
    for (int s = 0; s < n_slots; s++) {
        TSR_ASSERT(slots[s].kv >= 0 && slots[s].kv < nkv && slots[s].piece >= 0 &&
                   slots[s].piece < n_pieces);
        slot_of[slots[s].kv * n_pieces + slots[s].piece] = s;
    }
    struct slot_job q = {.split = tsr_split_of(ctx, n, (int64_t)n_slots * d),
                         .dkv = dkv,
                         .values = slot_values,
                         .slot_of = slot_of,
                         .n_slots = n_slots,
                         .n_pieces = n_pieces,
                         .nkv = nkv,
                         .d = d};
    tsr_pool_run(ctx->stream, q.split.n_parts, slot_part, &q);
    return 0;
}

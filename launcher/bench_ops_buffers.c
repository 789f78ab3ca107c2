// Where the operations of `tessera bench ops` find their operands.
#include <stdlib.h>
#include "core/error.h"
#include "launcher/bench_ops.h"

struct buffer {
    void **at;
    size_t n; // elements
    size_t size;
    enum { ZERO, ELEMS, FLOATS } contents; // zero, or random of ctx->dtype or fp32
};

enum { N_BUFFERS = 40 };

static size_t product(int64_t a, int64_t b) {
    return (size_t)a * (size_t)b;
}

// One list for taking and giving back.
static int list(struct tsr_bench_ops *b, struct buffer out[N_BUFFERS]) {
    const struct tsr_model *m = b->m;
    const int64_t N = b->n, q = m->n_heads * m->head_dim, kv = m->n_kv_heads * m->head_dim;
    const size_t es = b->es, f = sizeof(float);
    int k = 0;
    b->grad_elems = product(m->ffn, m->hidden);
#define BUFFER(field, count, bytes, contents)                                                      \
    (out[k++] = (struct buffer){(void **)&b->field, (count), (bytes), (contents)})
    BUFFER(x, product(N, m->hidden), es, ELEMS);
    BUFFER(x2, product(N, m->hidden), es, ELEMS);
    BUFFER(y, product(N, m->hidden), es, ELEMS);
    BUFFER(q, product(N, q), es, ELEMS);
    BUFFER(k, product(N, kv), es, ELEMS);
    BUFFER(v, product(N, kv), es, ELEMS);
    BUFFER(dq, product(N, q), es, ELEMS);
    BUFFER(dk, product(N, kv), es, ELEMS);
    BUFFER(dv, product(N, kv), es, ELEMS);
    BUFFER(f1, product(N, m->ffn), es, ELEMS);
    BUFFER(f2, product(N, m->ffn), es, ELEMS);
    BUFFER(f3, product(N, m->ffn), es, ELEMS);
    BUFFER(logits, product(b->head_rows, m->vocab), es, ELEMS);
    BUFFER(w_c, product(m->hidden, 1), es, ELEMS);
    BUFFER(w_q, product(q, m->hidden), es, ELEMS);
    BUFFER(w_up, product(m->ffn, m->hidden), es, ELEMS);
    BUFFER(w_head, product(m->vocab, m->hidden), es, ELEMS);
    BUFFER(bias, product(m->ffn, 1), es, ELEMS);
    BUFFER(lse, product(m->n_heads, N), f, ZERO);
    BUFFER(mean, product(N, 1), f, ZERO);
    BUFFER(rstd, product(N, 1), f, ZERO);
    BUFFER(max, product(N, 1), f, ZERO);
    BUFFER(sum_target, product(N, 2), f, ZERO);
    BUFFER(loss, product(N, 1), f, ZERO);
    BUFFER(grad, b->grad_elems, f, FLOATS);
    BUFFER(master, b->grad_elems, f, FLOATS);
    BUFFER(m1, b->grad_elems, f, ZERO);
    BUFFER(m2, b->grad_elems, f, ZERO);
    BUFFER(params, product(m->hidden, 16), f, ZERO);
    BUFFER(rope, product(b->seq_len, m->head_dim), f, FLOATS);
    BUFFER(sums, product(8, 1), sizeof(double), ZERO);
    BUFFER(ids, product(N, 1), sizeof(int32_t), ZERO);
    BUFFER(pos, product(N, 1), sizeof(int32_t), ZERO);
#undef BUFFER
    TSR_ASSERT(k <= N_BUFFERS);
    return k;
}

// Token ids spread over the vocabulary, positions within the sequences.
static int fill_tokens(struct tsr_bench_ops *b) {
    int32_t *host = malloc(product(b->n, 2) * sizeof *host);
    if (!host)
        return tsr_fail(TSR_ENOMEM, "no memory for %d tokens", b->n);
    for (int i = 0; i < b->n; i++) {
        host[i] = (int32_t)((uint64_t)i * 2654435761u % (uint64_t)b->m->vocab);
        host[b->n + i] = i % b->seq_len;
    }
    const size_t n_bytes = (size_t)b->n * sizeof *host;
    int rc = b->ctx->ops->to_device(b->ctx, b->ids, host, n_bytes);
    if (rc == 0)
        rc = b->ctx->ops->to_device(b->ctx, b->pos, host + b->n, n_bytes);
    if (rc == 0)
        rc = b->ctx->ops->sync(b->ctx);
    free(host);
    return rc;
}

static int fill_host(struct tsr_bench_ops *b) {
    const int n_kv = (int)b->m->n_kv_heads, group = (int)(b->m->n_heads / b->m->n_kv_heads);
    const int n_blocks = (b->n + TSR_BENCH_BLOCK - 1) / TSR_BENCH_BLOCK;
    int32_t *blocks = malloc((size_t)n_blocks * sizeof *blocks);
    b->segs = calloc((size_t)b->n_segs, sizeof *b->segs);
    b->rows = calloc((size_t)b->n_segs, sizeof *b->rows);
    b->slots = calloc((size_t)n_kv, sizeof *b->slots);
    b->cache = (struct tsr_kv_cache){.k = b->k,
                                     .v = b->v,
                                     .blocks = blocks,
                                     .block_tokens = TSR_BENCH_BLOCK,
                                     .n_blocks = n_blocks};
    if (!blocks || !b->segs || !b->rows || !b->slots)
        return tsr_fail(TSR_ENOMEM, "no memory for the batch");
    for (int i = 0; i < n_blocks; i++)
        blocks[i] = i;
    for (int i = 0; i < b->n_segs; i++) {
        b->segs[i] = (struct tsr_segment){
            .start = i * b->seq_len, .length = b->seq_len, .sequence = (uint64_t)i};
        b->rows[i] = (struct tsr_rows){i * b->seq_len, b->seq_len, i % 8};
    }
    for (int h = 0; h < n_kv; h++)
        b->slots[h] = (struct tsr_kv_slot){h * group, group, h, 0};
    return 0;
}

int tsr_bench_ops_open(struct tsr_bench_ops *b) {
    struct buffer all[N_BUFFERS];
    int n = list(b, all);
    for (int i = 0; i < n; i++) {
        struct tsr_ctx as = *b->ctx;
        TSR_TRY(b->ctx->ops->alloc(b->ctx, all[i].n * all[i].size, all[i].at));
        if (all[i].contents == ZERO)
            continue;
        if (all[i].contents == FLOATS)
            as.dtype = TSR_DT_F32;
        TSR_TRY(b->ctx->ops->init_normal(&as, *all[i].at,
                                         tsr_rng_key((uint64_t)i, TSR_RNG_BENCH, 0, 0), 0.1f, 0, 1,
                                         0, (int64_t)all[i].n, (int64_t)all[i].n));
    }
    TSR_TRY(fill_tokens(b));
    return fill_host(b);
}

void tsr_bench_ops_close(struct tsr_bench_ops *b) {
    struct buffer all[N_BUFFERS];
    int n = list(b, all);
    for (int i = 0; i < n; i++)
        b->ctx->ops->free(b->ctx, *all[i].at, all[i].n * all[i].size);
    free((void *)(uintptr_t)b->cache.blocks);
    free(b->segs);
    free(b->rows);
    free(b->slots);
}

#include "dist/tp.h"

#include "core/error.h"

// Rows of a micro-batch that rank r holds: `len` tokens from `lo` of each sequence.
static struct tsr_range tokens_of(const struct tsr_net *net, const struct tsr_batch *b, int r) {
    return tsr_piece_of_rank(b->seq_len, net->mesh.V, r, net->mesh.tp);
}

// Moves rows of `row_bytes` between (sequence, token) order and rank-major order.
static int reorder(struct tsr_net *net, const struct tsr_batch *b, void *dst, const void *src,
                   size_t row_bytes, bool to_rank_major) {
    size_t at = 0;
    for (int r = 0; r < net->mesh.tp; r++) {
        struct tsr_range t = tokens_of(net, b, r);
        size_t len = (size_t)tsr_range_len(t);
        for (int s = 0; s < b->n_seqs; s++, at += len) {
            size_t flat = (size_t)s * (size_t)b->seq_len + (size_t)t.lo;
            void *d = (char *)dst + (to_rank_major ? at : flat) * row_bytes;
            const void *x = (const char *)src + (to_rank_major ? flat : at) * row_bytes;
            TSR_TRY(net->ctx->ops->copy(net->ctx, d, x, len * row_bytes));
        }
    }
    return 0;
}

int tsr_tp_rows(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x, tsr_elem *whole,
                tsr_elem *staged, const tsr_elem **out) {
    *out = x;
    if (!net->opt.sequence_parallel || net->mesh.tp == 1)
        return 0;
    size_t counts[TSR_MAX_TP], es = tsr_dtype_size(net->ctx->dtype);
    for (int r = 0; r < net->mesh.tp; r++)
        counts[r] = (size_t)(tsr_range_len(tokens_of(net, b, r)) * b->n_seqs * net->m->hidden) * es;
    TSR_TRY(net->comm->ops->all_gather(net->ctx, net->comm, &net->tp, staged, x, counts));
    *out = whole;
    return reorder(net, b, whole, staged, (size_t)net->m->hidden * es, false);
}

static int join(struct tsr_net *net, const struct tsr_batch *b, float *sum, float *staged) {
    const struct tsr_comm_ops *ops = net->comm->ops;
    size_t c = (size_t)net->m->hidden, counts[TSR_MAX_TP];
    if (!net->opt.sequence_parallel)
        return ops->all_reduce(net->ctx, net->comm, &net->tp, sum, (size_t)b->n * c);
    for (int r = 0; r < net->mesh.tp; r++)
        counts[r] = (size_t)(tsr_range_len(tokens_of(net, b, r)) * b->n_seqs) * c;
    TSR_TRY(reorder(net, b, staged, sum, c * sizeof *sum, true));
    return ops->reduce_scatter(net->ctx, net->comm, &net->tp, sum, staged, counts);
}

int tsr_tp_sum(struct tsr_net *net, const struct tsr_batch *b, float *sum, tsr_elem *out,
               float *staged) {
    int64_t c = net->m->hidden;
    if (net->mesh.tp == 1)
        return 0;
    TSR_TRY(join(net, b, sum, staged));
    if (!out || out == sum)
        return 0;
    return net->ctx->ops->convert(net->ctx, net->ctx->dtype, out, c, TSR_DT_F32, sum, c, b->n_local,
                                  c);
}

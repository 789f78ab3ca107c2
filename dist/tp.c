#include "dist/tp.h"

#include "core/error.h"

// Rows of a micro-batch that rank r holds: `len` tokens from `lo` of each sequence.
static struct tsr_range tokens_of(const struct tsr_net *net, const struct tsr_batch *b, int r) {
    return tsr_piece_of_rank(b->seq_len, net->mesh.V, r, net->mesh.tp);
}

// Moves rows between (sequence, token) order and rank-major order.
static int reorder(struct tsr_net *net, const struct tsr_batch *b, tsr_elem *dst,
                   const tsr_elem *src, bool to_rank_major) {
    int c = (int)net->m->hidden, at = 0;
    for (int r = 0; r < net->mesh.tp; r++) {
        struct tsr_range t = tokens_of(net, b, r);
        int len = (int)tsr_range_len(t);
        for (int s = 0; s < b->n_seqs; s++, at += len) {
            int64_t flat = (int64_t)s * b->seq_len + t.lo;
            tsr_elem *d = tsr_at(net->ctx, dst, (to_rank_major ? at : flat) * (int64_t)c);
            const tsr_elem *x = tsr_at(net->ctx, src, (to_rank_major ? flat : at) * (int64_t)c);
            TSR_TRY(net->ctx->ops->copy_2d(net->ctx, d, c, x, c, len, c));
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
    return reorder(net, b, whole, staged, false);
}

int tsr_tp_sum(struct tsr_net *net, const struct tsr_batch *b, tsr_elem *x, tsr_elem *staged) {
    if (net->mesh.tp == 1)
        return 0;
    const struct tsr_comm_ops *ops = net->comm->ops;
    if (!net->opt.sequence_parallel)
        return ops->all_reduce(net->ctx, net->comm, &net->tp, x,
                               (size_t)b->n * (size_t)net->m->hidden);
    size_t counts[TSR_MAX_TP];
    for (int r = 0; r < net->mesh.tp; r++)
        counts[r] = (size_t)(tsr_range_len(tokens_of(net, b, r)) * b->n_seqs * net->m->hidden);
    TSR_TRY(reorder(net, b, staged, x, true));
    return ops->reduce_scatter(net->ctx, net->comm, &net->tp, x, staged, counts);
}

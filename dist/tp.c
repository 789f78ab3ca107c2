#include "dist/tp.h"

#include "core/error.h"

// Rows of a micro-batch that rank r holds: `len` tokens from `lo` of each sequence.
static struct tsr_range tokens_of(const struct tsr_net *net, const struct tsr_batch *b, int r) {
    return tsr_piece_of_rank(b->seq_len, net->mesh.V, r, net->mesh.tp);
}

// Moves rows of `row_bytes` of sequences [seqs.lo, seqs.hi) between (sequence, token) order and
// rank-major order.
static int reorder(struct tsr_net *net, const struct tsr_batch *b, struct tsr_range seqs, void *dst,
                   const void *src, size_t row_bytes, bool to_rank_major) {
    size_t at = (size_t)(seqs.lo * b->seq_len);
    for (int r = 0; r < net->mesh.tp; r++) {
        struct tsr_range t = tokens_of(net, b, r);
        size_t len = (size_t)tsr_range_len(t);
        for (int64_t s = seqs.lo; s < seqs.hi; s++, at += len) {
            size_t flat = (size_t)s * (size_t)b->seq_len + (size_t)t.lo;
            void *d = (char *)dst + (to_rank_major ? at : flat) * row_bytes;
            const void *x = (const char *)src + (to_rank_major ? flat : at) * row_bytes;
            TSR_TRY(net->ctx->ops->copy(net->ctx, d, x, len * row_bytes));
        }
    }
    return 0;
}

static bool gathers(const struct tsr_net *net) {
    return net->opt.sequence_parallel && net->mesh.tp > 1;
}

int tsr_tp_rows_begin(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x,
                      tsr_elem *staged, struct tsr_request *r) {
    size_t counts[TSR_MAX_TP], es = tsr_dtype_size(net->ctx->dtype);
    *r = (struct tsr_request){0};
    if (!gathers(net))
        return 0;
    for (int i = 0; i < net->mesh.tp; i++)
        counts[i] = (size_t)(tsr_range_len(tokens_of(net, b, i)) * b->n_seqs * net->m->hidden) * es;
    return net->comm->ops->all_gather(net->ctx, net->comm, &net->tp, staged, x, counts, r);
}

int tsr_tp_rows_end(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x,
                    tsr_elem *whole, tsr_elem *staged, struct tsr_request *r,
                    const tsr_elem **out) {
    *out = x;
    if (!gathers(net))
        return 0;
    TSR_TRY(net->comm->ops->wait(net->ctx, net->comm, r));
    *out = whole;
    return reorder(net, b, (struct tsr_range){0, b->n_seqs}, whole, staged,
                   (size_t)net->m->hidden * tsr_dtype_size(net->ctx->dtype), false);
}

int tsr_tp_rows(struct tsr_net *net, const struct tsr_batch *b, const tsr_elem *x, tsr_elem *whole,
                tsr_elem *staged, const tsr_elem **out) {
    struct tsr_request r;
    TSR_TRY(tsr_tp_rows_begin(net, b, x, staged, &r));
    return tsr_tp_rows_end(net, b, x, whole, staged, &r, out);
}

// Under sequence parallelism the rows are whole sequences. What arrives of them, no more than they
// are, goes to where this rank's rows of these sequences stand among all that it holds: that lies
// before the rows of sequences that are still to come, and on rows that staged has a copy of.
int tsr_tp_sum_begin(struct tsr_net *net, const struct tsr_batch *b, struct tsr_range rows,
                     float *sum, float *staged, struct tsr_request *r) {
    const struct tsr_comm_ops *ops = net->comm->ops;
    size_t c = (size_t)net->m->hidden, counts[TSR_MAX_TP];
    *r = (struct tsr_request){0};
    if (net->mesh.tp == 1)
        return 0;
    size_t lo = (size_t)rows.lo * c;
    if (!gathers(net))
        return ops->all_reduce(net->ctx, net->comm, &net->tp, sum + lo,
                               (size_t)tsr_range_len(rows) * c, r);
    struct tsr_range seqs = {rows.lo / b->seq_len, rows.hi / b->seq_len};
    for (int i = 0; i < net->mesh.tp; i++)
        counts[i] = (size_t)(tsr_range_len(tokens_of(net, b, i)) * tsr_range_len(seqs)) * c;
    TSR_TRY(reorder(net, b, seqs, staged, sum, c * sizeof *sum, true));
    float *mine = sum + (size_t)(tsr_range_len(tokens_of(net, b, net->mesh.tp_rank)) * seqs.lo) * c;
    return ops->reduce_scatter(net->ctx, net->comm, &net->tp, mine, staged + lo, counts, r);
}

int tsr_tp_sum_end(struct tsr_net *net, const struct tsr_batch *b, float *sum, tsr_elem *out,
                   struct tsr_request *r) {
    int64_t c = net->m->hidden;
    if (net->mesh.tp == 1)
        return 0;
    TSR_TRY(net->comm->ops->wait(net->ctx, net->comm, r));
    if (!out || out == sum)
        return 0;
    return net->ctx->ops->convert(net->ctx, net->ctx->dtype, out, c, TSR_DT_F32, sum, c, b->n_local,
                                  c);
}

int tsr_tp_sum(struct tsr_net *net, const struct tsr_batch *b, float *sum, tsr_elem *out,
               float *staged) {
    struct tsr_request r;
    TSR_TRY(tsr_tp_sum_begin(net, b, (struct tsr_range){0, b->n}, sum, staged, &r));
    return tsr_tp_sum_end(net, b, sum, out, &r);
}

enum { LEAST_ROWS = 64 }; // of a part: fewer would wait for the messages anyway

int tsr_tp_parts(const struct tsr_net *net, const struct tsr_batch *b) {
    bool cut = net->mesh.tp > 1 && net->comm->ops->overlaps && b->n >= 2 * LEAST_ROWS;
    return cut && (!gathers(net) || b->n_seqs > 1) ? TSR_TP_PARTS : 1;
}

// All but the last part have a multiple of tp rows, so that the ranks' slices of the parts add up
// to those of the whole, and with them the bytes sent.
struct tsr_range tsr_tp_part(const struct tsr_net *net, const struct tsr_batch *b, int i, int n) {
    int unit = gathers(net) ? b->seq_len : net->mesh.tp;
    int64_t lo = (int64_t)(b->n / unit) * i / n * unit;
    int64_t hi = i + 1 < n ? (int64_t)(b->n / unit) * (i + 1) / n * unit : b->n;
    return (struct tsr_range){lo, hi};
}

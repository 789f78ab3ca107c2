#include "dist/batch.h"

#include <stdlib.h>
#include <string.h>
#include "core/arena.h"
#include "core/error.h"

// Where the batch's arrays belong, and their bytes: one list for opening and for planning.
static int arrays_of(struct tsr_batch *b, int V, void **where[static 16], size_t *n_bytes) {
    size_t n = (size_t)b->n, s = (size_t)b->n_seqs;
    int k = 0;
#define ARRAY(field, count)                                                                        \
    (where[k] = (void **)&b->field, n_bytes[k] = (count) * sizeof *b->field, k++)
    ARRAY(segs, n);
    ARRAY(local_segs, s);
    ARRAY(whole_segs, s);
    ARRAY(replica_rows, s);
    ARRAY(piece_rows, s);
    ARRAY(products, s);
    ARRAY(token_rows, s * (size_t)V);
#undef ARRAY
    for (int i = 0; i < k; i++)
        n_bytes[i] = n_bytes[i] ? n_bytes[i] : 1;
    return k;
}

enum { UPLOADED = 4 }; // ids, targets, pos, pos_local, one after another as on the device

static size_t token_bytes(size_t n_tokens) {
    return tsr_align_up((n_tokens ? n_tokens : 1) * sizeof(int32_t));
}

size_t tsr_batch_slab_bytes(int n_seqs, int seq_len) {
    return UPLOADED * token_bytes((size_t)n_seqs * (size_t)seq_len);
}

size_t tsr_batch_bytes(const struct tsr_net *net, int n_seqs, int seq_len) {
    struct tsr_batch b = {.n_seqs = n_seqs, .n = n_seqs * seq_len};
    void **where[16];
    size_t n_bytes[16], sum = 2 * tsr_batch_slab_bytes(n_seqs, seq_len);
    sum += token_bytes((size_t)b.n); // of the losses
    int n = arrays_of(&b, net->mesh.V, where, n_bytes);
    for (int i = 0; i < n; i++)
        sum += n_bytes[i];
    return sum;
}

// Memory on the host that is copied to and from the device, and its counterpart there.
static int open_tokens(struct tsr_batch *b, struct tsr_ctx *ctx) {
    const size_t one = token_bytes((size_t)b->n);
    b->slab_bytes = UPLOADED * one;
    TSR_TRY(ctx->ops->alloc(ctx, b->slab_bytes, &b->slab));
    b->ctx = ctx;
    char *host = aligned_alloc(TSR_ALIGN, (UPLOADED + 1) * one);
    if (!host)
        return tsr_fail(TSR_ENOMEM, "no memory for a micro-batch");
    b->pinned = memset(host, 0, (UPLOADED + 1) * one);
    int32_t **hosts[] = {&b->ids, &b->targets, &b->pos, &b->pos_local};
    const int32_t **devices[] = {&b->device.ids, &b->device.targets, &b->device.pos,
                                 &b->device.pos_local};
    for (size_t i = 0; i < UPLOADED; i++) {
        *hosts[i] = (int32_t *)(void *)(host + i * one);
        *devices[i] = (const int32_t *)(const void *)((char *)b->slab + i * one);
    }
    b->loss = (float *)(void *)(host + UPLOADED * one);
    TSR_TRY(ctx->ops->pin(ctx, b->pinned, (UPLOADED + 1) * one));
    b->pinned_bytes = (UPLOADED + 1) * one;
    return 0;
}

int tsr_batch_open(struct tsr_batch *b, const struct tsr_net *net, int n_seqs, int seq_len) {
    memset(b, 0, sizeof *b);
    if ((int64_t)n_seqs * seq_len > INT32_MAX)
        return tsr_fail(TSR_ECONFIG,
                        "train.micro_batch: %d sequences of %d tokens are more than 2^31 - 1 "
                        "tokens at once",
                        n_seqs, seq_len);
    b->n_seqs = n_seqs;
    b->seq_len = seq_len;
    b->n = n_seqs * seq_len;
    struct tsr_range tok = {0, seq_len};
    if (net->opt.sequence_parallel)
        tok = tsr_piece_of_rank(seq_len, net->mesh.V, net->mesh.tp_rank, net->mesh.tp);
    b->tok_lo = (int)tok.lo;
    b->tok_hi = (int)tok.hi;
    b->n_local = n_seqs * (b->tok_hi - b->tok_lo);
    void **where[16];
    size_t n_bytes[16];
    int n = arrays_of(b, net->mesh.V, where, n_bytes);
    for (int i = 0; i < n; i++) {
        *where[i] = calloc(1, n_bytes[i]);
        if (!*where[i])
            return tsr_fail(TSR_ENOMEM, "no memory for a micro-batch");
    }
    return open_tokens(b, net->ctx);
}

void tsr_batch_close(struct tsr_batch *b) {
    void *all[] = {b->segs,       b->local_segs, b->whole_segs, b->replica_rows,
                   b->piece_rows, b->token_rows, b->products};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        free(all[i]);
    if (b->pinned_bytes > 0)
        b->ctx->ops->unpin(b->ctx, b->pinned, b->pinned_bytes);
    free(b->pinned);
    if (b->ctx)
        b->ctx->ops->free(b->ctx, b->slab, b->slab_bytes);
    memset(b, 0, sizeof *b);
}

// Cuts sequence `s` into attention segments: one, or one per document.
static void cut_segments(struct tsr_batch *b, int s, uint64_t sequence, const uint8_t *doc_start) {
    int T = b->seq_len;
    const uint8_t *start = doc_start ? doc_start + (size_t)s * (size_t)(T + 1) : NULL;
    for (int at = 0, doc = 0; at < T; doc++) {
        int end = at + 1;
        while (end < T && !(start && start[end]))
            end++;
        // Documents of one sequence draw their attention masks from streams of their own.
        b->segs[b->n_segs++] =
            (struct tsr_segment){.start = s * T + at,
                                 .length = end - at,
                                 .position = 0,
                                 .sequence = sequence + (uint64_t)doc * 0x9E3779B1u};
        for (int i = at; i < end; i++)
            b->pos[s * T + i] = i - at;
        // The last token of a document must not predict the next document's first.
        if (start && end <= T && start[end])
            b->targets[s * T + end - 1] = -1;
        at = end;
    }
}

static void map_tokens(struct tsr_batch *b, const struct tsr_net *net, int s, int replica) {
    int chains = tsr_net_token_chains(net), held = b->tok_hi - b->tok_lo;
    int v0 = net->opt.sequence_parallel ? net->mesh.tp_rank * net->Vl : 0;
    for (int c = 0; c < chains; c++) {
        struct tsr_range t = tsr_piece(b->seq_len, v0 + c, net->mesh.V);
        if (t.hi > t.lo)
            b->token_rows[b->n_token_rows++] = (struct tsr_rows){
                s * held + (int)t.lo - b->tok_lo, (int)(t.hi - t.lo), replica * chains + c};
    }
}

void tsr_batch_map(struct tsr_batch *b, const struct tsr_net *net, int index,
                   uint64_t first_sequence, int per_replica, const uint8_t *doc_start) {
    int T = b->seq_len, held = b->tok_hi - b->tok_lo, first = index * b->n_seqs;
    b->n_segs = b->n_local_segs = 0;
    b->n_replica_rows = b->n_token_rows = b->n_piece_rows = 0;
    b->first_piece = first / per_replica;
    b->n_pieces = b->n_seqs > per_replica ? b->n_seqs / per_replica : 1;
    b->fresh = first % per_replica == 0;
    b->complete = (first + b->n_seqs) % per_replica == 0;
    b->leaf = b->first_piece / b->n_pieces;
    for (int s = 0; s < b->n_seqs; s++) {
        uint64_t sequence = first_sequence + (uint64_t)s;
        int replica = (first + s) / per_replica;
        cut_segments(b, s, sequence, doc_start);
        b->local_segs[s] = (struct tsr_segment){
            .start = s * held, .length = held, .position = b->tok_lo, .sequence = sequence};
        b->whole_segs[s] =
            (struct tsr_segment){.start = s * T, .length = T, .position = 0, .sequence = sequence};
        b->replica_rows[b->n_replica_rows++] = (struct tsr_rows){s * T, T, replica};
        int piece = replica - b->first_piece;
        b->piece_rows[b->n_piece_rows++] = (struct tsr_rows){s * T, T, piece};
        map_tokens(b, net, s, replica);
        for (int t = 0; t < held; t++)
            b->pos_local[s * held + t] = b->pos[s * T + b->tok_lo + t];
    }
    b->n_local_segs = b->n_seqs;
}

int tsr_batch_upload(struct tsr_batch *b) {
    return b->ctx->ops->to_device(b->ctx, b->slab, b->pinned, b->slab_bytes);
}

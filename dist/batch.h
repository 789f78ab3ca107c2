// One micro-batch as the layers see it: N flat tokens, the segments that they form, and the maps
// that say which chain of a sum a row feeds.
#ifndef TSR_DIST_BATCH_H
#define TSR_DIST_BATCH_H

#include "dist/net.h"

struct tsr_batch {
    int n_seqs, seq_len;
    int n;              // N = n_seqs * seq_len
    int n_local;        // Nl: rows held between blocks
    int tok_lo, tok_hi; // tokens of each sequence that are held between blocks
    int n_pieces;       // virtual replicas inside this micro-batch; 1 when it is part of one
    bool fresh;         // begins its virtual replica(s): gradients start from +0
    int first_piece;    // local virtual replica of the first row
    bool complete;      // ends its virtual replica(s)
    int leaf;           // which leaf of this rank's gradient tree it is (part of)

    // The host's, and what tsr_batch_upload makes of them on the device.
    int32_t *ids;       // (N) inputs, needed by the first stage
    int32_t *targets;   // (N) negative: masked
    int32_t *pos;       // (N) position in the sequence or document
    int32_t *pos_local; // (Nl)
    struct {
        const int32_t *ids, *targets, *pos, *pos_local;
    } device;
    float *loss; // (N) on the host, nats: the last stage's forward has them copied here

    struct tsr_segment *segs; // attention: sequences, or documents when packing is isolated
    int n_segs;
    struct tsr_segment *local_segs; // the held rows, one per sequence, for dropout
    struct tsr_segment *whole_segs; // all rows, one per sequence, for dropout of FFN columns
    int n_local_segs;

    struct tsr_rows *replica_rows; // (n_seqs) whole rows -> local virtual replica
    int n_replica_rows;
    struct tsr_rows *token_rows; // held rows -> replica * chains + token piece
    int n_token_rows;
    struct tsr_rows *piece_rows; // whole rows -> piece of this micro-batch
    int n_piece_rows;

    struct tsr_gemm_seg *products; // (n_seqs) of a weight gradient, filled anew for each

    struct tsr_ctx *ctx; // where the slab is
    void *pinned, *slab; // the host's side of what is copied, and the device's
    size_t pinned_bytes, slab_bytes;
};

// Shapes the batch for `n_seqs` sequences of `seq_len` tokens; allocates. TSR_ENOMEM.
int tsr_batch_open(struct tsr_batch *b, const struct tsr_net *net, int n_seqs, int seq_len);
// What open allocates, and its slab of the device's memory in there.
size_t tsr_batch_bytes(const struct tsr_net *net, int n_seqs, int seq_len);
size_t tsr_batch_slab_bytes(int n_seqs, int seq_len);
void tsr_batch_close(struct tsr_batch *b);

// Fills segments and maps of micro-batch `index` of this data-parallel rank. `first_sequence` is
// the global number of its first sequence; `per_replica` the sequences of one virtual replica;
// `doc_start` (n_seqs, seq_len + 1) or NULL marks where documents begin (isolated packing).
void tsr_batch_map(struct tsr_batch *b, const struct tsr_net *net, int index,
                   uint64_t first_sequence, int per_replica, const uint8_t *doc_start);

// Copies ids, targets and positions to the device. The host's may change again after the next sync.
int tsr_batch_upload(struct tsr_batch *b);

#endif

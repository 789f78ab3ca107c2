// Virtual pieces and the one tree that joins them (docs/exactness.md).
//
// n things are cut into V nearly equal consecutive pieces, whatever the number of ranks; rank r
// of tp owns the V/tp pieces [rV/tp, (r+1)V/tp). A sum that spans pieces is joined by a fixed
// binary tree over the V leaves: level by level neighbours 2i and 2i+1 are added and a lone last
// node rises unchanged, so V/tp leaves of a rank, a power of two or all V of them, are always a
// whole subtree.
#ifndef TSR_CORE_PIECES_H
#define TSR_CORE_PIECES_H

#include <stdbool.h>
#include <stdint.h>

struct tsr_range {
    int64_t lo, hi; // [lo, hi)
};

static inline int64_t tsr_range_len(struct tsr_range r) {
    return r.hi - r.lo;
}

// Piece v of V of n things: [floor(v n / V), floor((v+1) n / V)).
static inline struct tsr_range tsr_piece(int64_t n, int v, int V) {
    return (struct tsr_range){n * v / V, n * (v + 1) / V};
}

// The things of `rank`'s consecutive pieces. V is a multiple of n_ranks.
static inline struct tsr_range tsr_piece_of_rank(int64_t n, int V, int rank, int n_ranks) {
    int per = V / n_ranks;
    return (struct tsr_range){n * (rank * per) / V, n * ((rank + 1) * per) / V};
}

static inline bool tsr_is_pow2(int64_t n) {
    return n > 0 && (n & (n - 1)) == 0;
}

// Whether each of n_ranks can own as many of the n pieces so that these are a whole subtree.
static inline bool tsr_pieces_deal(int64_t n, int64_t n_ranks) {
    return n % n_ranks == 0 && (n_ranks == 1 || tsr_is_pow2(n / n_ranks));
}

// How many finished subtrees the leaf `i` (counted from 0) completes: the carries of a binary
// counter. After leaf i, that many times the two newest nodes of the stack are added.
static inline int tsr_tree_carries(int i) {
    return __builtin_ctz((unsigned)i + 1u);
}

// How many nodes stand on the stack after `n` leaves; they are folded newest first at the end.
static inline int tsr_tree_open(int n) {
    return __builtin_popcount((unsigned)n);
}

#endif

// Operations of a whole warp: shuffles, votes, and the matrix instructions on the fragment layouts
// of the PTX ISA (sections "ldmatrix" and "Matrix Fragments for mma.m16n8k16").
#ifndef TSR_TESTS_SIMT_SIMT_WARP_H
#define TSR_TESTS_SIMT_SIMT_WARP_H

namespace simt {

struct shuffle_arg {
    uint32_t in, out;
    int from;
};
struct ballot_arg {
    bool in;
    uint32_t out;
};
struct matrix_arg {
    const unsigned char *row; // 16 bytes
    uint32_t *out;            // 4 registers
};
struct mma_arg {
    float *c;
    const uint32_t *a;
    uint32_t b[2];
};

void shuffle(void *const args[32]);
void ballot(void *const args[32]);
void load_matrices(void *const args[32]);
void load_matrices_trans(void *const args[32]);
template <class T> void multiply(void *const args[32]);

inline uint32_t shuffle_bits(uint32_t x, int from, int line) {
    shuffle_arg a = {x, 0, from};
    warp_op(shuffle, &a, line);
    return a.out;
}

} // namespace simt

template <class T> inline T shfl_from(T x, int from, int line = __builtin_LINE()) {
    static_assert(sizeof(T) == 4, "one register");
    uint32_t u;
    memcpy(&u, &x, 4);
    u = simt::shuffle_bits(u, from & 31, line);
    memcpy(&x, &u, 4);
    return x;
}
template <class T> inline T shfl_xor(T x, int mask, int line = __builtin_LINE()) {
    return shfl_from(x, simt::lane() ^ mask, line);
}
inline double shfl_xor(double x, int mask, int line = __builtin_LINE()) {
    uint32_t u[2];
    memcpy(u, &x, 8);
    for (uint32_t &half : u)
        half = simt::shuffle_bits(half, simt::lane() ^ mask, line);
    memcpy(&x, u, 8);
    return x;
}
inline uint32_t warp_ballot(bool x, int line = __builtin_LINE()) {
    simt::ballot_arg a = {x, 0};
    simt::warp_op(simt::ballot, &a, line);
    return a.out;
}

template <class T>
inline void ldmatrix_x4(uint32_t (&r)[4], smem<T> row, int line = __builtin_LINE()) {
    simt::matrix_arg a = {(unsigned char *)simt::shared_read(row.at, 16, row.lo, row.hi), r};
    simt::warp_op(simt::load_matrices, &a, line);
}
template <class T>
inline void ldmatrix_x4_trans(uint32_t (&r)[4], smem<T> row, int line = __builtin_LINE()) {
    simt::matrix_arg a = {(unsigned char *)simt::shared_read(row.at, 16, row.lo, row.hi), r};
    simt::warp_op(simt::load_matrices_trans, &a, line);
}

// C (16 x 8, fp32) += A (16 x 16) B (16 x 8).
template <class T>
inline void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1,
                      int line = __builtin_LINE()) {
    simt::mma_arg arg = {c, a, {b0, b1}};
    simt::warp_op(simt::multiply<T>, &arg, line);
}

#endif

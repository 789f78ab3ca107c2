// Tiles of the attention kernels on the matrix units: 16-bit elements, fp32 sums.
//
// A tile in shared memory has rows of D + 8 elements: with an odd number of 16-byte units between
// rows, the eight rows of a matrix that ldmatrix reads lie in different banks.
//
// Fragments of m16n8k16 (PTX ISA): with g = lane / 4 and t = lane % 4 a thread holds of a 16 x 8
// result rows g (elements 0, 1) and g + 8 (2, 3), columns 2t and 2t + 1. Two such results side by
// side are the left operand of a next product, so weights never leave the registers.
#ifndef TSR_KERNELS_CUDA_FLASH_CUH
#define TSR_KERNELS_CUDA_FLASH_CUH

#include "kernels/cuda/attention.cuh"

template <int D> constexpr int tile_ld = D + 8;

// Starts to bring ROWS rows of D elements to a tile: row i from p + i ld where lo <= i < hi, which
// alone are read, else zeros. A row belongs to 8, 16 or 32 neighbouring threads.
template <class T, int ROWS, int D, int THREADS>
DEVICE void tile_load(smem<T> tile, const T *p, ptrdiff_t ld, int lo, int hi) {
    constexpr int PER = D <= 64 ? 8 : D <= 128 ? 16 : 32, STEP = THREADS / PER;
    static_assert(ROWS % STEP == 0, "whole steps");
    int row = threadIdx.x / PER, col = threadIdx.x % PER * 8;
    if (col >= D)
        return;
    const T *from = p + row * ld + col;
    smem<T> to = tile + row * tile_ld<D> + col;
    UNROLL(ROWS / STEP)
    for (int i = 0; i < ROWS / STEP; i++) {
        cp_async16(to + i * STEP * tile_ld<D>, from, row + i * STEP >= lo && row + i * STEP < hi);
        from += STEP * ld;
    }
}

// The same with row i at from(i), for rows that don't lie evenly.
template <class T, int ROWS, int D, int THREADS, class From>
DEVICE void tile_gather(smem<T> tile, int lo, int hi, From from) {
    constexpr int PER = D <= 64 ? 8 : D <= 128 ? 16 : 32, STEP = THREADS / PER;
    int col = threadIdx.x % PER * 8;
    if (col >= D)
        return;
    for (int i = threadIdx.x / PER; i < ROWS; i += STEP) {
        bool in = i >= lo && i < hi;
        cp_async16(tile + i * tile_ld<D> + col, from(in ? i : lo) + col, in);
    }
}

// Rows [row0, row0 + 16) and columns [col, col + 16) as a left operand.
template <class T, int D> DEVICE void load_left(uint32_t (&a)[4], smem<T> tile, int row0, int col) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + (row0 + lane % 16) * tile_ld<D> + col + lane / 16 * 8);
}

// Right operand B(k, n) = tile(row0 + n, col + k) of two products, n < 8 and n < 16: b[0], b[1] and
// b[2], b[3].
template <class T, int D>
DEVICE void load_right_rows(uint32_t (&b)[4], smem<T> tile, int row0, int col) {
    int lane = threadIdx.x % 32;
    int row = row0 + lane % 8 + lane / 16 * 8;
    ldmatrix_x4(b, tile + row * tile_ld<D> + col + lane / 8 % 2 * 8);
}

// The same with B(k, n) = tile(row0 + k, col + n).
template <class T, int D>
DEVICE void load_right_cols(uint32_t (&b)[4], smem<T> tile, int row0, int col) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4_trans(b, tile + (row0 + lane % 16) * tile_ld<D> + col + lane / 16 * 8);
}

// s[w][n] (16 x 8 each) = rows [row0 + 16 w, + 16) of `left` times rows of `right`, over D. A
// fragment of the right operand is read once for all w: shared memory is the narrowest place.
template <class T, int D, int W, int N>
DEVICE void product_of_rows(float (&s)[W][N][4], smem<T> left, int row0, smem<T> right) {
    UNROLL(W * N)
    for (int i = 0; i < W * N; i++)
        s[i / N][i % N][0] = s[i / N][i % N][1] = s[i / N][i % N][2] = s[i / N][i % N][3] = 0.0f;
    UNROLL(D / 16)
    for (int d = 0; d < D; d += 16) {
        uint32_t a[W][4];
        UNROLL(W)
        for (int w = 0; w < W; w++)
            load_left<T, D>(a[w], left, row0 + 16 * w, d);
        UNROLL(N / 2)
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            load_right_rows<T, D>(b, right, 8 * n, d);
            UNROLL(W)
            for (int w = 0; w < W; w++) {
                mma_16816<T>(s[w][n], a[w], b[0], b[1]);
                mma_16816<T>(s[w][n + 1], a[w], b[2], b[3]);
            }
        }
    }
}

// Weights s (16 x 8N) as left operands of N / 2 products.
template <class T, int N> DEVICE void as_left(uint32_t (&a)[N / 2][4], const float (&s)[N][4]) {
    UNROLL(N / 2)
    for (int k = 0; k < N / 2; k++) {
        a[k][0] = pack2<T>(s[2 * k][0], s[2 * k][1]);
        a[k][1] = pack2<T>(s[2 * k][2], s[2 * k][3]);
        a[k][2] = pack2<T>(s[2 * k + 1][0], s[2 * k + 1][1]);
        a[k][3] = pack2<T>(s[2 * k + 1][2], s[2 * k + 1][3]);
    }
}

// acc[w] (16 x D) += weights a[w] (16 x 16K) times the 16K rows of `tile`.
template <class T, int D, int W, int K>
DEVICE void add_product(float (&acc)[W][D / 8][4], const uint32_t (&a)[W][K][4], smem<T> tile) {
    UNROLL(K)
    for (int k = 0; k < K; k++) {
        UNROLL(D / 16)
        for (int n = 0; n < D / 8; n += 2) {
            uint32_t b[4];
            load_right_cols<T, D>(b, tile, 16 * k, 8 * n);
            UNROLL(W)
            for (int w = 0; w < W; w++) {
                mma_16816<T>(acc[w][n], a[w][k], b[0], b[1]);
                mma_16816<T>(acc[w][n + 1], a[w][k], b[2], b[3]);
            }
        }
    }
}

// A warp's 16 rows acc * factor[row / 8] to row(i) of global memory, through its own rows of a
// tile.
template <class T, int D, class Row>
DEVICE void store_rows(const float (&acc)[D / 8][4], const float (&factor)[2], smem<T> tile,
                       int row0, Row row) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL(D / 8)
    for (int n = 0; n < D / 8; n++)
        for (int half = 0; half < 2; half++)
            *smem_cast<uint32_t>(tile + (row0 + g + 8 * half) * tile_ld<D> + 8 * n + 2 * t) =
                pack2<T>(acc[n][2 * half] * factor[half], acc[n][2 * half + 1] * factor[half]);
    __syncwarp();
    for (int i = lane; i < 16 * (D / 8); i += 32) {
        int r = i / (D / 8), c = i % (D / 8) * 8;
        T *to = row(r);
        if (to != nullptr)
            store16(to + c, shared_load16(tile + (row0 + r) * tile_ld<D> + c));
    }
}

// The sum or maximum over the four threads that hold a row.
DEVICE float sum4(float x) {
    x = x + shfl_xor(x, 1);
    return x + shfl_xor(x, 2);
}
DEVICE float max4(float x) {
    x = max_of(x, shfl_xor(x, 1));
    return max_of(x, shfl_xor(x, 2));
}

#endif

// Tiles of the attention kernels on the matrix units: 16-bit elements, fp32 sums.
//
// A tile in shared memory has rows of D elements, in units of 16 bytes. The eight rows of a matrix
// that ldmatrix reads must lie in different banks. In most tiles a unit is added to each row, whose
// number of units is then odd: addresses of fragments differ by constants. In tiles that TURN, for
// which D is a multiple of 64, unit u of row r stands at u xor (r mod 8): no byte is lost.
//
// Fragments of m16n8k16 (PTX ISA): with g = lane / 4 and t = lane % 4 a thread holds of a 16 x 8
// result rows g (elements 0, 1) and g + 8 (2, 3), columns 2t and 2t + 1. Two such results side by
// side are the left operand of a next product, so weights never leave the registers.
#ifndef TSR_KERNELS_CUDA_FLASH_CUH
#define TSR_KERNELS_CUDA_FLASH_CUH

#include "kernels/cuda/attention.cuh"

template <int D, bool TURN = false> constexpr int tile_ld = TURN ? D : D + 8;

// Where column col + col8 of a row lies; col8 is 0 or 8. TURN: if it isn't 0, col is a multiple of
// 16. row8: row % 8, for which the caller knows a shorter expression.
template <int D, bool TURN> DEVICE int tile_at(int row, int row8, int col, int col8) {
    static_assert(!TURN || D % 64 == 0, "whole turns");
    return row * tile_ld<D, TURN> + (TURN ? col ^ (col8 ^ row8 * 8) : col + col8);
}

// Starts to bring ROWS rows of D elements to a tile: row i from p + i ld where lo <= i < hi, which
// alone are read, else zeros. A row belongs to 8, 16 or 32 neighbouring threads. lo <= hi.
template <class T, int ROWS, int D, int THREADS, bool TURN = false>
DEVICE void tile_load(smem<T> tile, const T *p, ptrdiff_t ld, int lo, int hi) {
    constexpr int PER = D <= 64 ? 8 : D <= 128 ? 16 : 32, STEP = THREADS / PER;
    static_assert(ROWS % STEP == 0, "whole steps");
    int row = threadIdx.x / PER, col = threadIdx.x % PER * 8;
    if (col >= D)
        return;
    const T *from = p + row * ld + col;
    UNROLL(ROWS / STEP)
    for (int i = 0; i < ROWS / STEP; i++, row += STEP) {
        cp_async16(tile + tile_at<D, TURN>(row, row % 8, col, 0), from,
                   (unsigned)(row - lo) < (unsigned)(hi - lo));
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
    UNROLL(1)
    for (int i = threadIdx.x / PER; i < ROWS; i += STEP) {
        bool in = i >= lo && i < hi;
        cp_async16(tile + i * tile_ld<D> + col, from(in ? i : lo) + col, in);
    }
}

// The operands of a product, from multiples of 8 rows and of 8 columns (TURN: of 16).

// Left: A(m, k) = tile(row0 + m, col + k).
template <class T, int D, bool TURN = false>
DEVICE void load_left(uint32_t (&a)[4], smem<T> tile, int row0, int col) {
    int lane = threadIdx.x % 32;
    ldmatrix_x4(a, tile + tile_at<D, TURN>(row0 + lane % 16, lane % 8, col, lane / 16 * 8));
}

// Left: A(m, k) = tile(row0 + k, col + m).
template <class T, int D, bool TURN = false>
DEVICE void load_left_cols(uint32_t (&a)[4], smem<T> tile, int row0, int col) {
    int lane = threadIdx.x % 32, row = row0 + lane % 8 + lane / 16 * 8;
    ldmatrix_x4_trans(a, tile + tile_at<D, TURN>(row, lane % 8, col, lane / 8 % 2 * 8));
}

// Right, of two products, n < 8 and n < 16: b[0], b[1] and b[2], b[3]. B(k, n) = tile(row0 + n,
// col + k).
template <class T, int D, bool TURN = false>
DEVICE void load_right_rows(uint32_t (&b)[4], smem<T> tile, int row0, int col) {
    int lane = threadIdx.x % 32, row = row0 + lane % 8 + lane / 16 * 8;
    ldmatrix_x4(b, tile + tile_at<D, TURN>(row, lane % 8, col, lane / 8 % 2 * 8));
}

// The same with B(k, n) = tile(row0 + k, col + n). Not `both`: of one product, n < 8.
template <class T, int D, bool TURN = false>
DEVICE void load_right_cols(uint32_t (&b)[4], smem<T> tile, int row0, int col, bool both = true) {
    int lane = threadIdx.x % 32;
    int col8 = both ? lane / 16 * 8 : 0;
    ldmatrix_x4_trans(b, tile + tile_at<D, TURN>(row0 + lane % 16, lane % 8, col, col8));
}

// s[w][n] (16 x 8 each) = rows [row0 + 16 w, + 16) of `left` times rows from right0 of `right`,
// over D. A fragment of the right operand is read once for all w: shared memory is the narrowest
// place.
template <class T, int D, bool TURN, int W, int N>
DEVICE void product_of_rows(float (&s)[W][N][4], smem<T> left, int row0, smem<T> right,
                            int right0) {
    UNROLL(W * N)
    for (int i = 0; i < W * N; i++)
        s[i / N][i % N][0] = s[i / N][i % N][1] = s[i / N][i % N][2] = s[i / N][i % N][3] = 0.0f;
    UNROLL(D / 16)
    for (int d = 0; d < D; d += 16) {
        uint32_t a[W][4];
        UNROLL(W)
        for (int w = 0; w < W; w++)
            load_left<T, D, TURN>(a[w], left, row0 + 16 * w, d);
        UNROLL(N / 2)
        for (int n = 0; n < N; n += 2) {
            uint32_t b[4];
            load_right_rows<T, D, TURN>(b, right, right0 + 8 * n, d);
            UNROLL(W)
            for (int w = 0; w < W; w++) {
                mma_16816<T>(s[w][n], a[w], b[0], b[1]);
                mma_16816<T>(s[w][n + 1], a[w], b[2], b[3]);
            }
        }
    }
}

// Two 16 x 8 results side by side as a left operand.
template <class T>
DEVICE void as_left(uint32_t (&a)[4], const float (&lo)[4], const float (&hi)[4]) {
    a[0] = pack2<T>(lo[0], lo[1]);
    a[1] = pack2<T>(lo[2], lo[3]);
    a[2] = pack2<T>(hi[0], hi[1]);
    a[3] = pack2<T>(hi[2], hi[3]);
}

// acc[w] (16 x 8N) += a[w] (16 x 16) times rows [row0, row0 + 16) and columns from col0 of `tile`.
template <class T, int D, bool TURN, int W, int N>
DEVICE void add_slice(float (&acc)[W][N][4], const uint32_t (&a)[W][4], smem<T> tile, int row0,
                      int col0) {
    UNROLL(N)
    for (int n = 0; n < N; n += 2) {
        uint32_t b[4];
        load_right_cols<T, D, TURN>(b, tile, row0, col0 + 8 * n, n + 1 < N);
        UNROLL(W)
        for (int w = 0; w < W; w++) {
            mma_16816<T>(acc[w][n], a[w], b[0], b[1]);
            if (n + 1 < N)
                mma_16816<T>(acc[w][n + 1], a[w], b[2], b[3]);
        }
    }
}

// A warp's patch of 16 rows and 8N columns, acc * factor[row / 8], to row(i) of global memory,
// through its own place in a tile.
template <class T, int D, bool TURN, int N, class Row>
DEVICE void store_patch(const float (&acc)[N][4], const float (&factor)[2], smem<T> tile, int row0,
                        int col0, Row row) {
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    UNROLL(N)
    for (int n = 0; n < N; n++)
        for (int half = 0; half < 2; half++)
            *smem_cast<uint32_t>(tile + tile_at<D, TURN>(row0 + g + 8 * half, g, col0 + 8 * n, 0) +
                                 2 * t) =
                pack2<T>(acc[n][2 * half] * factor[half], acc[n][2 * half + 1] * factor[half]);
    __syncwarp();
    for (int i = lane; i < 16 * N; i += 32) {
        int r = i / N, c = col0 + i % N * 8;
        T *to = row(r);
        if (to != nullptr)
            store16(to + c, shared_load16(tile + tile_at<D, TURN>(row0 + r, r % 8, c, 0)));
    }
}

// The sum or maximum over the four threads that hold a row.
DEVICE float sum4(float x) {
    x = x + shfl_xor(x, 1);
    return x + shfl_xor(x, 2);
}
DEVICE float max4(float x) {
    x = fmaxf(x, shfl_xor(x, 1));
    return fmaxf(x, shfl_xor(x, 2));
}

#endif

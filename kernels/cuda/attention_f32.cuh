// Tiles of the fp32 attention kernels. 128 threads are 8 half-warps of 16; half-warp y has rows
// 4y .. 4y + 3 of a tile and thread x of it columns x, x + 16, ...: the virtual vector's lanes.
#ifndef TSR_KERNELS_CUDA_ATTENTION_F32_CUH
#define TSR_KERNELS_CUDA_ATTENTION_F32_CUH

#include "kernels/cuda/attention.cuh"

enum { F32_THREADS = 128, F32_ROWS = 32 };

// Calls with NC = 4, 8 or 16: columns of a head that a thread owns.
#define F32_WITH_COLUMNS(head_dim, NC, ...)                                                        \
    if ((head_dim) <= 64) {                                                                        \
        constexpr int NC = 4;                                                                      \
        __VA_ARGS__                                                                                \
    } else if ((head_dim) <= 128) {                                                                \
        constexpr int NC = 8;                                                                      \
        __VA_ARGS__                                                                                \
    } else {                                                                                       \
        constexpr int NC = 16;                                                                     \
        __VA_ARGS__                                                                                \
    }

// Leading dimension of a tile in shared memory: odd, so columns fall into different banks.
DEVICE int f32_ld(int head_dim) {
    return head_dim | 1;
}

// s[r][c] = chain over d of a(4y + r, d) b(x + 16 c, d).
template <int C>
DEVICE void f32_scores(float (&s)[4][C], smem<float> a, smem<float> b, int ld, int head_dim) {
    int x = threadIdx.x % 16, y = threadIdx.x / 16;
    for (int r = 0; r < 4; r++)
        for (int c = 0; c < C; c++)
            s[r][c] = 0.0f;
    for (int d = 0; d < head_dim; d++) {
        float ar[4], bc[C];
        for (int r = 0; r < 4; r++)
            ar[r] = a[(4 * y + r) * ld + d];
        for (int c = 0; c < C; c++)
            bc[c] = b[(x + 16 * c) * ld + d];
        for (int r = 0; r < 4; r++)
            for (int c = 0; c < C; c++)
                s[r][c] = fmaf(ar[r], bc[c], s[r][c]);
    }
}

// acc[r][c] continues with the terms w(4y + r, j) b(j, x + 16 c) for j in [lo[r], hi[r]).
template <int NC>
DEVICE void f32_accumulate(float (&acc)[4][NC], smem<float> w, int ldw, smem<float> b, int ld,
                           int head_dim, const int (&lo)[4], const int (&hi)[4]) {
    int x = threadIdx.x % 16, y = threadIdx.x / 16, first = lo[0], last = hi[0];
    for (int r = 1; r < 4; r++) {
        first = min_of(first, lo[r]);
        last = max_of(last, hi[r]);
    }
    for (int j = first; j < last; j++) {
        float bc[NC];
        for (int c = 0; c < NC; c++)
            bc[c] = x + 16 * c < head_dim ? (float)b[j * ld + x + 16 * c] : 0.0f;
        for (int r = 0; r < 4; r++) {
            if (j < lo[r] || j >= hi[r])
                continue;
            float wr = w[(4 * y + r) * ldw + j];
            for (int c = 0; c < NC; c++)
                acc[r][c] = fmaf(wr, bc[c], acc[r][c]);
        }
    }
}

// Rows [0, n) of the tile are row(i); row(i) NULL: zeros.
template <class Row> DEVICE void f32_load(smem<float> tile, int n, int ld, int head_dim, Row row) {
    for (int i = threadIdx.x / 16; i < n; i += F32_THREADS / 16) {
        const float *src = row(i);
        for (int d = threadIdx.x % 16; d < head_dim; d += 16)
            tile[i * ld + d] = src != nullptr ? src[d] : 0.0f;
    }
}

#endif

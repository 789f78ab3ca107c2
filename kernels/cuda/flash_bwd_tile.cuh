// A tile of scores of flash attention's backward pass: weights and their gradients. With dropout's
// mask and its factor in Z (1 when off):
//   p = e^(s scale - lse)     z = p Z     dS = p (Z dP - D)     (times scale, later)
// Scores are computed transposed, keys down and queries across.
#ifndef TSR_KERNELS_CUDA_FLASH_BWD_TILE_CUH
#define TSR_KERNELS_CUDA_FLASH_BWD_TILE_CUH

#include "kernels/cuda/flash.cuh"
#include "kernels/cuda/flash_bwd.cuh"

// A warp's part of a tile of scores: its first key and query from the segment's first token, and
// in the tile.
struct score_place {
    int key, query;
    int row, col;
    int length, window; // of the segment
    int head;           // global

    // The queries that see the key i rows on.
    DEVICE key_range seeing(int i) const {
        return queries_seeing(key + i, length, window);
    }
};

// Dropout's mask of 16 keys from position `key` and 8N queries from position `query`, for this
// thread's elements: of (half, n, i) the bit below. A draw is four keys' and one query's, and four
// threads each need a word of it, so each computes a fourth of the draws for all of them.
template <int N> struct kept_bits {
    uint32_t of_lane[4];

    DEVICE kept_bits(const struct tsr_cuda_attn &a, const struct tsr_cuda_segment &g, int key,
                     int query, int head) {
        int lane = threadIdx.x % 32, row = lane / 4, mine = row % 4;
        uint32_t bits = 0;
        if (key % 4 == 0) {
            UNROLL(1)
            for (int m = 0; m < N; m++) {
                int x = mine * N + m, half = x / (2 * N), col = column(x % (2 * N));
                uint4 u = mask_draws(a, g, (key + 8 * half) / 4 + row / 4, query + col, head);
                for (int i = 0; i < 4; i++)
                    bits |= (uint32_t)(word_of(u, i) >= a.drop_threshold) << (4 * m + i);
            }
        }
        UNROLL(4)
        for (int j = 0; j < 4; j++)
            of_lane[j] = shfl_from(bits, (lane & ~12) | j << 2);
        if (key % 4 == 0)
            return;
        UNROLL(4)
        for (int j = 0; j < 4; j++) { // a draw's four keys aren't four rows of the tile
            bits = 0;
            UNROLL(1)
            for (int m = 0; m < N; m++) {
                int x = j * N + m, at = key + row + 8 * (x / (2 * N));
                bool keep = mask_keeps(a, g, at, query + column(x % (2 * N)), head);
                bits |= (uint32_t)keep << (4 * m + mine);
            }
            of_lane[j] = bits;
        }
    }

    DEVICE bool keeps(int half, int n, int i) const {
        int x = half * 2 * N + 2 * n + i;
        return of_lane[x / N] >> (4 * (x % N) + threadIdx.x / 4 % 4) & 1;
    }

  private:
    static DEVICE int column(int x) {
        return 8 * (x / 2) + threadIdx.x % 4 * 2 + x % 2;
    }
};
template <> struct kept_bits<0> { // no dropout
    DEVICE kept_bits(const struct tsr_cuda_attn &, const struct tsr_cuda_segment &, int, int, int) {
    }
    DEVICE bool keeps(int, int, int) const {
        return true;
    }
};

// s and dp of 16 keys, `row` rows into the place, and 8N queries become z and dS. lse, dots: of
// these queries. ALL: every one of them sees every key.
template <int N, bool ALL, bool DROP>
DEVICE void soften(float (&s)[N][4], float (&dp)[N][4], const struct tsr_cuda_attn &a,
                   const struct tsr_cuda_segment &g, const score_place &at, int row,
                   smem<float> lse, smem<float> dots) {
    int lane = threadIdx.x % 32;
    float scale_log2 = a.scale * LOG2_E, factor = 1.0f / (1.0f - a.drop.p);
    key_range seen[2] = {at.seeing(row + lane / 4), at.seeing(row + lane / 4 + 8)};
    kept_bits<DROP ? N : 0> kept(a, g, g.position + at.key + row, g.position + at.query, at.head);
    UNROLL(N)
    for (int n = 0; n < N; n++)
        for (int i = 0; i < 2; i++) {
            int col = 8 * n + lane % 4 * 2 + i, query = at.query + col;
            float base = lse[col] * LOG2_E, dot = dots[col];
            for (int half = 0; half < 2; half++) {
                float &x = s[n][2 * half + i], &y = dp[n][2 * half + i];
                bool sees = ALL || (query >= seen[half].lo && query < seen[half].hi);
                float p = sees ? fast_exp2(fmaf(x, scale_log2, -base)) : 0.0f;
                float f = !DROP ? 1.0f : kept.keeps(half, n, i) ? factor : 0.0f;
                x = DROP ? p * f : p;
                y = p * ((DROP ? y * f : y) - dot);
            }
        }
}

// Tiles turn where they can: K, V, two of Q and of dO, z and dS just fit an SM of 163 KiB.
template <int D> constexpr bool bwd_turn = D % 64 == 0;

// z and dS of a warp's part of a tile, from S^T = K Q^T and dP^T = V dO^T, to tiles of their own
// with rows of COLS queries.
template <class T, int D, int COLS, int W, int N, bool DROP>
DEVICE void weigh(smem<T> z, smem<T> ds, smem<T> k, smem<T> v, smem<T> q, smem<T> d_o,
                  smem<float> lse, smem<float> dots, const struct tsr_cuda_attn &a,
                  const struct tsr_cuda_segment &g, const score_place &at) {
    int lane = threadIdx.x % 32;
    float s[W][N][4] = {}, dp[W][N][4] = {};
    bool some = at.query + 8 * N > at.key && at.query < at.seeing(16 * W - 1).hi;
    bool all = at.query >= at.key + 16 * W - 1 && at.query + 8 * N <= at.seeing(0).hi;
    if (some) {
        product_of_rows<T, D, bwd_turn<D>, W, N>(s, k, at.row, q, at.col);
        product_of_rows<T, D, bwd_turn<D>, W, N>(dp, v, at.row, d_o, at.col);
    }
    UNROLL(W)
    for (int w = 0; w < W; w++) {
        if (all)
            soften<N, true, DROP>(s[w], dp[w], a, g, at, 16 * w, lse + at.col, dots + at.col);
        else if (some)
            soften<N, false, DROP>(s[w], dp[w], a, g, at, 16 * w, lse + at.col, dots + at.col);
        UNROLL(N)
        for (int n = 0; n < N; n++)
            for (int half = 0; half < 2; half++) {
                int row = at.row + 16 * w + lane / 4 + 8 * half;
                int place =
                    tile_at<COLS, bwd_turn<COLS>>(row, lane / 4, at.col + 8 * n, 0) + lane % 4 * 2;
                *smem_cast<uint32_t>(z + place) =
                    pack2<T>(s[w][n][2 * half], s[w][n][2 * half + 1]);
                *smem_cast<uint32_t>(ds + place) =
                    pack2<T>(dp[w][n][2 * half], dp[w][n][2 * half + 1]);
            }
    }
}

#endif

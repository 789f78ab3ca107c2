// Sums over rows: gradients of norm weights and biases, and plain column sums. Twin:
// kernels/cpu/isa/norm_bwd.c; the sums are its chains, so fp32 gives its bits.
//
//   dw(chain,:) += dy xhat,  db(chain,:) += dy,  xhat = (x - mean) rstd
//
// A chain is one thread's work: one column of one chain, row after row, a few instructions each.
// What is slow is the way from memory, and the arithmetic before the sum. So a block has 32 columns
// of one chain; one warp only adds, and the others bring it the terms, a tile of rows ahead.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum {
    COLUMNS = 32,
    BRINGERS = 16, // warps
    BRING_ROWS = 16,
    TILE_ROWS = BRINGERS * BRING_ROWS,
    COLUMN_THREADS = 32 * (BRINGERS + 1)
};

template <class T> struct columns_args {
    float *dw, *db;           // (chains, C); db may be NULL
    const T *dy, *x;          // rows C, or ldx, apart; dy NULL: dw += x
    const float *mean, *rstd; // (N); mean NULL: RMSNorm
    const struct tsr_rows *rows;
    int n_rows;
    ptrdiff_t ldx;
    int c;
};

// Tiles of a chain's rows, run after run.
struct column_walk {
    const struct tsr_rows *rows;
    int n_rows, chain, k, row, n; // of run k: its next row, and how many rows the tile has

    DEVICE void find(int behind) { // from run k on, whose first `behind` rows are done with
        for (; k < n_rows; k++, behind = 0) {
            struct tsr_rows run = rows[k];
            if (run.chain != chain || run.n <= behind)
                continue;
            row = run.row + behind;
            n = min_of(run.n - behind, (int)TILE_ROWS);
            return;
        }
        n = 0;
    }
    DEVICE void next() {
        find(row + n - rows[k].row);
    }
};

// The warp's rows of a tile: dy, and with NORM xhat, to [row][column].
template <class T, bool NORM>
DEVICE void bring_rows(smem<float> dys, smem<float> xhats, const columns_args<T> &q, int row0,
                       int n) {
    int lane = threadIdx.x % 32, r0 = (int)threadIdx.x / 32 * BRING_ROWS;
    int j = (int)blockIdx.x * COLUMNS + lane;
    const T *from_x = q.x + (row0 + r0) * q.ldx + j;
    const T *from_dy = NORM ? q.dy + (int64_t)(row0 + r0) * q.c + j : nullptr;
    T dy[BRING_ROWS], x[BRING_ROWS]; // not converted before all of them are under way
    float mean = 0.0f, rstd = 0.0f;
    UNROLL(BRING_ROWS)
    for (int r = 0; r < BRING_ROWS; r++) {
        bool in = r0 + r < n && j < q.c;
        dy[r] = NORM && in ? *from_dy : from_float<T>(0.0f);
        x[r] = in ? *from_x : from_float<T>(0.0f);
        from_dy += q.c;
        from_x += q.ldx;
    }
    if (NORM && lane < BRING_ROWS && r0 + lane < n) { // of row r0 + lane
        mean = q.mean != nullptr ? q.mean[row0 + r0 + lane] : 0.0f;
        rstd = q.rstd[row0 + r0 + lane];
    }
    UNROLL(BRING_ROWS)
    for (int r = 0; r < BRING_ROWS; r++) {
        int at = (r0 + r) * COLUMNS + lane;
        dys[at] = to_float(NORM ? dy[r] : x[r]);
        if (NORM)
            xhats[at] = (to_float(x[r]) - shfl_from(mean, r)) * shfl_from(rstd, r);
    }
}

template <class T, bool NORM>
__global__ void __launch_bounds__(COLUMN_THREADS) columns_kernel(columns_args<T> q) {
    constexpr int TILE = TILE_ROWS * COLUMNS;
    shared_cursor cursor;
    smem<float> dys = cursor.take<float>(2 * TILE), xhats = cursor.take<float>(NORM ? 2 * TILE : 0);
    bool adds = threadIdx.x / 32 == BRINGERS; // else it brings
    int lane = threadIdx.x % 32, j = (int)blockIdx.x * COLUMNS + lane, buffer = 0;
    int64_t at = (int64_t)blockIdx.y * q.c + j;
    bool mine = adds && j < q.c, has_b = NORM && q.db != nullptr;
    float w = mine ? q.dw[at] : 0.0f, b = mine && has_b ? q.db[at] : 0.0f;
    column_walk walk = {q.rows, q.n_rows, (int)blockIdx.y, 0, 0, 0};
    walk.find(0);
    if (!adds && walk.n > 0)
        bring_rows<T, NORM>(dys, xhats, q, walk.row, walk.n);
    __syncthreads();
    for (; walk.n > 0; buffer ^= 1) {
        int n = walk.n;
        walk.next();
        if (!adds) {
            int other = (buffer ^ 1) * TILE;
            if (walk.n > 0)
                bring_rows<T, NORM>(dys + other, xhats + (NORM ? other : 0), q, walk.row, walk.n);
        } else {
            UNROLL(16)
            for (int r = 0; r < n; r++) {
                float dy = dys[buffer * TILE + r * COLUMNS + lane];
                w = NORM ? fmaf(dy, xhats[buffer * TILE + r * COLUMNS + lane], w) : w + dy;
                if (has_b)
                    b = b + dy;
            }
        }
        __syncthreads();
    }
    if (mine)
        q.dw[at] = w;
    if (mine && has_b)
        q.db[at] = b;
}

template <class T, bool NORM>
static int launch_columns(const char *name, void *stream, const columns_args<T> &q, int n_chains) {
    dim3 grid(blocks_for(q.c, COLUMNS), (unsigned)n_chains);
    size_t bytes = (NORM ? 2 : 1) * 2 * (size_t)TILE_ROWS * COLUMNS * sizeof(float);
    return launch_kernel(name, columns_kernel<T, NORM>, grid, COLUMN_THREADS, bytes, stream, q);
}

int tsr_cuda_norm_bwd_params(void *stream, enum tsr_dtype dtype, float *dw, float *db,
                             const void *dy, const void *x, const float *mean, const float *rstd,
                             const struct tsr_rows *rows, int n_rows, int n_chains, int c) {
    if (n_chains == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        columns_args<T> q = {dw, db, (const T *)dy, (const T *)x, mean, rstd, rows, n_rows, c, c};
        return launch_columns<T, true>("norm_bwd_params", stream, q, n_chains);
    })
}

int tsr_cuda_colsum(void *stream, enum tsr_dtype dtype, float *acc, const void *x, ptrdiff_t ldx,
                    const struct tsr_rows *rows, int n_rows, int n_chains, int c) {
    if (n_chains == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        columns_args<T> q = {acc,     nullptr, nullptr, (const T *)x, nullptr,
                             nullptr, rows,    n_rows,  ldx,          c};
        return launch_columns<T, false>("colsum", stream, q, n_chains);
    })
}

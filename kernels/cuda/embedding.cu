// Token and position embeddings, and the table's gradient without atomics on floats. Twin:
// kernels/cpu/isa/embedding.c; fp32 gives its bits. The table may be one rank's rows.
//
// Backward sums the tokens that picked a row in a fixed order: by chain, then by token. A first
// pass links each token to the next one of the same row in that order; a second walks the links
// from each row's first token. The first pass compares every pair of tokens: 16k tokens are
// 2.7e8 comparisons of integers in shared memory, which is little beside a layer's products.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/math.cuh"

enum { LINK_THREADS = 256, NO_TOKEN = -1, NOT_FIRST = -2 };

// x = table row + 0 (no -0 comes out, whatever the shard), or +0 without a row here; or, when
// `add`, x = x + table row.
template <class T>
__global__ void __launch_bounds__(128)
    embed_kernel(T *x, const int32_t *ids, const T *table, int row0, int n_rows, int c, bool add,
                 bool wide) {
    int64_t i = blockIdx.x, row = (int64_t)ids[i] - row0;
    bool here = add || (row >= 0 && row < n_rows);
    for (int j = threadIdx.x * chunk<T>::N; j < c; j += blockDim.x * chunk<T>::N) {
        chunk<T> from = {}, to = {};
        if (here)
            from = load_chunk(table + row * c + j, c - j, wide);
        if (add)
            to = load_chunk(x + i * c + j, c - j, wide);
        for (int k = 0; k < chunk<T>::N; k++)
            to.v[k] = to.v[k] + from.v[k];
        store_chunk(x + i * c + j, c - j, wide, to);
    }
}

// The chain that token i feeds, or -1.
DEVICE int chain_of(const struct tsr_rows *rows, int n_rows, int i) {
    for (int r = 0; r < n_rows; r++)
        if (i >= rows[r].row && i < rows[r].row + rows[r].n)
            return rows[r].chain;
    return -1;
}

// next[i]: the token after i of the same row, or NO_TOKEN. first[i]: i's chain when it is the
// first of its row here, else NOT_FIRST.
__global__ void __launch_bounds__(LINK_THREADS)
    link_kernel(int *first, int *next, const int32_t *ids, const struct tsr_rows *rows, int n_rows,
                int row0, int n_table, int n) {
    shared_cursor cursor;
    smem<int32_t> id_of = cursor.take<int32_t>(LINK_THREADS);
    smem<int> chain = cursor.take<int>(LINK_THREADS);
    int i = blockIdx.x * LINK_THREADS + threadIdx.x;
    int32_t id = i < n ? ids[i] : -1;
    int mine = i < n ? chain_of(rows, n_rows, i) : -1;
    bool picked = mine >= 0 && (int64_t)id - row0 >= 0 && (int64_t)id - row0 < n_table;
    int best = NO_TOKEN, best_chain = 0;
    bool earlier = false;
    for (int base = 0; base < n; base += LINK_THREADS) {
        int j = base + threadIdx.x;
        __syncthreads();
        id_of[threadIdx.x] = j < n ? ids[j] : -1;
        chain[threadIdx.x] = j < n ? chain_of(rows, n_rows, j) : -1;
        __syncthreads();
        for (int k = 0; k < min_of((int)LINK_THREADS, n - base); k++) {
            int other = chain[k], token = base + k;
            if (id_of[k] != id || other < 0 || token == i)
                continue;
            bool before = other < mine || (other == mine && token < i);
            earlier = earlier || before;
            if (!before && (best == NO_TOKEN || other < best_chain)) { // tokens ascend
                best = token;
                best_chain = other;
            }
        }
    }
    if (i < n) {
        next[i] = best;
        first[i] = picked && !earlier ? mine : NOT_FIRST;
    }
}

template <class T> struct table_args {
    float *dtable;
    const int32_t *ids;
    const T *dx;
    const struct tsr_rows *rows;
    const int *first, *next;
    int n_rows, n_chains, row0, c;
};

// One block for each token; those that are the first of their row sum it, a column a thread.
template <class T> __global__ void __launch_bounds__(128) table_kernel(table_args<T> q) {
    int i = blockIdx.x, j = blockIdx.y * blockDim.x + threadIdx.x;
    int chain = q.first[i];
    if (chain == NOT_FIRST || j >= q.c)
        return;
    float *to = q.dtable + ((int64_t)q.ids[i] - q.row0) * q.c + j;
    sum_tree tree;
    float s = q.n_chains == 1 ? *to : 0.0f;
    for (int k = i; k != NO_TOKEN; k = q.next[k]) {
        int at = q.n_chains == 1 ? chain : chain_of(q.rows, q.n_rows, k);
        if (at != chain) {
            tree.leaf((unsigned)chain, s);
            chain = at;
            s = 0.0f;
        }
        s = s + to_float(q.dx[(int64_t)k * q.c + j]);
    }
    if (q.n_chains > 1) {
        tree.leaf((unsigned)chain, s);
        s = *to + tree.root();
    }
    *to = s;
}

int tsr_cuda_embedding(void *stream, enum tsr_dtype dtype, void *x, const int32_t *ids,
                       const void *wte, int row0, int n_rows, int n, int c) {
    if (n == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        bool wide = aligned16((T *)x, c) && aligned16((const T *)wte, c);
        return launch_kernel("embedding", embed_kernel<T>, dim3((unsigned)n), 128, 0, stream,
                             (T *)x, ids, (const T *)wte, row0, n_rows, c, false, wide);
    })
}

int tsr_cuda_position(void *stream, enum tsr_dtype dtype, void *x, const int32_t *pos,
                      const void *wpe, int n, int c) {
    if (n == 0 || c == 0)
        return 0;
    TSR_WITH_TYPE(dtype, T, {
        bool wide = aligned16((T *)x, c) && aligned16((const T *)wpe, c);
        return launch_kernel("position", embed_kernel<T>, dim3((unsigned)n), 128, 0, stream, (T *)x,
                             pos, (const T *)wpe, 0, 0, c, true, wide);
    })
}

int tsr_cuda_embedding_bwd(void *stream, enum tsr_dtype dtype, float *dtable, const int32_t *ids,
                           const void *dx, const struct tsr_rows *rows, int n_rows, int n_chains,
                           int row0, int n_table, int n, int c, int *links) {
    if (n == 0 || c == 0)
        return 0;
    TSR_TRY(launch_kernel("embedding_links", link_kernel, dim3(blocks_for(n, LINK_THREADS)),
                          LINK_THREADS, 2 * LINK_THREADS * sizeof(int), stream, links, links + n,
                          ids, rows, n_rows, row0, n_table, n));
    TSR_WITH_TYPE(dtype, T, {
        table_args<T> q = {dtable,    ids,    (const T *)dx, rows, links,
                           links + n, n_rows, n_chains,      row0, c};
        dim3 grid((unsigned)n, blocks_for(c, 128));
        return launch_kernel("embedding_bwd", table_kernel<T>, grid, 128, 0, stream, q);
    })
}

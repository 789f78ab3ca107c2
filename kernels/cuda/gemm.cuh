// What the matrix products share, whatever their tiles are: the walk over segments of k, the tree
// that joins pieces, the epilogue, and the order of blocks. Formulas: struct tsr_gemm.
#ifndef TSR_KERNELS_CUDA_GEMM_CUH
#define TSR_KERNELS_CUDA_GEMM_CUH

#include "kernels/cuda/act.cuh"
#include "kernels/cuda/launch.h"

// How the operands lie: A by rows of terms (K) or of m (M), B by columns of terms (K) or of n (N).
enum gemm_layout { GEMM_KK, GEMM_KN, GEMM_MN, GEMM_MK };

// struct tsr_gemm as kernels take it.
struct gemm_args {
    int m, n, n_pieces, n_segs;
    const struct tsr_gemm_seg *segs;
    enum tsr_gemm_mode mode;
    void *c;
    ptrdiff_t ldc, ldr;
    const void *bias, *residual;
    void *pre;
    enum tsr_act act;
    bool has_act, c_f32;
    bool wide_out;        // 16-byte accesses may go to C and all that the epilogue touches
    int n_nodes;          // of the tree, that shared memory holds
    int tiles_m, tiles_n; // blocks
};

// A product, and what its launch depends on.
struct gemm_call {
    struct gemm_args args;
    enum gemm_layout layout;
    bool wide_in; // every segment has this layout, and rows aligned to 16 bytes
    int n_sms, max_shared;
};

int gemm_f32(void *stream, const struct gemm_call *call);
int gemm_bf16(void *stream, const struct gemm_call *call);
int gemm_f16(void *stream, const struct gemm_call *call);

// Nodes of the tree beside the chain in work and the lone leaf before it (piece_tree::first): when
// i leaves are done there is one for each further bit of i, and i goes up to n_pieces - 1.
inline int gemm_nodes(int n_pieces) {
    unsigned pairs = n_pieces > 0 ? (unsigned)(n_pieces - 1) / 2 : 0;
    int nodes = 0;
    while (pairs + 1 >= 2u << nodes)
        nodes++;
    return nodes;
}

// The place of a block's tile. Blocks that run at the same time should share rows of A and columns
// of B in the second-level cache: they go down columns of 8 tiles, not along whole rows.
struct gemm_place {
    int i, j; // tiles
};
DEVICE gemm_place place_of_block(const gemm_args &q) {
    constexpr int GROUP = 8;
    int per_group = GROUP * q.tiles_n, b = (int)blockIdx.x, group = b / per_group;
    int rows = min_of(GROUP, q.tiles_m - group * GROUP), in = b - group * per_group;
    return {group * GROUP + in % rows, in / rows};
}

// A walk over the terms: segments that have some, in order, a tile of terms at a time.
struct gemm_walk {
    const struct tsr_gemm_seg *segs;
    int n, i, left; // left: terms of segment i that aren't behind
    bool fresh;     // nothing of segment i is behind

    DEVICE void skip() {
        fresh = left <= 0 && i < n;
        while (left <= 0 && i < n) {
            i++;
            left = i < n ? segs[i].k : 0;
        }
    }
    DEVICE void begin(const gemm_args &q) {
        segs = q.segs;
        n = q.n_segs;
        i = -1;
        left = 0;
        skip();
    }
    DEVICE bool more() const {
        return i < n;
    }
    DEVICE void next(int terms) {
        left -= terms;
        fresh = false;
        if (left <= 0)
            skip();
    }
};

// The one tree over pieces (core/pieces.h) of a thread's 4 R sums: a binary counter of finished
// subtrees. Its lowest bit, an even leaf that waits for its neighbour, stays in registers; higher
// nodes stand in shared memory, each thread's own part.
template <int R, int THREADS> struct piece_tree {
    static constexpr int NODE = 4 * R * THREADS; // floats
    float first[R][4];
    smem<float> nodes;
    int leaf = 0, top = 0;

    // Takes the chain of the next leaf; `sums` start anew. After the last leaf they are the root.
    DEVICE void push(float (&sums)[R][4], int n_pieces) {
        bool odd = leaf & 1, last = leaf == n_pieces - 1;
        int joins = 0;
        if (odd) {
            UNROLL(4 * R)
            for (int x = 0; x < 4 * R; x++)
                sums[x / 4][x % 4] = first[x / 4][x % 4] + sums[x / 4][x % 4];
            for (int up = (leaf + 1) / 2; up % 2 == 0; up /= 2)
                joins++;
        }
        for (joins = last ? top : joins; joins > 0; joins--)
            join(sums, --top);
        leaf++;
        if (last)
            return;
        if (odd)
            store(sums, top++);
        UNROLL(4 * R)
        for (int x = 0; x < 4 * R; x++) {
            first[x / 4][x % 4] = odd ? first[x / 4][x % 4] : sums[x / 4][x % 4];
            sums[x / 4][x % 4] = 0.0f;
        }
    }

  private:
    DEVICE smem<float> own(int node) const {
        return nodes + node * NODE + (int)threadIdx.x * 4;
    }
    DEVICE void join(float (&sums)[R][4], int node) const {
        UNROLL(R)
        for (int r = 0; r < R; r++) {
            chunk<float> c;
            unpack(shared_load16(own(node) + r * 4 * THREADS), c);
            UNROLL(4)
            for (int e = 0; e < 4; e++)
                sums[r][e] = c.v[e] + sums[r][e];
        }
    }
    DEVICE void store(const float (&sums)[R][4], int node) const {
        UNROLL(R)
        for (int r = 0; r < R; r++) {
            chunk<float> c = {{sums[r][0], sums[r][1], sums[r][2], sums[r][3]}};
            shared_store16(own(node) + r * 4 * THREADS, pack(c));
        }
    }
};

// N neighbouring elements: one, or as many as make whole 16-byte accesses.
template <class T, int N> DEVICE void get(float (&v)[N], const T *p) {
    if constexpr (N == 1) {
        v[0] = to_float(p[0]);
    } else {
        UNROLL(N)
        for (int at = 0; at < N; at += chunk<T>::N) {
            chunk<T> c;
            unpack(load16(p + at), c);
            for (int e = 0; e < chunk<T>::N; e++)
                v[at + e] = c.v[e];
        }
    }
}
template <class T, int N> DEVICE void put(T *p, const float (&v)[N]) {
    if constexpr (N == 1) {
        p[0] = from_float<T>(v[0]);
    } else {
        UNROLL(N)
        for (int at = 0; at < N; at += chunk<T>::N) {
            chunk<T> c;
            for (int e = 0; e < chunk<T>::N; e++)
                c.v[e] = v[at + e];
            store16(p + at, pack(c));
        }
    }
}

// The activation takes what `pre` holds, rounded to T, whether `pre` is asked for or not: then it
// can be computed again from there.
template <class T> DEVICE float gemm_act(enum tsr_act act, float y) {
    y = to_float(from_float<T>(y));
    if (act == TSR_ACT_SILU)
        return act_of<T, TSR_ACT_SILU>(y);
    if (act == TSR_ACT_GELU_TANH)
        return act_of<T, TSR_ACT_GELU_TANH>(y);
    return act_of<T, TSR_ACT_GELU>(y);
}

// y += or = what stands at `p`.
template <class T, int N> DEVICE void add_before(float (&y)[N], const T *p) {
    float x[N];
    get<T, N>(x, p);
    UNROLL(N)
    for (int e = 0; e < N; e++)
        y[e] = x[e] + y[e];
}

// What becomes of the sums of N neighbouring elements from (i, j) on.
template <class T, int N> DEVICE void gemm_finish(const gemm_args &q, int i, int j, float (&y)[N]) {
    int64_t at = (int64_t)i * q.ldc + j;
    if (q.c_f32) {
        if (q.mode == TSR_GEMM_ADD)
            add_before<float, N>(y, (const float *)q.c + at);
        put<float, N>((float *)q.c + at, y);
        return;
    }
    if (q.mode == TSR_GEMM_ADD)
        add_before<T, N>(y, (const T *)q.c + at);
    if (q.bias != nullptr) {
        float bias[N];
        get<T, N>(bias, (const T *)q.bias + j);
        UNROLL(N)
        for (int e = 0; e < N; e++)
            y[e] = y[e] + bias[e];
    }
    if (q.pre != nullptr)
        put<T, N>((T *)q.pre + at, y);
    if (q.has_act) {
        UNROLL(N)
        for (int e = 0; e < N; e++)
            y[e] = gemm_act<T>(q.act, y[e]);
    }
    if (q.residual != nullptr)
        add_before<T, N>(y, (const T *)q.residual + (int64_t)i * q.ldr + j);
    put<T, N>((T *)q.c + at, y);
}

// The same for up to N elements: those that C has.
template <class T, int N>
DEVICE void gemm_finish_edge(const gemm_args &q, int i, int j, float (&y)[N]) {
    if (i >= q.m)
        return;
    if (q.wide_out && j + N <= q.n) {
        gemm_finish<T, N>(q, i, j, y);
        return;
    }
    UNROLL(N)
    for (int e = 0; e < N; e++) {
        float one[1] = {y[e]};
        if (j + e < q.n)
            gemm_finish<T, 1>(q, i, j + e, one);
    }
}

// Where the chain of an element begins: C itself, or +0.
template <class T> DEVICE float gemm_start(const gemm_args &q, int i, int j) {
    if (q.mode != TSR_GEMM_CHAIN || i >= q.m || j >= q.n)
        return 0.0f;
    int64_t at = (int64_t)i * q.ldc + j;
    return q.c_f32 ? ((const float *)q.c)[at] : to_float(((const T *)q.c)[at]);
}

// Launches one block a tile. Fails when there are too many.
template <class... P>
int launch_gemm(const char *name, void (*kernel)(P...), void *stream, const gemm_args &args,
                int tile_m, int tile_n, int threads, size_t shared_bytes) {
    gemm_args q = args;
    q.tiles_m = (int)blocks_for(q.m, tile_m);
    q.tiles_n = (int)blocks_for(q.n, tile_n);
    int64_t blocks = (int64_t)q.tiles_m * q.tiles_n;
    if (blocks > INT32_MAX / 8)
        return tsr_fail(TSR_EUSAGE, "device: a product of %d x %d has too many tiles", q.m, q.n);
    return launch_kernel(name, kernel, dim3((unsigned)blocks), threads, shared_bytes, stream, q);
}

#endif

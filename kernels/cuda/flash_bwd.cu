// Flash attention on the matrix units, backward (Dao 2023, "FlashAttention-2", Algorithm 2), for
// 16-bit elements with fp32 sums. Twin: kernels/cpu/isa/attention_bwd.c.
//   S^T = K Q^T    dP^T = V dO^T    dV += Z^T dO    dK += dS^T Q scale    dQ += dS K scale
//
// Five products in one kernel, and no atomics on sums. A block owns its keys of one slot; it walks
// the slot's heads in order and their tiles of queries from the last one back. dQ of a tile is one
// chain over key blocks in ascending order: fp32 sums lie in scratch, in the order in which threads
// hold them, and a word for each warp says how many key blocks have added. The first stores, those
// between read, go on and store, the last one writes the result. A result's bits depend on its
// segment alone.
//
// Nobody waits for ever: a block takes its work by a ticket, and the key block before its own has
// an earlier ticket, so it runs or has run, and waits for earlier ones only. Waits are short: with
// tiles taken from the last one back, a key block meets a tile after the block before it, and is
// then a constant distance behind; blocks of other heads and segments lie between the tickets of
// neighbours, so few of those that run at one time are neighbours at all.
//
// What it costs, D = 128 (128 keys, 64 queries a step): 10.5 MFLOP, 4096 cycles at the 2560 a cycle
// that mma.sync reaches on sm_90, 5120 at the 2048 of sm_80. Shared memory: fragments of the five
// products 128 + 128 + 96 + 96 + 128 KiB, and 32 written, 4864 cycles at 128 bytes. (With z and dS
// kept in registers as operands, a warp would hold 16 keys x 64 queries: 160 + 160 + 128 + 128 +
// 128 and 16 written, 5760.) So shared memory is the limit on sm_90: 16k tokens, 16 heads, causal
// are 2.75 TFLOP, 5.4 ms on 132 SMs at 1.75 GHz, before stalls. Global memory: 32 KiB of queries
// and 64 of sums a step, 20 bytes a cycle and SM, mostly in L2.
#include "kernels/cuda/flash_bwd_tile.cuh"

template <int D> constexpr int bwd_ld = tile_ld<D, bwd_turn<D>>;

struct flash_grads {
    struct tsr_cuda_attn a;
    attention_grads g;
    flash_scratch s;
};

// How a block's eight warps share the tiles of the three kinds: results of W times 16 rows and N
// times 8 columns each, so many warps side by side.
template <int D> struct bwd_shape {
    static constexpr int KEYS = flash_tiles_of(D).keys, ROWS = flash_tiles_of(D).rows;
    static constexpr int THREADS = 32 * FLASH_BWD_WARPS;
    // S^T, dP^T: (KEYS, ROWS)
    static constexpr int S_ACROSS = 2, SW = KEYS / 64, SN = ROWS / 16;
    // dK, dV: (KEYS, D)
    static constexpr int K_ACROSS = D == 256 ? 4 : 2;
    static constexpr int KW = KEYS * K_ACROSS / 128, KN = D / 8 / K_ACROSS;
    // dQ: (ROWS, D)
    static constexpr int Q_ACROSS = D % 128 == 0 ? 4 : 2;
    static constexpr int QW = ROWS * Q_ACROSS / 128, QN = D / 8 / Q_ACROSS;
    static_assert(KN * 8 * K_ACROSS == D && QN * 8 * Q_ACROSS == D, "whole columns");
    static_assert(KEYS % ROWS == 0, "a tile's last key block begins with or before it");

    static constexpr size_t shared_bytes = // two elements: bf16 or fp16
        2 * ((2 * KEYS + 4 * ROWS) * bwd_ld<D> + 2 * KEYS * bwd_ld<ROWS>)+16 * ROWS + 64;
};

// A block's work: words in shared memory that are read where they are needed, because registers
// are short.
struct bwd_job {
    smem<int> words;
    enum {
        START,
        LENGTH,
        POSITION,
        SEQUENCE,
        FIRST_TILE,
        BLOCK,
        SLOT,
        KV,
        HEAD,
        HEADS,
        TILE_LO,
        TILE_HI,
        N_WORDS
    };

    DEVICE int start() const { // the segment's first token
        return words[START];
    }
    DEVICE int length() const {
        return words[LENGTH];
    }
    DEVICE int block() const { // of keys
        return words[BLOCK];
    }
    DEVICE int slot() const {
        return words[SLOT];
    }
    DEVICE int kv() const { // local KV head
        return words[KV];
    }
    // The segment, for dropout's mask.
    DEVICE struct tsr_cuda_segment segment() const {
        return {start(), length(), words[POSITION], (uint32_t)(int)words[SEQUENCE],
                0,       nullptr,  nullptr,         nullptr,
                0};
    }
};

// Where a block is: local head, and tile of queries from the segment's first token.
struct bwd_place {
    int head, tile;

    // The first tile is the last one that sees a key of the block.
    DEVICE explicit bwd_place(const bwd_job &job)
        : head(job.words[bwd_job::HEAD]), tile(job.words[bwd_job::TILE_HI]) {
    }
    // Goes on to the next tile.
    DEVICE void next(const bwd_job &job) {
        if (tile > job.words[bwd_job::TILE_LO]) {
            tile--;
            return;
        }
        tile = job.words[bwd_job::TILE_HI];
        head++;
    }
    DEVICE bool ends(const bwd_job &job) const {
        return head >= job.words[bwd_job::HEADS];
    }
};

// Takes a ticket, and the work that it stands for. False: there is none left.
DEVICE bool take_work(const bwd_job &job, const flash_grads &p, int keys, int rows) {
    if (threadIdx.x == 0) {
        int ticket = next_ticket(p.s.counts), i = ticket / p.g.n_slots, slot = ticket % p.g.n_slots;
        job.words[bwd_job::LENGTH] = 0;
        if (i < p.s.counts[1]) {
            int segment = p.s.work[2 * i], block = p.s.work[2 * i + 1];
            const struct tsr_cuda_segment &g = p.a.segs[segment];
            const struct tsr_kv_slot &s = p.g.slots[slot];
            int last_key = min_of((block + 1) * keys, g.length) - 1;
            int end = queries_seeing(last_key, g.length, p.a.window).hi;
            const int words[bwd_job::N_WORDS] = {g.start,
                                                 g.length,
                                                 g.position,
                                                 (int)g.sequence_lo,
                                                 p.s.first_tile[segment],
                                                 block,
                                                 slot,
                                                 s.kv,
                                                 s.q,
                                                 s.q + s.n,
                                                 block * keys / rows,
                                                 (end - 1) / rows};
            for (int k = 0; k < bwd_job::N_WORDS; k++)
                job.words[k] = words[k];
        }
    }
    __syncthreads();
    return job.length() > 0;
}

// Queries and their statistics, the first of two buffers that lie side by side.
template <class T, int D, int ROWS> struct query_buffer {
    smem<T> q, d_o;
    smem<float> lse, dots;

    DEVICE query_buffer of(int step) const {
        int tile = step % 2 * ROWS * bwd_ld<D>, row = step % 2 * ROWS;
        return {q + tile, d_o + tile, lse + row, dots + row};
    }
};

// Starts to bring the queries at a place.
template <class T, int D, int ROWS, int THREADS>
DEVICE void load_queries(const query_buffer<T, D, ROWS> &to, const flash_grads &p,
                         const bwd_job &job, const bwd_place &at) {
    const T *q = (const T *)p.g.q + (int64_t)at.head * D;
    const T *d_o = (const T *)p.g.d_o + (int64_t)at.head * D;
    int t0 = at.tile * ROWS, n = min_of(ROWS, job.length() - t0);
    int64_t row = job.start() + t0, stat = (int64_t)at.head * p.a.n_tokens + row;
    tile_load<T, ROWS, D, THREADS, bwd_turn<D>>(to.q, q + row * p.a.ldq, p.a.ldq, 0, n);
    tile_load<T, ROWS, D, THREADS, bwd_turn<D>>(to.d_o, d_o + row * p.a.ldo, p.a.ldo, 0, n);
    static_assert(ROWS <= THREADS, "a thread for each query");
    int i = threadIdx.x;
    if (i < ROWS) {
        cp_async4(to.lse + i, p.g.lse + stat + (i < n ? i : 0), i < n);
        cp_async4(to.dots + i, p.g.dots + stat + (i < n ? i : 0), i < n);
    }
}

// A warp's part of dQ of the tile at a place: it is passed from key block to key block.
template <class S> struct dq_turn {
    int part;   // number of the part
    int before; // key blocks that add before this one
    bool last;

    DEVICE dq_turn(const flash_grads &p, const bwd_job &job, const bwd_place &at) {
        int tile = at.head * p.s.n_tiles + job.words[bwd_job::FIRST_TILE] + at.tile;
        part = tile * FLASH_BWD_WARPS + threadIdx.x / 32;
        before = job.block() - keys_seen(at.tile * S::ROWS, 0, p.a.window).lo / S::KEYS;
        last = job.block() == at.tile * S::ROWS / S::KEYS;
    }
    // A thread's four sums, of 128 in a row.
    DEVICE float *sums(const flash_grads &p) const {
        return p.s.sums + (int64_t)part * (S::QW * S::QN * 128) + threadIdx.x % 32 * 4;
    }
    DEVICE void load(float (&dq)[S::QW][S::QN][4], const flash_grads &p) const {
        const float *from = sums(p);
        UNROLL(S::QW * S::QN)
        for (int i = 0; i < S::QW * S::QN; i++) {
            uint4 u = load16_l2(from + i * 128);
            float *x = dq[i / S::QN][i % S::QN];
            x[0] = __uint_as_float(u.x);
            x[1] = __uint_as_float(u.y);
            x[2] = __uint_as_float(u.z);
            x[3] = __uint_as_float(u.w);
        }
    }
    DEVICE void store(const float (&dq)[S::QW][S::QN][4], const flash_grads &p) const {
        float *to = sums(p);
        UNROLL(S::QW * S::QN)
        for (int i = 0; i < S::QW * S::QN; i++) {
            const float *x = dq[i / S::QN][i % S::QN];
            store16_l2(to + i * 128, uint4{__float_as_uint(x[0]), __float_as_uint(x[1]),
                                           __float_as_uint(x[2]), __float_as_uint(x[3])});
        }
    }
};

// dQ of a tile to where it belongs: rows from `row`, columns from `col` of the tile.
template <class T, int D, class S>
DEVICE void store_dq(const float (&dq)[S::QW][S::QN][4], const flash_grads &p, const bwd_job &job,
                     const bwd_place &at, int row, int col) {
    int lane = threadIdx.x % 32;
    T *head = (T *)p.g.dq + (int64_t)at.head * D + col + lane % 4 * 2;
    UNROLL(S::QW)
    for (int i = 0; i < S::QW; i++)
        UNROLL(2)
    for (int half = 0; half < 2; half++) {
        int t = at.tile * S::ROWS + row + 16 * i + lane / 4 + 8 * half;
        T *to = head + (job.start() + t) * p.a.ldq;
        if (t >= job.length())
            continue;
        UNROLL(S::QN)
        for (int n = 0; n < S::QN; n++)
            *(uint32_t *)(to + 8 * n) =
                pack2<T>(dq[i][n][2 * half] * p.a.scale, dq[i][n][2 * half + 1] * p.a.scale);
    }
}

// acc (16 W x 8N) += the transpose or not of `left` (16 W rows from row0) times `right` (columns
// from col0), over K.
template <class T, int LD, int RD, int K, bool TRANSPOSED, int W, int N>
DEVICE void add_product(float (&acc)[W][N][4], smem<T> left, int row0, smem<T> right, int col0) {
    UNROLL(K / 16)
    for (int k = 0; k < K; k += 16) {
        uint32_t a[W][4];
        UNROLL(W)
        for (int w = 0; w < W; w++)
            if (TRANSPOSED)
                load_left_cols<T, LD, bwd_turn<LD>>(a[w], left, k, row0 + 16 * w);
            else
                load_left<T, LD, bwd_turn<LD>>(a[w], left, row0 + 16 * w, k);
        add_slice<T, RD, bwd_turn<RD>, W, N>(acc, a, right, k, col0);
    }
}

template <class T, int D, bool DROP>
__global__ void __launch_bounds__(32 * FLASH_BWD_WARPS) flash_bwd_kernel(flash_grads p) {
    using S = bwd_shape<D>;
    constexpr int KEYS = S::KEYS, ROWS = S::ROWS, THREADS = S::THREADS, LD = bwd_ld<D>;
    int warp = threadIdx.x / 32;
    shared_cursor cursor;
    smem<T> k = cursor.template take<T>(KEYS * LD), v = cursor.template take<T>(KEYS * LD);
    query_buffer<T, D, ROWS> buffers = {
        cursor.template take<T>(2 * ROWS * LD), cursor.template take<T>(2 * ROWS * LD),
        cursor.template take<float>(2 * ROWS), cursor.template take<float>(2 * ROWS)};
    smem<T> z = cursor.template take<T>(KEYS * bwd_ld<ROWS>);
    smem<T> ds = cursor.template take<T>(KEYS * bwd_ld<ROWS>);
    bwd_job job = {cursor.template take<int>(bwd_job::N_WORDS)};
    if (!take_work(job, p, KEYS, ROWS))
        return;
    int key0 = job.block() * KEYS, keys = min_of(KEYS, job.length() - key0);
    const T *own_k = (const T *)p.g.k + (job.start() + key0) * p.a.ldk + (int64_t)job.kv() * D;
    const T *own_v = (const T *)p.g.v + (job.start() + key0) * p.a.ldv + (int64_t)job.kv() * D;
    tile_load<T, KEYS, D, THREADS, bwd_turn<D>>(k, own_k, p.a.ldk, 0, keys);
    tile_load<T, KEYS, D, THREADS, bwd_turn<D>>(v, own_v, p.a.ldv, 0, keys);
    bwd_place at(job);
    if (!at.ends(job))
        load_queries<T, D, ROWS, THREADS>(buffers, p, job, at);
    cp_async_commit();
    // Where the warp's results lie in the tiles of the three kinds.
    int s_row = warp / S::S_ACROSS * 16 * S::SW, s_col = warp % S::S_ACROSS * 8 * S::SN;
    int k_row = warp / S::K_ACROSS * 16 * S::KW, k_col = warp % S::K_ACROSS * 8 * S::KN;
    int q_row = warp / S::Q_ACROSS * 16 * S::QW, q_col = warp % S::Q_ACROSS * 8 * S::QN;
    float dk[S::KW][S::KN][4] = {}, dv[S::KW][S::KN][4] = {};
    int owed = -1, pass = 0; // the part whose sums are stored and whose word is still to be written
    bool lane0 = threadIdx.x % 32 == 0;
    for (int step = 0; !at.ends(job); step++) {
        cp_async_wait<0>();
        __syncthreads(); // these queries have come, and everyone is done with those before
        const query_buffer<T, D, ROWS> b = buffers.of(step);
        const bwd_place here = at;
        at.next(job);
        if (!at.ends(job))
            load_queries<T, D, ROWS, THREADS>(buffers.of(step + 1), p, job, at);
        cp_async_commit();
        const dq_turn<S> turn(p, job, here);
        int added =
            lane0 && turn.before > 0 ? load_relaxed(p.s.turns + turn.part) : 0; // look ahead
        int query0 = here.tile * ROWS, key = job.block() * KEYS;
        score_place place = {key + s_row, query0 + s_col,    s_row, s_col, job.length(),
                             p.a.window,  p.a.q0 + here.head};
        weigh<T, D, ROWS, S::SW, S::SN, DROP>(z, ds, k, v, b.q, b.d_o, b.lse, b.dots, p.a,
                                              job.segment(), place);
        __syncthreads(); // z and dS are there
        if (lane0 && (owed >= 0 || turn.before > 0))
            fence_blocks(); // behind the stores of the step before, and behind the look ahead
        if (lane0 && owed >= 0)
            store_relaxed(p.s.turns + owed, pass);
        bool seen = query0 + ROWS > key + k_row; // else nobody sees the keys of the warp's rows
        if (seen)
            add_product<T, ROWS, D, ROWS, false>(dv, z, k_row, b.d_o, k_col);
        float dq[S::QW][S::QN][4] = {};
        if (turn.before > 0) {
            if (lane0 && added != turn.before)
                wait_until(p.s.turns + turn.part, turn.before);
            __syncwarp();
            turn.load(dq, p);
        }
        if (seen)
            add_product<T, ROWS, D, ROWS, false>(dk, ds, k_row, b.q, k_col);
        add_product<T, ROWS, D, KEYS, true>(dq, ds, q_row, k, q_col);
        owed = turn.last ? -1 : turn.part;
        pass = turn.before + 1;
        if (turn.last)
            store_dq<T, D, S>(dq, p, job, here, q_row, q_col);
        else
            turn.store(dq, p);
        __syncwarp();
    }
    if (lane0 && owed >= 0) {
        fence_blocks();
        store_relaxed(p.s.turns + owed, pass);
    }
    cp_async_wait<0>();
    __syncthreads(); // before sums take the place of keys and values
    const float once[2] = {1.0f, 1.0f}, scale[2] = {p.a.scale, p.a.scale};
    UNROLL(S::KW)
    for (int i = 0; i < S::KW; i++) {
        int tile0 = k_row + 16 * i;
        auto at = [&](void *out, int j) -> T * {
            int64_t row = (int64_t)(job.start() + key0 + tile0 + j) * p.g.n_slots + job.slot();
            return tile0 + j < keys ? (T *)out + row * D : nullptr;
        };
        store_patch<T, D, bwd_turn<D>, S::KN>(dk[i], scale, k, tile0, k_col,
                                              [&](int j) { return at(p.g.dk, j); });
        store_patch<T, D, bwd_turn<D>, S::KN>(dv[i], once, v, tile0, k_col,
                                              [&](int j) { return at(p.g.dv, j); });
    }
}

template <class T, int D> static int launch_bwd(void *stream, const flash_grads &p) {
    flash_layout l = flash_layout_of(&p.a);
    int64_t blocks = (int64_t)l.n_work * p.g.n_slots;
    if (l.n_turns > INT32_MAX || blocks > INT32_MAX)
        return tsr_fail(TSR_EUSAGE,
                        "device: attention over %d tokens and %d heads at once is too much",
                        p.a.n_tokens, p.a.nq);
    if (p.a.drop.p > 0.0f)
        return launch_kernel("flash_bwd_drop", flash_bwd_kernel<T, D, true>, dim3((unsigned)blocks),
                             bwd_shape<D>::THREADS, bwd_shape<D>::shared_bytes, stream, p);
    return launch_kernel("flash_bwd", flash_bwd_kernel<T, D, false>, dim3((unsigned)blocks),
                         bwd_shape<D>::THREADS, bwd_shape<D>::shared_bytes, stream, p);
}

template <class T> static int choose_bwd(void *stream, const flash_grads &p) {
    if (p.a.head_dim == 64)
        return launch_bwd<T, 64>(stream, p);
    if (p.a.head_dim == 80)
        return launch_bwd<T, 80>(stream, p);
    if (p.a.head_dim == 96)
        return launch_bwd<T, 96>(stream, p);
    if (p.a.head_dim == 128)
        return launch_bwd<T, 128>(stream, p);
    return launch_bwd<T, 256>(stream, p);
}

int flash_backward(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                   const attention_grads *g) {
    const flash_grads p = {*a, *g, flash_scratch_of(a, g->rest)};
    bool ok = aligned16(g->rest);
    for (const void *at :
         {g->q, g->k, g->v, g->d_o, (const void *)g->dq, (const void *)g->dk, (const void *)g->dv})
        ok = ok && aligned16((const char *)at);
    for (ptrdiff_t ld : {a->ldq, a->ldk, a->ldv, a->ldo})
        ok = ok && ld % 8 == 0;
    if (!ok)
        return tsr_fail(TSR_EUSAGE, "device: attention: rows must be aligned to 16 bytes");
    TSR_TRY(flash_plan(stream, a, &p.s));
    return dtype == TSR_DT_BF16 ? choose_bwd<bf16>(stream, p) : choose_bwd<f16>(stream, p);
}

// Mathematics on one device: one const table of function pointers that a backend fills.
//
// Rules of every entry:
//   * it takes a context and device pointers, may run asynchronously on ctx->stream, and gives the
//     host nothing but an error code (0, or TSR_E* with a recorded sentence); arrays of structs, of
//     bounds and of pointers are the host's, and are read before the call returns;
//   * tensors are row-major and contiguous unless a leading dimension `ld*` is named; their
//     elements have type ctx->dtype (tsr_elem); statistics are fp32;
//   * an output element is a fixed function of the inputs that mathematically enter it
//     (docs/exactness.md): never of the batch around it, of its place, of the thread or the CPU.
//     A product is one chain of fused multiply-adds in k order per virtual piece; other
//     reductions use a virtual vector of 16 lanes added in a fixed tree;
//   * outputs never alias inputs unless the comment says "in place".
//
// Dims: N tokens (rows), C hidden, D head size, Hq/Hkv heads held here, F FFN columns held here,
// V vocabulary rows held here.
#ifndef TSR_KERNELS_OPS_H
#define TSR_KERNELS_OPS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include "core/model.h"
#include "core/philox.h"
#include "core/safetensors.h"
#include "core/sampler.h"

typedef void tsr_elem; // an element of ctx->dtype

struct tsr_ops;

enum { TSR_PEAK_QUICK = 4, TSR_PEAK_CAREFUL = 64 }; // trials of measure_peak

struct tsr_ctx {
    const struct tsr_ops *ops;
    void *stream;         // the backend's own: a pool of threads, a queue of a device
    enum tsr_dtype dtype; // of activations and weights
};

// One run of k terms of a product: C(i,j) += sum over p of A(i,p) B(p,j), p ascending.
// Of each pair of strides (in elements) one is 1.
struct tsr_gemm_seg {
    const tsr_elem *a;
    ptrdiff_t a_i, a_p; // A(i,p) = a[i a_i + p a_p]
    const tsr_elem *b;
    ptrdiff_t b_p, b_j; // B(p,j) = b[p b_p + j b_j]
    int k;              // terms, >= 0
    int piece;          // virtual piece, non-decreasing; equal pieces continue one chain
};

enum tsr_gemm_mode {
    TSR_GEMM_STORE, // C = tree over pieces of chains that start from +0
    TSR_GEMM_CHAIN, // one piece; its chain starts from C: C continues
    TSR_GEMM_ADD,   // C = C + tree
};

// A matrix product with its pieces and epilogue. After the pieces are joined:
//   y = sum + bias[j];  if pre: pre(i,j) = y;  y = act(y);  y = residual(i,j) + y;  C(i,j) = y
// each step only when asked for, in this order. The epilogue belongs to TSR_GEMM_STORE.
struct tsr_gemm {
    int m, n;
    int n_pieces; // pieces [0, n_pieces) are leaves of the tree; one without terms is +0
    int n_segs;
    const struct tsr_gemm_seg *segs;
    enum tsr_gemm_mode mode;
    tsr_elem *c;
    ptrdiff_t ldc;
    bool c_f32; // C is fp32 whatever ctx->dtype: gradients, sums that ranks join. No epilogue
    const tsr_elem *bias; // (n) or NULL
    tsr_elem *pre;        // (m, n) with leading dimension ldc, or NULL
    bool has_act;
    enum tsr_act act;
    const tsr_elem *residual; // (m, n) or NULL; may be c itself
    ptrdiff_t ldr;
};

// Rows [row, row + n) of an array of N rows feed chain `chain`; runs stand in ascending order and
// runs of one chain continue it.
struct tsr_rows {
    int row, n;
    int chain;
};

// A paged key/value cache of one layer: key position p lies at row
// blocks[p / block_tokens] * block_tokens + p % block_tokens of k and v, rows of (n_kv, D). The
// table has n_blocks entries, of which those that the sequence has reached are read: what is kept
// of recorded calls holds until it reaches the last.
struct tsr_kv_cache {
    tsr_elem *k, *v;
    const int32_t *blocks;
    int block_tokens, n_blocks;
};

// `length` consecutive tokens of one sequence in the flat rows [start, start + length).
struct tsr_segment {
    int start, length;
    int position;                     // of the first token in its sequence
    uint64_t sequence;                // global number, for dropout
    const struct tsr_kv_cache *cache; // NULL: keys are the segment's own rows
};

struct tsr_dropout {
    float p;                // 0: off
    struct tsr_rng_key key; // of (seed, purpose, layer); the high half of `sequence` is 0
};

// Keys [kv0, kv0 + nkv) and queries [q0, q0 + nq) are global head numbers held here; query head h
// reads KV head h / group.
struct tsr_attn {
    int q0, nq, kv0, nkv, group;
    int head_dim;
    float scale; // of scores; 1/sqrt(D) in most models
    int window;  // keys within the last `window` positions; 0: all
    struct tsr_dropout drop;
    int n_segs;
    const struct tsr_segment *segs;
    int n_tokens;                 // N
    ptrdiff_t ldq, ldk, ldv, ldo; // elements between rows of q, k, v, o (and their gradients)
};

// One virtual piece's share of a KV head in backward: local query heads [q, q + n) sum into slot.
struct tsr_kv_slot {
    int q, n;  // local query heads
    int kv;    // local KV head
    int piece; // local virtual piece
};

// Stochastic rounding of fp32 values to bf16: away from zero with the probability of what is cut
// off, so that the mean over draws is the value; infinity and NaN stay. Element (r, c) has the
// number e = first + r * row_elems + c in its tensor, wherever it lies; its draw is the low half of
// Philox(key, {e / 4, its high half, update, its high half})[e % 4].
struct tsr_rounding {
    struct tsr_rng_key key; // of (seed, purpose, tensor)
    uint64_t update;        // updates that led to the values
    int64_t first, row_elems;
};

struct tsr_adamw {
    float lr, beta1, beta2, eps, weight_decay;
    float rest1, rest2;      // 1 - beta1, 1 - beta2, rounded once: 1 - 0.999f is off by 1e-5
    float bias1, bias2_sqrt; // 1 - beta1^t, sqrt(1 - beta2^t)
    float grad_scale;        // clipping
    const struct tsr_rounding *rounding; // of the copy, then bf16; NULL: to nearest even
};

struct tsr_ops {
    const char *name;
    void (*close)(
        struct tsr_ctx *); // of the device, which was opened by its backend's own function

    // Memory. Zero-filled, aligned to 64 bytes or better. TSR_ENOMEM.
    int (*alloc)(struct tsr_ctx *, size_t n_bytes, void **out);
    void (*free)(struct tsr_ctx *, void *p, size_t n_bytes);
    int (*zero)(struct tsr_ctx *, void *p, size_t n_bytes);
    // Host memory that is pinned stays as it is until sync; other may be used again at once. What
    // comes to the host is there after sync. While the owner of ctx asks for nothing, another
    // thread may call to_host and sync.
    int (*to_device)(struct tsr_ctx *, void *dst, const void *src, size_t n_bytes);
    int (*to_host)(struct tsr_ctx *, void *dst, const void *src, size_t n_bytes);
    int (*copy)(struct tsr_ctx *, void *dst, const void *src, size_t n_bytes);
    // rows x cols elements between two leading dimensions
    int (*copy_2d)(struct tsr_ctx *, tsr_elem *dst, ptrdiff_t ldd, const tsr_elem *src,
                   ptrdiff_t lds, int rows, int cols);
    // dst = src with another element type, to nearest even; rows x cols between two leading
    // dimensions. F32, BF16 or F16.
    int (*convert)(struct tsr_ctx *, enum tsr_dtype to, void *dst, ptrdiff_t ldd,
                   enum tsr_dtype from, const void *src, ptrdiff_t lds, int64_t rows, int64_t cols);
    // Waits for all that was asked for. A device that doesn't answer by its deadline is
    // TSR_ETIMEOUT.
    int (*sync)(struct tsr_ctx *);
    // Makes host memory fit for fast copies to and from the device, until unpin.
    int (*pin)(struct tsr_ctx *, void *p, size_t n_bytes);
    void (*unpin)(struct tsr_ctx *, void *p, size_t n_bytes);

    // A sequence of calls kept for doing again without the cost of asking for each: what stands
    // between record and recorded is done, and kept as *graph. replay does it once more with the
    // same device pointers, shapes and arrays; only segments (with their caches and block tables),
    // sample's s and index, and to_device's sources are read again from where they were, and
    // to_host's destinations are written again. NULL where a call costs nothing to ask for.
    int (*record)(struct tsr_ctx *);
    int (*recorded)(struct tsr_ctx *, void **graph);
    int (*replay)(struct tsr_ctx *, void *graph);
    void (*graph_free)(struct tsr_ctx *, void *graph);

    // Of the device: one line for a person; bytes that alloc handed out and free hasn't taken back;
    // the measured peak of products of ctx->dtype, all threads, in GFLOP/s: the best of n_trials of
    // some milliseconds. On a machine that is busy only many trials find it.
    const char *(*describe)(const struct tsr_ctx *);
    size_t (*allocated)(const struct tsr_ctx *);
    size_t (*scratch)(const struct tsr_ctx *); // that operations so far made the backend keep
    // Bytes that are free now, and in all. NULL: the device's memory is the host's.
    int (*memory)(struct tsr_ctx *, size_t *free_bytes, size_t *total_bytes);
    double (*measure_peak)(struct tsr_ctx *, int n_trials);

    int (*gemm)(struct tsr_ctx *, const struct tsr_gemm *g);

    // x(i,:) = wte(ids[i] - row0, :) + 0 when row0 <= ids[i] < row0 + n_rows, else +0.
    int (*embedding)(struct tsr_ctx *, tsr_elem *x, const int32_t *ids, const tsr_elem *wte,
                     int row0, int n_rows, int n, int c);
    // Gradient of a table from the tokens that picked its rows; dx (N, C). One chain: dtable(ids[i]
    // - row0, :) += dx(i,:), i ascending, continuing what is there. Several chains (`rows` say
    // which token feeds which): dtable row += the tree over chains of those sums; a chain without
    // tokens is +0.
    int (*embedding_bwd)(struct tsr_ctx *, float *dtable, const int32_t *ids, const tsr_elem *dx,
                         const struct tsr_rows *rows, int n_rows, int n_chains, int row0,
                         int n_table, int c);
    // x(i,:) = x(i,:) + wpe(pos[i], :), in place.
    int (*position)(struct tsr_ctx *, tsr_elem *x, const int32_t *pos, const tsr_elem *wpe, int n,
                    int c);

    // y = (x - mean) * rstd * w + b; rstd = 1/sqrt(var + eps) (Ba et al. 2016). b may be NULL.
    int (*layernorm)(struct tsr_ctx *, tsr_elem *y, float *mean, float *rstd, const tsr_elem *x,
                     const tsr_elem *w, const tsr_elem *b, float eps, int n, int c);
    // y = x * rstd * w; rstd = 1/sqrt(mean(x^2) + eps) (Zhang and Sennrich 2019).
    int (*rmsnorm)(struct tsr_ctx *, tsr_elem *y, float *rstd, const tsr_elem *x, const tsr_elem *w,
                   float eps, int n, int c);
    // dx (+)= gradient through the norm: dx = dres + grad when dres is given (may be dx itself).
    // mean NULL: RMSNorm.
    int (*norm_bwd)(struct tsr_ctx *, tsr_elem *dx, const tsr_elem *dres, const tsr_elem *dy,
                    const tsr_elem *x, const tsr_elem *w, const float *mean, const float *rstd,
                    int n, int c);
    // dw(chain,:) += dy * xhat and db(chain,:) += dy over the rows of each chain in order. db and
    // mean may be NULL. dw, db: (n_chains, C).
    int (*norm_bwd_params)(struct tsr_ctx *, float *dw, float *db, const tsr_elem *dy,
                           const tsr_elem *x, const float *mean, const float *rstd,
                           const struct tsr_rows *rows, int n_rows, int c);
    // acc(chain,:) += x(row,:) over the rows of each chain in order.
    int (*colsum)(struct tsr_ctx *, float *acc, const tsr_elem *x, ptrdiff_t ldx,
                  const struct tsr_rows *rows, int n_rows, int c);

    // Rotary positions (Su et al. 2021), HF layout: pair (d, d + D/2), in place on (N, heads, D)
    // with leading dimension ld. cos_sin: (max_positions, D/2, 2) fp32. inverse: the transposed
    // rotation, for gradients.
    int (*rotary)(struct tsr_ctx *, tsr_elem *x, ptrdiff_t ld, const int32_t *pos,
                  const float *cos_sin, int n, int heads, int d, bool inverse);

    // Whether attention in ctx->dtype takes heads of this size: TSR_ECONFIG says which it takes.
    // NULL: any.
    int (*check_heads)(const struct tsr_ctx *, int64_t head_dim);
    // Copies rows of k and v of each segment that has a cache into it.
    int (*kv_store)(struct tsr_ctx *, const struct tsr_attn *a, const tsr_elem *k,
                    const tsr_elem *v);
    // Causal attention, block-wise with an online softmax over key blocks at fixed absolute
    // positions (Dao 2023, Algorithm 1). o: (N, nq, D), lse: (nq, N) = max + log sum, or NULL.
    int (*attention)(struct tsr_ctx *, const struct tsr_attn *a, tsr_elem *o, float *lse,
                     const tsr_elem *q, const tsr_elem *k, const tsr_elem *v);
    // dq: (N, nq, D), dk and dv: (N, n_slots, D) contiguous. Segments have no cache.
    int (*attention_bwd)(struct tsr_ctx *, const struct tsr_attn *a,
                         const struct tsr_kv_slot *slots, int n_slots, tsr_elem *dq, tsr_elem *dk,
                         tsr_elem *dv, const tsr_elem *d_o, const tsr_elem *o, const float *lse,
                         const tsr_elem *q, const tsr_elem *k, const tsr_elem *v);
    // dkv(N, nkv, D) = tree over the slots of each KV head, by piece of n_pieces; absent pieces
    // are +0 and are added once at the end (x + 0). f32: dkv is fp32 whatever ctx->dtype, because
    // other ranks have a part of the sum.
    int (*kv_slot_sum)(struct tsr_ctx *, void *dkv, bool f32, const tsr_elem *slot_values,
                       const struct tsr_kv_slot *slots, int n_slots, int n_pieces, int nkv, int n,
                       int d);

    // y = act(x). n_elems each.
    int (*act)(struct tsr_ctx *, enum tsr_act, tsr_elem *y, const tsr_elem *x, size_t n);
    // dx = dy * act'(x); dx may be dy.
    int (*act_bwd)(struct tsr_ctx *, enum tsr_act, tsr_elem *dx, const tsr_elem *dy,
                   const tsr_elem *x, size_t n);
    // y = act(gate) * up (Shazeer 2020).
    int (*gated)(struct tsr_ctx *, enum tsr_act, tsr_elem *y, const tsr_elem *gate,
                 const tsr_elem *up, size_t n);
    // dgate = dy * up * act'(gate), dup = dy * act(gate). dgate may be gate, dup may be up.
    int (*gated_bwd)(struct tsr_ctx *, enum tsr_act, tsr_elem *dgate, tsr_elem *dup,
                     const tsr_elem *dy, const tsr_elem *gate, const tsr_elem *up, size_t n);

    // out = residual + drop(y + bias); residual and bias may be NULL, out may be residual or y.
    // The mask of element (row, j) is Philox(key, {(col0 + j) / 4, position, sequence, high
    // sequence})[(col0 + j) % 4] >= threshold; kept elements are divided by 1 - p. rows of x are
    // those of `segs`. ld is the leading dimension of out, y and residual. y_f32: y is fp32
    // whatever ctx->dtype, a sum not rounded yet; then out is not y.
    int (*bias_dropout_add)(struct tsr_ctx *, tsr_elem *out, const tsr_elem *residual,
                            const void *y, bool y_f32, const tsr_elem *bias,
                            const struct tsr_dropout *d, const struct tsr_segment *segs, int n_segs,
                            ptrdiff_t ld, int c, int64_t col0);
    // dx = drop'(dy): the same mask and scale; dx may be dy.
    int (*dropout_bwd)(struct tsr_ctx *, tsr_elem *dx, const tsr_elem *dy,
                       const struct tsr_dropout *d, const struct tsr_segment *segs, int n_segs,
                       ptrdiff_t ld, int c, int64_t col0);
    // out = a + b, elementwise; out may be a or b.
    int (*add)(struct tsr_ctx *, tsr_elem *out, const tsr_elem *a, const tsr_elem *b, size_t n);
    // The same on fp32 buffers (gradients).
    int (*add_f32)(struct tsr_ctx *, float *out, const float *a, const float *b, size_t n);
    // out = tree over n_in buffers, elementwise; out may be one of them.
    int (*tree_add)(struct tsr_ctx *, float *out, const float *const *in, int n_in, size_t n);

    // Vocabulary-parallel cross-entropy in three steps around two reductions by the caller.
    // max[i] = max over j of logits(i,j); -inf when v is 0.
    int (*xent_max)(struct tsr_ctx *, float *max, const tsr_elem *logits, int n, int v);
    // In place logits = exp(logits - max); sum_target(0,i) = tree over the n_pieces column pieces
    // [bounds[p], bounds[p+1]) of their sums, sum_target(1,i) = logits(i, targets[i] - row0) -
    // max[i] when that column is here, else +0. A negative target is masked.
    int (*xent_exp)(struct tsr_ctx *, tsr_elem *logits, float *sum_target, const float *max,
                    const int32_t *targets, const int *bounds, int n_pieces, int row0, int n,
                    int v);
    // loss[i] = log(sum) - target (0 when masked). When grad: in place logits = (logits / sum -
    // onehot) * scale, 0 when masked.
    int (*xent_loss)(struct tsr_ctx *, float *loss, tsr_elem *logits, const float *sum_target,
                     const int32_t *targets, float scale, bool grad, int row0, int n, int v);
    // next[i] = the token that tsr_sample (core/sampler.h) picks from logits(i,:) by s[i] and
    // index[i]. s and index are the host's, (rows); logits (rows, V) fp32.
    int (*sample)(struct tsr_ctx *, int32_t *next, const float *logits,
                  const struct tsr_sampling *s, const uint64_t *index, int rows, int64_t v);

    // sums[b] = sum of squares, in double, of rows [bounds[b], bounds[b+1]) x cols of g with
    // leading dimension ld: each row with a virtual vector of 16 lanes, the rows' sums added in
    // order. sums is the device's.
    int (*sumsq)(struct tsr_ctx *, double *sums, const float *g, ptrdiff_t ld,
                 const int64_t *bounds, int n_blocks, int64_t cols);
    // torch.optim.AdamW's update (Loshchilov and Hutter 2019, Algorithm 2) of rows x cols. copy:
    // NULL, or what the layers compute with, of type ctx->dtype with leading dimension ldw, which
    // becomes w, rounded as p says.
    int (*adamw)(struct tsr_ctx *, const struct tsr_adamw *p, float *w, ptrdiff_t ldw, float *m,
                 float *v, const float *g, ptrdiff_t ldg, int64_t rows, int64_t cols,
                 tsr_elem *copy);
    // w (rows x cols, bf16, leading dimension ldw) = master (contiguous), rounded by draws. NULL
    // where nothing is computed in bf16.
    int (*round)(struct tsr_ctx *, tsr_elem *w, ptrdiff_t ldw, const float *master,
                 const struct tsr_rounding *r, int64_t rows, int64_t cols);

    // w(r,c) = std * normal of global element (row0 + r) * global_cols + col0 + c (Box-Muller).
    int (*init_normal)(struct tsr_ctx *, tsr_elem *w, struct tsr_rng_key key, float std,
                       int64_t row0, int64_t rows, int64_t col0, int64_t cols, int64_t global_cols);
};

// The CPU backend. `isa` is NULL for the best that this CPU has, or "avx512", "avx2", "portable";
// one that the CPU lacks is TSR_EUSAGE. The environment's TESSERA_CPU is read by the launcher.
int tsr_cpu_open(struct tsr_ctx *ctx, const char *isa, int n_threads);
// The same, but nothing is computed and no memory that `alloc` hands out may be touched: it is
// address space only. For finding out what a job will allocate (dist/plan.h). Operations take the
// scratch that they would need, leave outputs as they are, and return 0.
int tsr_cpu_open_dry(struct tsr_ctx *ctx, const char *isa, int n_threads);

#endif

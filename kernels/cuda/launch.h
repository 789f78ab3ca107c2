// What the host side of the CUDA backend calls: one function for each operation of
// kernels/ops.h (formulas and meanings stand there), which launches its kernels on `stream` and
// returns 0 or a code. Pointers are the device's; the arrays of structs too. `dtype` is the type
// of tsr_elem: F32, BF16 or F16.
#ifndef TSR_KERNELS_CUDA_LAUNCH_H
#define TSR_KERNELS_CUDA_LAUNCH_H

#include "kernels/cuda/contract.h"

#ifdef __cplusplus
extern "C" {
#endif

// The object shows these beside tsr_plugin: tests of kernels call them there.
#pragma GCC visibility push(default)

// struct tsr_segment on the device. k NULL: keys are the segment's own rows; else they are the
// rows of a paged cache (struct tsr_kv_cache).
struct tsr_cuda_segment {
    int start, length, position;
    uint32_t sequence_lo, sequence_hi;
    void *k, *v; // rows of (n_kv, D)
    const int32_t *blocks;
    int block_tokens;
};

enum { TSR_CUDA_FEW = 8 }; // queries of a segment that has few

// struct tsr_attn on the device. max_length: of the longest segment.
//
// Segments with a cache and at most TSR_CUDA_FEW queries can be dealt out over the device by their
// keys. tsr_cuda_attention does so when n_few > 0 and there is scratch; results are the same bits
// either way.
struct tsr_cuda_attn {
    int q0, nq, kv0, nkv, group;
    int head_dim;
    float scale;
    int window;
    struct tsr_dropout drop;
    uint32_t drop_threshold; // tsr_drop_threshold(drop.p)
    int n_segs, max_length;
    const struct tsr_cuda_segment *segs;
    int n_tokens;
    ptrdiff_t ldq, ldk, ldv, ldo;
    int n_few;     // segments with a cache and few queries
    int n_keys;    // that the longest block table among them has room for
    void *scratch; // aligned to 16 bytes: tsr_cuda_attention_scratch, or less
    size_t scratch_bytes;
};

// segs: the device's copy of g->segs, whose other fields are read here. n_sms: multiprocessors of
// the device, for the choice of tiles. 16-bit elements: terms are taken in groups of 16 from the
// beginning of each segment, on the matrix units.
int tsr_cuda_gemm(void *stream, enum tsr_dtype dtype, const struct tsr_gemm *g,
                  const struct tsr_gemm_seg *segs, int n_sms);

int tsr_cuda_copy_2d(void *stream, enum tsr_dtype dtype, void *dst, ptrdiff_t ldd, const void *src,
                     ptrdiff_t lds, int64_t rows, int cols);
int tsr_cuda_fill(void *stream, enum tsr_dtype dtype, void *dst, float value, size_t n);
// dst = src with another element type, to nearest even.
int tsr_cuda_convert(void *stream, enum tsr_dtype to, void *dst, ptrdiff_t ldd, enum tsr_dtype from,
                     const void *src, ptrdiff_t lds, int64_t rows, int64_t cols);

int tsr_cuda_layernorm(void *stream, enum tsr_dtype dtype, void *y, float *mean, float *rstd,
                       const void *x, const void *w, const void *b, float eps, int n, int c);
int tsr_cuda_rmsnorm(void *stream, enum tsr_dtype dtype, void *y, float *rstd, const void *x,
                     const void *w, float eps, int n, int c);
// The residual add before a norm and the norm in one pass: sum = residual + x, y = norm(sum).
// sum may be residual or x. mean NULL: RMSNorm.
int tsr_cuda_add_norm(void *stream, enum tsr_dtype dtype, void *y, float *mean, float *rstd,
                      void *sum, const void *residual, const void *x, const void *w, const void *b,
                      float eps, int n, int c);
int tsr_cuda_norm_bwd(void *stream, enum tsr_dtype dtype, void *dx, const void *dres,
                      const void *dy, const void *x, const void *w, const float *mean,
                      const float *rstd, int n, int c);
int tsr_cuda_norm_bwd_params(void *stream, enum tsr_dtype dtype, float *dw, float *db,
                             const void *dy, const void *x, const float *mean, const float *rstd,
                             const struct tsr_rows *rows, int n_rows, int n_chains, int c);
int tsr_cuda_colsum(void *stream, enum tsr_dtype dtype, float *acc, const void *x, ptrdiff_t ldx,
                    const struct tsr_rows *rows, int n_rows, int n_chains, int c);

int tsr_cuda_rotary(void *stream, enum tsr_dtype dtype, void *x, ptrdiff_t ld, const int32_t *pos,
                    const float *cos_sin, int n, int heads, int d, bool inverse);

// up NULL: y = act(x), else y = act(x) up.
int tsr_cuda_act(void *stream, enum tsr_dtype dtype, enum tsr_act act, void *y, const void *x,
                 const void *up, size_t n);
// up NULL: dx = dy act'(x). Else dx = dy up act'(x), dup = dy act(x).
int tsr_cuda_act_bwd(void *stream, enum tsr_dtype dtype, enum tsr_act act, void *dx, void *dup,
                     const void *dy, const void *x, const void *up, size_t n);

// bias_dropout_add and, with residual and bias NULL, dropout_bwd. max_length: of the longest
// segment.
int tsr_cuda_dropout(void *stream, enum tsr_dtype dtype, void *out, const void *residual,
                     const void *y, bool y_f32, const void *bias, struct tsr_dropout d,
                     const struct tsr_cuda_segment *segs, int n_segs, int max_length, ptrdiff_t ld,
                     int c, int64_t col0);

int tsr_cuda_embedding(void *stream, enum tsr_dtype dtype, void *x, const int32_t *ids,
                       const void *wte, int row0, int n_rows, int n, int c);
int tsr_cuda_position(void *stream, enum tsr_dtype dtype, void *x, const int32_t *pos,
                      const void *wpe, int n, int c);
// n: tokens of dx. links: 2 n ints of scratch.
int tsr_cuda_embedding_bwd(void *stream, enum tsr_dtype dtype, float *dtable, const int32_t *ids,
                           const void *dx, const struct tsr_rows *rows, int n_rows, int n_chains,
                           int row0, int n_table, int n, int c, int *links);

int tsr_cuda_xent_max(void *stream, enum tsr_dtype dtype, float *max, const void *logits, int n,
                      int v);
int tsr_cuda_xent_exp(void *stream, enum tsr_dtype dtype, void *logits, float *sum_target,
                      const float *max, const int32_t *targets, const int *bounds, int n_pieces,
                      int row0, int n, int v);
int tsr_cuda_xent_loss(void *stream, enum tsr_dtype dtype, float *loss, void *logits,
                       const float *sum_target, const int32_t *targets, float scale, bool grad,
                       int row0, int n, int v);

// s and index: the device's.
int tsr_cuda_sample(void *stream, int32_t *next, const float *logits, const struct tsr_sampling *s,
                    const uint64_t *index, int rows, int64_t v);

int tsr_cuda_add(void *stream, enum tsr_dtype dtype, void *out, const void *a, const void *b,
                 size_t n);
// in: a device array of n_in pointers; out may be one of them.
int tsr_cuda_tree_add(void *stream, float *out, const float *const *in, int n_in, size_t n);
// The same with maxima; a NaN wins (dist/comm.h, all_reduce_max).
int tsr_cuda_tree_max(void *stream, float *out, const float *const *in, int n_in, size_t n);
// bounds: the device's; row0 and rows: bounds[0], and rows from there to the last bound. of_row:
// `rows` doubles of scratch.
int tsr_cuda_sumsq(void *stream, double *sums, const float *g, ptrdiff_t ld, const int64_t *bounds,
                   int n_blocks, int64_t row0, int64_t rows, int64_t cols, double *of_row);
// w16 NULL, or the weights of type `dtype` (leading dimension ldw as w) that follow the master w.
int tsr_cuda_adamw(void *stream, const struct tsr_adamw *p, float *w, ptrdiff_t ldw, float *m,
                   float *v, const float *g, ptrdiff_t ldg, int64_t rows, int64_t cols,
                   enum tsr_dtype dtype, void *w16);
int tsr_cuda_round(void *stream, enum tsr_dtype dtype, void *w, ptrdiff_t ldw, const float *master,
                   const struct tsr_rounding *r, int64_t rows, int64_t cols);
int tsr_cuda_init_normal(void *stream, enum tsr_dtype dtype, void *w, struct tsr_rng_key key,
                         float std, int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                         int64_t global_cols);

int tsr_cuda_kv_store(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                      const void *k, const void *v);
// slot_of: (nkv, n_pieces), the slot of a KV head's piece or -1.
int tsr_cuda_kv_slot_sum(void *stream, enum tsr_dtype dtype, void *dkv, bool f32,
                         const void *slot_values, const int *slot_of, int n_slots, int n_pieces,
                         int nkv, int n, int d);

// Bytes of scratch that serve `a` best. They depend on its sizes and n_keys, not on what the
// segments hold by now, and neither does what is launched. With fewer bytes keys are dealt with in
// several passes; too few for the smallest pass are TSR_EUSAGE.
size_t tsr_cuda_attention_scratch(enum tsr_dtype dtype, const struct tsr_cuda_attn *a);

// head_dim: any up to 256 for F32; 64, 80, 96, 128 or 256 for BF16 and F16, whose rows must be
// aligned to 16 bytes.
int tsr_cuda_attention(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a, void *o,
                       float *lse, const void *q, const void *k, const void *v);
// Whether attention is there for heads of this size. TSR_ECONFIG: it isn't; says for which it is.
int tsr_cuda_check_heads(enum tsr_dtype dtype, int64_t head_dim);
// scratch: tsr_cuda_attention_bwd_scratch(dtype, a) floats, aligned to 16 bytes, with any contents.
// Segments don't overlap.
size_t tsr_cuda_attention_bwd_scratch(enum tsr_dtype dtype, const struct tsr_cuda_attn *a);
int tsr_cuda_attention_bwd(void *stream, enum tsr_dtype dtype, const struct tsr_cuda_attn *a,
                           const struct tsr_kv_slot *slots, int n_slots, void *dq, void *dk,
                           void *dv, const void *d_o, const void *o, const float *lse,
                           const void *q, const void *k, const void *v, float *scratch);

#pragma GCC visibility pop

#ifdef __cplusplus
}
#endif

#endif

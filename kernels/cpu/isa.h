// Sources in kernels/cpu/isa/ are compiled three times, with TSR_ISA being avx512, avx2 or
// portable; TSR_FN(name) gives each its own symbol. isa/table.c gathers one backend's functions
// into its const struct tsr_ops. The three give the same bits: simd.h has the same 16-lane
// virtual vector for each.
#ifndef TSR_KERNELS_CPU_ISA_H
#define TSR_KERNELS_CPU_ISA_H

#include "kernels/cpu/pool.h"
#include "kernels/ops.h"

#define TSR_PASTE_(a, b) a##_##b
#define TSR_PASTE(a, b)  TSR_PASTE_(a, b)
#define TSR_FN(name)     TSR_PASTE(name, TSR_ISA)

// Which of the three this compilation is: TSR_ISA_AVX512, TSR_ISA_AVX2 or neither.
#define TSR_ISA_IS_avx512   512
#define TSR_ISA_IS_avx2     2
#define TSR_ISA_IS_portable 1
#ifdef TSR_ISA
#if TSR_PASTE(TSR_ISA_IS, TSR_ISA) == 512
#define TSR_ISA_AVX512 1
#elif TSR_PASTE(TSR_ISA_IS, TSR_ISA) == 2
#define TSR_ISA_AVX2 1
#elif TSR_PASTE(TSR_ISA_IS, TSR_ISA) != 1
#error "TSR_ISA must be avx512, avx2 or portable"
#endif
#endif

extern const struct tsr_ops tsr_ops_avx512, tsr_ops_avx2, tsr_ops_portable;

// Every entry of struct tsr_ops that exists three times: TSR_FN(tsr_gemm) and so on. Prototypes
// and isa/table.c are both made from this list, so they can't differ from ops.h.
#define TSR_ISA_OPS(X)                                                                             \
    X(gemm)                                                                                        \
    X(embedding)                                                                                   \
    X(embedding_bwd)                                                                               \
    X(position)                                                                                    \
    X(layernorm)                                                                                   \
    X(rmsnorm)                                                                                     \
    X(norm_bwd)                                                                                    \
    X(norm_bwd_params)                                                                             \
    X(colsum)                                                                                      \
    X(rotary)                                                                                      \
    X(kv_store)                                                                                    \
    X(attention)                                                                                   \
    X(attention_bwd)                                                                               \
    X(kv_slot_sum)                                                                                 \
    X(act)                                                                                         \
    X(act_bwd)                                                                                     \
    X(gated)                                                                                       \
    X(gated_bwd)                                                                                   \
    X(bias_dropout_add)                                                                            \
    X(dropout_bwd)                                                                                 \
    X(add)                                                                                         \
    X(add_f32)                                                                                     \
    X(tree_add)                                                                                    \
    X(xent_max)                                                                                    \
    X(xent_exp)                                                                                    \
    X(xent_loss)                                                                                   \
    X(sumsq)                                                                                       \
    X(adamw)                                                                                       \
    X(init_normal)

#ifdef TSR_ISA
#define X(op) extern __typeof__(*((const struct tsr_ops *)0)->op) TSR_FN(tsr_##op);
TSR_ISA_OPS(X)
#undef X

// y = act(x) on n elements, for the epilogue of a product: the same bits as the op. y may be x.
void TSR_FN(tsr_act_span)(enum tsr_act act, float *y, const float *x, int n);
#endif

// This backend computes in fp32; planning measures what other types would take.
static inline bool tsr_cpu_can(const struct tsr_ctx *ctx) {
    return ctx->dtype == TSR_DT_F32 || tsr_pool_is_dry(ctx->stream);
}

// Memory is the same for every instruction set (kernels/cpu/memory.c).
int tsr_cpu_alloc(struct tsr_ctx *ctx, size_t n_bytes, void **out);
void tsr_cpu_free(struct tsr_ctx *ctx, void *p, size_t n_bytes);
int tsr_cpu_zero(struct tsr_ctx *ctx, void *p, size_t n_bytes);
int tsr_cpu_copy(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);
int tsr_cpu_move(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);
int tsr_cpu_copy_2d(struct tsr_ctx *ctx, tsr_elem *dst, ptrdiff_t ldd, const tsr_elem *src,
                    ptrdiff_t lds, int rows, int cols);
int tsr_cpu_convert(struct tsr_ctx *ctx, enum tsr_dtype to, void *dst, ptrdiff_t ldd,
                    enum tsr_dtype from, const void *src, ptrdiff_t lds, int64_t rows,
                    int64_t cols);
int tsr_cpu_sync(struct tsr_ctx *ctx);
int tsr_cpu_pin(struct tsr_ctx *ctx, void *p, size_t n_bytes);
void tsr_cpu_unpin(struct tsr_ctx *ctx, void *p, size_t n_bytes);

// Sampling is core's own (kernels/cpu/sample.c).
int tsr_cpu_sample(struct tsr_ctx *ctx, int32_t *next, const float *logits,
                   const struct tsr_sampling *s, const uint64_t *index, int rows, int64_t v);

// So is what stands in kernels/cpu/cpu.c.
void tsr_cpu_close(struct tsr_ctx *ctx);
const char *tsr_cpu_describe(const struct tsr_ctx *ctx);
size_t tsr_cpu_allocated(const struct tsr_ctx *ctx);
size_t tsr_cpu_scratch(const struct tsr_ctx *ctx);
double tsr_cpu_measure_peak(struct tsr_ctx *ctx, int n_trials);

#endif

// The matrix product's entry: what is asked for, and how its operands lie. Twin:
// kernels/cpu/isa/gemm.c.
#include "kernels/cuda/gemm.cuh"

static void check_gemm(enum tsr_dtype dtype, const struct tsr_gemm *g) {
    bool plain = g->bias == nullptr && g->pre == nullptr && !g->has_act && g->residual == nullptr;
    TSR_ASSERT(g->m >= 0 && g->n >= 0 && g->n_pieces >= 0 && g->n_segs >= 0);
    TSR_ASSERT(g->mode != TSR_GEMM_CHAIN || g->n_pieces == 1);
    TSR_ASSERT(plain || (g->mode == TSR_GEMM_STORE && (dtype == TSR_DT_F32 || !g->c_f32)));
    for (int s = 0; s < g->n_segs; s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        TSR_ASSERT(seg->k >= 0 && seg->piece >= 0 && seg->piece < g->n_pieces);
        TSR_ASSERT(s == 0 || seg->piece >= seg[-1].piece);
        TSR_ASSERT(seg->k == 0 ||
                   ((seg->a_i == 1 || seg->a_p == 1) && (seg->b_p == 1 || seg->b_j == 1)));
    }
}

// Whether an operand of `rows` rows (or columns) and k terms has rows of terms, or of rows, that
// can be read 16 bytes at a time (eight elements of two bytes).
static bool is_wide(const void *p, ptrdiff_t s_row, ptrdiff_t s_k, int rows, int k, bool k_lines) {
    ptrdiff_t in = k_lines ? s_k : s_row, ld = k_lines ? s_row : s_k;
    int lines = k_lines ? rows : k, length = k_lines ? k : rows;
    return (uintptr_t)p % 16 == 0 && (in == 1 || length == 1) && (ld % 8 == 0 || lines == 1);
}

static void choose_layout(struct gemm_call *call, const struct tsr_gemm *g) {
    bool first = true, a_k = true, b_k = true;
    call->wide_in = true;
    for (int s = 0; s < g->n_segs; s++) {
        const struct tsr_gemm_seg *seg = &g->segs[s];
        if (seg->k == 0)
            continue;
        if (first) { // of one row, or of one term, both strides may be 1
            a_k = seg->a_p == 1 && (seg->a_i != 1 || g->m == 1);
            b_k = seg->b_p == 1 && (seg->b_j != 1 || g->n == 1);
        }
        first = false;
        call->wide_in = call->wide_in && is_wide(seg->a, seg->a_i, seg->a_p, g->m, seg->k, a_k) &&
                        is_wide(seg->b, seg->b_j, seg->b_p, g->n, seg->k, b_k);
    }
    call->layout = a_k ? (b_k ? GEMM_KK : GEMM_KN) : (b_k ? GEMM_MK : GEMM_MN);
    call->wide_in = call->wide_in && call->layout != GEMM_MK; // nobody asks for that one
}

template <class T> static bool is_wide_out(const struct tsr_gemm *g) {
    bool c = g->c_f32 ? aligned16((const float *)g->c, g->ldc) : aligned16((const T *)g->c, g->ldc);
    return c && aligned16((const T *)g->pre) && aligned16((const T *)g->bias) &&
           (g->residual == nullptr || aligned16((const T *)g->residual, g->ldr));
}

static struct gemm_call make_call(enum tsr_dtype dtype, const struct tsr_gemm *g,
                                  const struct tsr_gemm_seg *segs, int n_sms) {
    struct gemm_call call = {};
    gemm_args &q = call.args;
    q.m = g->m;
    q.n = g->n;
    q.n_pieces = g->n_pieces;
    q.n_segs = g->n_segs;
    q.segs = segs;
    q.mode = g->mode;
    q.c = g->c;
    q.ldc = g->ldc;
    q.ldr = g->ldr;
    q.bias = g->bias;
    q.residual = g->residual;
    q.pre = g->pre;
    q.act = g->act;
    q.has_act = g->has_act;
    q.c_f32 = g->c_f32 && dtype != TSR_DT_F32; // fp32 elements need no case of their own
    q.wide_out = dtype == TSR_DT_F32 ? is_wide_out<float>(g) : is_wide_out<bf16>(g);
    q.n_nodes = gemm_nodes(g->n_pieces);
    call.n_sms = n_sms > 0 ? n_sms : 1;
    choose_layout(&call, g);
    return call;
}

int tsr_cuda_gemm(void *stream, enum tsr_dtype dtype, const struct tsr_gemm *g,
                  const struct tsr_gemm_seg *segs, int n_sms) {
    check_gemm(dtype, g);
    if (g->m == 0 || g->n == 0)
        return 0;
    struct gemm_call call = make_call(dtype, g, segs, n_sms);
    TSR_TRY(max_shared_bytes(&call.max_shared));
    switch (dtype) {
    case TSR_DT_F32:
        return gemm_f32(stream, &call);
    case TSR_DT_BF16:
        return gemm_bf16(stream, &call);
    case TSR_DT_F16:
        return gemm_f16(stream, &call);
    default:
        return tsr_fail(TSR_EUSAGE, "device: no products for elements of type %d", (int)dtype);
    }
}

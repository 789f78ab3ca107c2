// The operations of a training step and of decoding, one after another, with what each can't do
// without: floating-point operations of products, bytes read once and written once.
#include "core/clock.h"
#include "core/error.h"
#include "launcher/bench_ops.h"

enum { ROUNDS = 5, MAX_CALLS = 1 << 20 };

static int run_calls(struct tsr_bench_ops *b, tsr_bench_fn fn, int calls, double *seconds) {
    double begin = tsr_now();
    for (int i = 0; i < calls; i++)
        TSR_TRY(fn(b));
    TSR_TRY(b->ctx->ops->sync(b->ctx));
    *seconds = (tsr_now() - begin) / calls;
    return 0;
}

// The median of some rounds, each long enough that asking for work costs nothing beside doing it.
int tsr_bench_time(struct tsr_bench_ops *b, const char *name, double flops, double bytes,
                   tsr_bench_fn fn) {
    double t, sorted[ROUNDS];
    int calls = 1;
    TSR_TRY(run_calls(b, fn, 1, &t)); // the first call may prepare something
    TSR_TRY(run_calls(b, fn, 1, &t));
    while (calls < MAX_CALLS && t * calls < b->limit_s / ROUNDS)
        calls *= 2;
    for (int i = 0; i < ROUNDS; i++) {
        int at = i;
        TSR_TRY(run_calls(b, fn, calls, &t));
        for (; at > 0 && sorted[at - 1] > t; at--)
            sorted[at] = sorted[at - 1];
        sorted[at] = t;
    }
    TSR_ASSERT(b->n_lines < TSR_BENCH_MAX_ROWS);
    b->lines[b->n_lines++] = (struct tsr_bench_line){name, sorted[ROUNDS / 2], flops, bytes};
    return 0;
}

#define OPS (b->ctx->ops)
#define CTX (b->ctx)

// ---- products

// y (m, n) = a (m, k) w(n, k)^T
static int product(struct tsr_bench_ops *b, tsr_elem *y, const tsr_elem *a, const tsr_elem *w,
                   int m, int n, int k, const tsr_elem *bias) {
    struct tsr_gemm_seg seg = {.a = a, .a_i = k, .a_p = 1, .b = w, .b_p = 1, .b_j = k, .k = k};
    struct tsr_gemm g = {
        .m = m, .n = n, .n_pieces = 1, .n_segs = 1, .segs = &seg, .c = y, .ldc = n, .bias = bias};
    return OPS->gemm(CTX, &g);
}

static int gemm_up(struct tsr_bench_ops *b) {
    return product(b, b->f1, b->x, b->w_up, b->n, (int)b->m->ffn, (int)b->m->hidden, NULL);
}

static int gemm_query(struct tsr_bench_ops *b) {
    return product(b, b->q, b->x, b->w_q, b->n, (int)(b->m->n_heads * b->m->head_dim),
                   (int)b->m->hidden, NULL);
}

static int gemm_head(struct tsr_bench_ops *b) {
    return product(b, b->logits, b->x, b->w_head, b->head_rows, (int)b->m->vocab, (int)b->m->hidden,
                   NULL);
}

// y (N, C) = f1 (N, F) w (C, F)^T + residual, in 8 virtual pieces
static int gemm_down(struct tsr_bench_ops *b) {
    struct tsr_gemm_seg segs[8];
    int64_t F = b->m->ffn, C = b->m->hidden;
    for (int v = 0; v < 8; v++) {
        int64_t lo = F * v / 8, hi = F * (v + 1) / 8;
        segs[v] = (struct tsr_gemm_seg){.a = (const char *)b->f1 + (size_t)lo * b->es,
                                        .a_i = F,
                                        .a_p = 1,
                                        .b = (const char *)b->w_up + (size_t)lo * b->es,
                                        .b_p = 1,
                                        .b_j = F,
                                        .k = (int)(hi - lo),
                                        .piece = v};
    }
    struct tsr_gemm g = {.m = b->n,
                         .n = (int)C,
                         .n_pieces = 8,
                         .n_segs = 8,
                         .segs = segs,
                         .c = b->y,
                         .ldc = C,
                         .residual = b->x2,
                         .ldr = C};
    return OPS->gemm(CTX, &g);
}

// dw (F, C) += f1^T x over tokens, in fp32
static int gemm_weights(struct tsr_bench_ops *b) {
    int64_t F = b->m->ffn, C = b->m->hidden;
    struct tsr_gemm_seg seg = {
        .a = b->f1, .a_i = 1, .a_p = F, .b = b->x, .b_p = C, .b_j = 1, .k = b->n};
    struct tsr_gemm g = {.m = (int)F,
                         .n = (int)C,
                         .n_pieces = 1,
                         .n_segs = 1,
                         .segs = &seg,
                         .mode = TSR_GEMM_CHAIN,
                         .c = b->grad,
                         .c_f32 = true,
                         .ldc = C};
    return OPS->gemm(CTX, &g);
}

static int products(struct tsr_bench_ops *b) {
    const struct tsr_model *m = b->m;
    double N = b->n, C = (double)m->hidden, F = (double)m->ffn, V = (double)m->vocab;
    double q = (double)(m->n_heads * m->head_dim), R = b->head_rows, e = (double)b->es;
    TSR_TRY(
        tsr_bench_time(b, "gemm query", 2 * N * C * q, (N * C + C * q + N * q) * e, gemm_query));
    TSR_TRY(tsr_bench_time(b, "gemm up", 2 * N * C * F, (N * C + C * F + N * F) * e, gemm_up));
    TSR_TRY(tsr_bench_time(b, "gemm down, 8 pieces", 2 * N * C * F, (2 * N * C + C * F + N * F) * e,
                           gemm_down));
    TSR_TRY(tsr_bench_time(b, "gemm weight gradient", 2 * N * C * F,
                           (N * C + N * F) * e + 8 * C * F, gemm_weights));
    return tsr_bench_time(b, "gemm head", 2 * R * C * V, (R * C + C * V + R * V) * e, gemm_head);
}

// ---- attention

static struct tsr_attn attention_of(const struct tsr_bench_ops *b) {
    const struct tsr_model *m = b->m;
    int D = (int)m->head_dim, nq = (int)m->n_heads, nkv = (int)m->n_kv_heads;
    return (struct tsr_attn){.nq = nq,
                             .nkv = nkv,
                             .group = nq / nkv,
                             .head_dim = D,
                             .scale = 0.125f,
                             .n_segs = b->n_segs,
                             .segs = b->segs,
                             .n_tokens = b->n,
                             .ldq = nq * D,
                             .ldk = nkv * D,
                             .ldv = nkv * D,
                             .ldo = nq * D};
}

static int attention(struct tsr_bench_ops *b) {
    struct tsr_attn a = attention_of(b);
    return OPS->attention(CTX, &a, b->dq, b->lse, b->q, b->k, b->v);
}

// The output stands where the forward left it; its gradient is any numbers.
static int attention_bwd(struct tsr_bench_ops *b) {
    struct tsr_attn a = attention_of(b);
    return OPS->attention_bwd(CTX, &a, b->slots, (int)b->m->n_kv_heads, b->f2, b->dk, b->dv, b->f3,
                              b->dq, b->lse, b->q, b->k, b->v);
}

// One query for the whole cache: the last token of one sequence of N.
static int decode(struct tsr_bench_ops *b) {
    struct tsr_attn a = attention_of(b);
    struct tsr_segment last = {.length = 1, .position = b->n - 1, .cache = &b->cache};
    a.n_segs = a.n_tokens = 1;
    a.segs = &last;
    return OPS->attention(CTX, &a, b->dq, b->lse, b->q, b->k, b->v);
}

static int rotary(struct tsr_bench_ops *b) {
    int D = (int)b->m->head_dim, nq = (int)b->m->n_heads;
    return OPS->rotary(CTX, b->dq, nq * D, b->pos, b->rope, b->n, nq, D, false);
}

static int attentions(struct tsr_bench_ops *b) {
    const struct tsr_model *m = b->m;
    double N = b->n, q = (double)(m->n_heads * m->head_dim), e = (double)b->es;
    double kv = (double)(m->n_kv_heads * m->head_dim), pairs = N * (b->seq_len + 1.0) / 2;
    double all = (2 * N * q + 2 * N * kv) * e;
    TSR_TRY(tsr_bench_time(b, "attention", 4 * pairs * q, all, attention));
    // The gradients of q and o have room where FFN columns are at least as many as theirs.
    if (m->ffn >= m->n_heads * m->head_dim)
        TSR_TRY(tsr_bench_time(b, "attention backward", 10 * pairs * q, 2 * all, attention_bwd));
    TSR_TRY(tsr_bench_time(b, "attention, decode", 0, 2 * N * kv * e, decode));
    return tsr_bench_time(b, "rotary", 0, 2 * N * q * e, rotary);
}

// ---- what memory bounds

static int norm(struct tsr_bench_ops *b) {
    int c = (int)b->m->hidden;
    if (b->m->rms_norm)
        return OPS->rmsnorm(CTX, b->y, b->rstd, b->x, b->w_c, 1e-5f, b->n, c);
    return OPS->layernorm(CTX, b->y, b->mean, b->rstd, b->x, b->w_c, b->bias, 1e-5f, b->n, c);
}

static int norm_bwd(struct tsr_bench_ops *b) {
    return OPS->norm_bwd(CTX, b->y, b->x2, b->x2, b->x, b->w_c, b->m->rms_norm ? NULL : b->mean,
                         b->rstd, b->n, (int)b->m->hidden);
}

static int norm_params(struct tsr_bench_ops *b) {
    return OPS->norm_bwd_params(CTX, b->params, NULL, b->x2, b->x, b->m->rms_norm ? NULL : b->mean,
                                b->rstd, b->rows, b->n_segs, (int)b->m->hidden);
}

static int activation(struct tsr_bench_ops *b) {
    size_t n = (size_t)b->n * (size_t)b->m->ffn;
    if (b->m->gated)
        return OPS->gated(CTX, b->m->act, b->f3, b->f1, b->f2, n);
    return OPS->act(CTX, b->m->act, b->f3, b->f1, n);
}

static int activation_bwd(struct tsr_bench_ops *b) {
    size_t n = (size_t)b->n * (size_t)b->m->ffn;
    if (b->m->gated)
        return OPS->gated_bwd(CTX, b->m->act, b->f1, b->f2, b->f3, b->f1, b->f2, n);
    return OPS->act_bwd(CTX, b->m->act, b->f3, b->f3, b->f1, n);
}

static int xent(struct tsr_bench_ops *b) {
    int bounds[2] = {0, (int)b->m->vocab}, v = (int)b->m->vocab;
    TSR_TRY(OPS->xent_max(CTX, b->max, b->logits, b->head_rows, v));
    TSR_TRY(OPS->xent_exp(CTX, b->logits, b->sum_target, b->max, b->ids, bounds, 1, 0, b->head_rows,
                          v));
    return OPS->xent_loss(CTX, b->loss, b->logits, b->sum_target, b->ids, 1e-4f, true, 0,
                          b->head_rows, v);
}

static int embedding(struct tsr_bench_ops *b) {
    return OPS->embedding(CTX, b->y, b->ids, b->w_head, 0, (int)b->m->vocab, b->n,
                          (int)b->m->hidden);
}

static int add(struct tsr_bench_ops *b) {
    return OPS->add(CTX, b->y, b->x, b->x2, (size_t)b->n * (size_t)b->m->hidden);
}

static int sumsq(struct tsr_bench_ops *b) {
    int64_t rows = b->m->ffn, bounds[9];
    for (int i = 0; i <= 8; i++)
        bounds[i] = rows * i / 8;
    return OPS->sumsq(CTX, b->sums, b->grad, b->m->hidden, bounds, 8, b->m->hidden);
}

static int adamw(struct tsr_bench_ops *b) {
    struct tsr_adamw h = {.lr = 1e-4f, .beta1 = 0.9f, .beta2 = 0.999f, .eps = 1e-8f};
    h.rest1 = 0.1f, h.rest2 = 0.001f, h.bias1 = h.bias2_sqrt = h.grad_scale = 1.0f;
    int64_t rows = b->m->ffn, c = b->m->hidden;
    return OPS->adamw(CTX, &h, b->master, c, b->m1, b->m2, b->grad, c, rows, c,
                      b->ctx->dtype == TSR_DT_F32 ? NULL : b->w_up);
}

int tsr_bench_ops_all(struct tsr_bench_ops *b) {
    const struct tsr_model *m = b->m;
    double nc = (double)b->n * (double)m->hidden * (double)b->es, g = (double)b->grad_elems;
    double nf = (double)b->n * (double)m->ffn * (double)b->es;
    double rv = (double)b->head_rows * (double)m->vocab * (double)b->es;
    int streams = m->gated ? 3 : 2;
    TSR_TRY(products(b));
    TSR_TRY(attentions(b));
    TSR_TRY(tsr_bench_time(b, "norm", 0, 2 * nc, norm));
    TSR_TRY(tsr_bench_time(b, "norm backward", 0, 4 * nc, norm_bwd));
    TSR_TRY(tsr_bench_time(b, "norm weight gradient", 0, 2 * nc, norm_params));
    TSR_TRY(tsr_bench_time(b, "activation", 0, streams * nf, activation));
    TSR_TRY(tsr_bench_time(b, "activation backward", 0, (m->gated ? 5 : 3) * nf, activation_bwd));
    TSR_TRY(tsr_bench_time(b, "cross-entropy, 3 passes", 0, 5 * rv, xent));
    TSR_TRY(tsr_bench_time(b, "embedding", 0, 2 * nc, embedding));
    TSR_TRY(tsr_bench_time(b, "add", 0, 3 * nc, add));
    TSR_TRY(tsr_bench_time(b, "sum of squares", 0, 4 * g, sumsq));
    double copy = m->ffn > 0 && b->ctx->dtype != TSR_DT_F32 ? (double)b->es * g : 0;
    return tsr_bench_time(b, "AdamW", 0, 28 * g + copy, adamw);
}

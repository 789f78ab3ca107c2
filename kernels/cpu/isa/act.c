// Activations (Hendrycks and Gimpel 2016 for GELU; SiLU is x sigmoid(x)) and gated units
// (Shazeer 2020).
//
//   GELU       x Phi(x),            Phi(x) = (1 + erf(x / sqrt 2)) / 2
//              derivative Phi(x) + x phi(x),  phi(x) = e^(-x^2/2) / sqrt(2 pi)
//   GELU tanh  x (1 + tanh u) / 2 = x sigmoid(2u),  2u = 2 sqrt(2/pi) (x + 0.044715 x^3)
//              derivative s + x s (1 - s) (2u)',  s = sigmoid(2u)
//   SiLU       x sigmoid(x),  derivative s + x s (1 - s)
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/vmath.h"

#define SQRT_HALF     0.70710678f
#define RSQRT_2PI     0.39894228f
#define TWO_SQRT_2_PI 1.5957691f // 2 sqrt(2/pi)
#define CUBIC         0.044715f

struct act_job {
    struct tsr_split split;
    enum tsr_act act;
    float *out, *out2;        // out2 NULL: one output
    const float *dy, *x, *up; // dy NULL: forward; up NULL: not gated
    int64_t n;
};

V16_FN v16 two_u(v16 x) {
    v16 cubic = v16_fma(v16_mul(x, x), v16_set1(CUBIC), v16_set1(1.0f));
    return v16_mul(v16_mul(x, v16_set1(TWO_SQRT_2_PI)), cubic);
}

V16_FN v16 x_sigmoid(v16 x, v16 t) {
    return v16_div(x, v16_add(v16_set1(1.0f), v16_exp(v16_neg(t))));
}

V16_FN v16 forward(enum tsr_act act, v16 x) {
    if (act == TSR_ACT_SILU)
        return x_sigmoid(x, x);
    if (act == TSR_ACT_GELU_TANH)
        return x_sigmoid(x, two_u(x));
    v16 half = v16_mul(x, v16_set1(0.5f));
    return v16_fma(half, v16_erf(v16_mul(x, v16_set1(SQRT_HALF))), half);
}

// s + x s (1 - s) slope.
V16_FN v16 sigmoid_slope(v16 x, v16 s, v16 slope) {
    return v16_fma(v16_mul(v16_mul(x, slope), s), v16_sub(v16_set1(1.0f), s), s);
}

V16_FN v16 derivative(enum tsr_act act, v16 x) {
    if (act == TSR_ACT_SILU)
        return sigmoid_slope(x, v16_sigmoid(x), v16_set1(1.0f));
    if (act == TSR_ACT_GELU_TANH) {
        // beyond 16 the derivative is 0 or 1, and s (1 - s) = 0 must not meet an infinite slope
        v16 near = v16_min(v16_set1(16.0f), v16_max(v16_set1(-16.0f), x));
        v16 slope = v16_fma(v16_mul(near, near), v16_set1(3.0f * CUBIC * TWO_SQRT_2_PI),
                            v16_set1(TWO_SQRT_2_PI));
        return sigmoid_slope(near, v16_sigmoid(two_u(near)), slope);
    }
    v16 half = v16_set1(0.5f);
    v16 cdf = v16_fma(half, v16_erf(v16_mul(x, v16_set1(SQRT_HALF))), half);
    v16 pdf = v16_mul(v16_exp(v16_mul(v16_mul(x, x), v16_set1(-0.5f))), v16_set1(RSQRT_2PI));
    return v16_fma(x, pdf, cdf);
}

// One loop for all four operations; `act` and the NULL pointers are constant in each call, so
// each gets a loop of its own.
V16_FN void span(enum tsr_act act, float *out, float *out2, const float *dy, const float *x,
                 const float *up, int64_t n) {
    for (int64_t i = 0; i < n; i += 16) {
        v16 xi = v16_load_tail(x + i, n - i, 0.0f), r, ui = v16_zero();
        if (up != NULL)
            ui = v16_load_tail(up + i, n - i, 0.0f);
        if (dy == NULL) {
            r = forward(act, xi);
            if (up != NULL)
                r = v16_mul(r, ui);
        } else {
            v16 di = v16_load_tail(dy + i, n - i, 0.0f);
            if (up != NULL)
                v16_store_tail(out2 + i, n - i, v16_mul(di, forward(act, xi)));
            r = v16_mul(up != NULL ? v16_mul(di, ui) : di, derivative(act, xi));
        }
        v16_store_tail(out + i, n - i, r);
    }
}

V16_FN void span_of_act(enum tsr_act act, float *out, float *out2, const float *dy, const float *x,
                        const float *up, int64_t n) {
    if (act == TSR_ACT_SILU)
        span(TSR_ACT_SILU, out, out2, dy, x, up, n);
    else if (act == TSR_ACT_GELU_TANH)
        span(TSR_ACT_GELU_TANH, out, out2, dy, x, up, n);
    else
        span(TSR_ACT_GELU, out, out2, dy, x, up, n);
}

void TSR_FN(tsr_act_span)(enum tsr_act act, float *y, const float *x, int n) {
    span_of_act(act, y, NULL, NULL, x, NULL, n);
}

static void act_part(void *arg, int part, int thread) {
    (void)thread;
    const struct act_job *q = arg;
    struct tsr_range r = tsr_split_span(q->split, part, q->n);
    int64_t at = r.lo, n = r.hi - r.lo;
    if (n <= 0)
        return;
    if (q->dy == NULL && q->up == NULL)
        span_of_act(q->act, q->out + at, NULL, NULL, q->x + at, NULL, n);
    else if (q->dy == NULL)
        span_of_act(q->act, q->out + at, NULL, NULL, q->x + at, q->up + at, n);
    else if (q->up == NULL)
        span_of_act(q->act, q->out + at, NULL, q->dy + at, q->x + at, NULL, n);
    else
        span_of_act(q->act, q->out + at, q->out2 + at, q->dy + at, q->x + at, q->up + at, n);
}

static int run_act(struct tsr_ctx *ctx, struct act_job q) {
    q.split = tsr_split_elems(ctx, (size_t)q.n, 4);
    tsr_pool_run(ctx->stream, q.split.n_parts, act_part, &q);
    return 0;
}

int TSR_FN(tsr_act)(struct tsr_ctx *ctx, enum tsr_act act, tsr_elem *y, const tsr_elem *x,
                    size_t n) {
    return run_act(ctx, (struct act_job){.act = act, .out = y, .x = x, .n = (int64_t)n});
}

int TSR_FN(tsr_act_bwd)(struct tsr_ctx *ctx, enum tsr_act act, tsr_elem *dx, const tsr_elem *dy,
                        const tsr_elem *x, size_t n) {
    struct act_job q = {.act = act, .out = dx, .dy = dy, .x = x, .n = (int64_t)n};
    return run_act(ctx, q);
}

int TSR_FN(tsr_gated)(struct tsr_ctx *ctx, enum tsr_act act, tsr_elem *y, const tsr_elem *gate,
                      const tsr_elem *up, size_t n) {
    struct act_job q = {.act = act, .out = y, .x = gate, .up = up, .n = (int64_t)n};
    return run_act(ctx, q);
}

int TSR_FN(tsr_gated_bwd)(struct tsr_ctx *ctx, enum tsr_act act, tsr_elem *dgate, tsr_elem *dup,
                          const tsr_elem *dy, const tsr_elem *gate, const tsr_elem *up, size_t n) {
    struct act_job q = {
        .act = act, .out = dgate, .out2 = dup, .dy = dy, .x = gate, .up = up, .n = (int64_t)n};
    return run_act(ctx, q);
}

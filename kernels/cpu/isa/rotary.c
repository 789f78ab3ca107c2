// Rotary positions (Su et al. 2021) in Hugging Face's layout: dimensions d and d + D/2 are a pair,
//   x(d)       <- x(d) cos - x(d + D/2) sin
//   x(d + D/2) <- x(d + D/2) cos + x(d) sin
// and the inverse takes -sin.
#include "kernels/cpu/isa/simd.h"
#include "kernels/cpu/isa/split.h"

struct rotary_job {
    struct tsr_split split;
    float *x; // (N, heads, D), rows ld apart
    ptrdiff_t ld;
    const int32_t *pos;   // (N)
    const float *cos_sin; // (max_positions, D/2, 2)
    int heads, d;
    float sign; // of sin
};

// Pairs [at, at + n), n <= 16, of every head of one row.
static void rotate(const struct rotary_job *q, float *row, const float *cos_sin, int at, int n) {
    float c[16] = {0}, s[16] = {0};
    for (int i = 0; i < n; i++) {
        c[i] = cos_sin[2 * (at + i)];
        s[i] = q->sign * cos_sin[2 * (at + i) + 1];
    }
    v16 cosine = v16_loadu(c), sine = v16_loadu(s);
    for (int h = 0; h < q->heads; h++) {
        float *lo = row + (ptrdiff_t)h * q->d + at, *hi = lo + q->d / 2;
        v16 a = v16_load_tail(lo, n, 0.0f), b = v16_load_tail(hi, n, 0.0f);
        v16_store_tail(lo, n, v16_fnma(b, sine, v16_mul(a, cosine)));
        v16_store_tail(hi, n, v16_fma(a, sine, v16_mul(b, cosine)));
    }
}

static void rotary_part(void *arg, int part, int thread) {
    (void)thread;
    const struct rotary_job *q = arg;
    struct tsr_range rows = tsr_split_part(q->split, part);
    int half = q->d / 2;
    for (int64_t i = rows.lo; i < rows.hi; i++)
        for (int at = 0; at < half; at += 16)
            rotate(q, q->x + i * q->ld, q->cos_sin + (ptrdiff_t)q->pos[i] * half * 2, at,
                   half - at < 16 ? half - at : 16);
}

int TSR_FN(tsr_rotary)(struct tsr_ctx *ctx, tsr_elem *x, ptrdiff_t ld, const int32_t *pos,
                       const float *cos_sin, int n, int heads, int d, bool inverse) {
    TSR_ASSERT(d % 2 == 0);
    struct rotary_job q = {.split = tsr_split_of(ctx, n, (int64_t)heads * d),
                           .x = x,
                           .ld = ld,
                           .pos = pos,
                           .cos_sin = cos_sin,
                           .heads = heads,
                           .d = d,
                           .sign = inverse ? -1.0f : 1.0f};
    tsr_pool_run(ctx->stream, q.split.n_parts, rotary_part, &q);
    return 0;
}

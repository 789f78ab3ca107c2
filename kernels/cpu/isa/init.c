// Normal initial weights: element e of the global tensor is a pure function of (key, e), so any
// sharding makes the same tensor. The Philox counter {e / 4, 0, 0} (64-bit e / 4) gives four
// draws; draws 0 and 1 make elements 0 and 1 of the four, 2 and 3 the others (Box and Muller
// 1958): sqrt(-2 log u) cos(2 pi t), sqrt(-2 log u) sin(2 pi t), u = (draw + 1/2) / 2^32 in
// (0, 1], t = draw / 2^32 cut to 24 bits.
#include "kernels/cpu/isa/philox16.h"
#include "kernels/cpu/isa/split.h"
#include "kernels/cpu/isa/vmath.h"

enum { BLOCK = 64 }; // elements of sixteen counters

struct init_job {
    struct tsr_split split; // of elements, counted through the rows
    float *w;               // (rows, cols)
    struct tsr_rng_key key;
    float std;
    int64_t row0, rows, col0, cols, global_cols;
};

V16_FN void box_muller(v16i draw_u, v16i draw_t, v16 std, v16 *a, v16 *b) {
    v16 high = v16i_to_f(v16i_srl(draw_u, 16));
    v16 low = v16i_to_f(v16i_and(draw_u, v16i_set1(0xffff)));
    v16 u = v16_fma(low, v16_set1(0x1p-32f), v16_set1(0x1p-33f)); // exact: 17 bits
    u = v16_fma(high, v16_set1(0x1p-16f), u);
    v16 turn = v16i_to_f(v16i_srl(draw_t, 8));
    v16 sine, cosine;
    v16_sincos(v16_mul(turn, v16_set1(3.7450703e-07f)), &sine, &cosine); // 2 pi / 2^24
    v16 radius = v16_mul(std, v16_sqrt(v16_mul(v16_set1(-2.0f), v16_log(u))));
    *a = v16_mul(radius, cosine);
    *b = v16_mul(radius, sine);
}

// Elements [4 counter, 4 counter + 64) of the tensor.
V16_FN void normals(struct tsr_rng_key key, uint64_t counter, v16 std, v16 z[4]) {
    v16i low = v16i_add(v16i_set1((uint32_t)counter), v16_quad_order());
    v16m wrapped = v16m_not(v16i_geu(low, v16i_set1((uint32_t)counter)));
    v16i high = v16i_set1((uint32_t)(counter >> 32));
    high = v16i_select(wrapped, v16i_add(high, v16i_set1(1)), high);
    v16i c[4] = {low, high, v16i_set1(0), v16i_set1(0)};
    v16_philox(key, c);
    box_muller(c[0], c[1], std, &z[0], &z[1]);
    box_muller(c[2], c[3], std, &z[2], &z[3]);
    v16_quad(z);
}

// Elements [e, e + n) of the global tensor to w.
static void init_span(const struct init_job *q, float *w, uint64_t e, int64_t n) {
    v16 std = v16_set1(q->std);
    int64_t skip = (int64_t)(e % 4); // elements of the first counter that are not ours
    for (int64_t at = -skip; at < n; at += BLOCK) {
        v16 z[4];
        normals(q->key, (e + (uint64_t)at) / 4, std, z);
        if (at >= 0 && at + BLOCK <= n) {
            for (int k = 0; k < 4; k++)
                v16_storeu(w + at + 16 * k, z[k]);
            continue;
        }
        float block[BLOCK];
        for (int k = 0; k < 4; k++)
            v16_storeu(block + 16 * k, z[k]);
        int64_t lo = at < 0 ? 0 : at, hi = at + BLOCK < n ? at + BLOCK : n;
        memcpy(w + lo, block + (lo - at), (size_t)(hi - lo) * sizeof *w);
    }
}

static void init_part(void *arg, int part, int thread) {
    (void)thread;
    const struct init_job *q = arg;
    struct tsr_range r = tsr_split_span(q->split, part, q->rows * q->cols);
    for (int64_t at = r.lo; at < r.hi;) {
        int64_t row = at / q->cols, col = at % q->cols;
        int64_t n = q->cols - col < r.hi - at ? q->cols - col : r.hi - at;
        init_span(q, q->w + at, (uint64_t)((q->row0 + row) * q->global_cols + q->col0 + col), n);
        at += n;
    }
}

int TSR_FN(tsr_init_normal)(struct tsr_ctx *ctx, tsr_elem *w, struct tsr_rng_key key, float std,
                            int64_t row0, int64_t rows, int64_t col0, int64_t cols,
                            int64_t global_cols) {
    struct init_job q = {.w = w,
                         .key = key,
                         .std = std,
                         .row0 = row0,
                         .rows = rows,
                         .col0 = col0,
                         .cols = cols,
                         .global_cols = global_cols};
    if (cols == global_cols) { // whole rows lie one after the other: one run
        q.rows = 1;
        q.cols = rows * cols;
    }
    q.split = tsr_split_elems(ctx, (size_t)(rows * cols), 8);
    tsr_pool_run(ctx->stream, q.split.n_parts, init_part, &q);
    return 0;
}

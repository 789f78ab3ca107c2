// Products of a few rows, as in decoding: the time goes into reading B = weights (n, k), so B is
// read once and not packed. Blocks of VW columns x VW terms are transposed in registers, because
// vectors run across n and never along k: each element stays one chain in k order.
#include "kernels/cpu/isa/gemm.h"

#include "core/error.h"

#define ROWS_FN static inline __attribute__((always_inline))

enum {
    MAX_ROWS = 4,            // beyond, packing pays
    SERIAL_BYTES = 64 << 10, // of B, below which waking threads doesn't pay
    NEAR_BYTES = 256 << 10,  // a panel's worth of B that may be fetched ahead as a whole
    NODES = 32,              // no tree of int pieces is deeper
};

struct rows_job {
    const struct tsr_gemm *g;
    int panels_per_part;
};

bool TSR_FN(tsr_gemm_is_few_rows)(const struct tsr_gemm *g) {
    if (g->m > MAX_ROWS)
        return false;
    for (int s = 0; s < g->n_segs; s++) {
        if (g->segs[s].k > 0 && g->segs[s].b_p != 1)
            return false;
    }
    return true;
}

// acc(i) += A(i, p..p+n) B(p..p+n, VW columns at b) for n <= VW terms; cols of the columns exist.
ROWS_FN void multiply_block(vec acc[MAX_ROWS][NV], int v, const float *a, ptrdiff_t a_i,
                            ptrdiff_t a_p, const float *b, ptrdiff_t b_j, int n, int cols,
                            int rows) {
    vec r[VW];
    if (n == VW && cols >= VW) {
#pragma GCC unroll 16
        for (int j = 0; j < VW; j++)
            r[j] = vec_load(b + j * b_j);
    } else {
        for (int j = 0; j < VW; j++)
            r[j] = j < cols ? vec_load_n(b + j * b_j, n) : vec_zero();
    }
    vec_transpose(r);
#pragma GCC unroll 16
    for (int p = 0; p < VW; p++) {
        if (p >= n)
            break;
#pragma GCC unroll 8
        for (int i = 0; i < rows; i++)
            acc[i][v] = vec_fma(vec_set1(a[i * a_i + p * a_p]), r[p], acc[i][v]);
    }
}

// Continues the chains of up to NR columns from j on by all terms of a segment.
ROWS_FN void multiply_segment(vec acc[MAX_ROWS][NV], const struct tsr_gemm_seg *seg, int j,
                              int cols, int rows) {
    const float *a = seg->a, *b = (const float *)seg->b + j * seg->b_j;
    // The next panel lies right behind this one; of a long one, fetch the next terms instead.
    bool near = (ptrdiff_t)seg->k * NR * (ptrdiff_t)sizeof(float) <= NEAR_BYTES;
    ptrdiff_t ahead = near ? NR * seg->b_j : 8 * VW;
    for (int p = 0; p < seg->k; p += VW) {
        int n = seg->k - p < VW ? seg->k - p : VW;
        for (int i = 0; i < cols; i++)
            __builtin_prefetch(b + i * seg->b_j + p + ahead, 0, 2);
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            if (v * VW < cols)
                multiply_block(acc, v, a + p * seg->a_p, seg->a_i, seg->a_p,
                               b + v * VW * seg->b_j + p, seg->b_j, n, cols - v * VW, rows);
        }
    }
}

ROWS_FN void move_tile(float *p, ptrdiff_t ld, vec acc[MAX_ROWS][NV], int cols, int rows,
                       bool load) {
#pragma GCC unroll 8
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < NV; v++) {
            int n = cols - v * VW < VW ? cols - v * VW : VW;
            n = n < 0 ? 0 : n;
            if (load)
                acc[i][v] = vec_load_n(p + i * ld + v * VW, n);
            else
                vec_store_n(p + i * ld + v * VW, n, acc[i][v]);
        }
    }
}

ROWS_FN void panel_body(const struct tsr_gemm *g, int j, int cols, int rows) {
    float nodes[NODES][MAX_ROWS * NR];
    vec acc[MAX_ROWS][NV];
    float *c = (float *)g->c + j;
    int seg = 0, n_nodes = 0;
    for (int i = 0; i < rows; i++)
        acc[i][0] = acc[i][1] = vec_zero();
    if (g->mode == TSR_GEMM_CHAIN)
        move_tile(c, g->ldc, acc, cols, rows, true);
    for (int piece = 0; piece < g->n_pieces; piece++) {
        for (; seg < g->n_segs && g->segs[seg].piece == piece; seg++)
            multiply_segment(acc, &g->segs[seg], j, cols, rows);
        int top = n_nodes;
        struct gemm_step end = gemm_end_piece(0, piece, g->n_pieces, &n_nodes);
        for (int n = 0; n < end.adds; n++) {
            top--;
            for (int i = 0; i < rows; i++) {
                for (int v = 0; v < NV; v++)
                    acc[i][v] = vec_add(vec_load(nodes[top] + i * NR + v * VW), acc[i][v]);
            }
        }
        if (end.push) {
            move_tile(nodes[top], NR, acc, NR, rows, false);
            for (int i = 0; i < rows; i++)
                acc[i][0] = acc[i][1] = vec_zero();
        }
    }
    if (gemm_is_plain(g)) {
        move_tile(c, g->ldc, acc, cols, rows, false);
    } else {
        move_tile(nodes[0], NR, acc, NR, rows, false);
        TSR_FN(tsr_gemm_finish)(g, nodes[0], 0, j, rows, cols);
    }
}

#define EACH_FEW_ROWS(X) X(1) X(2) X(3) X(4)
#define X(rows)                                                                                    \
    static void panel_##rows(const struct tsr_gemm *g, int j, int cols) {                          \
        panel_body(g, j, cols, rows);                                                              \
    }
EACH_FEW_ROWS(X)
#undef X

static void panel(const struct tsr_gemm *g, int j, int cols) {
    static void (*const panels[MAX_ROWS + 1])(const struct tsr_gemm *, int, int) = {
#define X(rows) [rows] = panel_##rows,
        EACH_FEW_ROWS(X)
#undef X
    };
    panels[g->m](g, j, cols);
}

static void rows_part(void *arg, int part, int thread) {
    (void)thread;
    const struct rows_job *job = arg;
    int n = job->g->n, step = job->panels_per_part * NR;
    int lo = part * step, hi = n - lo < step ? n : lo + step;
    for (int j = lo; j < hi; j += NR)
        panel(job->g, j, hi - j < NR ? hi - j : NR);
}

int TSR_FN(tsr_gemm_few_rows)(struct tsr_ctx *ctx, const struct tsr_gemm *g) {
    enum { PARTS = 8 }; // for each thread: they seldom run at one speed
    double bytes = 0;
    for (int s = 0; s < g->n_segs; s++)
        bytes += (double)g->segs[s].k * g->n * (double)sizeof(float);
    int threads = bytes < SERIAL_BYTES ? 1 : tsr_pool_threads(ctx->stream);
    int n_panels = (g->n - 1) / NR + 1;
    int per = threads == 1 ? n_panels : (n_panels - 1) / (threads * PARTS) + 1;
    struct rows_job job = {g, per};
    tsr_pool_run(ctx->stream, (n_panels - 1) / per + 1, rows_part, &job);
    return 0;
}

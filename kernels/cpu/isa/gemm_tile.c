// The register tile: up to MR x NR elements of C, each one chain of fused multiply-adds in k
// order, joined over virtual pieces by the tree while they are in registers and L1.
#include "kernels/cpu/isa/gemm.h"

#define TILE_FN static inline __attribute__((always_inline))

// acc(i, :) += A(i, p) B(p, :) for p ascending. rows and nv are constants where it is inlined.
TILE_FN void multiply(vec acc[MR][NV], const float *a, const float *b, int k, int rows, int nv) {
#pragma GCC unroll 4
    for (int p = 0; p < k; p++) {
        vec bv[NV];
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            bv[v] = vec_load(b + p * NR + v * VW);
#pragma GCC unroll 16
        for (int i = 0; i < rows; i++) {
            vec ai = vec_set1(a[p * MR + i]);
#pragma GCC unroll 2
            for (int v = 0; v < nv; v++)
                acc[i][v] = vec_fma(ai, bv[v], acc[i][v]);
        }
    }
}

TILE_FN void set_zero(vec acc[MR][NV], int rows, int nv) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            acc[i][v] = vec_zero();
    }
}

TILE_FN void load_tile(vec acc[MR][NV], const float *p, int rows, int nv) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            acc[i][v] = vec_load(p + i * NR + v * VW);
    }
}

TILE_FN void store_tile(float *p, vec acc[MR][NV], int rows, int nv) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            vec_store(p + i * NR + v * VW, acc[i][v]);
    }
}

TILE_FN void add_node(vec acc[MR][NV], const float *node, int rows, int nv) {
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
#pragma GCC unroll 2
        for (int v = 0; v < nv; v++)
            acc[i][v] = vec_add(vec_load(node + i * NR + v * VW), acc[i][v]);
    }
}

// Lanes of the tile's last vector that are columns of C; the vectors before it are full.
TILE_FN int last_lanes(const struct gemm_tile *t, int nv) {
    return t->cols - (nv - 1) * VW;
}

TILE_FN void load_c(vec acc[MR][NV], const struct gemm_tile *t, int rows, int nv) {
    const float *c = (const float *)t->g->c + t->i * t->g->ldc + t->j;
    int n = last_lanes(t, nv);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        if (nv == 2)
            acc[i][0] = vec_load(c + i * t->g->ldc);
        acc[i][nv - 1] = vec_load_n(c + i * t->g->ldc + (nv - 1) * VW, n);
    }
}

TILE_FN void store_c(const struct gemm_tile *t, vec acc[MR][NV], int rows, int nv) {
    float *c = (float *)t->g->c + t->i * t->g->ldc + t->j;
    int n = last_lanes(t, nv);
#pragma GCC unroll 16
    for (int i = 0; i < rows; i++) {
        float *row = c + i * t->g->ldc;
        if (nv == 2)
            vec_store(row, acc[i][0]);
        if (n == VW)
            vec_store(row + (nv - 1) * VW, acc[i][nv - 1]);
        else
            vec_store_n(row + (nv - 1) * VW, n, acc[i][nv - 1]);
    }
}

TILE_FN void prefetch_tile(const float *p, ptrdiff_t ld, int rows) {
    for (int i = 0; i < rows; i++) {
        __builtin_prefetch(p + i * ld, 1);
        __builtin_prefetch(p + i * ld + NR - 1, 1);
    }
}

// Where this tile's result goes, what the next tile begins with, and nodes used by and by.
TILE_FN void prefetch(const struct gemm_tile *t, int rows) {
    if (t->block->last)
        prefetch_tile((const float *)t->g->c + t->i * t->g->ldc + t->j, t->g->ldc, rows);
    if (t->block->open_out)
        prefetch_tile(t->state, NR, rows);
    if (t->ahead != NULL)
        prefetch_tile(t->ahead, t->ahead_ld, rows);
    for (int n = 0; n < t->block->n_nodes; n++)
        prefetch_tile(t->state + (1 + n) * TILE, NR, rows);
}

// Nodes below `kept` are still in the state, where an earlier block left them.
TILE_FN void tile_body(const struct gemm_tile *t, int rows, int nv) {
    const struct gemm_block *block = t->block;
    const float *a = t->a, *b = t->b;
    int top = block->n_nodes, kept = block->n_nodes;
    vec acc[MR][NV];
    prefetch(t, rows);
    if (!block->open_in)
        set_zero(acc, rows, nv);
    else if (block->first)
        load_c(acc, t, rows, nv);
    else
        load_tile(acc, t->state, rows, nv);
    for (int s = 0; s < block->n_steps; s++) {
        const struct gemm_step *step = &t->steps[s];
        multiply(acc, a, b, step->k, rows, nv);
        a += (ptrdiff_t)step->k * MR;
        b += (ptrdiff_t)step->k * NR;
        for (int n = 0; n < step->adds; n++) {
            top--;
            add_node(acc, top < kept ? t->state + (1 + top) * TILE : t->stack + top * TILE, rows,
                     nv);
            kept = top < kept ? top : kept;
        }
        if (step->push) {
            store_tile(t->stack + top++ * TILE, acc, rows, nv);
            set_zero(acc, rows, nv);
        }
    }
    if (block->last && gemm_is_plain(t->g)) {
        store_c(t, acc, rows, nv);
    } else if (block->last) {
        store_tile(t->stack, acc, rows, nv);
        TSR_FN(tsr_gemm_finish)(t->g, t->stack, t->i, t->j, rows, t->cols);
    } else {
        if (block->open_out)
            store_tile(t->state, acc, rows, nv);
        if (top > kept)
            memcpy(t->state + (1 + kept) * TILE, t->stack + kept * TILE,
                   (size_t)((top - kept) * TILE) * sizeof(float));
    }
}

#define X(rows)                                                                                    \
    static void tile_##rows##_half(const struct gemm_tile *t) {                                    \
        tile_body(t, rows, 1);                                                                     \
    }                                                                                              \
    static void tile_##rows##_full(const struct gemm_tile *t) {                                    \
        tile_body(t, rows, 2);                                                                     \
    }
EACH_ROW_COUNT(X)
#undef X

void TSR_FN(tsr_gemm_tile)(const struct gemm_tile *t) {
    static void (*const tiles[MR + 1][NV])(const struct gemm_tile *) = {
#define X(rows) [rows] = {tile_##rows##_half, tile_##rows##_full},
        EACH_ROW_COUNT(X)
#undef X
    };
    tiles[t->rows][t->cols > VW](t);
}

// One vector of a row's epilogue before the activation; n lanes of it are columns of C.
TILE_FN vec add_bias(const struct tsr_gemm *g, vec y, ptrdiff_t at, int j, int n) {
    if (g->bias != NULL)
        y = vec_add(y, vec_load_n((const float *)g->bias + j, n));
    if (g->pre != NULL)
        vec_store_n((float *)g->pre + at, n, y);
    return y;
}

void TSR_FN(tsr_gemm_finish)(const struct tsr_gemm *g, float *sum, int i, int j, int rows,
                             int cols) {
    if (g->bias != NULL || g->pre != NULL) {
        for (int r = 0; r < rows; r++) {
            for (int v = 0; v * VW < cols; v++) {
                int n = cols - v * VW < VW ? cols - v * VW : VW;
                float *y = sum + r * NR + v * VW;
                ptrdiff_t at = (i + r) * g->ldc + j + v * VW;
                vec_store(y, add_bias(g, vec_load(y), at, j + v * VW, n));
            }
        }
    }
    if (g->has_act) {
        for (int r = 0; r < rows; r++)
            TSR_FN(tsr_act_span)(g->act, sum + r * NR, sum + r * NR, cols);
    }
    for (int r = 0; r < rows; r++) {
        for (int v = 0; v * VW < cols; v++) {
            int n = cols - v * VW < VW ? cols - v * VW : VW;
            vec y = vec_load(sum + r * NR + v * VW);
            float *c = (float *)g->c + (i + r) * g->ldc + j + v * VW;
            if (g->mode == TSR_GEMM_ADD)
                y = vec_add(vec_load_n(c, n), y);
            if (g->residual != NULL) {
                const float *res = (const float *)g->residual + (i + r) * g->ldr + j + v * VW;
                y = vec_add(vec_load_n(res, n), y);
            }
            vec_store_n(c, n, y);
        }
    }
}

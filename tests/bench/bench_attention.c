// Speed of block-wise attention as a share of the measured peak of fused multiply-adds, counting
// only the causal half (Dao 2023, section 4.1: 4 T^2 D / 2 per head forward, 2.5 times that
// backward); and of decode steps as bytes of keys and values read per second.
//
//   bench_attention [threads] [isa]
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/error.h"
#include "kernels/ops.h"

enum { MAX_SEGS = 8, MAX_SLOTS = 16, MAX_BLOCKS = 4096, REPEATS = 7, SLAB_FLOATS = 80 << 20 };

static double now_s(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

// All arrays of a case come from one slab, as a model's do.
struct slab {
    float *p;
    size_t used;
};

static float *array(struct slab *s, size_t n, bool fill) {
    float *p = s->p + s->used;
    s->used += (n + 15) / 16 * 16;
    TSR_ASSERT(s->used <= SLAB_FLOATS);
    for (size_t i = 0; i < n; i++)
        p[i] = fill ? (float)((i * 2654435761u >> 8) % 2001) * 1e-3f - 1.0f : 0.0f;
    return p;
}

static void train(struct tsr_ctx *ctx, struct slab *slab, double peak, int batch, int length,
                  int nq, int nkv, int dim, float drop) {
    struct tsr_segment segs[MAX_SEGS];
    struct tsr_kv_slot slots[MAX_SLOTS];
    TSR_ASSERT(nkv <= MAX_SLOTS && batch <= MAX_SEGS);
    slab->used = 0;
    for (int s = 0; s < batch; s++)
        segs[s] = (struct tsr_segment){.start = s * length, .length = length};
    for (int i = 0; i < nkv; i++)
        slots[i] = (struct tsr_kv_slot){i * (nq / nkv), nq / nkv, i, 0};
    struct tsr_attn a = {.nq = nq,
                         .nkv = nkv,
                         .group = nq / nkv,
                         .head_dim = dim,
                         .scale = 0.125f,
                         .drop = {drop, {1, 2}},
                         .n_segs = batch,
                         .segs = segs,
                         .n_tokens = batch * length,
                         .ldq = (nq + 2 * nkv) * dim,
                         .ldo = nq * dim};
    a.ldk = a.ldv = a.ldq;
    size_t n = (size_t)a.n_tokens, nqkv = n * (size_t)a.ldq, no = n * (size_t)a.ldo;
    size_t nk = n * (size_t)(nkv * dim);
    float *qkv = array(slab, nqkv, true), *o = array(slab, no, false), *d_o = array(slab, no, true);
    float *dq = array(slab, nqkv, false), *dk = array(slab, nk, false),
          *dv = array(slab, nk, false);
    float *lse = array(slab, n * (size_t)nq, false);
    double flops = 4.0 * length * (length + 1) / 2 * dim * nq * batch, best[2] = {1e9, 1e9};
    for (int r = 0; r < REPEATS; r++) {
        double t0 = now_s();
        ctx->ops->attention(ctx, &a, o, lse, qkv, qkv + nq * dim, qkv + (nq + nkv) * dim);
        double t1 = now_s();
        ctx->ops->attention_bwd(ctx, &a, slots, nkv, dq, dk, dv, d_o, o, lse, qkv, qkv + nq * dim,
                                qkv + (nq + nkv) * dim);
        double t2 = now_s();
        best[0] = t1 - t0 < best[0] ? t1 - t0 : best[0];
        best[1] = t2 - t1 < best[1] ? t2 - t1 : best[1];
    }
    double fwd = flops / best[0] * 1e-9, bwd = 2.5 * flops / best[1] * 1e-9;
    printf(
        "B %d T %5d heads %2d/%d D %3d drop %.1f  forward %7.1f GFLOP/s %5.1f %%  backward %7.1f "
        "GFLOP/s %5.1f %%\n",
        batch, length, nq, nkv, dim, (double)drop, fwd, 100 * fwd / peak, bwd, 100 * bwd / peak);
}

static void decode(struct tsr_ctx *ctx, struct slab *slab, int length, int nq, int nkv, int dim) {
    enum { BLOCK = 16 };
    int n_blocks = (length + BLOCK - 1) / BLOCK;
    size_t n = (size_t)n_blocks * BLOCK * (size_t)(nkv * dim);
    static int32_t blocks[MAX_BLOCKS];
    TSR_ASSERT(n_blocks <= MAX_BLOCKS);
    slab->used = 0;
    for (int i = 0; i < n_blocks; i++)
        blocks[i] = (i * 7 + 3) % n_blocks;
    float *k = array(slab, n, true), *v = array(slab, n, true),
          *q = array(slab, (size_t)(nq * dim), true);
    float *o = array(slab, (size_t)(nq * dim), false);
    struct tsr_kv_cache cache = {k, v, blocks, BLOCK, n_blocks};
    struct tsr_segment seg = {.length = 1, .position = length - 1, .cache = &cache};
    struct tsr_attn a = {.nq = nq,
                         .nkv = nkv,
                         .group = nq / nkv,
                         .head_dim = dim,
                         .scale = 0.1f,
                         .n_segs = 1,
                         .segs = &seg,
                         .n_tokens = 1,
                         .ldq = nq * dim,
                         .ldo = nq * dim};
    double best = 1e9;
    for (int r = 0; r < REPEATS; r++) {
        double t0 = now_s();
        ctx->ops->attention(ctx, &a, o, NULL, q, NULL, NULL);
        double t1 = now_s();
        best = t1 - t0 < best ? t1 - t0 : best;
    }
    double bytes = 8.0 * length * nkv * dim;
    printf("decode T %6d heads %2d/%d D %3d  %8.1f us  %5.1f GB/s (%.1f MB)\n", length, nq, nkv,
           dim, best * 1e6, bytes / best * 1e-9, bytes * 1e-6);
}

// What decode is to be compared with: all threads sum a large array.
static void copy_speed(struct tsr_ctx *ctx, struct slab *slab) {
    size_t n = SLAB_FLOATS / 2;
    slab->used = 0;
    float *x = array(slab, n, false), *y = array(slab, n, false);
    double best = 1e9;
    for (int r = 0; r < 3; r++) {
        double t0 = now_s();
        ctx->ops->copy(ctx, y, x, n * sizeof *x);
        double t1 = now_s();
        best = t1 - t0 < best ? t1 - t0 : best;
    }
    printf("copy: %.1f GB/s read and as much written\n", (double)(n * sizeof *x) / best * 1e-9);
}

int main(int argc, char **argv) {
    struct tsr_ctx ctx;
    int threads = argc > 1 ? atoi(argv[1]) : 2;
    if (tsr_cpu_open(&ctx, argc > 2 ? argv[2] : NULL, threads) != 0) {
        fprintf(stderr, "%s\n", tsr_error_text());
        return 2;
    }
    struct slab slab = {0};
    void *mem;
    if (ctx.ops->alloc(&ctx, SLAB_FLOATS * sizeof(float), &mem) != 0) {
        fprintf(stderr, "%s\n", tsr_error_text());
        return 3;
    }
    slab.p = mem;
    double peak = ctx.ops->measure_peak(&ctx, TSR_PEAK_CAREFUL);
    printf("%s, %d threads, peak %.1f GFLOP/s\n", ctx.ops->name, threads, peak);
    train(&ctx, &slab, peak, 4, 256, 12, 12, 64, 0);
    train(&ctx, &slab, peak, 4, 256, 9, 3, 64, 0);
    train(&ctx, &slab, peak, 4, 256, 12, 12, 64, 0.1f);
    train(&ctx, &slab, peak, 1, 1024, 12, 12, 64, 0);
    train(&ctx, &slab, peak, 1, 2048, 8, 2, 64, 0);
    train(&ctx, &slab, peak, 1, 2048, 1, 1, 64, 0);
    train(&ctx, &slab, peak, 1, 1024, 8, 2, 80, 0);
    train(&ctx, &slab, peak, 1, 1024, 8, 2, 128, 0);
    decode(&ctx, &slab, 1000, 32, 8, 128);
    decode(&ctx, &slab, 8000, 32, 8, 64);
    decode(&ctx, &slab, 32000, 32, 8, 128);
    decode(&ctx, &slab, 8000, 12, 12, 64);
    copy_speed(&ctx, &slab);
    ctx.ops->free(&ctx, mem, SLAB_FLOATS * sizeof(float));
    ctx.ops->close(&ctx);
    return 0;
}

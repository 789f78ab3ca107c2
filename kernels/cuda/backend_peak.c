// The speed of products of the context's type: what a training step's share is measured by.
#include "core/clock.h"
#include "kernels/cuda/backend_private.h"

enum { SMALLEST = 32, LARGEST = 8192 };
static const double TRIAL_S = 2e-3;

struct square {
    int n;
    void *m[3]; // A, B, C
};

static size_t bytes_of(const struct tsr_ctx *ctx, int n) {
    return tsr_dtype_size(ctx->dtype) * (size_t)n * (size_t)n;
}

static void close_square(struct tsr_ctx *ctx, struct square *q) {
    for (int i = 0; i < 3; i++)
        ctx->ops->free(ctx, q->m[i], bytes_of(ctx, q->n));
}

static int open_square(struct tsr_ctx *ctx, struct square *q, int n) {
    *q = (struct square){.n = n};
    for (int i = 0; i < 3; i++) {
        int rc = ctx->ops->alloc(ctx, bytes_of(ctx, n), &q->m[i]);
        if (rc < 0) {
            while (i > 0)
                ctx->ops->free(ctx, q->m[--i], bytes_of(ctx, n));
            return rc;
        }
    }
    int rc = 0;
    for (int i = 0; rc == 0 && i < 2; i++) // zeros take less power, and so less time than numbers
        rc = ctx->ops->init_normal(ctx, q->m[i], tsr_rng_key((uint64_t)i, TSR_RNG_BENCH, 0, 0),
                                   1.0f, 0, n, 0, n, n);
    if (rc < 0)
        close_square(ctx, q);
    return rc;
}

// Seconds of `repeats` products; negative: an operation failed.
static double seconds_of(struct tsr_ctx *ctx, const struct square *q, int repeats) {
    int n = q->n;
    struct tsr_gemm_seg seg = {
        .a = q->m[0], .a_i = n, .a_p = 1, .b = q->m[1], .b_p = 1, .b_j = n, .k = n};
    struct tsr_gemm g = {.m = n,
                         .n = n,
                         .n_pieces = 1,
                         .n_segs = 1,
                         .segs = &seg,
                         .mode = TSR_GEMM_STORE,
                         .c = q->m[2],
                         .ldc = n};
    if (ctx->ops->sync(ctx) < 0)
        return -1.0;
    double begin = tsr_now();
    for (int i = 0; i < repeats; i++)
        if (ctx->ops->gemm(ctx, &g) < 0)
            return -1.0;
    return ctx->ops->sync(ctx) < 0 ? -1.0 : tsr_now() - begin;
}

// The best trial's GFLOP/s; a trial is as many products as take TRIAL_S, `s` each.
static double best_rate(struct tsr_ctx *ctx, const struct square *q, double s, int n_trials) {
    int repeats = s < TRIAL_S ? (int)(TRIAL_S / (s > 1e-6 ? s : 1e-6)) + 1 : 1;
    double flops = 2.0 * q->n * (double)q->n * q->n * repeats, best = 0.0;
    for (int i = 0; i < n_trials && s >= 0.0; i++) {
        s = seconds_of(ctx, q, repeats);
        if (s > 0.0 && flops / s > best)
            best = flops / s;
    }
    return best * 1e-9;
}

double tsr_cuda_measure_peak(struct tsr_ctx *ctx, int n_trials) {
    size_t free_bytes = 0, total = 0;
    if (tsr_cuda_memory(ctx, &free_bytes, &total) < 0)
        return 0.0;
    for (int n = SMALLEST;; n *= 2) {
        struct square q;
        bool last = n == LARGEST || 3 * bytes_of(ctx, 2 * n) > free_bytes / 2;
        if (open_square(ctx, &q, n) < 0)
            return 0.0;
        double s = seconds_of(ctx, &q, 1); // may load a kernel
        if (s >= 0.0 && s < TRIAL_S)
            s = seconds_of(ctx, &q, 1);
        last |= s < 0.0 || s > TRIAL_S / 2;
        double rate = last && s >= 0.0 ? best_rate(ctx, &q, s, n_trials) : 0.0;
        close_square(ctx, &q);
        if (last)
            return rate;
    }
}

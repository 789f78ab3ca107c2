// Speed of the matrix product as a share of the CPU's multiply-add peak, measured in the same
// moment. Not a test: bench_gemm [--isa NAME] [--threads N] [--reps N] [FILTER]
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/error.h"
#include "core/pieces.h"
#include "kernels/ops.h"

enum form { NT, NN, TN }; // x W^T, dy W, dy^T x

static const char *const form_names[] = {"NT", "NN", "TN"};

struct shape {
    const char *what;
    enum form form;
    int m, n, k;
    int n_pieces;
    enum tsr_gemm_mode mode;
};

#define S TSR_GEMM_STORE
#define C TSR_GEMM_CHAIN

static const struct shape shapes[] = {
    {"gpt2 fc forward", NT, 1024, 3072, 768, 1, S},
    {"gpt2 fc forward", NT, 1024, 3072, 768, 8, S},
    {"gpt2 down forward", NT, 1024, 768, 3072, 1, S},
    {"gpt2 down forward", NT, 1024, 768, 3072, 8, S},
    {"gpt2 attention", NT, 1024, 768, 768, 8, S},
    {"gpt2 down dx", NN, 1024, 3072, 768, 1, S},
    {"gpt2 fc dx", NN, 1024, 768, 3072, 1, S},
    {"gpt2 fc dx", NN, 1024, 768, 3072, 8, S},
    {"gpt2 fc dw", TN, 3072, 768, 1024, 1, C},
    {"gpt2 down dw", TN, 768, 3072, 1024, 1, C},
    {"gpt2 fc dw", TN, 3072, 768, 1024, 8, S},
    {"all roles", NT, 3072, 1024, 768, 1, S},
    {"all roles", NN, 3072, 768, 1024, 1, S},
    {"all roles", TN, 768, 1024, 3072, 1, S},
    {"smollm2 q", NT, 1024, 576, 576, 1, S},
    {"smollm2 kv", NT, 1024, 192, 576, 1, S},
    {"smollm2 gate", NT, 1024, 1536, 576, 1, S},
    {"smollm2 down", NT, 1024, 576, 1536, 8, S},
    {"smollm2 gate dx", NN, 1024, 576, 1536, 8, S},
    {"smollm2 gate dw", TN, 1536, 576, 1024, 1, C},
    {"gpt2 head", NT, 256, 50257, 768, 1, S},
    {"gpt2 head dx", NN, 256, 768, 50257, 8, S},
    {"gpt2 head dw", TN, 50257, 768, 256, 1, C},
    {"long sum", TN, 768, 768, 32768, 8, S},
    {"decode m=1", NT, 1, 3072, 768, 1, S},
    {"decode m=1", NT, 1, 768, 3072, 8, S},
    {"decode m=2", NT, 2, 3072, 768, 8, S},
    {"decode m=4", NT, 4, 3072, 768, 8, S},
    {"decode m=5", NT, 5, 3072, 768, 8, S},
    {"decode m=8", NT, 8, 3072, 768, 8, S},
    {"decode m=16", NT, 16, 3072, 768, 8, S},
    {"decode head m=1", NT, 1, 50257, 768, 1, S},
    {"decode head m=4", NT, 4, 50257, 768, 1, S},
    {"decode head m=8", NT, 8, 50257, 768, 1, S},
    {"decode nn m=1", NN, 1, 3072, 768, 1, S},
};

static double seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static float *fresh(struct tsr_ctx *ctx, size_t n) {
    void *p;
    if (ctx->ops->alloc(ctx, n * sizeof(float), &p) != 0) {
        fprintf(stderr, "%s\n", tsr_error_text());
        exit(3);
    }
    float *x = p;
    for (size_t i = 0; i < n; i++)
        x[i] = (float)((i * 2654435761u >> 8) % 2001) * 1e-3f - 1.0f;
    return x;
}

static void run_shape(struct tsr_ctx *ctx, const struct shape *s, int reps) {
    enum { MAX_PIECES = 64 };
    size_t m = (size_t)s->m, n = (size_t)s->n, k = (size_t)s->k;
    float *a = fresh(ctx, m * k), *b = fresh(ctx, k * n), *c = fresh(ctx, m * n);
    struct tsr_gemm_seg segs[MAX_PIECES];
    for (int v = 0; v < s->n_pieces; v++) {
        struct tsr_range r = tsr_piece(s->k, v, s->n_pieces);
        struct tsr_gemm_seg *g = &segs[v];
        *g = (struct tsr_gemm_seg){.k = (int)tsr_range_len(r), .piece = v};
        g->a_i = s->form == TN ? 1 : s->k;
        g->a_p = s->form == TN ? s->m : 1;
        g->b_p = s->form == NT ? 1 : s->n;
        g->b_j = s->form == NT ? s->k : 1;
        g->a = a + r.lo * g->a_p;
        g->b = b + r.lo * g->b_p;
    }
    struct tsr_gemm g = {.m = s->m,
                         .n = s->n,
                         .n_pieces = s->n_pieces,
                         .n_segs = s->n_pieces,
                         .segs = segs,
                         .mode = s->mode,
                         .c = c,
                         .ldc = s->n};
    double best = 1e30, flops = 2.0 * (double)m * (double)n * (double)k;
    double peak = ctx->ops->measure_peak(ctx, TSR_PEAK_CAREFUL);
    int n_runs = (int)(1e9 * reps / flops) + reps;
    for (int r = 0; r < n_runs; r++) {
        double start = seconds();
        if (ctx->ops->gemm(ctx, &g) != 0)
            exit(3);
        double t = seconds() - start;
        best = t < best ? t : best;
    }
    double again = ctx->ops->measure_peak(ctx, TSR_PEAK_CAREFUL);
    peak = again > peak ? again : peak;
    double bytes = 4.0 * (double)(m * k + k * n + m * n);
    printf("%-18s %s m=%-5d n=%-5d k=%-5d V=%d %s  %9.3f ms  %7.1f GFLOP/s  %5.1f %% of %.0f"
           "  %5.1f GB/s\n",
           s->what, form_names[s->form], s->m, s->n, s->k, s->n_pieces,
           s->mode == TSR_GEMM_CHAIN ? "C+=" : "C= ", best * 1e3, flops / best * 1e-9,
           100 * flops / best * 1e-9 / peak, peak, bytes / best * 1e-9);
    fflush(stdout);
    ctx->ops->free(ctx, a, m * k * sizeof(float));
    ctx->ops->free(ctx, b, k * n * sizeof(float));
    ctx->ops->free(ctx, c, m * n * sizeof(float));
}

int main(int argc, char **argv) {
    const char *isa = NULL, *filter = "";
    int threads = 2, reps = 10;
    for (int i = 1; i < argc; i++) {
        if (strcmp(argv[i], "--isa") == 0 && i + 1 < argc)
            isa = argv[++i];
        else if (strcmp(argv[i], "--threads") == 0 && i + 1 < argc)
            threads = atoi(argv[++i]);
        else if (strcmp(argv[i], "--reps") == 0 && i + 1 < argc)
            reps = atoi(argv[++i]);
        else
            filter = argv[i];
    }
    struct tsr_ctx ctx;
    if (reps < 1 || tsr_cpu_open(&ctx, isa, threads) != 0) {
        fprintf(stderr, "bench_gemm: %s\n",
                reps < 1 ? "--reps: expected 1 or more" : tsr_error_text());
        return 2;
    }
    printf("%s, %d threads\n", ctx.ops->describe(&ctx), threads);
    for (size_t i = 0; i < sizeof shapes / sizeof *shapes; i++) {
        char label[64];
        snprintf(label, sizeof label, "%s %s", shapes[i].what, form_names[shapes[i].form]);
        if (strstr(label, filter) != NULL)
            run_shape(&ctx, &shapes[i], reps);
    }
    ctx.ops->close(&ctx);
    return 0;
}

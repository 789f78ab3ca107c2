// Is the tile that is chosen for a product the fastest? The choice depends on the number of the
// device's multiprocessors: other numbers make it take every tile in turn.
#include <stdio.h>
#include <string.h>
#include "kernels/cuda/backend.h"
#include "tests/gpu/bench_device.h"

struct product {
    const char *name;
    int m, n, k, n_pieces;
    enum tile_layout layout;
};

// A layer of Llama 3.1 8B on 16k tokens: forward, gradients of inputs (KN) and of weights (MN).
static const struct product full[] = {
    {"qkv", 16384, 6144, 4096, 1, TILE_KK},
    {"out, 8 pieces", 16384, 4096, 4096, 8, TILE_KK},
    {"up", 16384, 14336, 4096, 1, TILE_KK},
    {"down, 1 piece", 16384, 4096, 14336, 1, TILE_KK},
    {"down, 8 pieces", 16384, 4096, 14336, 8, TILE_KK},
    {"head", 1024, 128256, 4096, 1, TILE_KK},
    {"up, dx", 16384, 4096, 14336, 1, TILE_KN},
    {"down, dx", 16384, 14336, 4096, 1, TILE_KN},
    {"up, dW", 14336, 4096, 16384, 1, TILE_MN},
    {"qkv, dW", 6144, 4096, 16384, 1, TILE_MN},
    {"head, dW", 128256, 4096, 1024, 1, TILE_MN},
    {"up, 2k tokens", 2048, 14336, 4096, 1, TILE_KK},
    {"qkv, 512 tokens", 512, 6144, 4096, 1, TILE_KK},
    {"up, 64 rows", 64, 14336, 4096, 1, TILE_KK},
    {"up, 16 rows", 16, 14336, 4096, 1, TILE_KK},
    {"up, 1 row", 1, 14336, 4096, 1, TILE_KK},
    {"head, 1 row", 1, 128256, 4096, 1, TILE_KK},
};
static const struct product small[] = {{"up", 64, 96, 64, 1, TILE_KK},
                                       {"up, dW", 96, 64, 64, 1, TILE_MN},
                                       {"down, 8 pieces", 64, 64, 128, 8, TILE_KK},
                                       {"up, 1 row", 1, 96, 64, 1, TILE_KK}};

static int run_product(struct bench *b, void *arg) {
    return b->ctx.ops->gemm(&b->ctx, arg);
}

enum { MAX_TILES = 8, MOST_SMS = 20000 };

// A tile, and what makes it be chosen: a number of multiprocessors, and columns. The 128 x 128 tile
// is only chosen where it leaves less of the last round idle, so 128 columns may be missing.
struct tile {
    const char *name;
    int n_sms, n;
};

// The one that is chosen on this device first.
static int tiles_for(const struct product *p, int n_sms, struct tile *tiles) {
    int n_tiles = 0;
    for (int s = 0; s <= 2 * MOST_SMS; s++) {
        int with = s == 0 ? n_sms : s > MOST_SMS ? s - MOST_SMS : s;
        int n = s > MOST_SMS && p->n > 256 ? p->n - 128 : p->n, i = 0;
        const char *name = tile_of(p->m, n, p->n_pieces, p->layout, with);
        while (i < n_tiles && strcmp(tiles[i].name, name) != 0)
            i++;
        if (i == n_tiles && n_tiles < MAX_TILES)
            tiles[n_tiles++] = (struct tile){name, with, n};
    }
    return n_tiles;
}

static void bench_one(struct bench *b, const struct product *p) {
    struct tsr_gemm_seg segs[8];
    const char *a = random_elems(b, (size_t)p->m * (size_t)p->k);
    const char *w = random_elems(b, (size_t)p->n * (size_t)p->k);
    void *c = random_elems(b, (size_t)p->m * (size_t)p->n);
    struct tile tiles[MAX_TILES];
    int real = tsr_cuda_of(&b->ctx)->n_sms, k = p->k / p->n_pieces;
    for (int s = 0; s < p->n_pieces; s++) {
        bool a_k = p->layout != TILE_MN, b_k = p->layout == TILE_KK;
        size_t a_at = (size_t)s * (size_t)k * (a_k ? 1 : (size_t)p->m);
        size_t b_at = (size_t)s * (size_t)k * (b_k ? 1 : (size_t)p->n);
        segs[s] = (struct tsr_gemm_seg){.a = a + 2 * a_at,
                                        .a_i = a_k ? p->k : 1,
                                        .a_p = a_k ? 1 : p->m,
                                        .b = w + 2 * b_at,
                                        .b_p = b_k ? 1 : p->n,
                                        .b_j = b_k ? p->k : 1,
                                        .k = k,
                                        .piece = s};
    }
    struct tsr_gemm g = {.m = p->m,
                         .n = p->n,
                         .n_pieces = p->n_pieces,
                         .n_segs = p->n_pieces,
                         .segs = segs,
                         .c = c,
                         .ldc = p->n};
    int n_tiles = tiles_for(p, real, tiles);
    for (int i = 0; i < n_tiles; i++) {
        tsr_cuda_of(&b->ctx)->n_sms = tiles[i].n_sms;
        g.n = tiles[i].n;
        double t = seconds_of(b, run_product, &g);
        printf(
            "{\"case\": \"product\", \"name\": \"%s\", \"m\": %d, \"n\": %d, \"k\": %d, \"tile\": "
            "\"%s\", \"chosen\": %s, \"ms\": %.6g, \"tflops\": %.6g}\n",
            p->name, p->m, p->n, p->k, tiles[i].name, i == 0 ? "true" : "false", t * 1e3,
            2e-12 * p->m * g.n * p->k / t);
    }
    tsr_cuda_of(&b->ctx)->n_sms = real;
    release(b, (void *)(uintptr_t)a);
    release(b, (void *)(uintptr_t)w);
    release(b, c);
}

void bench_products(struct bench *b) {
    const struct product *all = b->small ? small : full;
    size_t n = b->small ? sizeof small / sizeof *small : sizeof full / sizeof *full;
    for (size_t i = 0; i < n; i++)
        bench_one(b, &all[i]);
}

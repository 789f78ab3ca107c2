// Times what `tessera bench ops` doesn't: tiles of products, flash attention per head size and
// length, decoding at long contexts, sampling, and steps of generation with and without a recorded
// graph. In bf16, on the device of the object that TESSERA_CUDA_OBJECT names. Prints one JSON
// object a line.
// usage: bench_device [--small] products | flash | decode | sample | generate MODEL_DIR
#include "tests/gpu/bench_device.h"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "dist/infer.h"
#include "dist/plugin.h"

enum { BLOCK = 16, MAX_ARRAYS = 64 };

static struct {
    void *at;
    size_t n_bytes;
} arrays[MAX_ARRAYS];

void check(int rc, const char *call) {
    if (rc >= 0)
        return;
    fprintf(stderr, "bench_device: %s: %s\n", call, tsr_error_text());
    exit(1);
}

static void *take(struct bench *b, size_t n_bytes) {
    int i = 0;
    while (i < MAX_ARRAYS && arrays[i].at)
        i++;
    TSR_ASSERT(i < MAX_ARRAYS);
    arrays[i].n_bytes = n_bytes;
    CHECK(b->ctx.ops->alloc(&b->ctx, n_bytes, &arrays[i].at));
    return arrays[i].at;
}

void release(struct bench *b, void *p) {
    for (int i = 0; i < MAX_ARRAYS; i++)
        if (arrays[i].at == p) {
            b->ctx.ops->free(&b->ctx, p, arrays[i].n_bytes);
            arrays[i].at = NULL;
            return;
        }
}

static void release_all(struct bench *b) {
    for (int i = 0; i < MAX_ARRAYS; i++)
        if (arrays[i].at)
            release(b, arrays[i].at);
}

static void *random_of(struct bench *b, enum tsr_dtype dtype, size_t n, float scale) {
    static uint32_t salt;
    struct tsr_ctx as = b->ctx;
    as.dtype = dtype;
    void *p = take(b, n * tsr_dtype_size(dtype));
    CHECK(as.ops->init_normal(&as, p, tsr_rng_key(salt++, TSR_RNG_BENCH, 0, 0), scale, 0, 1, 0,
                              (int64_t)n, (int64_t)n));
    return p;
}

void *random_elems(struct bench *b, size_t n) {
    return random_of(b, TSR_DT_BF16, n, 0.1f);
}

void *zero_floats(struct bench *b, size_t n) {
    return take(b, n * sizeof(float)); // fresh memory is zero
}

static double round_of(struct bench *b, int (*call)(struct bench *, void *), void *arg, int n) {
    double begin = tsr_now();
    for (int i = 0; i < n; i++)
        CHECK(call(b, arg));
    CHECK(b->ctx.ops->sync(&b->ctx));
    return (tsr_now() - begin) / n;
}

double seconds_of(struct bench *b, int (*call)(struct bench *, void *), void *arg) {
    double t[3];
    int n = 1;
    round_of(b, call, arg, 1); // the first call may prepare something
    double one = round_of(b, call, arg, 1);
    while (n < 1 << 16 && one * n < b->limit_s / 3)
        n *= 2;
    for (int i = 0; i < 3; i++)
        t[i] = round_of(b, call, arg, n);
    double low = t[0] < t[1] ? t[0] : t[1], high = t[0] < t[1] ? t[1] : t[0];
    return t[2] < low ? low : t[2] > high ? high : t[2];
}

// ---- attention over whole sequences

struct flash {
    struct tsr_attn a;
    struct tsr_kv_slot slots[64];
    void *q, *k, *v, *o, *dq, *dk, *dv;
    float *lse;
};

static int forward(struct bench *b, void *arg) {
    struct flash *f = arg;
    return b->ctx.ops->attention(&b->ctx, &f->a, f->o, f->lse, f->q, f->k, f->v);
}

static int backward(struct bench *b, void *arg) {
    struct flash *f = arg;
    return b->ctx.ops->attention_bwd(&b->ctx, &f->a, f->slots, f->a.nkv, f->dq, f->dk, f->dv, f->q,
                                     f->o, f->lse, f->q, f->k, f->v);
}

// Forward: two products of half the square; backward: five.
static void flash_one(struct bench *b, int d, int seq_len, int n) {
    int nq = b->small ? 4 : d > 128 ? 16 : 32, nkv = nq / 4, n_segs = n / seq_len;
    struct tsr_segment *segs = calloc((size_t)n_segs, sizeof *segs);
    struct flash f = {.a = {.nq = nq,
                            .nkv = nkv,
                            .group = 4,
                            .head_dim = d,
                            .scale = 0.1f,
                            .n_segs = n_segs,
                            .segs = segs,
                            .n_tokens = n,
                            .ldq = nq * d,
                            .ldk = nkv * d,
                            .ldv = nkv * d,
                            .ldo = nq * d}};
    size_t q = (size_t)n * (size_t)(nq * d), kv = (size_t)n * (size_t)(nkv * d);
    double flops = 4.0 * d * nq * n_segs * (0.5 * seq_len * (seq_len + 1.0));
    TSR_ASSERT(segs);
    for (int i = 0; i < n_segs; i++)
        segs[i] =
            (struct tsr_segment){.start = i * seq_len, .length = seq_len, .sequence = (uint64_t)i};
    for (int h = 0; h < nkv; h++)
        f.slots[h] = (struct tsr_kv_slot){4 * h, 4, h, 0};
    f.q = random_elems(b, q), f.o = random_elems(b, q), f.dq = random_elems(b, q);
    f.k = random_elems(b, kv), f.dk = random_elems(b, kv);
    f.v = random_elems(b, kv), f.dv = random_elems(b, kv);
    f.lse = zero_floats(b, (size_t)nq * (size_t)n);
    double fwd = seconds_of(b, forward, &f), bwd = seconds_of(b, backward, &f);
    printf("{\"case\": \"flash\", \"d\": %d, \"seq_len\": %d, \"forward_ms\": %.6g, "
           "\"forward_tflops\": %.6g, \"backward_ms\": %.6g, \"backward_tflops\": %.6g}\n",
           d, seq_len, fwd * 1e3, flops / fwd * 1e-12, bwd * 1e3, 2.5 * flops / bwd * 1e-12);
    free(segs);
    release_all(b);
}

static void bench_flash(struct bench *b) {
    static const int sizes[] = {128, 64, 80, 96, 256}, lengths[] = {16384, 4096, 1024};
    for (int d = 0; d < 5; d++)
        for (int l = 0; l < (b->small ? 1 : 3); l++)
            flash_one(b, sizes[d], b->small ? 64 : lengths[l], b->small ? 128 : 16384);
}

// ---- one token after a long context

static int decode_step(struct bench *b, void *arg) {
    struct flash *f = arg;
    return b->ctx.ops->attention(&b->ctx, &f->a, f->o, NULL, f->q, f->k, f->v);
}

static int plain_copy(struct bench *b, void *arg) {
    void **ends = arg;
    return b->ctx.ops->copy(&b->ctx, ends[0], ends[1], b->small ? 1 << 16 : 1 << 30);
}

// Heads as in Llama 3.1 8B.
static void decode_one(struct bench *b, int n_keys, int batch, double copy_rate) {
    enum { NQ = 32, NKV = 8, D = 128 };
    int per_seq = (n_keys + BLOCK - 1) / BLOCK;
    size_t kv = (size_t)batch * (size_t)per_seq * BLOCK * NKV * D;
    struct tsr_segment *segs = calloc((size_t)batch, sizeof *segs);
    struct tsr_kv_cache *caches = calloc((size_t)batch, sizeof *caches);
    int32_t *blocks = calloc((size_t)batch * (size_t)per_seq, sizeof *blocks);
    struct flash f = {.a = {.nq = NQ,
                            .nkv = NKV,
                            .group = NQ / NKV,
                            .head_dim = D,
                            .scale = 0.1f,
                            .n_segs = batch,
                            .segs = segs,
                            .n_tokens = batch,
                            .ldq = NQ * D,
                            .ldk = NKV * D,
                            .ldv = NKV * D,
                            .ldo = NQ * D}};
    TSR_ASSERT(segs && caches && blocks);
    f.q = random_elems(b, (size_t)batch * NQ * D), f.o = random_elems(b, (size_t)batch * NQ * D);
    f.k = random_elems(b, kv), f.v = random_elems(b, kv);
    for (int i = 0; i < batch * per_seq; i++) // neighbours lie apart, as in a cache long in use
        blocks[i] = (int32_t)((int64_t)i * 7919 % ((int64_t)batch * per_seq));
    for (int i = 0; i < batch; i++) {
        caches[i] = (struct tsr_kv_cache){f.k, f.v, blocks + i * per_seq, BLOCK, per_seq};
        segs[i] = (struct tsr_segment){.start = i,
                                       .length = 1,
                                       .position = n_keys - 1,
                                       .sequence = (uint64_t)i,
                                       .cache = &caches[i]};
    }
    double t = seconds_of(b, decode_step, &f);
    double rate = 4.0 * batch * n_keys * NKV * D / t;
    printf("{\"case\": \"decode\", \"keys\": %d, \"batch\": %d, \"ms\": %.6g, \"gb_per_s\": %.6g, "
           "\"copy_fraction\": %.6g}\n",
           n_keys, batch, t * 1e3, rate * 1e-9, rate / copy_rate);
    free(segs);
    free(caches);
    free(blocks);
    release_all(b);
}

static void bench_decode(struct bench *b) {
    static const int keys[] = {1024, 8192, 32768}, batches[] = {1, 8, 32};
    size_t n_bytes = b->small ? 1 << 16 : 1 << 30;
    void *ends[] = {take(b, n_bytes), take(b, n_bytes)};
    double copy_rate = 2.0 * (double)n_bytes / seconds_of(b, plain_copy, ends);
    release_all(b);
    for (int k = 0; k < 3; k++)
        for (int i = 0; i < (b->small ? 1 : 3); i++)
            decode_one(b, b->small ? keys[k] / 64 : keys[k], batches[i], copy_rate);
}

// ---- sampling

struct sampling {
    const char *name;
    struct tsr_sampling s[32];
    uint64_t index[32];
    int rows;
    int64_t v;
    float *logits;
    int32_t *next;
};

static int sample(struct bench *b, void *arg) {
    struct sampling *s = arg;
    return b->ctx.ops->sample(&b->ctx, s->next, s->logits, s->s, s->index, s->rows, s->v);
}

static void bench_sample(struct bench *b) {
    const struct tsr_sampling kinds[] = {{.temperature = 0, .top_p = 1},
                                         {.temperature = 1, .top_p = 1},
                                         {.temperature = 1, .top_p = 1, .top_k = 50},
                                         {.temperature = 0.8, .top_p = 0.9},
                                         {.temperature = 0.8, .top_p = 0.9, .top_k = 50}};
    static const char *const names[] = {"greedy", "plain", "top-k 50", "top-p 0.9",
                                        "top-k 50, top-p 0.9"};
    struct sampling s = {.v = b->small ? 3000 : 128256};
    s.logits = random_of(b, TSR_DT_F32, 32 * (size_t)s.v, 3.0f);
    s.next = take(b, sizeof s.index);
    for (size_t k = 0; k < sizeof kinds / sizeof *kinds; k++)
        for (s.rows = 1; s.rows <= 32; s.rows += 31) {
            for (int i = 0; i < 32; i++) {
                s.s[i] = kinds[k];
                s.s[i].seed = (uint64_t)i;
            }
            double t = seconds_of(b, sample, &s);
            printf(
                "{\"case\": \"sample\", \"name\": \"%s\", \"rows\": %d, \"vocab\": %lld, \"ms\": "
                "%.6g}\n",
                names[k], s.rows, (long long)s.v, t * 1e3);
        }
    release_all(b);
}

// ---- steps of generation

// The same model and tokens with a table that can't record: every step is asked for anew.
static double tokens_per_s(struct bench *b, const char *dir, bool graph, int n_tokens,
                           int32_t *out) {
    struct tsr_ops plain = *b->ctx.ops;
    struct tsr_ctx ctx = b->ctx;
    struct tsr_comm comm = {0};
    struct tsr_progress progress = {0};
    struct tsr_infer g = {0};
    struct tsr_sampling s = {.temperature = 0, .top_p = 1};
    int32_t prompt[16], next = 0;
    plain.record = NULL;
    if (!graph)
        ctx.ops = &plain;
    for (int i = 0; i < 16; i++)
        prompt[i] = i * 37 % 100;
    CHECK(tsr_comm_open_single(&comm, &progress));
    CHECK(tsr_infer_open(&g, dir, &ctx, &comm, 1, 1, 16 + n_tokens + 8, 16));
    CHECK(tsr_infer_next(&g, prompt, 16, 0, &s, &next));
    double begin = 0;
    for (int i = 0; i < n_tokens + 4; i++) {
        if (i == 4) // the first steps record, and fill caches
            begin = tsr_now();
        CHECK(tsr_infer_next(&g, &next, 1, 16 + i, &s, &next));
        out[i] = next;
    }
    double rate = n_tokens / (tsr_now() - begin);
    tsr_infer_close(&g);
    tsr_comm_close(&comm);
    return rate;
}

static void bench_generate(struct bench *b, const char *dir) {
    enum { MOST = 256 };
    int32_t tokens[2][MOST + 4] = {0};
    int n = b->small ? 4 : MOST;
    double plain = tokens_per_s(b, dir, false, n, tokens[0]);
    double graph = tokens_per_s(b, dir, true, n, tokens[1]);
    bool same = memcmp(tokens[0], tokens[1], sizeof tokens[0]) == 0;
    printf("{\"case\": \"generate\", \"plain_tokens_per_s\": %.6g, \"graph_tokens_per_s\": %.6g, "
           "\"same_tokens\": %s}\n",
           plain, graph, same ? "true" : "false");
    if (!same)
        exit(1);
}

int main(int argc, char **argv) {
    const struct tsr_plugin *plugin;
    struct tsr_device_opt opt = {.dtype = TSR_DT_BF16, .timeout_s = 60, .exact = true};
    struct bench b = {.limit_s = 0.1};
    const char *path = getenv("TESSERA_CUDA_OBJECT");
    int at = 1;
    if (argc > 1 && strcmp(argv[1], "--small") == 0) {
        b.small = true;
        b.limit_s = 0;
        at++;
    }
    const char *what = at < argc ? argv[at] : "";
    if (!path) {
        fprintf(stderr, "bench_device: TESSERA_CUDA_OBJECT names no object\n");
        return 2;
    }
    CHECK(tsr_plugin_load(&plugin, path));
    CHECK(plugin->open(&b.ctx, &opt));
    if (strcmp(what, "products") == 0)
        bench_products(&b);
    else if (strcmp(what, "flash") == 0)
        bench_flash(&b);
    else if (strcmp(what, "decode") == 0)
        bench_decode(&b);
    else if (strcmp(what, "sample") == 0)
        bench_sample(&b);
    else if (strcmp(what, "generate") == 0 && at + 1 < argc)
        bench_generate(&b, argv[at + 1]);
    else {
        fprintf(stderr, "usage: bench_device [--small] products | flash | decode | sample | "
                        "generate MODEL_DIR\n");
        return 2;
    }
    b.ctx.ops->close(&b.ctx);
    return 0;
}

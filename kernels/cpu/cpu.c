// Opens the CPU backend: picks the instruction set, starts the threads, measures their peak.
#include <stdbool.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "kernels/cpu/isa.h"
#include "kernels/cpu/peak.h"

struct isa {
    const struct tsr_ops *ops;
    bool (*usable)(void); // here: the CPU has it and the system saves its registers
    double (*fma_loop)(int64_t n);
};

#if defined(__x86_64__)
static bool has_avx512(void) {
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
           __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}

static bool has_avx2(void) {
    return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
}
#endif

static bool always(void) {
    return true;
}

static const struct isa isas[] = {
// the best first
#if defined(__x86_64__)
    {&tsr_ops_avx512, has_avx512, tsr_fma_loop_avx512},
    {&tsr_ops_avx2, has_avx2, tsr_fma_loop_avx2},
#endif
    {&tsr_ops_portable, always, tsr_fma_loop_portable},
};

enum { N_ISAS = sizeof isas / sizeof *isas };

static int choose(const struct isa **out, const char *name) {
    bool known = false;
    for (int i = 0; i < N_ISAS; i++) {
        bool named = name == NULL || strcmp(name, isas[i].ops->name) == 0;
        known |= named;
        if (named && isas[i].usable()) {
            *out = &isas[i];
            return 0;
        }
    }
    if (known)
        return tsr_fail(TSR_EUSAGE, "this CPU has no %s", name);
    return tsr_fail(TSR_EUSAGE, "instruction set: expected avx512, avx2 or portable, found %s",
                    name);
}

static int open_with(struct tsr_ctx *ctx, const char *isa, int n_threads,
                     struct tsr_pool *(*open_pool)(int, const void *)) {
    const struct isa *chosen = NULL;
    if (n_threads < 1)
        return tsr_fail(TSR_EUSAGE, "threads: expected at least 1, found %d", n_threads);
    TSR_TRY(choose(&chosen, isa));
    struct tsr_pool *pool = open_pool(n_threads, chosen);
    if (pool == NULL)
        return tsr_fail(TSR_ENOMEM, "cannot start %d threads", n_threads);
    *ctx = (struct tsr_ctx){.ops = chosen->ops, .stream = pool, .dtype = TSR_DT_F32};
    return 0;
}

int tsr_cpu_open(struct tsr_ctx *ctx, const char *isa, int n_threads) {
    return open_with(ctx, isa, n_threads, tsr_pool_open);
}

int tsr_cpu_open_dry(struct tsr_ctx *ctx, const char *isa, int n_threads) {
    return open_with(ctx, isa, n_threads, tsr_pool_open_dry);
}

void tsr_cpu_close(struct tsr_ctx *ctx) {
    tsr_pool_close(ctx->stream);
    *ctx = (struct tsr_ctx){0};
}

const char *tsr_cpu_describe(const struct tsr_ctx *ctx) {
    return ctx->ops->name;
}

size_t tsr_cpu_allocated(const struct tsr_ctx *ctx) {
    return tsr_pool_count(ctx->stream, 0);
}

size_t tsr_cpu_scratch(const struct tsr_ctx *ctx) {
    return tsr_pool_scratch_bytes(ctx->stream);
}

struct trial {
    double (*fma_loop)(int64_t n);
    int64_t n;
};

static void peak_part(void *arg, int part, int thread) {
    (void)part;
    (void)thread;
    const struct trial *t = arg;
    t->fma_loop(t->n);
}

// A trial is a few parts of a fraction of a millisecond for each thread; the best of them counts,
// because all that can happen to a trial is a neighbour that slows it down.
double tsr_cpu_measure_peak(struct tsr_ctx *ctx, int n_trials) {
    enum { PARTS = 6 };
    const struct isa *isa = tsr_pool_isa(ctx->stream);
    struct trial t = {isa->fma_loop, 64};
    double flops, elapsed;
    do {
        t.n *= 2;
        double start = tsr_now();
        flops = t.fma_loop(t.n);
        elapsed = tsr_now() - start;
    } while (elapsed < 2.5e-4);
    int n_parts = PARTS * tsr_pool_threads(ctx->stream);
    double best = 0;
    for (int i = 0; i < n_trials; i++) {
        double start = tsr_now();
        tsr_pool_run(ctx->stream, n_parts, peak_part, &t);
        double rate = flops * n_parts / (tsr_now() - start);
        best = rate > best ? rate : best;
    }
    return best * 1e-9;
}

// For tests of the CUDA backend as a whole: the simulated object's table beside the CPU's.
#ifndef TSR_TESTS_SIMT_BACKEND_UTIL_H
#define TSR_TESTS_SIMT_BACKEND_UTIL_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <cmocka.h>
#include "core/error.h"
#include "dist/plugin.h"

static const struct tsr_plugin *plugin;
static struct tsr_ctx cpu, cuda;

static inline int load_plugin(void) {
    const char *path = getenv("TESSERA_CUDA_OBJECT");
    assert_non_null(path);
    if (tsr_plugin_load(&plugin, path) < 0)
        fail_msg("%s", tsr_error_text());
    return 0;
}

static inline int open_both(void **state) {
    (void)state;
    load_plugin();
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 20, .exact = true};
    if (plugin->open(&cuda, &opt) < 0)
        fail_msg("%s", tsr_error_text());
    return tsr_cpu_open(&cpu, NULL, 2);
}

static inline int close_both(void **state) {
    (void)state;
    assert_int_equal(cuda.ops->allocated(&cuda), 0);
    cpu.ops->close(&cpu);
    cuda.ops->close(&cuda);
    return 0;
}

#define OK(call)                                                                                   \
    do {                                                                                           \
        if ((call) != 0)                                                                           \
            fail_msg("%s: %s", #call, tsr_error_text());                                           \
    } while (0)

// The same bytes for both: `h` for the CPU, `d` on the device.
struct twin {
    void *h, *d;
    size_t n_bytes;
};

enum { MAX_TWINS = 64 };
static struct twin twins[MAX_TWINS];
static int n_twins;

static inline struct twin twin_of(const void *from, size_t n_bytes) {
    assert_true(n_twins < MAX_TWINS);
    struct twin t = {malloc(n_bytes + 1), NULL, n_bytes};
    assert_non_null(t.h);
    memcpy(t.h, from, n_bytes);
    OK(cuda.ops->alloc(&cuda, n_bytes, &t.d));
    OK(cuda.ops->to_device(&cuda, t.d, from, n_bytes));
    return twins[n_twins++] = t;
}

static uint64_t random_state = 1;
static inline float random_float(float low, float high) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return low + (high - low) * (float)(random_state >> 40) * 0x1p-24f;
}

static inline struct twin random_twin(size_t n, float low, float high) {
    float *x = malloc((n + 1) * sizeof *x);
    assert_non_null(x);
    for (size_t i = 0; i < n; i++)
        x[i] = random_float(low, high);
    struct twin t = twin_of(x, n * sizeof *x);
    free(x);
    return t;
}

static inline void same_bytes(struct twin t) {
    float *back = malloc(t.n_bytes + 1);
    assert_non_null(back);
    OK(cuda.ops->to_host(&cuda, back, t.d, t.n_bytes));
    OK(cuda.ops->sync(&cuda));
    const float *want = t.h;
    for (size_t i = 0; i < t.n_bytes / 4; i++)
        if (memcmp(&back[i], &want[i], 4) != 0)
            fail_msg("element %zu of %zu: the device has %.9g, the CPU %.9g", i, t.n_bytes / 4,
                     (double)back[i], (double)want[i]);
    free(back);
}

static inline int free_twins(void **state) {
    (void)state;
    while (n_twins > 0) {
        struct twin t = twins[--n_twins];
        cuda.ops->free(&cuda, t.d, t.n_bytes);
        free(t.h);
    }
    return 0;
}

// Runs the statement with `ctx` being the CPU's and then the device's; P(t) is a twin's pointer
// there.
#define EACH  for (struct tsr_ctx *ctx = &cpu; ctx; ctx = ctx == &cpu ? &cuda : NULL)
#define P(t)  (ctx == &cuda ? (t).d : (t).h)
#define OP(f) OK(ctx->ops->f)

#define T(f) cmocka_unit_test_teardown(f, free_twins)

#endif

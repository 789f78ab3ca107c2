// The CUDA backend's memory, uploads, recorded operations and errors, on the simulated device or
// on another one.
#include <stdio.h>
#include "tests/simt/backend_util.h"

// Fills with numbers that differ from place to place.
static void number(unsigned char *p, size_t n, unsigned salt) {
    for (size_t i = 0; i < n; i++)
        p[i] = (unsigned char)((i * 2654435761u + salt) >> 13);
}

// Longer than the ring, with other transfers between, from memory that is used again at once.
static void test_transfers(void **state) {
    (void)state;
    static const size_t sizes[] = {1, 4095, (4 << 20) + 12, (37 << 20) + 5};
    for (int pinned = 0; pinned < 2; pinned++)
        for (size_t s = 0; s < sizeof sizes / sizeof *sizes; s++) {
            size_t n = sizes[s];
            unsigned char *from = malloc(n), *to = calloc(1, n), *want = malloc(n);
            void *dev = NULL;
            assert_true(from && to && want);
            if (pinned) {
                OK(cuda.ops->pin(&cuda, from, n));
                OK(cuda.ops->pin(&cuda, to, n));
            }
            number(from, n, (unsigned)s);
            memcpy(want, from, n);
            OK(cuda.ops->alloc(&cuda, n, &dev));
            OK(cuda.ops->to_device(&cuda, dev, from, n));
            if (!pinned)
                memset(from, 0, n);
            OK(cuda.ops->to_host(&cuda, to, dev, n));
            OK(cuda.ops->sync(&cuda));
            assert_memory_equal(to, want, n);
            cuda.ops->unpin(&cuda, from, n);
            cuda.ops->unpin(&cuda, to, n);
            cuda.ops->free(&cuda, dev, n);
            free(from);
            free(to);
            free(want);
        }
}

// More small transfers under way than the ring has places for.
static void test_many_transfers(void **state) {
    (void)state;
    enum { N = 300 };
    float back[N];
    void *dev = NULL;
    OK(cuda.ops->alloc(&cuda, sizeof back, &dev));
    for (int i = 0; i < N; i++) {
        float x = (float)i;
        OK(cuda.ops->to_device(&cuda, (float *)dev + i, &x, sizeof x));
    }
    for (int i = 0; i < N; i++)
        OK(cuda.ops->to_host(&cuda, &back[i], (float *)dev + i, sizeof back[i]));
    OK(cuda.ops->sync(&cuda));
    for (int i = 0; i < N; i++)
        assert_true(back[i] == (float)i);
    cuda.ops->free(&cuda, dev, sizeof back);
}

// Fresh memory is zero, the backend counts it, and an impossible wish says both sizes.
static void test_alloc(void **state) {
    (void)state;
    size_t before = cuda.ops->allocated(&cuda), free_bytes, total;
    char back[1000];
    void *dev = NULL, *none = NULL;
    OK(cuda.ops->alloc(&cuda, sizeof back, &dev));
    assert_int_equal((uintptr_t)dev % 64, 0);
    assert_int_equal(cuda.ops->allocated(&cuda), before + sizeof back);
    memset(back, 1, sizeof back);
    OK(cuda.ops->to_host(&cuda, back, dev, sizeof back));
    OK(cuda.ops->sync(&cuda));
    for (size_t i = 0; i < sizeof back; i++)
        assert_int_equal(back[i], 0);
    cuda.ops->free(&cuda, dev, sizeof back);
    assert_int_equal(cuda.ops->allocated(&cuda), before);
    OK(cuda.ops->memory(&cuda, &free_bytes, &total));
    assert_true(free_bytes <= total);
    assert_int_equal(cuda.ops->alloc(&cuda, total + 1, &none), TSR_ENOMEM);
    char said[128];
    snprintf(said, sizeof said, "out of device memory: %zu bytes are needed for a buffer, ",
             total + 1);
    assert_non_null(strstr(tsr_error_text(), said));
    assert_int_equal(cuda.ops->allocated(&cuda), before);
    OK(cuda.ops->alloc(&cuda, 0, &none)); // nothing is something to free
    cuda.ops->free(&cuda, none, 0);
}

// Arrays of operations: many different ones, more than the cache holds at a time, among them one
// that is used all the time, and one larger than the cache.
static void test_uploads(void **state) {
    (void)state;
    enum { N = 64, ROUNDS = 300, LARGE = 1 << 18 };
    struct twin x = random_twin(N, -1, 1), out = random_twin(N, 0, 0);
    struct tsr_rows *rows = calloc(LARGE, sizeof *rows);
    assert_non_null(rows);
    const struct tsr_rows constant[] = {{3, 5, 0}, {9, 2, 0}};
    for (int round = 0; round < ROUNDS; round++) {
        int n = round == ROUNDS / 2 ? LARGE : 4000; // mostly empty runs
        rows[n - 1] = (struct tsr_rows){round % (N - 4), 1 + round % 4, 0};
        EACH {
            OP(colsum(ctx, P(out), P(x), 1, rows, n, 1));
            OP(colsum(ctx, (float *)P(out) + 1, P(x), 1, constant, 2, 1));
        }
        rows[n - 1] = (struct tsr_rows){0};
    }
    same_bytes(out);
    free(rows);
}

// One step of decoding, asked for once and replayed while the host's arrays change.
static void test_graph(void **state) {
    (void)state;
    enum { D = 16, BLOCK = 4, STEPS = 23 };
    struct twin ck = random_twin(32 * BLOCK * D, 0, 0), cv = random_twin(32 * BLOCK * D, 0, 0);
    struct twin q = random_twin(D, 0, 0), o = random_twin(D, 0, 0), res = random_twin(D, -1, 1);
    struct twin sum = random_twin(D, 0, 0);
    int32_t table[8];
    struct tsr_kv_cache cache = {NULL, NULL, table, BLOCK, 8};
    struct tsr_segment seg = {.length = 1, .cache = &cache};
    struct tsr_attn a = {.nq = 1,
                         .nkv = 1,
                         .group = 1,
                         .head_dim = D,
                         .scale = 0.25f,
                         .n_segs = 1,
                         .segs = &seg,
                         .n_tokens = 1,
                         .ldq = D,
                         .ldk = D,
                         .ldv = D,
                         .ldo = D};
    float token[D], back[2][D];
    void *graph = NULL;
    for (int i = 0; i < 8; i++)
        table[i] = 3 * i % 8;
    for (int step = 0; step < STEPS; step++) {
        seg.position = step;
        for (int i = 0; i < D; i++)
            token[i] = random_float(-1, 1);
        EACH {
            cache.k = P(ck);
            cache.v = P(cv);
            bool device = ctx == &cuda;
            if (device && step > 0) {
                OK(cuda.ops->replay(&cuda, graph));
                continue;
            }
            if (device)
                OK(cuda.ops->record(&cuda));
            const float *both[] = {P(o), P(res)}; // gone when the graph is replayed
            OP(to_device(ctx, P(q), token, sizeof token));
            OP(kv_store(ctx, &a, P(q), P(q)));
            OP(attention(ctx, &a, P(o), NULL, P(q), P(q), P(q)));
            OP(tree_add(ctx, P(sum), both, 2, D));
            OP(to_host(ctx, back[device], P(sum), sizeof back[0]));
            if (device)
                OK(cuda.ops->recorded(&cuda, &graph));
        }
        OK(cuda.ops->sync(&cuda));
        assert_memory_equal(back[1], back[0], sizeof back[0]);
        same_bytes(o);
    }
    same_bytes(ck);
    cuda.ops->graph_free(&cuda, graph);
}

// A device that is closed before what was recorded, or while it is.
static void test_graph_left(void **state) {
    (void)state;
    struct tsr_ctx other;
    struct tsr_device_opt opt = {.dtype = TSR_DT_BF16, .timeout_s = 20, .exact = false};
    for (int unfinished = 0; unfinished < 2; unfinished++) {
        void *dev = NULL, *graph = NULL;
        OK(plugin->open(&other, &opt));
        OK(other.ops->alloc(&other, 100, &dev));
        OK(other.ops->record(&other));
        OK(other.ops->zero(&other, dev, 100));
        if (!unfinished)
            OK(other.ops->recorded(&other, &graph));
        else
            OK(cpu.ops->sync(&cpu));
        other.ops->free(&other, dev, 100);
        other.ops->close(&other);
    }
}

static void test_description(void **state) {
    (void)state;
    const char *name = cuda.ops->describe(&cuda);
    if (strncmp(name, "Simulated", 9) == 0)
        assert_string_equal(name, "Simulated device, sm_80, 4 GiB");
    assert_non_null(strstr(name, ", sm_"));
    assert_string_equal(cuda.ops->name, "cuda");
    assert_true(cuda.ops->scratch(&cuda) > 0);
    double peak = cuda.ops->measure_peak(&cuda, 1);
    assert_true(peak > 0 && peak < 1e6);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        T(test_transfers), T(test_many_transfers), T(test_alloc),      T(test_uploads),
        T(test_graph),     T(test_graph_left),     T(test_description)};
    return cmocka_run_group_tests(tests, open_both, close_both);
}

// The paged key/value cache, and the tree over a KV head's gradient pieces: copies and sums in a
// fixed order, so everything is compared for equality.
#include "tests/unit/ops_util.h"

enum { BLOCK = 4, N_BLOCKS = 7, NKV = 2, D = 10, WIDTH = NKV * D, LD = WIDTH + 3, ROWS = 12 };

struct store_case {
    const struct tsr_segment *segs; // their caches are filled in per run
    int n_segs;
    const float *k, *v;
};

static void run_store(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct store_case *q = arg;
    size_t size = N_BLOCKS * BLOCK * WIDTH;
    float *k = buf_new(size), *v = buf_new(size);
    static const int32_t first[] = {5, 0}, second[] = {1, 2, 6};
    struct tsr_kv_cache caches[] = {{k, v, first, BLOCK, 2}, {k, v, second, BLOCK, 3}};
    struct tsr_segment segs[3];
    memset(k, 0, size * sizeof *k);
    memset(v, 0, size * sizeof *v);
    for (int s = 0; s < q->n_segs; s++) {
        segs[s] = q->segs[s];
        segs[s].cache = s < 2 ? &caches[s] : NULL; // the third segment has none
    }
    struct tsr_attn a = {.nkv = NKV,
                         .head_dim = D,
                         .n_segs = q->n_segs,
                         .segs = segs,
                         .n_tokens = ROWS,
                         .ldk = LD,
                         .ldv = LD};
    assert_int_equal(ctx->ops->kv_store(ctx, &a, q->k, q->v), 0);
    emit(out, k, size);
    emit(out, v, size);
}

static void test_store(void **state) {
    (void)state;
    static const struct tsr_segment segs[] = {
        {1, 5, 2, 0, NULL}, {6, 3, 8, 1, NULL}, {9, 3, 0, 2, NULL}};
    static const int row_of[] = {-1, 22, 23, 0, 1, 2, 24, 25, 26, -1, -1, -1}; // of each token
    struct store_case q = {segs, 3, buf_random(ROWS * LD, 1, -1, 1),
                           buf_random(ROWS * LD, 2, 1, 2)};
    struct sink out = run_everywhere(run_store, &q);
    size_t size = N_BLOCKS * BLOCK * WIDTH;
    float *want = calloc(2 * size, sizeof *want);
    assert_non_null(want);
    for (int t = 0; t < ROWS; t++)
        for (int j = 0; j < WIDTH && row_of[t] >= 0; j++) {
            want[row_of[t] * WIDTH + j] = q.k[t * LD + j];
            want[(int)size + row_of[t] * WIDTH + j] = q.v[t * LD + j];
        }
    assert_memory_equal(out.v, want, 2 * size * sizeof *want);
    free(want);
    free(out.v);
    bufs_end(0);
}

struct slot_case {
    const struct tsr_kv_slot *slots;
    int n_slots, n_pieces, nkv, n, d;
    const float *values;
};

static void run_slots(struct tsr_ctx *ctx, const void *arg, struct sink *out) {
    const struct slot_case *q = arg;
    size_t size = (size_t)(q->n * q->nkv * q->d);
    float *dkv = buf_new(size);
    assert_int_equal(ctx->ops->kv_slot_sum(ctx, dkv, false, q->values, q->slots, q->n_slots,
                                           q->n_pieces, q->nkv, q->n, q->d),
                     0);
    emit(out, dkv, size);
}

static float naive_tree(float *leaf, int n) {
    for (; n > 1; n = (n + 1) / 2)
        for (int i = 0; i < (n + 1) / 2; i++)
            leaf[i] = 2 * i + 1 < n ? leaf[2 * i] + leaf[2 * i + 1] : leaf[2 * i];
    return leaf[0];
}

// Leaving absent pieces out and adding +0 at the end is the whole tree with +0 leaves.
static void check_slots(const struct slot_case *q) {
    struct sink out = run_everywhere(run_slots, q);
    for (int i = 0; i < q->n; i++)
        for (int h = 0; h < q->nkv; h++)
            for (int j = 0; j < q->d; j++) {
                float leaf[32] = {0};
                for (int s = 0; s < q->n_slots; s++)
                    if (q->slots[s].kv == h)
                        leaf[q->slots[s].piece] = q->values[(i * q->n_slots + s) * q->d + j];
                float want = naive_tree(leaf, q->n_pieces) + 0.0f;
                assert_memory_equal(&out.v[(i * q->nkv + h) * q->d + j], &want, sizeof want);
            }
    free(out.v);
}

static void test_slots(void **state) {
    (void)state;
    static const struct tsr_kv_slot slots[] = {{0, 1, 0, 0}, {1, 1, 0, 1}, {2, 1, 1, 1},
                                               {3, 1, 1, 2}, {4, 1, 1, 4}, {5, 1, 1, 6},
                                               {6, 2, 3, 7}, {8, 1, 0, 5}};
    static const int shapes[][3] = {{8, 0, 5}, {8, 3, 1}, {8, 3, 16}, {11, 5, 33}, {16, 70, 64}};
    for (size_t k = 0; k < sizeof shapes / sizeof *shapes; k++) {
        struct slot_case q = {slots, 8, shapes[k][0], 4, shapes[k][1], shapes[k][2], NULL};
        float *values = buf_random((size_t)(q.n * q.n_slots * q.d), k + 1, -1, 1);
        for (int j = 0; j < q.n * q.n_slots * q.d; j += 5)
            values[j] = -0.0f;
        q.values = values;
        check_slots(&q);
        q.n_slots = 0; // every head is +0
        check_slots(&q);
        bufs_end(0);
    }
    static const struct tsr_kv_slot one[] = {{0, 1, 0, 0}};
    float minus[] = {-0.0f, 1.5f};
    struct slot_case q = {one, 1, 1, 1, 1, 2, minus};
    check_slots(&q);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_store),
        cmocka_unit_test(test_slots),
    };
    return cmocka_run_group_tests(tests, open_isas, close_isas);
}

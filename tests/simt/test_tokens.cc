// Embeddings and cross-entropy against the CPU twins.
#include "kernels/cuda/embedding.cu"
#include "kernels/cuda/xent.cu"
#include "tests/simt/util.h"

template <class T> static void test_embedding(void **) {
    const int32_t ids[] = {5, 3, 9, 3, 0, 12, 5};
    for (int c : {1, 8, 33, 1100}) {
        both<T> wte = random_values<T>(7 * (size_t)c, 1.0f), x = blank<T>(7 * (size_t)c);
        int32_t *dev = copy_array(ids, 7);
        tsr_cuda_embedding(nullptr, dtype_of<T>, x.dev, dev, wte.dev, 3, 7, 7, c);
        cpu.ops->embedding(&cpu, x.cpu, ids, wte.cpu, 3, 7, 7, c);
        expect_same(x);
        const int32_t pos[] = {0, 6, 6, 2, 1, 0, 3};
        tsr_cuda_position(nullptr, dtype_of<T>, x.dev, copy_array(pos, 7), wte.dev, 7, c);
        cpu.ops->position(&cpu, x.cpu, pos, wte.cpu, 7, c);
        expect_same(x, 1.01f, 0.1f);
    }
}

template <class T> static void test_embedding_bwd(void **) {
    enum { N = 300, C = 33 };
    int32_t ids[N];
    both<T> dx = random_values<T>(N * C, 1.0f);
    const struct tsr_rows one[] = {{3, 290, 0}};
    const struct tsr_rows many[] = {
        {0, 40, 0}, {40, 60, 1}, {100, 1, 4}, {101, 99, 0}, {200, 100, 2}};
    for (int vocab : {1, 4, 1000})
        for (int chains : {1, 5}) {
            const struct tsr_rows *rows = chains == 1 ? one : many;
            int n_rows = chains == 1 ? 1 : 5;
            for (int32_t &id : ids)
                id = (int32_t)((random_unit() + 1.0f) * 0.5f * (float)vocab);
            int row0 = vocab > 4 ? 100 : 0, n_table = vocab > 4 ? 500 : vocab;
            both<float> table = random_values<float>((size_t)n_table * C, 1.0f);
            tsr_cuda_embedding_bwd(nullptr, dtype_of<T>, table.dev, copy_array(ids, N), dx.dev,
                                   copy_array(rows, (size_t)n_rows), n_rows, chains, row0, n_table,
                                   N, C, simt::array<int>(2 * N));
            cpu.ops->embedding_bwd(&cpu, table.cpu, ids, dx.cpu, rows, n_rows, chains, row0,
                                   n_table, C);
            expect_same(table);
        }
}

// 16-bit exponentials are rounded once where the twin's are not; sums are of the unrounded ones.
template <class T> static void test_xent(void **) {
    const int32_t targets[] = {0, 100, -1, 130, 99};
    for (int v : {1, 16, 40, 333, 700}) {
        const int n = 5, pieces = 8, row0 = 100;
        both<T> logits = random_values<T>((size_t)(n * v), 6.0f);
        both<float> max = blank<float>(n), sums = blank<float>(2 * n), loss = blank<float>(n);
        int bounds[pieces + 1];
        for (int p = 0; p <= pieces; p++)
            bounds[p] = v * p / pieces;
        int32_t *dev_targets = copy_array(targets, n);
        tsr_cuda_xent_max(nullptr, dtype_of<T>, max.dev, logits.dev, n, v);
        cpu.ops->xent_max(&cpu, max.cpu, logits.cpu, n, v);
        expect_same(max);
        tsr_cuda_xent_exp(nullptr, dtype_of<T>, logits.dev, sums.dev, max.dev, dev_targets,
                          copy_array(bounds, pieces + 1), pieces, row0, n, v);
        cpu.ops->xent_exp(&cpu, logits.cpu, sums.cpu, max.cpu, targets, bounds, pieces, row0, n, v);
        expect_same(logits, 1.01f, 1e-6f);
        for (int i = 0; i < 2 * n; i++) {
            if (sizeof(T) == 4)
                assert_memory_equal(&sums.dev[i], &sums.cpu[i], 4);
            assert_true(std::fabs(sums.dev[i] - sums.cpu[i]) <= 3e-6f * std::fabs(sums.cpu[i]));
        }
        memcpy(sums.dev, sums.cpu, 2 * n * sizeof(float));
        both<T> no_grad = copy_of(logits);
        tsr_cuda_xent_loss(nullptr, dtype_of<T>, loss.dev, no_grad.dev, sums.dev, dev_targets, 0.5f,
                           false, row0, n, v);
        assert_memory_equal(no_grad.dev, logits.dev, (size_t)(n * v) * sizeof(T));
        tsr_cuda_xent_loss(nullptr, dtype_of<T>, loss.dev, logits.dev, sums.dev, dev_targets, 0.5f,
                           true, row0, n, v);
        cpu.ops->xent_loss(&cpu, loss.cpu, logits.cpu, sums.cpu, targets, 0.5f, true, row0, n, v);
        expect_same(loss);
        expect_same(logits, 2.1f, v == 1 ? 1.0f : 1e-3f);
    }
}

// A piece's sum is that of its own columns, wherever it begins and whoever has it: two halves of
// the vocabulary, at unaligned addresses, give, joined, the bits of the whole. Pieces of several
// steps, and uneven ones.
template <class T> static void test_pieces(void **) {
    const int pieces = 4, lengths[] = {5003, 21, 4096, 9000}, n = 2;
    int v = 0, bounds[pieces + 1] = {0}, rest[3];
    for (int p = 0; p < pieces; p++)
        bounds[p + 1] = v += lengths[p];
    const int32_t targets[] = {7, -1};
    int32_t *dev_targets = copy_array(targets, n);
    both<T> logits = random_values<T>((size_t)(n * v), 6.0f);
    both<float> max = blank<float>(n), sums = blank<float>(2 * n), part[2];
    tsr_cuda_xent_max(nullptr, dtype_of<T>, max.dev, logits.dev, n, v);
    cpu.ops->xent_max(&cpu, max.cpu, logits.cpu, n, v);
    expect_same(max);
    for (int half = 0; half < 2; half++) {
        int lo = bounds[2 * half], len = bounds[2 * half + 2] - lo;
        both<T> own = blank<T>((size_t)(n * len), sizeof(T));
        for (int i = 0; i < n; i++)
            memcpy((void *)(own.dev + i * len), logits.dev + i * v + lo, (size_t)len * sizeof(T));
        for (int p = 0; p < 3; p++)
            rest[p] = bounds[2 * half + p] - lo;
        part[half] = blank<float>(2 * n);
        assert_int_equal(tsr_cuda_xent_exp(nullptr, dtype_of<T>, own.dev, part[half].dev, max.dev,
                                           dev_targets, copy_array(rest, 3), 2, lo, n, len),
                         0);
    }
    assert_int_equal(tsr_cuda_xent_exp(nullptr, dtype_of<T>, logits.dev, sums.dev, max.dev,
                                       dev_targets, copy_array(bounds, pieces + 1), pieces, 0, n,
                                       v),
                     0);
    cpu.ops->xent_exp(&cpu, logits.cpu, sums.cpu, max.cpu, targets, bounds, pieces, 0, n, v);
    expect_same(logits, 1.01f, 1e-6f);
    for (int i = 0; i < n; i++) {
        float joined = part[0].dev[i] + part[1].dev[i];
        assert_memory_equal(&joined, &sums.dev[i], sizeof joined);
        assert_true(std::fabs(joined - sums.cpu[i]) <= 1e-5f * sums.cpu[i]);
    }
}

static void test_no_columns(void **) {
    both<float> max = blank<float>(2);
    tsr_cuda_xent_max(nullptr, TSR_DT_F32, max.dev, simt::array<float>(0), 2, 0);
    assert_true(max.dev[0] == -INFINITY && max.dev[1] == -INFINITY);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPES(test_embedding), TEST_TYPES(test_embedding_bwd),
                                       TEST_TYPES(test_xent), TEST_TYPES(test_pieces),
                                       TEST(test_no_columns)};
    return run_in_both_orders(tests);
}

// LayerNorm, RMSNorm, their backward, and sums over rows, against the CPU twins.
#include "kernels/cuda/columns.cu"
#include "kernels/cuda/norm.cu"
#include "tests/simt/util.h"

static const struct {
    int n, c;
    size_t skew;
} shapes[] = {{1, 1, 0},  {3, 7, 0},   {5, 16, 0},   {2, 65, 4},
              {7, 64, 0}, {4, 200, 0}, {3, 1000, 0}, {1, 4096, 0}};

template <class T> static void test_forward(void **) {
    for (auto s : shapes) {
        size_t n = (size_t)s.n * s.c, c = (size_t)s.c, rows = (size_t)s.n;
        both<T> x = random_values<T>(n, 3.0f, s.skew), w = random_values<T>(c, 2.0f);
        both<T> b = random_values<T>(c, 1.0f), y = blank<T>(n, s.skew);
        both<float> mean = blank<float>(rows), rstd = blank<float>(rows);
        for (int bias = 0; bias < 2; bias++) {
            assert_int_equal(tsr_cuda_layernorm(nullptr, dtype_of<T>, y.dev, mean.dev, rstd.dev,
                                                x.dev, w.dev, bias ? b.dev : nullptr, 1e-5f, s.n,
                                                s.c),
                             0);
            cpu.ops->layernorm(&cpu, y.cpu, mean.cpu, rstd.cpu, x.cpu, w.cpu,
                               bias ? b.cpu : nullptr, 1e-5f, s.n, s.c);
            expect_same(y);
            expect_same(mean);
            expect_same(rstd);
        }
        assert_int_equal(
            tsr_cuda_rmsnorm(nullptr, dtype_of<T>, y.dev, rstd.dev, x.dev, w.dev, 1e-6f, s.n, s.c),
            0);
        cpu.ops->rmsnorm(&cpu, y.cpu, rstd.cpu, x.cpu, w.cpu, 1e-6f, s.n, s.c);
        expect_same(y);
        expect_same(rstd);
    }
}

// sum = residual + x is rounded to T before it is normalised.
template <class T> static void test_add_norm(void **) {
    for (auto s : shapes) {
        size_t n = (size_t)s.n * s.c, c = (size_t)s.c, rows = (size_t)s.n;
        both<T> x = random_values<T>(n, 3.0f), r = random_values<T>(n, 3.0f);
        both<T> w = random_values<T>(c, 2.0f), y = blank<T>(n), sum = blank<T>(n, s.skew);
        both<float> rstd = blank<float>(rows);
        assert_int_equal(tsr_cuda_add_norm(nullptr, dtype_of<T>, y.dev, nullptr, rstd.dev, sum.dev,
                                           r.dev, x.dev, w.dev, nullptr, 1e-6f, s.n, s.c),
                         0);
        cpu.ops->add(&cpu, sum.cpu, r.cpu, x.cpu, n);
        expect_same(sum);
        for (size_t i = 0; i < n; i++)
            sum.cpu[i] = to_float(sum.dev[i]);
        cpu.ops->rmsnorm(&cpu, y.cpu, rstd.cpu, sum.cpu, w.cpu, 1e-6f, s.n, s.c);
        expect_same(y);
        expect_same(rstd);
        assert_int_equal(tsr_cuda_add_norm(nullptr, dtype_of<T>, y.dev, nullptr, rstd.dev, r.dev,
                                           r.dev, x.dev, w.dev, nullptr, 1e-6f, s.n, s.c),
                         0);
        expect_same(r.dev, sum.cpu, n, 1.01f, 0.0f);
    }
}

template <class T> static void test_backward(void **) {
    for (auto s : shapes)
        for (int layer = 0; layer < 2; layer++) {
            size_t n = (size_t)s.n * s.c, c = (size_t)s.c, rows = (size_t)s.n;
            both<T> x = random_values<T>(n, 3.0f), dy = random_values<T>(n, 1.0f, s.skew);
            both<T> w = random_values<T>(c, 2.0f), dres = random_values<T>(n, 1.0f);
            both<T> dx = blank<T>(n);
            both<float> mean = random_values<float>(rows, 0.5f),
                        rstd = random_values<float>(rows, 1);
            const float *dm = layer ? mean.dev : nullptr, *cm = layer ? mean.cpu : nullptr;
            assert_int_equal(tsr_cuda_norm_bwd(nullptr, dtype_of<T>, dx.dev, nullptr, dy.dev, x.dev,
                                               w.dev, dm, rstd.dev, s.n, s.c),
                             0);
            cpu.ops->norm_bwd(&cpu, dx.cpu, nullptr, dy.cpu, x.cpu, w.cpu, cm, rstd.cpu, s.n, s.c);
            expect_same(dx);
            assert_int_equal(tsr_cuda_norm_bwd(nullptr, dtype_of<T>, dres.dev, dres.dev, dy.dev,
                                               x.dev, w.dev, dm, rstd.dev, s.n, s.c),
                             0);
            cpu.ops->norm_bwd(&cpu, dres.cpu, dres.cpu, dy.cpu, x.cpu, w.cpu, cm, rstd.cpu, s.n,
                              s.c);
            expect_same(dres);
        }
}

template <class T> static void test_columns(void **) {
    const struct tsr_rows runs[] = {{0, 3, 0}, {3, 1, 2}, {4, 0, 1}, {4, 9, 0}, {20, 5, 2}};
    struct tsr_rows *rows = copy_array(runs, 5);
    for (int c : {1, 63, 64, 130}) {
        size_t n = 25 * (size_t)c;
        both<T> x = random_values<T>(n, 2.0f), dy = random_values<T>(n, 1.0f);
        both<float> mean = random_values<float>(25, 0.5f), rstd = random_values<float>(25, 1.0f);
        both<float> dw = random_values<float>(3 * c, 1.0f), db = random_values<float>(3 * c, 1.0f);
        for (int layer = 0; layer < 2; layer++) {
            const float *dm = layer ? mean.dev : nullptr, *cm = layer ? mean.cpu : nullptr;
            assert_int_equal(tsr_cuda_norm_bwd_params(nullptr, dtype_of<T>, dw.dev,
                                                      layer ? db.dev : nullptr, dy.dev, x.dev, dm,
                                                      rstd.dev, rows, 5, 3, c),
                             0);
            cpu.ops->norm_bwd_params(&cpu, dw.cpu, layer ? db.cpu : nullptr, dy.cpu, x.cpu, cm,
                                     rstd.cpu, runs, 5, c);
            expect_same(dw);
            expect_same(db);
        }
        both<T> wide = random_values<T>(25 * (size_t)(c + 3), 1.0f);
        assert_int_equal(
            tsr_cuda_colsum(nullptr, dtype_of<T>, dw.dev, wide.dev, c + 3, rows, 5, 3, c), 0);
        cpu.ops->colsum(&cpu, dw.cpu, wide.cpu, c + 3, runs, 5, c);
        expect_same(dw);
    }
}

// Runs of more rows than the tile that is brought at a time, and others of whole tiles.
template <class T> static void test_long_columns(void **) {
    enum { C = 35, N = 1300 };
    const struct tsr_rows runs[] = {{0, 700, 1}, {700, 256, 0}, {956, 0, 1}, {956, 257, 1}};
    struct tsr_rows *rows = copy_array(runs, 4);
    both<T> x = random_values<T>(N * C, 2.0f), dy = random_values<T>(N * C, 1.0f);
    both<float> mean = random_values<float>(N, 0.5f), rstd = random_values<float>(N, 1.0f);
    both<float> dw = random_values<float>(2 * C, 1.0f), db = random_values<float>(2 * C, 1.0f);
    assert_int_equal(tsr_cuda_norm_bwd_params(nullptr, dtype_of<T>, dw.dev, db.dev, dy.dev, x.dev,
                                              mean.dev, rstd.dev, rows, 4, 2, C),
                     0);
    cpu.ops->norm_bwd_params(&cpu, dw.cpu, db.cpu, dy.cpu, x.cpu, mean.cpu, rstd.cpu, runs, 4, C);
    expect_same(dw);
    expect_same(db);
    assert_int_equal(tsr_cuda_colsum(nullptr, dtype_of<T>, db.dev, x.dev, C, rows, 4, 2, C), 0);
    cpu.ops->colsum(&cpu, db.cpu, x.cpu, C, runs, 4, C);
    expect_same(db);
}

// Rows that shared memory can't hold: forward has one of them in place, backward two.
static void test_refusals(void **) {
    const float *x = simt::array<float>(1);
    float *y = simt::array<float>(1);
    for (int c : {30000, 15000}) {
        int rc = c == 30000 ? tsr_cuda_rmsnorm(nullptr, TSR_DT_F32, y, y, x, x, 1e-5f, 1, c)
                            : tsr_cuda_norm_bwd(nullptr, TSR_DT_F32, y, nullptr, x, x, x, nullptr,
                                                x, 1, c);
        assert_int_equal(rc, TSR_EUSAGE);
        assert_non_null(strstr(tsr_error_text(), "a block of this device has at most "));
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPES(test_forward),      TEST_TYPES(test_add_norm),
                                       TEST_TYPES(test_backward),     TEST_TYPES(test_columns),
                                       TEST_TYPES(test_long_columns), TEST(test_refusals)};
    return run_in_both_orders(tests);
}

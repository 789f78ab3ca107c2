// Activations, rotary positions, dropout, adds, copies and initial weights against the CPU twins.
#include "kernels/cuda/act.cu"
#include "kernels/cuda/copy.cu"
#include "kernels/cuda/dropout.cu"
#include "kernels/cuda/rotary.cu"
#include "tests/simt/util.h"

static const size_t lengths[] = {1, 4, 8, 63, 64, 127, 2500};

// A 16-bit result is one rounding of nearly the twin's value; the approximate exponential and the
// differences in the derivative add little to that.
static const float units = 1.3f, floor_of_act = 1e-2f;

template <class T> static void test_act(void **) {
    for (enum tsr_act act : {TSR_ACT_GELU, TSR_ACT_GELU_TANH, TSR_ACT_SILU})
        for (size_t n : lengths)
            for (size_t skew : {(size_t)0, sizeof(T)}) {
                both<T> x = random_values<T>(n, n > 100 ? 20.0f : 3.0f, skew);
                both<T> up = random_values<T>(n, 1.0f, skew), dy = random_values<T>(n, 1.0f);
                both<T> y = blank<T>(n), dx = blank<T>(n);
                if (n > 100) {
                    for (size_t i = 0; i < 6; i++) {
                        const float least =
                            sizeof(T) == 4 || dtype_of<T> == TSR_DT_BF16 ? -3e38f : -65504.0f;
                        const float edge[] = {INFINITY, 1e4f, -1e4f, 0.0f, least, least / 2};
                        x.dev[i] = from_float<T>(edge[i]);
                        x.cpu[i] = to_float(x.dev[i]);
                    }
                }
                tsr_cuda_act(nullptr, dtype_of<T>, act, y.dev, x.dev, nullptr, n);
                cpu.ops->act(&cpu, act, y.cpu, x.cpu, n);
                expect_same(y, units, floor_of_act);
                tsr_cuda_act(nullptr, dtype_of<T>, act, y.dev, x.dev, up.dev, n);
                cpu.ops->gated(&cpu, act, y.cpu, x.cpu, up.cpu, n);
                expect_same(y, units, floor_of_act);
                tsr_cuda_act_bwd(nullptr, dtype_of<T>, act, dx.dev, nullptr, dy.dev, x.dev, nullptr,
                                 n);
                cpu.ops->act_bwd(&cpu, act, dx.cpu, dy.cpu, x.cpu, n);
                expect_same(dx, units, floor_of_act);
                tsr_cuda_act_bwd(nullptr, dtype_of<T>, act, x.dev, up.dev, dy.dev, x.dev, up.dev,
                                 n);
                cpu.ops->gated_bwd(&cpu, act, x.cpu, up.cpu, dy.cpu, x.cpu, up.cpu, n);
                expect_same(x, units, floor_of_act);
                expect_same(up, units, floor_of_act);
            }
}

template <class T> static void test_rotary(void **) {
    for (int d : {2, 6, 64, 80, 128})
        for (int heads : {1, 3, 9}) {
            int n = 5, ld = heads * d + (heads == 3 ? 8 : 0);
            const int32_t at[] = {0, 7, 3, 3, 1};
            both<float> table = random_values<float>(8 * (size_t)d, 1.0f);
            both<T> x = random_values<T>((size_t)n * ld, 1.0f, heads == 9 ? 4 : 0);
            for (int inverse = 0; inverse < 2; inverse++) {
                assert_int_equal(tsr_cuda_rotary(nullptr, dtype_of<T>, x.dev, ld, copy_array(at, 5),
                                                 table.dev, n, heads, d, inverse),
                                 0);
                cpu.ops->rotary(&cpu, x.cpu, ld, at, table.cpu, n, heads, d, inverse);
                expect_same(x, 2.1f, 1.0f); // the second pass starts from rounded values
            }
        }
}

template <class T> static void test_dropout(void **) {
    const struct tsr_segment some[] = {{0, 3, 5, 77, nullptr}, {4, 1, 0, 1ull << 40, nullptr}};
    segments segs = segments_of(some, 2);
    for (int c : {1, 15, 64, 300})
        for (int64_t col0 : {0, 3, 8, 1000})
            for (float p : {0.0f, 0.25f}) {
                int ld = c + (c == 15 ? 1 : 0);
                size_t n = 5 * (size_t)ld;
                struct tsr_dropout d = {p, {123, 456}};
                both<T> y = random_values<T>(n, 1.0f), res = random_values<T>(n, 1.0f);
                both<T> bias = random_values<T>((size_t)c, 1.0f), out = random_values<T>(n, 1.0f);
                for (int full = 0; full < 2; full++) {
                    assert_int_equal(tsr_cuda_dropout(nullptr, dtype_of<T>, out.dev,
                                                      full ? res.dev : nullptr, y.dev, false,
                                                      full ? bias.dev : nullptr, d, segs.dev, 2,
                                                      segs.max_length, ld, c, col0),
                                     0);
                    if (full)
                        cpu.ops->bias_dropout_add(&cpu, out.cpu, res.cpu, y.cpu, false, bias.cpu,
                                                  &d, some, 2, ld, c, col0);
                    else
                        cpu.ops->dropout_bwd(&cpu, out.cpu, y.cpu, &d, some, 2, ld, c, col0);
                    expect_same(out);
                }
                both<float> sum = random_values<float>(n, 1.0f); // y not rounded yet
                assert_int_equal(tsr_cuda_dropout(nullptr, dtype_of<T>, out.dev, res.dev, sum.dev,
                                                  true, bias.dev, d, segs.dev, 2, segs.max_length,
                                                  ld, c, col0),
                                 0);
                cpu.ops->bias_dropout_add(&cpu, out.cpu, res.cpu, sum.cpu, true, bias.cpu, &d, some,
                                          2, ld, c, col0);
                expect_same(out);
            }
}

template <class T> static void test_copies(void **) {
    for (int cols : {1, 8, 33})
        for (int extra : {0, 8, 1}) {
            both<T> from = random_values<T>(4 * (size_t)(cols + extra), 1.0f);
            both<T> to = random_values<T>(4 * (size_t)(cols + 16), 1.0f);
            assert_int_equal(tsr_cuda_copy_2d(nullptr, dtype_of<T>, to.dev, cols + 16, from.dev,
                                              cols + extra, 4, cols),
                             0);
            cpu.ops->copy_2d(&cpu, to.cpu, cols + 16, from.cpu, cols + extra, 4, cols);
            expect_same(to);
        }
    both<T> filled = blank<T>(300);
    tsr_cuda_fill(nullptr, dtype_of<T>, filled.dev, 0.5f, 300);
    for (size_t i = 0; i < 300; i++)
        filled.cpu[i] = 0.5f;
    expect_same(filled);
}

// From and to every type, between leading dimensions.
template <class T> static void test_convert(void **) {
    for (int cols : {1, 8, 31, 64})
        for (int extra : {0, 8, 3}) {
            int ld = cols + extra, rows = 5;
            both<float> x = random_values<float>((size_t)(rows * ld), 1.0f);
            both<T> y = blank<T>((size_t)(rows * cols));
            assert_int_equal(tsr_cuda_convert(nullptr, dtype_of<T>, y.dev, cols, TSR_DT_F32, x.dev,
                                              ld, rows, cols),
                             0);
            T *want = simt::array<T>(y.n);
            cpu.ops->convert(&cpu, dtype_of<T>, want, cols, TSR_DT_F32, x.cpu, ld, rows, cols);
            assert_memory_equal(y.dev, want, y.n * sizeof(T));
            assert_int_equal(tsr_cuda_convert(nullptr, TSR_DT_F32, x.dev, ld, dtype_of<T>, y.dev,
                                              cols, rows, cols),
                             0);
            cpu.ops->convert(&cpu, TSR_DT_F32, x.cpu, ld, dtype_of<T>, want, cols, rows, cols);
            assert_memory_equal(x.dev, x.cpu, x.n * sizeof(float)); // the columns between, too
        }
}

template <class T> static void test_init(void **) {
    both<T> w = blank<T>(7 * 13);
    struct tsr_rng_key key = {9, 8};
    tsr_cuda_init_normal(nullptr, dtype_of<T>, w.dev, key, 0.02f, 3, 7, 5, 13, 50);
    cpu.ops->init_normal(&cpu, w.cpu, key, 0.02f, 3, 7, 5, 13, 50);
    expect_same(w);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPES(test_act),     TEST_TYPES(test_rotary),
                                       TEST_TYPES(test_dropout), TEST_TYPES(test_copies),
                                       TEST_TYPES(test_convert), TEST_TYPES(test_init)};
    return run_in_both_orders(tests);
}

// The 16-bit matrix product. Each element is held for equality of bits against the sum in the
// order that is promised (groups of 16 terms from the beginning of each segment, a chain a piece,
// the tree), whatever tile, layout and alignment; and that sum against one in double.
#include "kernels/cuda/gemm_bf16.cu"
#include "kernels/cuda/gemm_f16.cu"
#include "tests/simt/gemm_case.h"

// c + 16 products as the simulator's instruction adds them (simt_warp.cc).
static float group(float c, const float *a, const float *b) {
    float s[4] = {c, 0, 0, 0};
    for (int k = 0; k < 16; k++)
        s[k % 4] += a[k] * b[k];
    return (s[0] + s[1]) + (s[2] + s[3]);
}

// The chain of one piece; *exact and *size: the sum in double and that of absolute values.
template <class T>
static float chain(const gemm_case<T> &p, int piece, int i, int j, float sum, double *exact,
                   double *size) {
    for (const struct tsr_gemm_seg &s : p.cpu_segs) {
        if (s.piece != piece)
            continue;
        for (int k = 0; k < s.k; k += 16) {
            float a[16] = {}, b[16] = {};
            for (int e = 0; e < 16 && k + e < s.k; e++) {
                a[e] = ((const float *)s.a)[i * s.a_i + (k + e) * s.a_p];
                b[e] = ((const float *)s.b)[j * s.b_j + (k + e) * s.b_p];
                *exact += (double)a[e] * b[e];
                *size += std::fabs((double)a[e] * b[e]);
            }
            sum = group(sum, a, b);
        }
    }
    return sum;
}

template <class T>
static float tree(const gemm_case<T> &p, int lo, int n, int i, int j, double *exact, double *size) {
    if (n <= 1)
        return n == 0 ? 0.0f : chain(p, lo, i, j, 0.0f, exact, size);
    int half = 1;
    while (2 * half < n)
        half *= 2;
    float left = tree(p, lo, half, i, j, exact, size);
    return left + tree(p, lo + half, n - half, i, j, exact, size);
}

template <class T> static float rounded(float x) {
    return to_float(from_float<T>(x));
}

// What element (i, j) must be, from C's `old`. Also checks the sum against double: each of k
// additions and of the tree's rounds by up to 2^-24 of a partial sum, none of which is larger than
// the sum of absolute values.
template <class T> static float expected(const gemm_case<T> &p, int i, int j, float old) {
    const struct tsr_gemm &g = p.cpu_g;
    double exact = 0.0, size = 0.0;
    float y;
    if (g.mode == TSR_GEMM_CHAIN) {
        exact = old;
        size = std::fabs(old);
        y = chain(p, 0, i, j, old, &exact, &size);
    } else {
        y = tree(p, 0, g.n_pieces, i, j, &exact, &size);
    }
    int terms = 0;
    for (const struct tsr_gemm_seg &s : p.cpu_segs)
        terms += (s.k + 15) / 16 * 16;
    assert_true(std::fabs(y - exact) <= (terms + 2.0 * g.n_pieces) * 0x1p-24 * size);
    if (g.mode == TSR_GEMM_ADD)
        y = old + y;
    if (g.bias != nullptr)
        y = y + ((const float *)g.bias)[j];
    if (g.pre != nullptr)
        ((float *)g.pre)[i * g.ldc + j] = rounded<T>(y);
    if (g.has_act)
        y = gemm_act<T>(g.act, rounded<T>(y)); // of what `pre` holds
    if (g.residual != nullptr)
        y = (g.residual == g.c ? old : ((const float *)g.residual)[i * g.ldr + j]) + y;
    return g.c_f32 ? y : rounded<T>(y);
}

template <class T> static void expect_sums(gemm_case<T> &p) {
    float *c = (float *)p.cpu_g.c;
    for (int i = 0; i < p.dev.m; i++)
        for (int j = 0; j < p.dev.n; j++) {
            float *at = c + i * p.dev.ldc + j;
            *at = expected(p, i, j, *at);
        }
    expect_same(p.c32);
    expect_same(p.c, 0.0f, 0.0f);
    expect_same(p.pre, 0.0f, 0.0f);
}

template <class T> static void test_random(void **) {
    for (int r = 0; r < 60; r++) {
        gemm_case<T> p = random_case<T>(r % 3 == 0 ? 16 : 140, 150, 70,
                                        r % 2           ? ANY_LINES
                                        : between(0, 1) ? OF_TERMS
                                                        : OF_OTHERS);
        p.run(r % 4 < 2 ? 1 : 132);
        expect_sums(p);
        simt::free_all();
    }
}

// One shape at the borders of its tile and of a stage's terms.
template <class T, class S, bool A_K, bool B_K, bool WIDE> static void check_shape() {
    for (int d : {-9, -1, 0, 1}) {
        bool small = S::BM * S::BN <= 64 * 64;
        int m = d < 0 ? S::BM + d : S::BM / 2 + 3, n = S::BN - 3 * d;
        gemm_case<T> p(small ? S::BM + (d + 8) % 8 : m, n, d == 0 ? TSR_GEMM_ADD : TSR_GEMM_STORE,
                       S::TREE ? 5 : 1, WIDE, d == 0);
        for (int v = 0; v < p.dev.n_pieces; v += S::TREE && d == 1 ? 2 : 1) {
            p.segment(S::TREE ? 33 + d : 4 * S::BK + d, v, A_K ? OF_TERMS : OF_OTHERS,
                      B_K ? OF_TERMS : OF_OTHERS);
            p.segment(17, v, A_K ? OF_TERMS : OF_OTHERS, B_K ? OF_TERMS : OF_OTHERS);
        }
        if (d == -1)
            p.epilogue(true, true, TSR_ACT_GELU_TANH, true, false);
        p.run_as([&](const struct gemm_call *call) {
            assert_int_equal(call->wide_in, WIDE);
            return launch_mma_as<T, S, A_K, B_K, WIDE>("gemm", nullptr, call->args);
        });
        expect_sums(p);
        simt::free_all();
    }
}

template <class T, class S, bool WIDE> static void check_layouts() {
    check_shape<T, S, true, true, WIDE>();
    check_shape<T, S, true, false, WIDE>();
    check_shape<T, S, false, false, WIDE>();
}

static void test_shapes(void **) {
    check_layouts<bf16, mma_huge, true>();
    check_layouts<f16, mma_large, true>();
    check_layouts<bf16, mma_large_tree, true>();
    check_layouts<f16, mma_middle, true>();
    check_layouts<bf16, mma_large_tree, false>();
    check_layouts<f16, mma_middle, false>();
    check_shape<bf16, mma_middle, false, true, false>();
    check_shape<bf16, mma_few, true, true, true>();
    check_shape<f16, mma_few_narrow, true, true, false>();
}

template <class T> static void test_trees(void **) {
    for (int pieces : {2, 3, 5, 8, 9, 15, 16, 24, 33, 100, 768, 1500})
        for (int m : {3, 40}) {
            gemm_case<T> p(m, 70, TSR_GEMM_STORE, pieces, m == 3 || pieces % 2, pieces % 2);
            for (int v = 0; v < pieces; v += between(1, pieces > 40 ? 30 : 2))
                p.segment(between(1, 40), v, OF_TERMS, OF_TERMS);
            p.run(m == 3 ? 132 : 1);
            expect_sums(p);
            simt::free_all();
        }
    gemm_args deepest = {};
    deepest.n_nodes = gemm_nodes(INT32_MAX);
    assert_true((mma_bytes<T, mma_few_narrow>(deepest)) <= 163 * 1024); // of sm_80
    assert_true((mma_bytes<T, mma_few>(deepest)) <= 163 * 1024);
}

// A row and column of a product are the same bits in a product of their own, with other neighbours,
// place, tile, leading dimension and alignment.
template <class T> static void test_invariance(void **) {
    gemm_case<T> whole(150, 260, TSR_GEMM_STORE, 2, true, true);
    whole.segment(100, 0, OF_TERMS, OF_TERMS);
    whole.segment(30, 1, OF_TERMS, OF_TERMS);
    whole.run(1);
    for (int i0 : {0, 1, 77, 149})
        for (int j0 : {0, 5, 131, 259})
            for (int n_sms : {1, 132}) {
                int m = 150 - i0 < 20 ? 1 : j0 % 2 ? 20 : 14, n = 260 - j0 < 40 ? 1 : 40;
                gemm_case<T> part(m, n, TSR_GEMM_STORE, 2, true, true);
                for (struct tsr_gemm_seg s : whole.segs) {
                    s.a = (const T *)s.a + i0 * s.a_i;
                    s.b = (const T *)s.b + j0 * s.b_j;
                    part.segs.push_back(s);
                }
                part.run(n_sms);
                for (int i = 0; i < m; i++)
                    assert_memory_equal(part.c32.dev + i * part.dev.ldc,
                                        whole.c32.dev + (i0 + i) * whole.dev.ldc + j0,
                                        (size_t)n * sizeof(float));
            }
}

// No terms: C is +0 or what it was, -0 too, which a group of padding would have made +0.
template <class T> static void test_nothing(void **) {
    for (int m : {4, 40})
        for (int k : {0, 16}) {
            gemm_case<T> p(m, 9, TSR_GEMM_CHAIN, 1, true, true);
            p.segment(k, 0, OF_TERMS, OF_TERMS);
            for (size_t s = 0; s < (size_t)m * (size_t)k; s++)
                ((T *)p.segs[0].a)[s] = from_float<T>(-0.0f);
            for (size_t s = 0; s < p.c32.n; s++)
                p.c32.dev[s] = -0.0f;
            p.run(1);
            assert_int_equal(std::signbit(p.c32.dev[0]), k == 0);
            gemm_case<T> q(m, 9, TSR_GEMM_STORE, 2 * k, false, false);
            q.epilogue(true, true, TSR_ACT_GELU, true, k != 0);
            q.run(1);
            expect_sums(q);
        }
}

// Values at 1 of m and n where the sum must not be a number; all others stay finite.
template <class T> static void test_not_finite(void **) {
    for (int m : {9, 70}) {
        gemm_case<T> p(m, 70, TSR_GEMM_STORE, 3, m == 9, true);
        for (int v = 0; v < 3; v++)
            p.segment(19, v, OF_TERMS, OF_TERMS);
        const struct tsr_gemm_seg &s = p.segs[1];
        ((T *)s.a)[(m - 1) * s.a_i + 18] = from_float<T>(INFINITY);
        ((T *)s.b)[69 * s.b_j + 18] = from_float<T>(0.0f);
        p.run(1);
        for (int i = 0; i < m; i++)
            for (int j = 0; j < 70; j++) {
                float c = p.c32.dev[i * p.dev.ldc + j];
                assert_int_equal(std::isfinite(c), i != m - 1);
                assert_int_equal(std::isnan(c), i == m - 1 && j == 69);
            }
    }
}

// One row, one column, one term: the lines that aren't there may have no aligned address.
template <class T> static void test_lone_lines(void **) {
    for (int m : {1, 40}) {
        gemm_case<T> p(m, m == 1 ? 70 : 1, TSR_GEMM_STORE, 1, true, false);
        p.segment(70, 0, OF_TERMS, OF_TERMS);
        p.lone_lines(m == 1 ? 13 : (int)p.segs[0].a_i, m == 1 ? (int)p.segs[0].b_j : 13);
        p.run(1);
        expect_sums(p);
    }
    for (int m : {9, 40}) {
        gemm_case<T> p(m, 70, TSR_GEMM_STORE, 1, true, false);
        p.segment(1, 0, OF_OTHERS, OF_OTHERS);
        p.lone_lines(13, 11);
        p.run(1);
        expect_sums(p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST_TYPED(test_random, bf16),
        TEST_TYPED(test_random, f16),
        TEST(test_shapes),
        TEST_TYPED(test_trees, bf16),
        TEST_TYPED(test_trees, f16),
        TEST_TYPED(test_invariance, bf16),
        TEST_TYPED(test_invariance, f16),
        TEST_TYPED(test_nothing, bf16),
        TEST_TYPED(test_nothing, f16),
        TEST_TYPED(test_lone_lines, bf16),
        TEST_TYPED(test_lone_lines, f16),
        TEST_TYPED(test_not_finite, bf16),
        TEST_TYPED(test_not_finite, f16),
    };
    return run_in_both_orders(tests);
}

// The fp32 matrix product against its CPU twin, for equality of bits.
#include "kernels/cuda/gemm_f32.cu"
#include "tests/simt/gemm_case.h"

static void expect_twin(gemm_case<float> &p) {
    assert_int_equal(cpu.ops->gemm(&cpu, &p.cpu_g), 0);
    expect_same(p.c);
    expect_same(p.pre);
}

static void test_random(void **) {
    for (int r = 0; r < 120; r++) {
        gemm_case<float> p = random_case<float>(r % 3 == 0 ? 16 : 140, 150, 20, ANY_LINES);
        p.run(r % 2 ? 1 : 132);
        expect_twin(p);
        simt::free_all();
    }
}

template <class S> static void check_shape(const char *name) {
    static const int around[] = {-1, 0, 1};
    for (int dm : around)
        for (int dn : around)
            for (int lines = 0; lines < 4; lines++) {
                gemm_case<float> p(S::BM + dm, S::BN * (dm == dn ? 2 : 1) + dn, TSR_GEMM_STORE,
                                   S::TREE ? 3 : 1, dm != 0, false);
                for (int v = 0; v < p.dev.n_pieces; v++)
                    p.segment(2 * S::BK + dm + dn, v, lines & 1 ? OF_TERMS : OF_OTHERS,
                              lines & 2 ? OF_TERMS : OF_OTHERS);
                p.run_as([&](const gemm_call *call) { return launch_f32<S>(name, nullptr, call); });
                expect_twin(p);
                simt::free_all();
            }
}

static void test_shapes(void **) {
    check_shape<f32_large>("gemm_f32");
    check_shape<f32_large_tree>("gemm_f32_tree");
    check_shape<f32_middle>("gemm_f32_middle");
    check_shape<f32_few>("gemm_f32_few");
}

// Trees of any depth, with empty pieces at all places; more nodes than a shape has memory for go
// to another.
static void test_trees(void **) {
    for (int pieces : {2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 24, 31, 33, 64, 100, 768, 1500})
        for (int m : {3, 40}) {
            gemm_case<float> p(m, 70, pieces % 2 ? TSR_GEMM_ADD : TSR_GEMM_STORE, pieces, true,
                               false);
            for (int v = 0; v < pieces; v += between(1, pieces > 40 ? 30 : 2))
                p.segment(between(1, 6), v, OF_TERMS, OF_TERMS);
            p.run(m == 3 ? 132 : 1);
            expect_twin(p);
            simt::free_all();
        }
    for (int pieces : {1, 2, 3, 8, 15, 1 << 20, INT32_MAX}) {
        int nodes = 0, most = pieces - 1; // the largest count of bits above the lowest
        for (int ones = 1; ones <= most / 2; ones = 2 * ones + 1)
            nodes++;
        assert_int_equal(gemm_nodes(pieces), nodes);
    }
    assert_int_equal(gemm_nodes(0), 0);
    gemm_args deepest = {};
    deepest.n_nodes = gemm_nodes(INT32_MAX);
    assert_true(f32_bytes<f32_few>(deepest) <= 163 * 1024); // of sm_80
}

// Sums of no terms are +0, or what C is; then the epilogue.
static void test_nothing(void **) {
    struct tsr_gemm none = {};
    none.n = 5;
    assert_int_equal(tsr_cuda_gemm(nullptr, TSR_DT_F32, &none, nullptr, 1), 0);
    none.m = 5;
    none.n = 0;
    assert_int_equal(tsr_cuda_gemm(nullptr, TSR_DT_F32, &none, nullptr, 1), 0);
    for (int pieces = 0; pieces <= 3; pieces++)
        for (int m : {1, 37}) {
            gemm_case<float> p(m, 37, TSR_GEMM_STORE, pieces, false, false);
            p.run(1);
            expect_twin(p);
            p.epilogue(true, true, TSR_ACT_SILU, true, false);
            p.run(132);
            expect_twin(p);
            gemm_case<float> q(m, 37, pieces % 2 ? TSR_GEMM_CHAIN : TSR_GEMM_ADD, 1, true, false);
            for (int v = 0; v < pieces; v++)
                q.segment(0, 0, OF_TERMS, OF_TERMS);
            q.run(1);
            expect_twin(q);
        }
}

// Terms that vanish leave -0 in a chain, which +0 of padding would make +0, and the tree of such
// chains is -0; an empty piece is +0 and is added.
static void test_signed_zero(void **) {
    for (int pieces = 1; pieces <= 4; pieces++)
        for (int filled : {1, pieces})
            for (int m : {2, 20}) {
                gemm_case<float> p(m, 3, TSR_GEMM_STORE, pieces, true, false);
                for (int v = 0; v < filled; v++) {
                    p.segment(1, v, OF_TERMS, OF_TERMS);
                    const struct tsr_gemm_seg &dev = p.segs.back(), &twin = p.cpu_segs.back();
                    for (ptrdiff_t i = 0; i < m; i++)
                        ((float *)dev.a)[i * dev.a_i] = ((float *)twin.a)[i * dev.a_i] = -1e-30f;
                    for (ptrdiff_t j = 0; j < 3; j++)
                        ((float *)dev.b)[j * dev.b_j] = ((float *)twin.b)[j * dev.b_j] = 1e-30f;
                }
                p.run(1);
                expect_twin(p);
                assert_int_equal(std::signbit(p.c.dev[0]), filled == pieces);
            }
}

static void test_not_finite(void **) {
    for (int r = 0; r < 24; r++) {
        gemm_case<float> p = random_case<float>(40, 50, 8, ANY_LINES);
        for (size_t s = 0; s < p.segs.size(); s++) {
            if (p.segs[s].k == 0)
                continue;
            size_t last = (size_t)((p.segs[s].k - 1) * p.segs[s].a_p);
            ((float *)p.segs[s].a)[last] = ((float *)p.cpu_segs[s].a)[last] =
                r % 3 == 0 ? NAN : INFINITY;
            if (r % 2 == 0)
                ((float *)p.segs[s].b)[0] = ((float *)p.cpu_segs[s].b)[0] =
                    r % 3 == 1 ? 0.0f : -INFINITY;
        }
        p.run(1);
        expect_twin(p);
        simt::free_all();
    }
}

static void test_long_sums(void **) {
    for (int m : {5, 33})
        for (enum tsr_gemm_mode mode : {TSR_GEMM_STORE, TSR_GEMM_CHAIN}) {
            gemm_case<float> p(m, 20, mode, mode == TSR_GEMM_CHAIN ? 1 : 5, true, false);
            for (int v = 0; v < p.dev.n_pieces; v++)
                p.segment(mode == TSR_GEMM_CHAIN ? 3001 : 601 + v, v, OF_TERMS, ANY_LINES);
            p.run(1);
            expect_twin(p);
        }
}

// One row, one column, one term: the lines that aren't there may have no aligned address.
static void test_lone_lines(void **) {
    for (int m : {1, 40}) {
        gemm_case<float> p(m, m == 1 ? 70 : 1, TSR_GEMM_STORE, 1, true, false);
        p.segment(70, 0, OF_TERMS, OF_TERMS);
        p.lone_lines(m == 1 ? 13 : (int)p.segs[0].a_i, m == 1 ? (int)p.segs[0].b_j : 13);
        p.run(1);
        expect_twin(p);
    }
    for (int m : {9, 40}) {
        gemm_case<float> p(m, 70, TSR_GEMM_STORE, 1, true, false);
        p.segment(1, 0, OF_OTHERS, OF_OTHERS);
        p.lone_lines(13, 11);
        p.run(1);
        expect_twin(p);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_random),      TEST(test_shapes),     TEST(test_trees),     TEST(test_nothing),
        TEST(test_signed_zero), TEST(test_not_finite), TEST(test_long_sums), TEST(test_lone_lines),
    };
    return run_in_both_orders(tests);
}

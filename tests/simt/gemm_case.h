// Matrix products for tests: any cut into segments and pieces, any strides and alignment, every
// mode and epilogue. What no product may read is NaN; all of C's memory is compared, the columns
// between its rows included.
#ifndef TSR_TESTS_SIMT_GEMM_CASE_H
#define TSR_TESTS_SIMT_GEMM_CASE_H

#include <vector>
#include "kernels/cuda/gemm.cu"
#include "tests/simt/util.h"

inline int between(int lo, int hi) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return lo + (int)((random_state >> 33) % (uint64_t)(hi - lo + 1));
}

// `rows` rows of `cols` values, ld apart, NaN between them.
template <class T>
both<T> random_matrix(int rows, int cols, ptrdiff_t ld, size_t skew, float scale = 1.0f) {
    both<T> b = blank<T>(rows > 0 && cols > 0 ? (size_t)((rows - 1) * ld + cols) : 0, skew);
    for (int i = 0; i < rows; i++)
        for (int j = 0; j < cols; j++) {
            size_t at = (size_t)(i * ld + j);
            b.dev[at] = from_float<T>(random_unit() * scale);
            b.cpu[at] = to_float(b.dev[at]);
        }
    return b;
}

enum gemm_lines { OF_TERMS, OF_OTHERS, ANY_LINES };

template <class T> struct gemm_case {
    struct tsr_gemm dev, cpu_g;
    std::vector<struct tsr_gemm_seg> segs, cpu_segs;
    both<T> c, pre, bias, residual;
    both<float> c32;
    bool aligned; // rows to 16 bytes
    bool skewed;  // arrays begin anywhere; else only the distance of rows can be odd

    gemm_case(int m, int n, enum tsr_gemm_mode mode, int n_pieces, bool aligned_, bool c_f32)
        : aligned(aligned_), skewed(!aligned_ && between(0, 1)) {
        dev = {};
        dev.m = m;
        dev.n = n;
        dev.mode = mode;
        dev.n_pieces = n_pieces;
        dev.c_f32 = c_f32;
        dev.ldc = room(n);
        dev.ldr = room(n);
        cpu_g = dev;
        c = random_matrix<T>(m, n, dev.ldc, skew());
        c32 = random_matrix<float>(m, n, dev.ldc, skew());
        pre = blank<T>(c.n, skew());
        bias = random_matrix<T>(1, n, n, skew());
        residual = random_matrix<T>(m, n, dev.ldr, skew());
        dev.c = c_f32 ? (void *)c32.dev : (void *)c.dev;
        cpu_g.c = c_f32 ? c32.cpu : c.cpu;
    }
    size_t skew() const {
        return !skewed ? 0 : sizeof(T) * (size_t)between(0, 16 / (int)sizeof(T) - 1);
    }
    ptrdiff_t room(int n) const { // a leading dimension for rows of n
        return aligned ? (n + 7) / 8 * 8 + 8 * between(0, 1) : n + between(0, 9);
    }
    void segment(int k, int piece, gemm_lines a_lines, gemm_lines b_lines) {
        struct tsr_gemm_seg s = {};
        bool a_k = a_lines == ANY_LINES ? between(0, 1) : a_lines == OF_TERMS;
        bool b_k = b_lines == ANY_LINES ? between(0, 1) : b_lines == OF_TERMS;
        ptrdiff_t lda = room(a_k ? k : dev.m), ldb = room(b_k ? k : dev.n);
        both<T> a =
            a_k ? random_matrix<T>(dev.m, k, lda, skew()) : random_matrix<T>(k, dev.m, lda, skew());
        both<T> b =
            b_k ? random_matrix<T>(dev.n, k, ldb, skew()) : random_matrix<T>(k, dev.n, ldb, skew());
        s.a_i = a_k ? lda : 1;
        s.a_p = a_k ? 1 : lda;
        s.b_j = b_k ? ldb : 1;
        s.b_p = b_k ? 1 : ldb;
        s.k = k;
        s.piece = piece;
        s.a = a.dev;
        s.b = b.dev;
        segs.push_back(s);
        s.a = a.cpu;
        s.b = b.cpu;
        cpu_segs.push_back(s);
    }
    void epilogue(bool with_bias, bool with_pre, int act, bool with_residual, bool in_place) {
        dev.bias = with_bias ? bias.dev : nullptr;
        cpu_g.bias = with_bias ? bias.cpu : nullptr;
        dev.pre = with_pre ? pre.dev : nullptr;
        cpu_g.pre = with_pre ? pre.cpu : nullptr;
        dev.has_act = cpu_g.has_act = act >= 0;
        dev.act = cpu_g.act = (enum tsr_act)(act >= 0 ? act : 0);
        dev.residual = in_place ? dev.c : with_residual ? residual.dev : nullptr;
        cpu_g.residual = in_place ? cpu_g.c : with_residual ? residual.cpu : nullptr;
        dev.ldr = cpu_g.ldr = in_place ? dev.ldc : dev.ldr;
    }
    void random_epilogue() {
        epilogue(between(0, 1), between(0, 1), between(-1, 2), between(0, 1), between(0, 3) == 0);
    }
    // Pieces of up to max_k terms, some empty, cut into segments at random.
    void random_segments(int max_k, gemm_lines a_lines, gemm_lines b_lines) {
        for (int v = 0; v < dev.n_pieces; v++)
            for (int s = between(0, 2); s > 0; s--)
                segment(between(0, 4) == 0 ? 0 : between(1, max_k), v, a_lines, b_lines);
    }
    // The last segment's lines are one each, so their distances may be any, odd ones, too.
    void lone_lines(int of_a, int of_b) {
        for (struct tsr_gemm_seg *s : {&segs.back(), &cpu_segs.back()}) {
            (s->a_i == 1 ? s->a_p : s->a_i) = of_a;
            (s->b_j == 1 ? s->b_p : s->b_j) = of_b;
        }
    }
    // Points both products at their segments: the device's copy is returned.
    const struct tsr_gemm_seg *seal() {
        dev.n_segs = cpu_g.n_segs = (int)segs.size();
        dev.segs = segs.data();
        cpu_g.segs = cpu_segs.data();
        return copy_array(segs.data(), segs.size());
    }
    void run(int n_sms) {
        const struct tsr_gemm_seg *copy = seal();
        assert_int_equal(tsr_cuda_gemm(nullptr, dtype_of<T>, &dev, copy, n_sms), 0);
    }
    // The same with a shape of the test's choice.
    template <class Launch> void run_as(Launch launch) {
        struct gemm_call call = make_call(dtype_of<T>, &dev, seal(), 1);
        call.max_shared = 227 * 1024;
        assert_int_equal(launch(&call), 0);
    }
};

// A product of random shape and contents.
template <class T> gemm_case<T> random_case(int max_m, int max_n, int max_k, gemm_lines lines) {
    enum tsr_gemm_mode mode = (enum tsr_gemm_mode)between(0, 2);
    bool c_f32 = sizeof(T) == 2 && between(0, 1);
    gemm_case<T> p(between(1, max_m), between(1, max_n), mode,
                   mode == TSR_GEMM_CHAIN ? 1 : between(0, 9), between(0, 1), c_f32);
    p.random_segments(max_k, lines, lines);
    if (mode == TSR_GEMM_STORE && !c_f32)
        p.random_epilogue();
    return p;
}

#endif

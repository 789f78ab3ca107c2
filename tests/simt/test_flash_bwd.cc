// The backward pass of attention on the matrix units against the CPU twin in fp32, which starts
// from the same 16-bit inputs, outputs and lse.
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/flash.cu"
#include "kernels/cuda/flash_bwd.cu"
#include "kernels/cuda/flash_bwd_plan.cu"
#include "tests/simt/attention_case.h"

// A term of a sum is a product of an input and of a weight (or its gradient) that was rounded by
// at most one unit of itself, and the sum is rounded once more: over a tensor that is less than one
// unit of its norm. Single elements stay within four units of the largest.
template <class T> static void expect_near(const char *name, const both<T> &b) {
    double error = 0, norm = 0, most = 0, worst = 0;
    for (size_t i = 0; i < b.n; i++) {
        double want = b.cpu[i], e = to_float(b.dev[i]) - want;
        if (!(e == e))
            fail_msg("%s %zu: found a NaN", name, i);
        error += e * e;
        norm += want * want;
        most = std::fmax(most, std::fabs(want));
        worst = std::fmax(worst, std::fabs(e));
    }
    if (!(std::sqrt(error) <= (double)unit<T> * std::sqrt(norm) + 1e-9))
        fail_msg("%s: error %g of %g", name, std::sqrt(error), std::sqrt(norm));
    if (!(worst <= 4 * (double)unit<T> * most + 1e-9))
        fail_msg("%s: worst error %g, largest element %g", name, worst, most);
}

template <class T> static void expect_small(const both<T> &b) {
    for (size_t i = 0; i < b.n; i++)
        if (!(std::fabs(to_float(b.dev[i])) <= 1e-5f))
            fail_msg("element %zu: found %g, expected 0", i, (double)to_float(b.dev[i]));
}

template <class T> static void start_backward(attention_case<T> &c) {
    c.forward_dev();
    for (size_t i = 0; i < c.o.n; i++)
        c.o.cpu[i] = to_float(c.o.dev[i]);
    memcpy(c.lse.cpu, c.lse.dev, c.lse.n * sizeof(float));
}

// fp16 differs from bf16 in its conversions only: fewer shapes.
template <class T> static void test_backward(void **) {
    int i = 0;
    for (const attention_shape &s : attention_shapes()) {
        if (dtype_of<T> == TSR_DT_F16 && i++ % 4 != 1)
            continue;
        attention_case<T> c(s, 37, 8);
        start_backward(c);
        c.backward_cpu();
        c.backward_dev();
        if (s.lengths[0] == 1 || s.window == 1) { // one key: scores have no gradient but rounding
            expect_small(c.dq);
            expect_small(c.dk);
        } else {
            expect_near("dq", c.dq);
            expect_near("dk", c.dk);
        }
        expect_near("dv", c.dv);
    }
}

// Where a window begins and ends against the 8 columns that a thread's scores are apart.
static void test_windows(void **) {
    for (int window = 57; window < 65; window++) {
        attention_case<bf16> c({{150}, 2, 1, 64, window, 0.0f}, 37, 0);
        start_backward(c);
        c.backward_cpu();
        c.backward_dev();
        expect_near("dq", c.dq);
        expect_near("dk", c.dk);
        expect_near("dv", c.dv);
        simt::free_all();
    }
}

// Dropout where positions are multiples of four and where they aren't, for each shape of a warp's
// scores.
static void test_dropout(void **) {
    for (int d : {64, 128, 256}) {
        attention_case<bf16> c({{3, 71, 6}, 2, 1, d, 0, 0.2f}, 38, 0);
        start_backward(c);
        c.backward_cpu();
        c.backward_dev();
        expect_near("dq", c.dq);
        expect_near("dk", c.dk);
        expect_near("dv", c.dv);
    }
}

template <class T> static void expect_bits(const char *name, const both<T> &b, const both<T> &c) {
    if (memcmp(b.dev, c.dev, b.n * sizeof(T)) != 0)
        fail_msg("%s: other bits than before", name);
}

// Blocks one after the other, last to first, or many at once that meet at the tiles of dQ and wait
// for each other: they end, with the same bits.
static void test_deterministic(void **) {
    bool reverse = simt::reverse_order;
    for (const attention_shape &s :
         {attention_shape{{230, 60, 300}, 3, 1, 80, 0, 0.0f}, {{520}, 3, 3, 64, 140, 0.1f}}) {
        attention_case<bf16> c(s, 36, 0);
        start_backward(c);
        c.backward_dev();
        both<bf16> dq = copy_of(c.dq), dk = copy_of(c.dk), dv = copy_of(c.dv);
        for (int alive : {1, 3, 64}) {
            simt::reverse_order = !simt::reverse_order;
            simt::blocks_alive = alive;
            int64_t spins = simt::n_spins;
            c.backward_dev();
#ifndef TSR_ON_DEVICE // which doesn't tell
            assert_true(alive == 1 ? simt::n_spins == spins : alive < 64 || simt::n_spins > spins);
#else
            (void)spins;
#endif
            expect_bits("dq", dq, c.dq);
            expect_bits("dk", dk, c.dk);
            expect_bits("dv", dv, c.dv);
        }
        simt::reverse_order = reverse;
        simt::blocks_alive = 1;
        simt::free_all();
    }
}

// A segment's gradients depend neither on the segments beside it, nor on their order in the list,
// nor on where its rows lie.
static void test_invariance(void **) {
    const int length = 170, start = 140;
    for (int d : {64, 96}) {
        attention_case<bf16> all({{start, length, 9, 1}, 3, 1, d, 100, 0.0f}, 5, 8);
        attention_case<bf16> one({{length}, 3, 1, d, 100, 0.0f}, 0, 8);
        struct tsr_cuda_segment *segs = copy_array(all.dev.segs, 4);
        std::swap(segs[0], segs[2]);
        all.dev.segs = segs;
        auto rows = [&](both<bf16> &to, const both<bf16> &from) {
            size_t width = to.n / length;
            memcpy(to.dev, from.dev + start * width, to.n * sizeof(bf16));
        };
        rows(one.q, all.q);
        rows(one.k, all.k);
        rows(one.v, all.v);
        rows(one.d_o, all.d_o);
        all.forward_dev();
        all.backward_dev();
        one.forward_dev();
        one.backward_dev();
        both<bf16> dq = copy_of(one.dq), dk = copy_of(one.dk), dv = copy_of(one.dv);
        rows(dk, all.dk);
        rows(dv, all.dv);
        for (size_t i = 0; i < (size_t)length; i++) // beyond its heads a row isn't written
            memcpy(dq.dev + i * (size_t)one.a.ldq, all.dq.dev + (start + i) * (size_t)all.a.ldq,
                   (size_t)(3 * d) * sizeof(bf16));
        expect_bits("dq", one.dq, dq);
        expect_bits("dk", one.dk, dk);
        expect_bits("dv", one.dv, dv);
    }
}

static void test_refusals(void **) {
    attention_case<bf16> c({{4}, 1, 1, 64, 0, 0.0f}, 0, 8);
    c.dev.ldv++;
    struct tsr_kv_slot slot = {0, 1, 0, 0};
    assert_int_equal(tsr_cuda_attention_bwd(
                         nullptr, TSR_DT_BF16, &c.dev, &slot, 1, c.dq.dev, c.dk.dev, c.dv.dev,
                         c.d_o.dev, c.o.dev, c.lse.dev, c.q.dev, c.k.dev, c.v.dev,
                         simt::array<float>(tsr_cuda_attention_bwd_scratch(TSR_DT_BF16, &c.dev))),
                     TSR_EUSAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPED(test_backward, bf16),
                                       TEST_TYPED(test_backward, f16),
                                       TEST(test_windows),
                                       TEST(test_dropout),
                                       TEST(test_deterministic),
                                       TEST(test_invariance),
                                       TEST(test_refusals)};
    return run_in_both_orders(tests);
}

// The backward pass of attention on the matrix units against the CPU twin in fp32, which starts
// from the same 16-bit inputs, outputs and lse.
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/flash.cu"
#include "kernels/cuda/flash_bwd_keys.cu"
#include "kernels/cuda/flash_bwd_queries.cu"
#include "tests/simt/attention_case.h"

// The fp32 kernels have a test of their own.
int attention_f32(void *, const struct tsr_cuda_attn *, float *, float *, const float *,
                  const float *, const float *) {
    return TSR_EUSAGE;
}
int attention_f32_bwd(void *, const struct tsr_cuda_attn *, const attention_grads *) {
    return TSR_EUSAGE;
}

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

template <class T> static void test_backward(void **) {
    for (const attention_shape &s : attention_shapes()) {
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

// Where a window begins and ends against tiles and warps, at every residue.
static void test_windows(void **) {
    for (int window = 46; window < 64; window++) {
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

// Run twice, with blocks and threads in the opposite order: the same bits.
static void test_deterministic(void **) {
    attention_case<bf16> c({{100, 60}, 3, 1, 64, 70, 0.1f}, 37, 0);
    start_backward(c);
    c.backward_dev();
    both<bf16> dq = copy_of(c.dq), dk = copy_of(c.dk), dv = copy_of(c.dv);
    simt::reverse_order = !simt::reverse_order;
    c.backward_dev();
    simt::reverse_order = !simt::reverse_order;
    assert_memory_equal(dq.dev, c.dq.dev, dq.n * sizeof(bf16));
    assert_memory_equal(dk.dev, c.dk.dev, dk.n * sizeof(bf16));
    assert_memory_equal(dv.dev, c.dv.dev, dv.n * sizeof(bf16));
}

static void test_refusals(void **) {
    attention_case<bf16> c({{4}, 1, 1, 64, 0, 0.0f}, 0, 8);
    c.dev.ldv++;
    struct tsr_kv_slot slot = {0, 1, 0, 0};
    assert_int_equal(tsr_cuda_attention_bwd(nullptr, TSR_DT_BF16, &c.dev, &slot, 1, c.dq.dev,
                                            c.dk.dev, c.dv.dev, c.d_o.dev, c.o.dev, c.lse.dev,
                                            c.q.dev, c.k.dev, c.v.dev, simt::array<float>(4)),
                     TSR_EUSAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPED(test_backward, bf16),
                                       TEST_TYPED(test_backward, f16), TEST(test_windows),
                                       TEST(test_deterministic), TEST(test_refusals)};
    return run_in_both_orders(tests);
}

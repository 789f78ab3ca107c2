// Attention on the matrix units, forward, against the CPU twin in fp32 on the same
// 16-bit inputs.
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/flash.cu"
#include "kernels/cuda/kv.cu"
#include "tests/simt/attention_case.h"

// Weights are rounded to 16 bits, each by up to `unit` of itself and at random, before they meet
// values below 1; then the result is rounded once more. Three units of the largest value is far
// above that and far below what a wrong key would do.
template <class T> static void expect_near(const both<T> &b, float largest) {
    expect_same(b.dev, b.cpu, b.n, 3.0f, largest);
}

static void expect_lse(const both<float> &lse) {
    for (size_t i = 0; i < lse.n; i++)
        if (!(std::fabs(lse.dev[i] - lse.cpu[i]) <= 2e-5f))
            fail_msg("lse %zu: found %.9g, the twin has %.9g", i, lse.dev[i], lse.cpu[i]);
}

template <class T> static void test_forward(void **) {
    for (const attention_shape &s : attention_shapes()) {
        attention_case<T> c(s, 37, 8);
        c.forward_cpu();
        c.forward_dev();
        expect_near(c.o, 1.0f);
        expect_lse(c.lse);
    }
}

template <class T> static void test_paged(void **) {
    for (int window : {0, 20}) {
        attention_case<T> c({{1, 70, 5}, 6, 2, 64, window, 0.0f}, 93, 0);
        paged_case<T> p(c, 16);
        c.forward_cpu();
        c.forward_dev();
        expect_near(c.o, 1.0f);
        expect_lse(c.lse);
    }
}

// Where causality and a window cut against tiles of keys and of queries, at every residue.
static void test_offsets(void **) {
    for (int offset = 0; offset < 16; offset++)
        for (int window : {0, 90}) {
            attention_case<bf16> c({{170}, 1, 1, 64, window, 0.0f}, offset, 0);
            c.forward_cpu();
            c.forward_dev();
            expect_near(c.o, 1.0f);
            expect_lse(c.lse);
            simt::free_all();
        }
}

// A row's bits depend neither on the rows beside it nor on where its segment begins.
template <class T> static void test_invariance(void **) {
    attention_case<T> whole({{150}, 2, 1, 64, 0, 0.0f}, 0, 0);
    paged_case<T> pages(whole, 16);
    tsr_cuda_kv_store(nullptr, dtype_of<T>, &whole.dev, whole.k.dev, whole.v.dev);
    whole.forward_dev();
    for (int from : {1, 64, 99, 149}) {
        attention_case<T> part({{150 - from}, 2, 1, 64, 0, 0.0f}, 0, 0);
        struct tsr_cuda_segment *seg = copy_array(whole.dev.segs, 1);
        seg->position = from;
        seg->length = 150 - from;
        part.dev.segs = seg;
        memcpy(part.q.dev, whole.q.dev + (size_t)(from * whole.a.ldq), part.q.n * sizeof(T));
        part.forward_dev();
        assert_memory_equal(part.o.dev, whole.o.dev + (size_t)(from * whole.a.ldo),
                            part.o.n * sizeof(T));
    }
}

static void test_refusals(void **) {
    attention_case<bf16> c({{4}, 1, 1, 64, 0, 0.0f}, 0, 1);
    assert_int_equal(tsr_cuda_attention(nullptr, TSR_DT_BF16, &c.dev, c.o.dev, nullptr, c.q.dev,
                                        c.k.dev, c.v.dev),
                     TSR_EUSAGE);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST_TYPED(test_forward, bf16),
        TEST_TYPED(test_forward, f16),
        TEST_TYPED(test_paged, bf16),
        TEST_TYPED(test_paged, f16),
        TEST(test_offsets),
        TEST_TYPED(test_invariance, bf16),
        TEST(test_refusals),
    };
    return run_in_both_orders(tests);
}

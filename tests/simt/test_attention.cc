// fp32 attention, forward and backward: the CPU twin's bits, and finite differences.
#include "kernels/cuda/attention.cu"
#include "kernels/cuda/attention_f32.cu"
#include "kernels/cuda/attention_f32_bwd.cu"
#include "tests/simt/attention_case.h"

static void test_forward(void **) {
    for (const attention_shape &s : attention_shapes()) {
        attention_case<float> c(s, 37, 3);
        c.forward_cpu();
        c.forward_dev();
        expect_same(c.o);
        expect_same(c.lse);
    }
}

static void test_any_head_size(void **) {
    for (int d : {1, 7, 100}) {
        attention_case<float> c({{70, 3}, 2, 2, d, 0, 0.0f}, 0, 1);
        c.forward_cpu();
        c.forward_dev();
        expect_same(c.o);
        c.backward_cpu();
        c.backward_dev();
        expect_same(c.dq);
    }
}

static void test_paged(void **) {
    for (int window : {0, 20}) {
        attention_case<float> c({{1, 70, 5}, 6, 2, 64, window, 0.0f}, 93, 0);
        paged_case<float> p(c, 16);
        c.forward_cpu();
        c.forward_dev();
        expect_same(c.o);
        expect_same(c.lse);
    }
}

static void test_backward(void **) {
    for (const attention_shape &s : attention_shapes()) {
        attention_case<float> c(s, 37, 3);
        c.forward_cpu();
        memcpy(c.o.dev, c.o.cpu, c.o.n * sizeof(float));
        memcpy(c.lse.dev, c.lse.cpu, c.lse.n * sizeof(float));
        c.backward_cpu();
        c.backward_dev();
        expect_same(c.dq);
        expect_same(c.dk);
        expect_same(c.dv);
        simt::free_all();
    }
}

static double loss_of(attention_case<float> &c) {
    c.forward_dev();
    double sum = 0;
    for (int i = 0; i < c.n; i++)
        for (int j = 0; j < c.a.nq * c.a.head_dim; j++) {
            size_t at = (size_t)(i * c.a.ldo + j);
            sum += (double)c.o.dev[at] * (double)c.d_o.dev[at];
        }
    return sum;
}

// Along a random direction u: (L(x + e u) - L(x - e u)) / 2e is the gradient times u.
static void test_differences(void **) {
    attention_case<float> c({{20, 40}, 2, 2, 16, 25, 0.2f}, 5, 0);
    c.forward_dev();
    c.backward_dev();
    const both<float> *inputs[] = {&c.q, &c.k, &c.v}, *grads[] = {&c.dq, &c.dk, &c.dv};
    for (int i = 0; i < 3; i++) {
        both<float> u = random_values<float>(inputs[i]->n, 1.0f);
        const float e = 1e-2f;
        double want = 0, loss[2];
        for (size_t j = 0; j < u.n; j++)
            want += (double)grads[i]->dev[j] * (double)u.dev[j];
        for (int side = 0; side < 2; side++) {
            for (size_t j = 0; j < u.n; j++)
                inputs[i]->dev[j] = inputs[i]->cpu[j] + (side ? -e : e) * u.dev[j];
            loss[side] = loss_of(c);
        }
        memcpy(inputs[i]->dev, inputs[i]->cpu, u.n * sizeof(float));
        double found = (loss[0] - loss[1]) / (2 * (double)e);
        // cubic terms of the loss: a few parts in a thousand of its size here
        if (!(std::fabs(found - want) <= 5e-3 * std::fabs(want) + 5e-3))
            fail_msg("input %d: differences %g, gradient %g", i, found, want);
    }
}

static void test_refusals(void **) {
    attention_case<float> c({{4}, 1, 1, 64, 0, 0.0f}, 0, 0);
    c.dev.head_dim = 257;
    assert_int_equal(tsr_cuda_attention(nullptr, TSR_DT_F32, &c.dev, c.o.dev, nullptr, c.q.dev,
                                        c.k.dev, c.v.dev),
                     TSR_ECONFIG);
    c.dev.head_dim = 72;
    assert_int_equal(tsr_cuda_attention(nullptr, TSR_DT_BF16, &c.dev, c.o.dev, nullptr, c.q.dev,
                                        c.k.dev, c.v.dev),
                     TSR_ECONFIG);
    c.dev.n_segs = 0;
    c.dev.head_dim = 64;
    assert_int_equal(tsr_cuda_attention(nullptr, TSR_DT_BF16, &c.dev, c.o.dev, nullptr, c.q.dev,
                                        c.k.dev, c.v.dev),
                     0);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_forward),     TEST(test_any_head_size),
                                       TEST(test_paged),       TEST(test_backward),
                                       TEST(test_differences), TEST(test_refusals)};
    return run_in_both_orders(tests);
}

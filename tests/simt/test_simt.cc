// The shim itself: it runs what is right, and it finds what is wrong.
#include "tests/simt/util.h"

static void expect_fault(const char *part, const std::function<void()> &work) {
    std::string text = simt::caught(work);
    if (text.find(part) == std::string::npos)
        fail_msg("expected a failure with \"%s\", found \"%s\"", part, text.c_str());
}

static void expect_clean(const std::function<void()> &work) {
    std::string text = simt::caught(work);
    if (!text.empty())
        fail_msg("%s", text.c_str());
}

static void test_indices(void **) {
    int *seen = simt::array<int>(6 * 64);
    simt::launch("indices", dim3(3, 2), 64, 0, [&] {
        unsigned block = blockIdx.y * gridDim.x + blockIdx.x;
        seen[block * blockDim.x + threadIdx.x] = (int)(block * 100 + threadIdx.x);
    });
    for (int i = 0; i < 6 * 64; i++)
        assert_int_equal(seen[i], i / 64 * 100 + i % 64);
}

// The last writer of a word in global memory is the last thread to run.
static void test_orders(void **) {
    int *last = simt::array<int>(1);
    for (bool reverse : {false, true}) {
        simt::reverse_order = reverse;
        simt::launch("last", dim3(2), 64, 0, [=] { *last = (int)(blockIdx.x * 64 + threadIdx.x); });
        simt::reverse_order = false;
        assert_int_equal(*last, reverse ? 0 : 127);
    }
}

static void test_barriers(void **) {
    expect_clean([] {
        simt::launch("reverse", dim3(4), 96, 96 * 4, [] {
            shared_cursor cursor;
            smem<int> x = cursor.take<int>(96);
            int t = threadIdx.x;
            x[t] = t;
            __syncthreads();
            int y = x[95 - t];
            __syncthreads();
            x[t] = y;
            __syncwarp();
            if (x[t ^ 1] != 95 - (t ^ 1))
                simt::stop("wrong value");
        });
    });
    expect_fault("divergence", [] {
        simt::launch("half", dim3(1), 64, 0, [] {
            if (threadIdx.x < 32)
                __syncthreads();
        });
    });
    expect_fault("divergence", [] {
        simt::launch("two lines", dim3(1), 64, 0, [] {
            if (threadIdx.x < 32)
                __syncthreads();
            else
                __syncthreads();
        });
    });
    expect_fault("divergence", [] {
        simt::launch("lane", dim3(1), 32, 0, [] {
            if (threadIdx.x != 7)
                shfl_xor(1.0f, 1);
        });
    });
}

// Each block writes its number behind that of the block before it.
static void pass_on(int n_blocks, int *word) {
    *word = 0;
    simt::launch("pass on", dim3((unsigned)n_blocks), 64, 16, [=] {
        smem<int> x = shared_cursor().take<int>(1);
        if (threadIdx.x == 37) {
            wait_until(word, (int)blockIdx.x);
            x[0] = (int)blockIdx.x;
        }
        __syncthreads();
        if (threadIdx.x == 0)
            store_relaxed(word, x[0] + 1);
    });
}

static void test_blocks_alive(void **) {
    int *word = simt::array<int>(1);
    expect_clean([=] { pass_on(9, word); });
    assert_int_equal(*word, 9);
    simt::reverse_order = true;
    expect_fault("waits for another", [=] { pass_on(9, word); });
    simt::blocks_alive = 5;
    expect_fault("waits for another", [=] { pass_on(9, word); });
    assert_int_equal(*word, 0);
    simt::blocks_alive = 9;
    int64_t before = simt::n_spins;
    expect_clean([=] { pass_on(9, word); });
    assert_int_equal(*word, 9);
    assert_true(simt::n_spins > before);
    // Shared memory is a block's own, and so are its barriers.
    expect_fault("race", [] {
        simt::launch("race", dim3(9), 64, 256, [] {
            smem<int> x = shared_cursor().take<int>(64);
            x[threadIdx.x] = 1;
            if (x[63 - threadIdx.x] != 1)
                simt::stop("wrong value");
        });
    });
    simt::reverse_order = false;
    simt::blocks_alive = 1;
}

static void race_with(void (*between)(), int threads) {
    simt::launch("race", dim3(1), threads, 1024, [=] {
        shared_cursor cursor;
        smem<float> x = cursor.take<float>(256);
        x[threadIdx.x] = 1.0f;
        between();
        float y = x[threadIdx.x ^ 1] + x[threadIdx.x ^ (blockDim.x / 2)];
        (void)y;
    });
}

static void test_races(void **) {
    expect_fault("race", [] { race_with([] {}, 32); });
    expect_fault("race", [] { race_with([] { shfl_xor(1, 1); }, 32); });
    expect_clean([] { race_with([] { __syncwarp(); }, 32); });
    expect_fault("race", [] { race_with([] { __syncwarp(); }, 64); });
    expect_clean([] { race_with([] { __syncthreads(); }, 64); });
    expect_fault("written after a read", [] {
        simt::launch("late write", dim3(1), 64, 256, [] {
            shared_cursor cursor;
            smem<float> x = cursor.take<float>(64);
            x[threadIdx.x] = 1.0f;
            __syncthreads();
            float y = x[(threadIdx.x + 1) % 64];
            x[threadIdx.x] = y;
        });
    });
    expect_fault("written after a write", [] {
        simt::launch("two writers", dim3(1), 32, 256, [] {
            shared_cursor cursor;
            smem<float> x = cursor.take<float>(64);
            x[threadIdx.x / 2] = 1.0f;
        });
    });
}

static void test_places(void **) {
    expect_fault("an array of [0, 128)", [] {
        simt::launch("beyond", dim3(1), 32, 256, [] {
            shared_cursor cursor;
            smem<float> x = cursor.take<float>(32), y = cursor.take<float>(32);
            y[threadIdx.x] = 0.0f;
            x[threadIdx.x + 1] = 0.0f;
        });
    });
    expect_fault("nobody wrote", [] {
        simt::launch("poison", dim3(1), 32, 128, [] {
            shared_cursor cursor;
            smem<float> x = cursor.take<float>(32);
            float y = x[threadIdx.x];
            (void)y;
        });
    });
    expect_fault("misaligned", [] {
        simt::launch("skew", dim3(1), 32, 1024, [] {
            shared_cursor cursor;
            smem<float> x = cursor.take<float>(256);
            shared_store16(x + (int)threadIdx.x * 4 + 1, uint4{});
        });
    });
    expect_fault("needs 1024 bytes", [] {
        simt::launch("too much", dim3(1), 32, 128, [] { shared_cursor().take<float>(256); });
    });
    int *p = simt::array<int>(40);
    expect_fault("byte 160 of an array of 160",
                 [=] { simt::launch("global", dim3(1), 64, 0, [=] { p[threadIdx.x] = 1; }); });
    expect_fault("misaligned",
                 [=] { simt::launch("global", dim3(1), 32, 0, [=] { load16(p + threadIdx.x); }); });
}

static void copies(int left, bool barrier) {
    float *from = simt::array<float>(128);
    for (int i = 0; i < 128; i++)
        from[i] = (float)i;
    simt::launch("copies", dim3(1), 32, 1024, [=] {
        shared_cursor cursor;
        smem<float> x = cursor.take<float>(128), y = cursor.take<float>(128);
        int t = threadIdx.x * 4;
        cp_async16(x + t, from + t, true);
        cp_async_commit();
        cp_async16(y + t, from + t, t >= 64);
        cp_async_commit();
        if (left == 0)
            cp_async_wait<0>();
        else
            cp_async_wait<1>();
        if (barrier)
            __syncwarp();
        float sum = x[127 - t];
        if (sum != (float)(127 - t))
            simt::stop("wrong value");
        if (left == 1)
            cp_async_wait<0>();
        if (y[t] != (t >= 64 ? (float)t : 0.0f))
            simt::stop("wrong value");
    });
}

static void test_copies(void **) {
    expect_clean([] { copies(0, true); });
    expect_clean([] { copies(1, true); });
    expect_fault("nobody wrote", [] { copies(0, false); });
    expect_fault("on its way", [] {
        float *from = simt::array<float>(4);
        simt::launch("no wait", dim3(1), 32, 512, [=] {
            smem<float> x = shared_cursor().take<float>(128);
            cp_async16(x + (int)threadIdx.x * 4, from, true);
            cp_async_commit();
            float y = x[threadIdx.x * 4];
            (void)y;
        });
    });
    expect_fault("did not wait", [] {
        float *from = simt::array<float>(4);
        simt::launch("no wait", dim3(1), 32, 512, [=] {
            smem<float> x = shared_cursor().take<float>(128);
            cp_async16(x + (int)threadIdx.x * 4, from, true);
        });
    });
}

// C = A B and C = A Bt through ldmatrix and mma, on whole matrices with known sums.
template <class T> static void test_matrices(void **) {
    both<T> a = random_values<T>(16 * 16, 1.0f), b = random_values<T>(16 * 16, 1.0f);
    float *c = simt::array<float>(2 * 16 * 16);
    simt::launch("matrices", dim3(1), 32, 2 * 16 * 16 * 2, [=] {
        shared_cursor cursor;
        smem<T> sa = cursor.template take<T>(256), sb = cursor.template take<T>(256);
        int lane = threadIdx.x, row = lane % 16, col = lane / 16 * 8;
        for (int i = lane; i < 256; i += 32) {
            sa[i] = a.dev[i];
            sb[i] = b.dev[i];
        }
        __syncwarp();
        uint32_t ra[4], rb[4], rt[4];
        ldmatrix_x4(ra, sa + row * 16 + col);
        ldmatrix_x4_trans(rb, sb + row * 16 + col); // B(k, j) stored as rows of k
        ldmatrix_x4(rt, sb + row * 16 + col);       // B(j, k) stored as rows of j
        for (int n = 0; n < 2; n++) {
            float x[4] = {}, y[4] = {};
            mma_16816<T>(x, ra, rb[2 * n], rb[2 * n + 1]);
            mma_16816<T>(y, ra, rt[n], rt[n + 2]);
            for (int k = 0; k < 4; k++) {
                int i = lane / 4 + k / 2 * 8, j = 8 * n + lane % 4 * 2 + k % 2;
                c[i * 16 + j] = x[k];
                c[256 + i * 16 + j] = y[k];
            }
        }
    });
    for (int i = 0; i < 16; i++)
        for (int j = 0; j < 16; j++) {
            float plain = 0, turned = 0;
            for (int k = 0; k < 16; k++) {
                plain += a.cpu[i * 16 + k] * b.cpu[k * 16 + j];
                turned += a.cpu[i * 16 + k] * b.cpu[j * 16 + k];
            }
            assert_float_equal(c[i * 16 + j], plain, 1e-5);
            assert_float_equal(c[256 + i * 16 + j], turned, 1e-5);
        }
}

static void test_types(void **) {
    for (uint32_t u = 0; u < 65536; u++) {
        bf16 b = {(uint16_t)u};
        f16 h = {(uint16_t)u};
        float x = to_float(b), y = to_float(h);
        if (x == x)
            assert_int_equal(from_float<bf16>(x).bits, u);
        if (y == y)
            assert_int_equal(from_float<f16>(y).bits, u);
    }
    assert_int_equal(from_float<f16>(65519.0f).bits, 0x7bff);
    assert_int_equal(from_float<f16>(65520.0f).bits, 0x7c00);
    assert_int_equal(from_float<f16>(1.0f + 0x1p-11f).bits, 0x3c00);
    assert_int_equal(from_float<f16>(1.0f + 3 * 0x1p-11f).bits, 0x3c02);
    assert_int_equal(from_float<f16>(0x1p-25f).bits, 0);
    assert_int_equal(from_float<f16>(0x1.8p-25f).bits, 1);
    assert_int_equal(from_float<bf16>(1.0f + 0x1p-8f).bits, 0x3f80);
    assert_int_equal(from_float<bf16>(1.0f + 3 * 0x1p-8f).bits, 0x3f82);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        TEST(test_indices),
        TEST(test_orders),
        TEST(test_barriers),
        TEST(test_blocks_alive),
        TEST(test_races),
        TEST(test_places),
        TEST(test_copies),
        TEST_TYPED(test_matrices, bf16),
        TEST_TYPED(test_matrices, f16),
        TEST(test_types),
    };
    return cmocka_run_group_tests(tests, nullptr, nullptr);
}

// Adds, the tree over buffers, sums of squares, AdamW and the joining of KV slots against the CPU.
#include "kernels/cuda/kv.cu"
#include "kernels/cuda/optim.cu"
#include "tests/simt/util.h"

template <class T> static void test_add(void **) {
    for (size_t n : {1, 8, 255, 3000})
        for (size_t skew : {(size_t)0, sizeof(T)}) {
            both<T> a = random_values<T>(n, 1.0f, skew), b = random_values<T>(n, 1.0f);
            tsr_cuda_add(nullptr, dtype_of<T>, a.dev, a.dev, b.dev, n);
            cpu.ops->add(&cpu, a.cpu, a.cpu, b.cpu, n);
            expect_same(a);
        }
}

static void test_tree(void **) {
    for (int n_in : {1, 2, 3, 7, 8, 9, 12, 13, 16, 23, 24}) {
        size_t n = 300;
        both<float> in[24];
        float **dev = simt::array<float *>((size_t)n_in);
        const float *twin[24];
        for (int k = 0; k < n_in; k++) {
            in[k] = random_values<float>(n, 1.0f);
            dev[k] = in[k].dev;
            twin[k] = in[k].cpu;
        }
        both<float> out = blank<float>(n);
        tsr_cuda_tree_add(nullptr, out.dev, dev, n_in, n);
        cpu.ops->tree_add(&cpu, out.cpu, twin, n_in, n);
        expect_same(out);
        tsr_cuda_tree_add(nullptr, in[0].dev, dev, n_in, n);
        expect_same(in[0].dev, out.cpu, n, 0.0f, 0.0f);
    }
}

static void test_sumsq(void **) {
    const int64_t bounds[] = {1, 1, 4, 5, 10, 150};
    for (int cols : {1, 7, 16, 513}) {
        both<float> g = random_values<float>(150 * (size_t)(cols + 5), 3.0f);
        double *sums = simt::array<double>(5), want[5];
        assert_int_equal(tsr_cuda_sumsq(nullptr, sums, g.dev, cols + 5, copy_array(bounds, 6), 5, 1,
                                        149, cols, simt::array<double>(149)),
                         0);
        cpu.ops->sumsq(&cpu, want, g.cpu, cols + 5, bounds, 5, cols);
        assert_memory_equal(sums, want, sizeof want);
    }
}

static const struct tsr_adamw step_7 = {1e-3f, 0.9f,       0.95f,    1e-8f, 0.1f,   0.1f,
                                        0.05f, 0.5217031f, 0.54995f, 0.75f, nullptr};

template <class T> static void test_adamw(void **) {
    const struct {
        int rows, cols, more_w, more_g;
    } shapes[] = {{1, 1, 0, 0},  {3, 5, 0, 0},  {4, 64, 0, 0},
                  {4, 64, 8, 4}, {5, 33, 7, 1}, {2, 2049, 0, 3}};
    for (auto s : shapes) {
        size_t n_w = (size_t)s.rows * (s.cols + s.more_w), n = (size_t)s.rows * s.cols;
        both<float> w = random_values<float>(n_w, 1.0f), m = random_values<float>(n, 0.1f);
        both<float> g = random_values<float>((size_t)s.rows * (s.cols + s.more_g), 1.0f);
        both<float> v = random_values<float>(n, 0.1f);
        both<T> w16 = random_values<T>(n_w, 1.0f);
        for (size_t i = 0; i < n; i++)
            v.dev[i] = v.cpu[i] = std::fabs(v.cpu[i]);
        assert_int_equal(tsr_cuda_adamw(nullptr, &step_7, w.dev, s.cols + s.more_w, m.dev, v.dev,
                                        g.dev, s.cols + s.more_g, s.rows, s.cols, dtype_of<T>,
                                        w16.dev),
                         0);
        cpu.ops->adamw(&cpu, &step_7, w.cpu, s.cols + s.more_w, m.cpu, v.cpu, g.cpu,
                       s.cols + s.more_g, s.rows, s.cols, nullptr);
        expect_same(w);
        expect_same(m);
        expect_same(v);
        for (int r = 0; r < s.rows; r++)
            expect_same(w16.dev + (size_t)r * (s.cols + s.more_w),
                        w.cpu + (size_t)r * (s.cols + s.more_w), (size_t)s.cols, 1.01f, 1e-6f);
    }
}

template <class T> static void test_slots(void **) {
    const struct tsr_kv_slot slots[] = {{0, 1, 0, 0}, {1, 1, 0, 1}, {2, 1, 1, 3}, {3, 1, 0, 4}};
    const int slot_of[] = {0, 1, -1, -1, 3, -1, -1, -1, 2, -1};
    both<T> values = random_values<T>(3 * 4 * 20, 1.0f), out = blank<T>(3 * 2 * 20);
    both<float> whole = blank<float>(3 * 2 * 20);
    tsr_cuda_kv_slot_sum(nullptr, dtype_of<T>, out.dev, false, values.dev, copy_array(slot_of, 10),
                         4, 5, 2, 3, 20);
    cpu.ops->kv_slot_sum(&cpu, out.cpu, false, values.cpu, slots, 4, 5, 2, 3, 20);
    expect_same(out);
    tsr_cuda_kv_slot_sum(nullptr, dtype_of<T>, whole.dev, true, values.dev, copy_array(slot_of, 10),
                         4, 5, 2, 3, 20);
    expect_same(whole.dev, out.cpu, whole.n, 0.0f, 0.0f); // not rounded
}

template <class T> static void test_store(void **) {
    const int32_t blocks[] = {3, 0, 2};
    const int n_kv = 2, d = 24, width = n_kv * d, length = 7;
    both<T> k = random_values<T>(length * (width + 8), 1.0f),
            v = random_values<T>(length * width, 1);
    both<T> ck = random_values<T>(16 * width, 1.0f), cv = random_values<T>(16 * width, 1.0f);
    struct tsr_kv_cache cache = {ck.cpu, cv.cpu, blocks, 4, 3};
    const struct tsr_segment segs[] = {{1, 5, 2, 0, &cache}, {0, 1, 0, 0, nullptr}};
    segments s = segments_of(segs, 2);
    struct tsr_cuda_segment *dev = copy_array(s.dev, 2);
    dev[0].k = ck.dev;
    dev[0].v = cv.dev;
    dev[0].blocks = copy_array(blocks, 3);
    dev[0].block_tokens = 4;
    struct tsr_attn a = {};
    a.nkv = n_kv;
    a.head_dim = d;
    a.n_segs = 2;
    a.segs = segs;
    a.ldk = width + 8;
    a.ldv = width;
    struct tsr_cuda_attn c = {};
    c.nkv = n_kv;
    c.head_dim = d;
    c.n_segs = 2;
    c.segs = dev;
    c.max_length = 5;
    c.ldk = width + 8;
    c.ldv = width;
    tsr_cuda_kv_store(nullptr, dtype_of<T>, &c, k.dev, v.dev);
    cpu.ops->kv_store(&cpu, &a, k.cpu, v.cpu);
    expect_same(ck);
    expect_same(cv);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST_TYPES(test_add),
                                       TEST(test_tree),
                                       TEST(test_sumsq),
                                       TEST_TYPED(test_adamw, bf16),
                                       TEST_TYPED(test_adamw, f16),
                                       TEST_TYPES(test_slots),
                                       TEST_TYPES(test_store)};
    return run_in_both_orders(tests);
}

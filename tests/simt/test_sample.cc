// Sampling against core's sampler: the same tokens, exactly.
#include "kernels/cuda/sample.cu"
#include "tests/simt/util.h"

static uint64_t random_bits() {
    float a = random_unit(), b = random_unit(); // full words of the generator's high bits
    return (uint64_t)__float_as_uint(a) << 32 | __float_as_uint(b);
}

// Rows of logits with their settings.
struct sample_case {
    int rows;
    int64_t v;
    float *logits;
    struct tsr_sampling *s;
    uint64_t *index;

    sample_case(int rows_, int64_t v_, size_t skew = 0) : rows(rows_), v(v_) {
        logits = simt::array<float>((size_t)(rows * v), skew);
        s = simt::array<struct tsr_sampling>((size_t)rows);
        index = simt::array<uint64_t>((size_t)rows);
    }
    void run() {
        int32_t *next = simt::array<int32_t>((size_t)rows);
        assert_int_equal(tsr_cuda_sample(nullptr, next, logits, s, index, rows, v), 0);
        for (int i = 0; i < rows; i++) {
            int32_t want = tsr_sample(&s[i], logits + i * v, v, index[i]);
            if (next[i] != want)
                fail_msg("row %d of %lld logits: found token %d, the twin has %d", i, (long long)v,
                         next[i], want);
        }
    }
};

static const struct tsr_sampling settings[] = {{0.0, 1.0, 0.0, 0, 1},   {1.0, 1.0, 0.0, 0, 2},
                                               {0.7, 0.9, 0.0, 0, 3},   {1.0, 1.0, 0.0, 5, 4},
                                               {1.3, 0.95, 0.0, 40, 5}, {0.05, 0.5, 0.1, 3, 6},
                                               {1.0, 1.0, 0.2, 0, 7},   {100.0, 0.999, 0.0, 0, 8},
                                               {2.0, 0.0, 0.0, 0, 9},   {1e-30, 0.9, 0.5, 2, 10}};
enum { N_SETTINGS = sizeof settings / sizeof *settings };

// Every setting on rows of some length; coarse logits are equal to many others.
static void check_rows(int64_t v, float scale, bool coarse, size_t skew) {
    sample_case c(N_SETTINGS, v, skew);
    for (int64_t i = 0; i < c.rows * v; i++) {
        c.logits[i] = scale * (random_unit() + random_unit() + random_unit());
        if (coarse)
            c.logits[i] = std::rint(c.logits[i]);
    }
    for (int i = 0; i < c.rows; i++) {
        c.s[i] = settings[i];
        c.s[i].seed += random_bits();
        c.index[i] = random_bits() >> (i % 2 * 40);
    }
    c.run();
    simt::free_all();
}

static void test_lengths(void **) {
    for (int64_t v : {1, 2, 3, 31, 257, 511, 512, 2049, 4100})
        for (bool coarse : {false, true})
            check_rows(v, 4.0f, coarse, v % 2 == 0 ? 4 : 0);
}

static void test_many_draws(void **) {
    for (int trial = 0; trial < 12; trial++)
        check_rows(50 + 20 * trial, trial % 2 == 0 ? 2.0f : 30.0f, trial % 3 == 0, 0);
}

static void test_vocabularies(void **) {
    for (int64_t v : {32000, 128256}) {
        sample_case c(2, v);
        for (int64_t i = 0; i < 2 * v; i++)
            c.logits[i] = from_float<float>(to_float(from_float<bf16>(9.0f * random_unit())));
        c.s[0] = {1.0, 0.9, 0.0, 50, 11};
        c.s[1] = {1.0, 1.0, 0.0, 0, 12};
        c.index[0] = 7;
        c.index[1] = (uint64_t)1 << 35;
        c.run();
    }
}

static void test_odd_logits(void **) {
    const float rows[][4] = {{-INFINITY, 1.0f, -INFINITY, 1.5f},
                             {NAN, NAN, NAN, NAN},
                             {NAN, 0.0f, NAN, -0.0f},
                             {1.0f, INFINITY, INFINITY, NAN},
                             {-0.0f, 0.0f, -0.0f, 0.0f},
                             {-3e38f, 3e38f, -3e38f, 0.0f}};
    for (const struct tsr_sampling &s : settings) {
        sample_case c(6, 4);
        memcpy(c.logits, rows, sizeof rows);
        for (int i = 0; i < 6; i++) {
            c.s[i] = s;
            c.index[i] = (uint64_t)i;
        }
        c.run();
    }
}

static void test_no_rows(void **) {
    assert_int_equal(tsr_cuda_sample(nullptr, nullptr, nullptr, nullptr, nullptr, 0, 10), 0);
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_lengths), TEST(test_many_draws),
                                       TEST(test_vocabularies), TEST(test_odd_logits),
                                       TEST(test_no_rows)};
    return run_in_both_orders(tests);
}

// Stochastic rounding of bf16 weights against a twin that goes element by element: after AdamW and
// alone, in whole tensors and in any share of one.
#include "kernels/cuda/optim.cu"
#include "tests/simt/util.h"

static uint32_t bits_of(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

static float float_of(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

// kernels/ops.h, struct tsr_rounding: the element's own draw decides.
static uint16_t twin(float x, const struct tsr_rounding &r, int64_t row, int64_t col) {
    uint64_t e = (uint64_t)(r.first + row * r.row_elems + col), counter = e / 4;
    struct tsr_u32x4 draw = tsr_philox(r.key, (uint32_t)counter, (uint32_t)(counter >> 32),
                                       (uint32_t)r.update, (uint32_t)(r.update >> 32));
    uint32_t u = bits_of(x), cut = u & 0xffff, below = u >> 16;
    if (std::isinf(x) || std::isnan(x))
        return from_float<bf16>(x).bits;
    return (uint16_t)(below + ((draw.v[e % 4] & 0xffff) >= 0x10000 - cut && cut > 0));
}

static const struct tsr_rounding draws = {{5, 6}, 0x300000001, 0, 0};

// A share: rows [r0, r1) and columns [c0, c1) of a tensor of `cols` columns.
struct share {
    int64_t r0, r1, c0, c1;
};

static struct tsr_rounding draws_of(const share &s, int64_t cols) {
    struct tsr_rounding r = draws;
    r.first = ((int64_t)1 << 33) + s.r0 * cols + s.c0; // of an expert among many, say
    r.row_elems = cols;
    return r;
}

enum { ROWS = 9, COLS = 37 };
static const share shares[] = {{0, ROWS, 0, COLS}, {0, 4, 0, COLS},  {4, ROWS, 0, COLS},
                               {0, ROWS, 0, 1},    {0, ROWS, 1, 20}, {0, ROWS, 20, COLS},
                               {3, 7, 5, 13},      {8, 9, 36, 37},   {2, 2, 0, COLS}};

static float value(int64_t row, int64_t col) {
    uint32_t n = (uint32_t)(row * COLS + col);
    return float_of((n * 2654435761u & 0xbfffffffu) ^ n);
}

// Every share gives the bits that the whole tensor has there, at any alignment.
static void test_shares(void **) {
    for (int64_t gap : {0, 3, 8})
        for (size_t skew : {0, 2, 4, 8})
            for (const share &s : shares) {
                int64_t rows = s.r1 - s.r0, cols = s.c1 - s.c0, ld = cols + gap;
                size_t n = (size_t)(rows * cols);
                float *master = simt::array<float>(n, skew % 8 == 0 ? 0 : 4);
                bf16 *w = simt::array<bf16>((size_t)(rows * ld), skew);
                memset((void *)w, 0xa5, (size_t)(rows * ld) * sizeof *w);
                for (int64_t i = 0; i < rows * cols; i++)
                    master[i] = value(s.r0 + i / cols, s.c0 + i % cols);
                struct tsr_rounding r = draws_of(s, COLS);
                assert_int_equal(
                    tsr_cuda_round(nullptr, TSR_DT_BF16, w, ld, master, &r, rows, cols), 0);
                const struct tsr_rounding whole = draws_of({0, ROWS, 0, COLS}, COLS);
                for (int64_t i = 0; i < rows; i++)
                    for (int64_t j = 0; j < ld; j++)
                        assert_int_equal(w[i * ld + j].bits, j < cols
                                                                 ? twin(value(s.r0 + i, s.c0 + j),
                                                                        whole, s.r0 + i, s.c0 + j)
                                                                 : 0xa5a5);
            }
}

static const struct tsr_adamw step_7 = {1e-3f, 0.9f,       0.95f,    1e-8f, 0.1f,   0.1f,
                                        0.05f, 0.5217031f, 0.54995f, 0.75f, nullptr};

// AdamW rounds what it has made of the master, which it leaves as without rounding.
static void test_adamw(void **) {
    for (int64_t gap : {0, 5, 8})
        for (const share &s : shares) {
            int64_t rows = s.r1 - s.r0, cols = s.c1 - s.c0, ld = cols + gap;
            size_t n = (size_t)(rows * cols), n_w = (size_t)(rows * ld);
            both<float> w = random_values<float>(n_w, 1.0f), g = random_values<float>(n, 1.0f);
            both<float> m = random_values<float>(n, 0.1f), v = random_values<float>(n, 0.1f);
            bf16 *narrow = simt::array<bf16>(n_w);
            struct tsr_rounding r = draws_of(s, COLS);
            struct tsr_adamw p = step_7;
            p.rounding = &r;
            for (size_t i = 0; i < n; i++)
                v.dev[i] = v.cpu[i] = std::fabs(v.cpu[i]);
            assert_int_equal(tsr_cuda_adamw(nullptr, &p, w.dev, ld, m.dev, v.dev, g.dev, cols, rows,
                                            cols, TSR_DT_BF16, narrow),
                             0);
            cpu.ops->adamw(&cpu, &step_7, w.cpu, ld, m.cpu, v.cpu, g.cpu, cols, rows, cols,
                           nullptr);
            expect_same(w);
            expect_same(m);
            expect_same(v);
            for (int64_t i = 0; i < rows; i++)
                for (int64_t j = 0; j < cols; j++)
                    assert_int_equal(narrow[i * ld + j].bits, twin(w.cpu[i * ld + j], r, i, j));
        }
}

// What bf16 has stays; the rest goes to one of its two neighbours, for either sign, among
// subnormal numbers and at the upper end, too; infinity and NaN stay what they are.
static void test_neighbours(void **) {
    const uint32_t edges[] = {0,          1,          0xffff,     0x10000,
                              0x10001,    0x7fffff,   0x800000,   0x3f800000,
                              0x3f808000, 0x3f80ffff, 0x7f7f0000, 0x7f7fffff,
                              0x7f800000, 0x7f800001, 0x7fc00000, 0x7fffffff};
    enum { EDGES = sizeof edges / sizeof *edges, N = 64 * 2 * EDGES };
    float *master = simt::array<float>(N);
    bf16 *w = simt::array<bf16>(N);
    for (int i = 0; i < N; i++)
        master[i] = float_of(edges[i / 2 % EDGES] | (uint32_t)(i % 2) << 31);
    struct tsr_rounding r = draws_of({0, 1, 0, N}, N);
    assert_int_equal(tsr_cuda_round(nullptr, TSR_DT_BF16, w, N, master, &r, 1, N), 0);
    for (int i = 0; i < N; i++) {
        uint32_t u = bits_of(master[i]), below = u >> 16;
        if (std::isnan(master[i])) {
            assert_true(std::isnan(to_float(w[i])));
            continue;
        }
        bool exact = (u & 0xffff) == 0;
        assert_true(w[i].bits == below || (!exact && w[i].bits == below + 1));
        assert_int_equal(w[i].bits, twin(master[i], r, 0, i));
    }
}

// The mean over draws is the value: of N draws with probability f, f N go up, give or take five
// standard deviations. Neighbours, rows and updates draw anew.
static void test_unbiased(void **) {
    enum { N = 4096 };
    float *master = simt::array<float>(N);
    bf16 *w = simt::array<bf16>(N), *again = simt::array<bf16>(N);
    for (uint32_t cut : {0x0001u, 0x1000u, 0x5555u, 0x8000u, 0xc000u, 0xffffu})
        for (uint32_t sign : {0u, 0x80000000u}) {
            for (int i = 0; i < N; i++)
                master[i] = float_of(sign | 0x3f800000u | cut);
            struct tsr_rounding r = draws_of({0, 64, 0, 64}, 64);
            int up = 0, pairs = 0, changed = 0;
            tsr_cuda_round(nullptr, TSR_DT_BF16, w, 64, master, &r, 64, 64);
            r.update++;
            tsr_cuda_round(nullptr, TSR_DT_BF16, again, 64, master, &r, 64, 64);
            for (int i = 0; i < N; i++) {
                up += w[i].bits & 1;
                pairs += i > 0 && (w[i].bits & w[i - 1].bits & 1);
                changed += w[i].bits != again[i].bits;
            }
            double f = cut / 65536.0, both = f * f, other = 2 * f * (1 - f);
            assert_true(std::fabs(up - f * N) <= 5 * std::sqrt(f * (1 - f) * N) + 1);
            assert_true(std::fabs(pairs - both * N) <= 10 * std::sqrt(both * (1 - both) * N) + 1);
            assert_true(std::fabs(changed - other * N) <=
                        5 * std::sqrt(other * (1 - other) * N) + 1);
        }
}

static void test_types(void **) {
    float *x = simt::array<float>(8);
    memset(x, 0, 8 * sizeof *x);
    bf16 *w = simt::array<bf16>(8);
    struct tsr_adamw p = step_7;
    p.rounding = &draws;
    for (enum tsr_dtype t : {TSR_DT_F16, TSR_DT_F32}) {
        assert_int_equal(tsr_cuda_round(nullptr, t, w, 8, x, &draws, 1, 8), TSR_EUSAGE);
        assert_int_equal(tsr_cuda_adamw(nullptr, &p, x, 8, x, x, x, 8, 1, 8, t, w), TSR_EUSAGE);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_shares), TEST(test_adamw), TEST(test_neighbours),
                                       TEST(test_unbiased), TEST(test_types)};
    return run_in_both_orders(tests);
}

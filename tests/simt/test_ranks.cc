// The maximum over ranks' buffers: the bits of the host's transport, which dist/comm_tree.c joins.
#include "kernels/cuda/ranks.cu"
#include "tests/simt/util.h"

// Level by level, as core/pieces.h says.
static float tree_of(const float *leaf, int n) {
    float node[32];
    for (int k = 0; k < n; k++)
        node[k] = leaf[k];
    for (; n > 1; n = (n + 1) / 2)
        for (int k = 0; k < (n + 1) / 2; k++) {
            float a = node[2 * k], b = 2 * k + 1 < n ? node[2 * k + 1] : a;
            node[k] = 2 * k + 1 == n || a > b || a != a ? a : b;
        }
    return node[0];
}

// Zeros of both signs, infinities and NaNs among ordinary values.
static float value(int rank, size_t i) {
    static const float special[] = {0.0f, -0.0f, INFINITY, -INFINITY, NAN};
    uint32_t h = (uint32_t)(i * 2654435761u + (uint32_t)rank * 40503u);
    h ^= h >> 13;
    h *= 0x5bd1e995u;
    h ^= h >> 15;
    return h % 4 == 0 ? special[h / 4 % 5] : ((float)(h >> 8) - 8388608.0f) * 1e-3f;
}

static void test_max(void **) {
    for (int n_in : {1, 2, 3, 5, 7, 8, 12, 17})
        for (size_t n : {(size_t)1, (size_t)255, (size_t)600}) {
            float *in[17], **list = simt::array<float *>((size_t)n_in);
            for (int k = 0; k < n_in; k++) {
                list[k] = in[k] = simt::array<float>(n);
                for (size_t i = 0; i < n; i++)
                    in[k][i] = value(k, i);
            }
            float *out = in[n_in / 2]; // one of them
            assert_int_equal(tsr_cuda_tree_max(nullptr, out, list, n_in, n), 0);
            for (size_t i = 0; i < n; i++) {
                float leaf[17];
                for (int k = 0; k < n_in; k++)
                    leaf[k] = value(k, i);
                float want = tree_of(leaf, n_in);
                bool same = std::isnan(want)
                                ? std::isnan(out[i])
                                : want == out[i] && std::signbit(want) == std::signbit(out[i]);
                if (!same)
                    fail_msg("%d ranks, [%zu]: found %a, expected %a", n_in, i, out[i], want);
            }
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {TEST(test_max)};
    return run_in_both_orders(tests);
}

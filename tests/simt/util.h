// For tests of CUDA kernels against their CPU twins: the same random values as the device's type
// and as floats, and comparison.
#ifndef TSR_TESTS_SIMT_UTIL_H
#define TSR_TESTS_SIMT_UTIL_H

#include <cmath>
#include <cstdarg>
#include <cstddef>
#include <cstdint>
#include <csetjmp>
#include <cstdlib>
#include <cstring>
extern "C" {
#include <cmocka.h>
}
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/launch.h"
#include "tests/simt/simt_memory.h"

template <class T> constexpr enum tsr_dtype dtype_of = TSR_DT_F32;
template <> constexpr enum tsr_dtype dtype_of<bf16> = TSR_DT_BF16;
template <> constexpr enum tsr_dtype dtype_of<f16> = TSR_DT_F16;

// Half the distance of neighbouring numbers, relative.
template <class T> constexpr float unit = 0.0f;
template <> constexpr float unit<bf16> = 0x1p-8f;
template <> constexpr float unit<f16> = 0x1p-11f;
// The smallest normal number of fp16; the other types' are too small to matter here.
template <class T> constexpr float least_normal = 0.0f;
template <> constexpr float least_normal<f16> = 0x1p-14f;

// An array on the "device" and its twin's floats.
template <class T> struct both {
    T *dev;
    float *cpu;
    size_t n;
};

inline uint64_t random_state = 1;
inline float random_unit() { // [-1, 1)
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (float)(int32_t)(random_state >> 32) * 0x1p-31f;
}

// Full of NaN. skew: bytes past a multiple of 16.
template <class T> both<T> blank(size_t n, size_t skew = 0) {
    return {simt::array<T>(n, skew), simt::array<float>(n), n};
}

template <class T> both<T> random_values(size_t n, float scale, size_t skew = 0) {
    both<T> b = blank<T>(n, skew);
    for (size_t i = 0; i < n; i++) {
        b.dev[i] = from_float<T>(random_unit() * scale);
        b.cpu[i] = to_float(b.dev[i]);
    }
    return b;
}

template <class T> both<T> copy_of(const both<T> &from) {
    both<T> b = blank<T>(from.n);
    memcpy(b.dev, from.dev, from.n * sizeof(T));
    memcpy(b.cpu, from.cpu, from.n * sizeof(float));
    return b;
}

template <class A> A *copy_array(const A *from, size_t n) {
    A *to = simt::array<A>(n);
    memcpy((void *)to, from, n * sizeof(A));
    return to;
}

// fp32: the same bits (any NaN is a NaN). Otherwise within `units` roundings of the twin's value,
// or of `floor` where that is larger.
template <class T>
void expect_same(const T *dev, const float *cpu, size_t n, float units, float floor) {
    for (size_t i = 0; i < n; i++) {
        float x = to_float(dev[i]), y = cpu[i], most = std::fabs(y);
        most = std::fmax(std::fmax(most, floor), least_normal<T>);
        bool same =
            sizeof(T) == 4 ? memcmp(&x, &y, 4) == 0 : std::fabs(x - y) <= units * unit<T> * most;
        if (!same && !(x == y && sizeof(T) == 2) && !(x != x && y != y))
            fail_msg("element %zu of %zu: found %.9g, the twin has %.9g", i, n, (double)x,
                     (double)y);
    }
}
template <class T> void expect_same(const both<T> &b, float units = 1.01f, float floor = 1e-6f) {
    expect_same(b.dev, b.cpu, b.n, units, floor);
}

inline struct tsr_ctx cpu;

inline int open_cpu(void **) {
    return tsr_cpu_open(&cpu, nullptr, 1);
}
inline int close_cpu(void **) {
    cpu.ops->close(&cpu);
    return 0;
}
inline int end_arrays(void **) {
    simt::free_all();
    return 0;
}

// Segments for the device and for the twin, without caches.
struct segments {
    const struct tsr_segment *cpu;
    const struct tsr_cuda_segment *dev;
    int n, max_length;
};
inline segments segments_of(const struct tsr_segment *s, int n) {
    struct tsr_cuda_segment *dev = simt::array<struct tsr_cuda_segment>((size_t)n);
    segments out = {s, dev, n, 0};
    for (int i = 0; i < n; i++) {
        dev[i] = {s[i].start,
                  s[i].length,
                  s[i].position,
                  (uint32_t)s[i].sequence,
                  (uint32_t)(s[i].sequence >> 32),
                  nullptr,
                  nullptr,
                  nullptr,
                  0};
        out.max_length = s[i].length > out.max_length ? s[i].length : out.max_length;
    }
    return out;
}

// Runs the tests with threads and blocks in one order and then in the other.
template <size_t N> int run_in_both_orders(const struct CMUnitTest (&tests)[N]) {
    int n_failed = cmocka_run_group_tests(tests, open_cpu, close_cpu);
    simt::reverse_order = true;
    return n_failed + cmocka_run_group_tests(tests, open_cpu, close_cpu);
}

#define TEST_TYPED(f, T) cmocka_unit_test_teardown(f<T>, end_arrays)
#define TEST_TYPES(f)    TEST_TYPED(f, float), TEST_TYPED(f, bf16), TEST_TYPED(f, f16)
#define TEST(f)          cmocka_unit_test_teardown(f, end_arrays)

#endif

// bf16 and fp16 as bits, with the conversions of the hardware: to nearest, ties to even.
#ifndef TSR_TESTS_SIMT_SIMT_TYPES_H
#define TSR_TESTS_SIMT_SIMT_TYPES_H

struct bf16 {
    uint16_t bits;
};
struct f16 {
    uint16_t bits;
};

inline float simt_as_float(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}
inline uint32_t simt_as_bits(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}

#define __uint_as_float(u) simt_as_float(u)
#define __float_as_uint(x) simt_as_bits(x)
#define __int_as_float(i)  simt_as_float((uint32_t)(i))

inline float to_float(float x) {
    return x;
}
inline float to_float(bf16 x) {
    return simt_as_float((uint32_t)x.bits << 16);
}
inline float to_float(f16 x) {
    uint32_t sign = (uint32_t)(x.bits & 0x8000) << 16, rest = x.bits & 0x7fff;
    if (rest >= 0x7c00)
        return simt_as_float(sign | 0x7f800000u | (rest & 0x3ff) << 13);
    float magnitude =
        rest < 0x400 ? (float)rest * 0x1p-24f : simt_as_float((rest << 13) + 0x38000000u);
    return std::copysign(magnitude, simt_as_float(sign | 0x3f800000u));
}

template <class T> T from_float(float x);
template <> inline float from_float<float>(float x) {
    return x;
}
template <> inline bf16 from_float<bf16>(float x) {
    uint32_t u = simt_as_bits(x);
    if (x != x)
        return {0x7fff};
    return {(uint16_t)((u + 0x7fff + (u >> 16 & 1)) >> 16)};
}
template <> inline f16 from_float<f16>(float x) {
    uint16_t sign = (uint16_t)(simt_as_bits(x) >> 16 & 0x8000);
    float a = std::fabs(x);
    if (x != x)
        return {0x7fff};
    if (a >= 65520.0f)
        return {(uint16_t)(sign | 0x7c00)};
    if (a < 0x1p-14f) // subnormal: units of 2^-24
        return {(uint16_t)(sign | (uint16_t)std::nearbyint(a * 0x1p24f))};
    uint32_t u = simt_as_bits(a);
    u += 0xfff + (u >> 13 & 1);
    return {(uint16_t)(sign | (u - 0x38000000u) >> 13)};
}

// Two elements in one register, the first in the low half.
template <class T> inline uint32_t pack2(float lo, float hi) {
    return (uint32_t)from_float<T>(lo).bits | (uint32_t)from_float<T>(hi).bits << 16;
}

template <class T> inline float low_half(uint32_t u) {
    return to_float(T{(uint16_t)u});
}
template <class T> inline float high_half(uint32_t u) {
    return to_float(T{(uint16_t)(u >> 16)});
}

// 16 bytes of global memory, which must be aligned.
inline uint4 load16(const void *p) {
    uint4 u;
    if ((uintptr_t)p % 16 != 0)
        simt::stop("global memory: 16 bytes read from a misaligned address");
    memcpy(&u, p, 16);
    return u;
}
inline void store16(void *p, uint4 u) {
    if ((uintptr_t)p % 16 != 0)
        simt::stop("global memory: 16 bytes written to a misaligned address");
    memcpy(p, &u, 16);
}

inline void store8(void *p, uint2 u) {
    if ((uintptr_t)p % 8 != 0)
        simt::stop("global memory: 8 bytes written to a misaligned address");
    memcpy(p, &u, 8);
}
inline void prefetch_l2(const void *) {
}

// Between blocks. Memory is never weak here: what one thread writes the next one sees.
inline uint4 load16_l2(const void *p) {
    return load16(p);
}
inline void store16_l2(void *p, uint4 u) {
    store16(p, u);
}
inline int load_relaxed(const int *p) {
    return *p;
}
inline void store_relaxed(int *p, int x) {
    *p = x;
}
inline void fence_blocks() {
}
inline void wait_until(const int *p, int x, int line = __builtin_LINE()) {
    while (*p != x)
        simt::spin(line);
}
inline int next_ticket(int *p) {
    return (*p)++;
}

// The approximations of the special function unit.
inline float fast_exp2(float x) {
    return std::exp2(x);
}
inline float fast_log2(float x) {
    return std::log2(x);
}
inline float fast_divide(float a, float b) {
    return a / b;
}
inline uint32_t __umulhi(uint32_t a, uint32_t b) {
    return (uint32_t)((uint64_t)a * b >> 32);
}
template <class T> inline T __ldg(const T *p) {
    return *p;
}

#endif

// Element types of files and their conversions to and from fp32 (IEEE 754 binary16 and the upper
// half of binary32).
#include "core/safetensors.h"

#include <string.h>
#include "core/error.h"

_Static_assert(__BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__, "file data is little-endian");

static const struct {
    const char *name;
    size_t size;
} dtypes[TSR_N_DTYPES] = {
#define X(name, size) {#name, size},
    TSR_DTYPE_MAP(X)
#undef X
};

size_t tsr_dtype_size(enum tsr_dtype t) {
    return dtypes[t].size;
}

const char *tsr_dtype_name(enum tsr_dtype t) {
    return dtypes[t].name;
}

static float float_of_bits(uint32_t u) {
    float f;
    memcpy(&f, &u, sizeof f);
    return f;
}

static uint32_t bits_of_float(float f) {
    uint32_t u;
    memcpy(&u, &f, sizeof u);
    return u;
}

float tsr_bf16_to_f32(uint16_t h) {
    return float_of_bits((uint32_t)h << 16);
}

uint16_t tsr_f32_to_bf16(float f) {
    uint32_t u = bits_of_float(f);
    if ((u & 0x7fffffffu) > 0x7f800000u)
        return (uint16_t)(u >> 16 | 0x40); // rounding could carry a NaN into infinity
    return (uint16_t)((u + 0x7fffu + (u >> 16 & 1)) >> 16);
}

float tsr_f16_to_f32(uint16_t h) {
    uint32_t sign = (uint32_t)(h & 0x8000) << 16;
    uint32_t exponent = h >> 10 & 0x1f, mantissa = h & 0x3ff;
    if (exponent == 31)
        return float_of_bits(sign | 0x7f800000u | mantissa << 13);
    if (exponent == 0) { // mantissa * 2^-24, exact in fp32
        float magnitude = (float)mantissa * 0x1p-24f;
        return float_of_bits(sign | bits_of_float(magnitude));
    }
    return float_of_bits(sign | (exponent + 112) << 23 | mantissa << 13);
}

uint16_t tsr_f32_to_f16(float f) {
    uint32_t u = bits_of_float(f), sign = u >> 16 & 0x8000, a = u & 0x7fffffffu;
    if (a > 0x7f800000u)
        return (uint16_t)(sign | 0x7e00 | (a >> 13 & 0x3ff));
    if (a >= 0x477ff000u) // 65520, halfway from the largest half to the next: infinity
        return (uint16_t)(sign | 0x7c00);
    if (a >= 0x38800000u) // 2^-14, the smallest normal half; a carry moves into the exponent
        return (uint16_t)(sign | (a - 0x38000000u + 0xfffu + (a >> 13 & 1)) >> 13);
    if (a < 0x33000000u) // below 2^-25, half of the smallest subnormal
        return (uint16_t)sign;
    uint32_t mantissa = (a & 0x7fffffu) | 0x800000u;
    uint32_t shift = 126 - (a >> 23); // so that one unit is 2^-24; 14 to 24
    uint32_t kept = mantissa >> shift, rest = mantissa & ((1u << shift) - 1);
    uint32_t half = 1u << (shift - 1);
    return (uint16_t)(sign | (kept + (rest > half || (rest == half && (kept & 1)))));
}

void tsr_dtype_to_f32(enum tsr_dtype t, float *dst, const void *src, size_t n) {
    const uint16_t *h = src;
    TSR_ASSERT(t == TSR_DT_F32 || t == TSR_DT_F16 || t == TSR_DT_BF16);
    if (t == TSR_DT_F32)
        memcpy(dst, src, n * sizeof *dst);
    else if (t == TSR_DT_BF16)
        for (size_t i = 0; i < n; i++)
            dst[i] = tsr_bf16_to_f32(h[i]);
    else
        for (size_t i = 0; i < n; i++)
            dst[i] = tsr_f16_to_f32(h[i]);
}

void tsr_dtype_from_f32(enum tsr_dtype t, void *dst, const float *src, size_t n) {
    uint16_t *h = dst;
    TSR_ASSERT(t == TSR_DT_F32 || t == TSR_DT_F16 || t == TSR_DT_BF16);
    if (t == TSR_DT_F32)
        memcpy(dst, src, n * sizeof *src);
    else if (t == TSR_DT_BF16)
        for (size_t i = 0; i < n; i++)
            h[i] = tsr_f32_to_bf16(src[i]);
    else
        for (size_t i = 0; i < n; i++)
            h[i] = tsr_f32_to_f16(src[i]);
}

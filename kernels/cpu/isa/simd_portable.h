// The virtual vector in plain C: loops over 16 lanes that a compiler may or may not vectorise,
// and fmaf/fma, which are exact whether the CPU has the instruction or libm does the work. Names
// are explained in simd.h.
#ifndef TSR_KERNELS_CPU_ISA_SIMD_PORTABLE_H
#define TSR_KERNELS_CPU_ISA_SIMD_PORTABLE_H

typedef struct {
    float f[16];
} v16;
typedef struct {
    uint32_t u[16];
} v16i;
typedef struct {
    uint32_t u[16]; // ~0 or 0
} v16m;
typedef struct {
    double d[16];
} v16d;

// Defines a function whose lane i is the expression.
#define V16_DEF(type, member, name, params, expr)                                                  \
    V16_FN type name params {                                                                      \
        type r_;                                                                                   \
        for (int i = 0; i < 16; i++)                                                               \
            r_.member[i] = (expr);                                                                 \
        return r_;                                                                                 \
    }
#define V16_MASK(cond) ((cond) ? ~0u : 0u)

V16_FN uint32_t v16_bits1_(float x) {
    uint32_t u;
    memcpy(&u, &x, 4);
    return u;
}
V16_FN float v16_float1_(uint32_t u) {
    float x;
    memcpy(&x, &u, 4);
    return x;
}

V16_DEF(v16m, u, v16m_first, (int n), V16_MASK(i < n))
V16_DEF(v16m, u, v16m_and, (v16m a, v16m b), a.u[i] & b.u[i])
V16_DEF(v16m, u, v16m_or, (v16m a, v16m b), a.u[i] | b.u[i])
V16_DEF(v16m, u, v16m_not, (v16m a), ~a.u[i])
V16_FN unsigned v16m_bits(v16m a) {
    unsigned bits = 0;
    for (int i = 0; i < 16; i++)
        bits |= (a.u[i] & 1u) << i;
    return bits;
}
V16_FN bool v16m_any(v16m a) {
    return v16m_bits(a) != 0;
}

V16_DEF(v16, f, v16_load, (const float *p), p[i])
V16_DEF(v16, f, v16_loadu, (const float *p), p[i])
V16_DEF(v16, f, v16_load_n, (const float *p, int n, float fill), i < n ? p[i] : fill)
V16_FN void v16_storeu(float *p, v16 x) {
    memcpy(p, x.f, sizeof x.f);
}
V16_FN void v16_store(float *p, v16 x) {
    v16_storeu(p, x);
}
V16_FN void v16_store_n(float *p, int n, v16 x) {
    for (int i = 0; i < n; i++)
        p[i] = x.f[i];
}
V16_DEF(v16, f, v16_set1, (float x), x)
V16_DEF(v16, f, v16_zero, (void), 0.0f)

V16_DEF(v16, f, v16_add, (v16 a, v16 b), a.f[i] + b.f[i])
V16_DEF(v16, f, v16_sub, (v16 a, v16 b), a.f[i] - b.f[i])
V16_DEF(v16, f, v16_mul, (v16 a, v16 b), a.f[i] * b.f[i])
V16_DEF(v16, f, v16_div, (v16 a, v16 b), a.f[i] / b.f[i])
V16_DEF(v16, f, v16_sqrt, (v16 a), sqrtf(a.f[i]))
V16_DEF(v16, f, v16_fma, (v16 a, v16 b, v16 c), fmaf(a.f[i], b.f[i], c.f[i]))
V16_DEF(v16, f, v16_fnma, (v16 a, v16 b, v16 c), fmaf(-a.f[i], b.f[i], c.f[i]))
V16_DEF(v16, f, v16_max, (v16 a, v16 b), a.f[i] > b.f[i] ? a.f[i] : b.f[i])
V16_DEF(v16, f, v16_min, (v16 a, v16 b), a.f[i] < b.f[i] ? a.f[i] : b.f[i])
V16_DEF(v16, f, v16_abs, (v16 a), v16_float1_(v16_bits1_(a.f[i]) & 0x7fffffffu))
V16_DEF(v16, f, v16_neg, (v16 a), v16_float1_(v16_bits1_(a.f[i]) ^ 0x80000000u))
V16_DEF(v16, f, v16_copysign, (v16 a, v16 s),
        v16_float1_((v16_bits1_(a.f[i]) & 0x7fffffffu) | (v16_bits1_(s.f[i]) & 0x80000000u)))

V16_DEF(v16m, u, v16_lt, (v16 a, v16 b), V16_MASK(a.f[i] < b.f[i]))
V16_DEF(v16m, u, v16_le, (v16 a, v16 b), V16_MASK(a.f[i] <= b.f[i]))
V16_DEF(v16m, u, v16_gt, (v16 a, v16 b), V16_MASK(a.f[i] > b.f[i]))
V16_DEF(v16m, u, v16_ge, (v16 a, v16 b), V16_MASK(a.f[i] >= b.f[i]))
V16_DEF(v16m, u, v16_eq, (v16 a, v16 b), V16_MASK(a.f[i] == b.f[i]))
V16_DEF(v16m, u, v16_isnan, (v16 a), V16_MASK(a.f[i] != a.f[i]))
V16_DEF(v16, f, v16_select, (v16m m, v16 a, v16 b),
        v16_float1_((v16_bits1_(a.f[i]) & m.u[i]) | (v16_bits1_(b.f[i]) & ~m.u[i])))
V16_DEF(v16i, u, v16i_select, (v16m m, v16i a, v16i b), (a.u[i] & m.u[i]) | (b.u[i] & ~m.u[i]))

// 1.5 * 2^23: added, it leaves the rounded integer in the low bits of the mantissa.
V16_DEF(v16i, u, v16_to_i, (v16 x), v16_bits1_(x.f[i] + 12582912.0f) - 0x4b400000u)
V16_DEF(v16, f, v16i_to_f, (v16i x), (float)(int32_t)x.u[i])
V16_DEF(v16i, u, v16_as_i, (v16 x), v16_bits1_(x.f[i]))
V16_DEF(v16, f, v16i_as_f, (v16i x), v16_float1_(x.u[i]))

V16_FN v16i v16i_loadu(const void *p) {
    v16i r;
    memcpy(r.u, p, sizeof r.u);
    return r;
}
V16_FN void v16i_storeu(void *p, v16i x) {
    memcpy(p, x.u, sizeof x.u);
}
V16_DEF(v16i, u, v16i_set1, (uint32_t x), x)
V16_DEF(v16i, u, v16i_iota, (void), (uint32_t)i)
V16_DEF(v16i, u, v16i_add, (v16i a, v16i b), a.u[i] + b.u[i])
V16_DEF(v16i, u, v16i_sub, (v16i a, v16i b), a.u[i] - b.u[i])
V16_DEF(v16i, u, v16i_and, (v16i a, v16i b), a.u[i] & b.u[i])
V16_DEF(v16i, u, v16i_or, (v16i a, v16i b), a.u[i] | b.u[i])
V16_DEF(v16i, u, v16i_xor, (v16i a, v16i b), a.u[i] ^ b.u[i])
V16_DEF(v16i, u, v16i_mul_lo, (v16i a, v16i b), a.u[i] * b.u[i])
V16_DEF(v16i, u, v16i_sll, (v16i x, int n), x.u[i] << n)
V16_DEF(v16i, u, v16i_srl, (v16i x, int n), x.u[i] >> n)
V16_DEF(v16i, u, v16i_sra, (v16i x, int n), (uint32_t)((int32_t)x.u[i] >> n))
V16_DEF(v16m, u, v16i_eq, (v16i a, v16i b), V16_MASK(a.u[i] == b.u[i]))
V16_DEF(v16m, u, v16i_gt, (v16i a, v16i b), V16_MASK((int32_t)a.u[i] > (int32_t)b.u[i]))
V16_DEF(v16m, u, v16i_geu, (v16i a, v16i b), V16_MASK(a.u[i] >= b.u[i]))
V16_FN void v16i_mul_wide(v16i a, v16i b, v16i *hi, v16i *lo) {
    for (int i = 0; i < 16; i++) {
        uint64_t p = (uint64_t)a.u[i] * b.u[i];
        hi->u[i] = (uint32_t)(p >> 32);
        lo->u[i] = (uint32_t)p;
    }
}

// 2^n goes in as two factors, the first exact: one rounding, and no exponent out of range.
V16_FN v16 v16_scale2(v16 x, v16 n) {
    v16i k = v16_to_i(n), half = v16i_sra(k, 1), bias = v16i_set1(127);
    v16 a = v16i_as_f(v16i_sll(v16i_add(half, bias), 23));
    v16 b = v16i_as_f(v16i_sll(v16i_add(v16i_sub(k, half), bias), 23));
    return v16_mul(v16_mul(x, a), b);
}

V16_FN float v16_hsum(v16 x) {
    for (int w = 8; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            x.f[i] = x.f[i] + x.f[i + w];
    return x.f[0];
}
V16_FN float v16_hmax(v16 x) {
    for (int w = 8; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            x.f[i] = x.f[i] > x.f[i + w] ? x.f[i] : x.f[i + w];
    return x.f[0];
}

V16_FN void v16_quad(v16 r[4]) {
    for (int g = 0; g < 16; g += 4)
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < k; j++) {
                float t = r[k].f[g + j];
                r[k].f[g + j] = r[j].f[g + k];
                r[j].f[g + k] = t;
            }
}
V16_FN void v16i_quad(v16i r[4]) {
    for (int g = 0; g < 16; g += 4)
        for (int k = 0; k < 4; k++)
            for (int j = 0; j < k; j++) {
                uint32_t t = r[k].u[g + j];
                r[k].u[g + j] = r[j].u[g + k];
                r[j].u[g + k] = t;
            }
}
V16_FN void v16_transpose(v16 r[16]) {
    for (int k = 0; k < 16; k++)
        for (int j = 0; j < k; j++) {
            float t = r[k].f[j];
            r[k].f[j] = r[j].f[k];
            r[j].f[k] = t;
        }
}
V16_DEF(v16, f, v16_gather, (const float *base, v16i index), base[(int32_t)index.u[i]])

V16_DEF(v16d, d, v16d_zero, (void), 0.0)
V16_DEF(v16d, d, v16d_of, (v16 x), (double)x.f[i])
V16_DEF(v16d, d, v16d_add, (v16d a, v16d b), a.d[i] + b.d[i])
V16_DEF(v16d, d, v16d_fma, (v16d a, v16d b, v16d c), fma(a.d[i], b.d[i], c.d[i]))
V16_FN double v16d_hsum(v16d x) {
    for (int w = 8; w > 0; w /= 2)
        for (int i = 0; i < w; i++)
            x.d[i] = x.d[i] + x.d[i + w];
    return x.d[0];
}

#endif

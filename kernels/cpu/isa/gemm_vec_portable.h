// Plain C: the reference that runs anywhere. fmaf rounds once whether or not the CPU has FMA.
#ifndef TSR_KERNELS_CPU_ISA_GEMM_VEC_PORTABLE_H
#define TSR_KERNELS_CPU_ISA_GEMM_VEC_PORTABLE_H

enum { VW = 8, MR = 4 };
#define EACH_ROW_COUNT(X) X(1) X(2) X(3) X(4)

typedef struct {
    float x[VW];
} vec;

VEC_FN vec vec_set1(float x) {
    vec v;
    for (int i = 0; i < VW; i++)
        v.x[i] = x;
    return v;
}
VEC_FN vec vec_zero(void) {
    return vec_set1(0.0f);
}
VEC_FN vec vec_add(vec a, vec b) {
    for (int i = 0; i < VW; i++)
        a.x[i] += b.x[i];
    return a;
}
VEC_FN vec vec_fma(vec a, vec b, vec c) {
    for (int i = 0; i < VW; i++)
        c.x[i] = fmaf(a.x[i], b.x[i], c.x[i]);
    return c;
}
VEC_FN vec vec_load_n(const float *p, int n) {
    vec v = vec_zero();
    memcpy(v.x, p, (size_t)n * sizeof *p);
    return v;
}
VEC_FN void vec_store_n(float *p, int n, vec x) {
    memcpy(p, x.x, (size_t)n * sizeof *p);
}
VEC_FN vec vec_load(const float *p) {
    return vec_load_n(p, VW);
}
VEC_FN void vec_store(float *p, vec x) {
    vec_store_n(p, VW, x);
}
VEC_FN void vec_store_mr(float *p, vec x) {
    vec_store_n(p, MR, x);
}

VEC_FN void vec_transpose(vec r[VW]) {
    for (int i = 0; i < VW; i++) {
        for (int j = 0; j < i; j++) {
            float t = r[i].x[j];
            r[i].x[j] = r[j].x[i];
            r[j].x[i] = t;
        }
    }
}

#endif

// The device's own instructions under the names that kernels use; tests/simt/ has their twins.
#ifndef TSR_KERNELS_CUDA_PTX_CUH
#define TSR_KERNELS_CUDA_PTX_CUH

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

using bf16 = __nv_bfloat16;
using f16 = __half;

#define PTX       __device__ __forceinline__
#define PRAGMA(x) _Pragma(#x)
#define UNROLL(n) PRAGMA(unroll n)

PTX float to_float(float x) {
    return x;
}
PTX float to_float(bf16 x) {
    return __bfloat162float(x);
}
PTX float to_float(f16 x) {
    return __half2float(x);
}
template <class T> PTX T from_float(float x);
template <> PTX float from_float<float>(float x) {
    return x;
}
template <> PTX bf16 from_float<bf16>(float x) {
    return __float2bfloat16_rn(x);
}
template <> PTX f16 from_float<f16>(float x) {
    return __float2half_rn(x);
}

// Two elements in one register, the first in the low half.
template <class T> PTX uint32_t pack2(float lo, float hi);
template <> PTX uint32_t pack2<bf16>(float lo, float hi) {
    uint32_t u;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(hi), "f"(lo));
    return u;
}
template <> PTX uint32_t pack2<f16>(float lo, float hi) {
    uint32_t u;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(u) : "f"(hi), "f"(lo));
    return u;
}
template <class T> PTX float low_half(uint32_t u);
template <class T> PTX float high_half(uint32_t u);
template <> PTX float low_half<bf16>(uint32_t u) {
    return __uint_as_float(u << 16);
}
template <> PTX float high_half<bf16>(uint32_t u) {
    return __uint_as_float(u & 0xffff0000u);
}
template <> PTX float low_half<f16>(uint32_t u) {
    return __half2float(__ushort_as_half((unsigned short)u));
}
template <> PTX float high_half<f16>(uint32_t u) {
    return __half2float(__ushort_as_half((unsigned short)(u >> 16)));
}

PTX uint4 load16(const void *p) {
    return *(const uint4 *)p;
}
PTX void store16(void *p, uint4 u) {
    *(uint4 *)p = u;
}

PTX void store8(void *p, uint2 u) {
    *(uint2 *)p = u;
}

// A line of 128 bytes will soon be read.
PTX void prefetch_l2(const void *p) {
    asm volatile("prefetch.global.L2 [%0];" ::"l"(p));
}

// Between blocks: what passes through the L2 cache, where all of them see it, and the words that
// say that it is there. A writer's stores, fence, store_relaxed; a reader's load_relaxed (or
// wait_until), fence, loads.
PTX uint4 load16_l2(const void *p) {
    return __ldcg((const uint4 *)p);
}
PTX void store16_l2(void *p, uint4 u) {
    __stcg((uint4 *)p, u);
}
PTX int load_relaxed(const int *p) {
    int x;
    asm volatile("ld.relaxed.gpu.global.s32 %0, [%1];" : "=r"(x) : "l"(p) : "memory");
    return x;
}
PTX void store_relaxed(int *p, int x) {
    asm volatile("st.relaxed.gpu.global.s32 [%0], %1;" ::"l"(p), "r"(x) : "memory");
}
PTX void fence_blocks() {
    asm volatile("fence.acq_rel.gpu;" ::: "memory");
}
// Waits until *p is x; an acquire, so no fence need follow.
PTX void wait_until(const int *p, int x) {
    int now;
    do
        asm volatile("ld.acquire.gpu.global.s32 %0, [%1];" : "=r"(now) : "l"(p) : "memory");
    while (now != x);
}
PTX int next_ticket(int *p) {
    return atomicAdd(p, 1);
}

// Shared memory: plain pointers, carved out of the block's dynamic array, each aligned to 16.
template <class T> using smem = T *;

extern __shared__ __align__(16) unsigned char tsr_shared_bytes[];
struct shared_cursor {
    size_t at = 0;
    template <class T> PTX smem<T> take(size_t n) {
        T *p = (T *)(tsr_shared_bytes + at);
        at += (n * sizeof(T) + 15) / 16 * 16;
        return p;
    }
};
template <class U, class T> PTX smem<U> smem_cast(T *p) {
    return (U *)p;
}
template <class T> PTX uint4 shared_load16(smem<T> p) {
    return *(const uint4 *)p;
}
template <class T> PTX void shared_store16(smem<T> p, uint4 u) {
    *(uint4 *)p = u;
}

// 16 bytes, global to shared, past the registers; zeros when not valid. Both aligned to 16.
template <class T> PTX void cp_async16(smem<T> dst, const T *src, bool valid) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(dst);
    int n = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(src), "r"(n)
                 : "memory");
}
// The same with the first n_bytes, then zeros.
template <class T> PTX void cp_async16_first(smem<T> dst, const T *src, int n_bytes) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(dst);
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(src), "r"(n_bytes)
                 : "memory");
}
// One float.
PTX void cp_async4(smem<float> dst, const float *src, bool valid) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(dst);
    int n = valid ? 4 : 0;
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(src), "r"(n)
                 : "memory");
}
PTX void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}
// Waits until at most N groups of this thread are under way.
template <int N> PTX void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(N) : "memory");
}

template <class T> PTX T shfl_xor(T x, int mask) {
    return __shfl_xor_sync(0xffffffffu, x, mask);
}
template <class T> PTX T shfl_from(T x, int from) {
    return __shfl_sync(0xffffffffu, x, from);
}
PTX uint32_t warp_ballot(bool x) {
    return __ballot_sync(0xffffffffu, x);
}

// Four 8 x 8 matrices of 16-bit elements: lane 8i + r gives the address of row r of matrix i.
template <class T> PTX void ldmatrix_x4(uint32_t (&r)[4], smem<T> row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}
template <class T> PTX void ldmatrix_x4_trans(uint32_t (&r)[4], smem<T> row) {
    uint32_t at = (uint32_t)__cvta_generic_to_shared(row);
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(at)
                 : "memory");
}

// C (16 x 8, fp32) += A (16 x 16) B (16 x 8).
template <class T>
PTX void mma_16816(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1);
template <>
PTX void mma_16816<bf16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
template <>
PTX void mma_16816<f16>(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// The approximations of the special function unit (2 ulp or so).
PTX float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
PTX float fast_log2(float x) {
    return __log2f(x);
}
PTX float fast_divide(float a, float b) {
    return __fdividef(a, b);
}

#endif

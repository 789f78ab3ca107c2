// The little that kernels need of the device: 16-bit types, shared memory, asynchronous copies,
// shuffles, the matrix instructions, and the launch. With TSR_SIMT the same names come from
// tests/simt/, and the kernels run on the CPU.
//
// Kernels are compiled with -fmad=false (as the CPU with -ffp-contract=off): every fused
// multiply-add is written as fmaf, so fp32 results can be held against the CPU's bit for bit.
#ifndef TSR_KERNELS_CUDA_DEVICE_CUH
#define TSR_KERNELS_CUDA_DEVICE_CUH

#include "kernels/cuda/contract.h"

#ifdef TSR_SIMT
#include "tests/simt/simt.h"
#else
#include "kernels/cuda/ptx.cuh"
#endif

#define DEVICE __device__ __forceinline__

// Launches kernel(args...) on a stream; 0 or TSR_EIO with the driver's own words.
template <class... P, class... A>
int launch_kernel(const char *name, void (*kernel)(P...), dim3 grid, int threads,
                  size_t shared_bytes, void *stream, A... args) {
#ifdef TSR_SIMT
    simt::load((const void *)kernel, name);
    simt::enqueue(
        stream, [=] { simt::launch(name, grid, threads, shared_bytes, [=] { kernel(args...); }); });
    return 0;
#else
    cudaError_t rc = cudaSuccess;
    if (shared_bytes > 48 * 1024)
        rc = cudaFuncSetAttribute((const void *)kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                  (int)shared_bytes);
    if (rc == cudaSuccess) {
        kernel<<<grid, threads, shared_bytes, (cudaStream_t)stream>>>(args...);
        rc = cudaGetLastError();
    }
    if (rc == cudaSuccess)
        return 0;
    return tsr_fail(TSR_EIO, "device: %s: %s", name, cudaGetErrorString(rc));
#endif
}

// The most shared memory that a block of this device may have.
inline int max_shared_bytes(int *n_bytes) {
#ifdef TSR_SIMT
    *n_bytes = 227 * 1024;
    return 0;
#else
    int device;
    cudaError_t rc = cudaGetDevice(&device);
    if (rc == cudaSuccess)
        rc = cudaDeviceGetAttribute(n_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device);
    if (rc == cudaSuccess)
        return 0;
    return tsr_fail(TSR_EIO, "device: size of shared memory: %s", cudaGetErrorString(rc));
#endif
}

// Runs the block with T being the element type `dtype` names.
#define TSR_WITH_TYPE(dtype, T, ...)                                                               \
    switch (dtype) {                                                                               \
    case TSR_DT_F32: {                                                                             \
        using T = float;                                                                           \
        __VA_ARGS__                                                                                \
    }                                                                                              \
    case TSR_DT_BF16: {                                                                            \
        using T = bf16;                                                                            \
        __VA_ARGS__                                                                                \
    }                                                                                              \
    case TSR_DT_F16: {                                                                             \
        using T = f16;                                                                             \
        __VA_ARGS__                                                                                \
    }                                                                                              \
    default:                                                                                       \
        return tsr_fail(TSR_EUSAGE, "device: no kernels for elements of type %d", (int)(dtype));   \
    }

template <class T> DEVICE T min_of(T a, T b) {
    return a < b ? a : b;
}
template <class T> DEVICE T max_of(T a, T b) {
    return a > b ? a : b;
}

// Blocks of `per` that cover n.
inline unsigned blocks_for(int64_t n, int64_t per) {
    return (unsigned)((n + per - 1) / per);
}

// Whether 16-byte accesses may go to a pointer, and to rows `ld` elements apart.
template <class T> inline bool aligned16(const T *p, ptrdiff_t ld = 0) {
    return (uintptr_t)p % 16 == 0 && ld * (ptrdiff_t)sizeof(T) % 16 == 0;
}

// What one thread moves at a time: 16 bytes as floats.
template <class T> struct chunk {
    static constexpr int N = 16 / (int)sizeof(T);
    float v[N];
};

DEVICE void unpack(uint4 u, chunk<float> &c) {
    const uint32_t w[4] = {u.x, u.y, u.z, u.w};
    for (int i = 0; i < 4; i++)
        c.v[i] = __uint_as_float(w[i]);
}
template <class T> DEVICE void unpack(uint4 u, chunk<T> &c) {
    const uint32_t w[4] = {u.x, u.y, u.z, u.w};
    for (int i = 0; i < 4; i++) {
        c.v[2 * i] = low_half<T>(w[i]);
        c.v[2 * i + 1] = high_half<T>(w[i]);
    }
}
DEVICE uint4 pack(const chunk<float> &c) {
    return uint4{__float_as_uint(c.v[0]), __float_as_uint(c.v[1]), __float_as_uint(c.v[2]),
                 __float_as_uint(c.v[3])};
}
template <class T> DEVICE uint4 pack(const chunk<T> &c) {
    return uint4{pack2<T>(c.v[0], c.v[1]), pack2<T>(c.v[2], c.v[3]), pack2<T>(c.v[4], c.v[5]),
                 pack2<T>(c.v[6], c.v[7])};
}

// The first `left` elements at p, +0 beyond. wide: p is aligned to 16 bytes. Both ways end in the
// same four registers, which are unpacked past the branch: so nothing waits for a load before the
// next one is under way.
template <class T> DEVICE chunk<T> load_chunk(const T *p, int64_t left, bool wide) {
    chunk<T> c;
    uint4 u = {0, 0, 0, 0};
    if (wide && left >= chunk<T>::N) {
        u = load16(p);
    } else if (left > 0) {
        for (int i = 0; i < chunk<T>::N; i++)
            c.v[i] = i < left ? to_float(p[i]) : 0.0f;
        u = pack(c);
    }
    unpack(u, c);
    return c;
}
template <class T> DEVICE void store_chunk(T *p, int64_t left, bool wide, const chunk<T> &c) {
    if (wide && left >= chunk<T>::N) {
        store16(p, pack(c));
        return;
    }
    for (int i = 0; i < chunk<T>::N; i++)
        if (i < left)
            p[i] = from_float<T>(c.v[i]);
}

#endif

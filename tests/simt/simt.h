// Runs CUDA kernel sources on the CPU: what kernels/cuda/device.cuh takes in place of the CUDA
// headers when TSR_SIMT is defined.
//
// Every thread of a block is a fiber; blocks run one after the other, in an order that a test can
// turn round, or several at once. A fiber runs until it meets a barrier or an operation of its
// whole warp. Found and reported, with kernel, block and thread:
//   * blocks that wait for each other;
//   * a barrier or a warp operation that not all threads reach, or reach at different lines;
//   * accesses outside a shared array, misaligned ones, and reads of what nobody wrote;
//   * two accesses to shared memory, one a write, with no barrier between them (simt_shared.h);
//   * data of cp.async read, or written over, before the wait for it;
//   * accesses outside a global array (simt_memory.h: pages without access around each).
#ifndef TSR_TESTS_SIMT_SIMT_H
#define TSR_TESTS_SIMT_SIMT_H

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <string>
#include <type_traits>

#define __global__ static
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
#define UNROLL(n)

struct dim3 {
    unsigned x, y, z;
    constexpr dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {
    }
};

struct alignas(8) uint2 {
    uint32_t x, y;
};
struct alignas(16) uint4 {
    uint32_t x, y, z, w;
};

namespace simt {

// A thread of the block that runs. Barrier epochs: of the block, and of the thread's warp.
struct thread {
    dim3 tid;
    int index;
};

struct state {
    thread *self;
    dim3 block, block_dim, grid_dim;
    const char *kernel;
    int shared_bytes;
};
extern state now;

// Stops the launch that runs with a sentence about its thread. Prints it and exits with code 1,
// or returns it from `caught`.
[[noreturn]] __attribute__((format(printf, 1, 2))) void stop(const char *fmt, ...);

// The sentence that work() failed with, or "".
std::string caught(const std::function<void()> &work);

// Runs all blocks. shared_bytes of shared memory are there for each, full of poison.
void launch(const char *kernel, dim3 grid, int threads, size_t shared_bytes,
            const std::function<void()> &body);

// A launch on a stream: at once, or by whoever simulates streams (fake/fake_cuda.cc).
void enqueue(void *stream, std::function<void()> work);
extern void (*enqueue_hook)(void *stream, std::function<void()> work);
// A kernel is about to be launched: whoever simulates streams may want to know, too.
void load(const void *kernel, const char *name);
extern void (*load_hook)(const void *kernel, const char *name);

// Blocks, and threads up to a barrier, run last to first while this is set: a result that depends
// on their order shows.
extern bool reverse_order;

// Blocks that are alive at once, and take turns in a random order: for kernels whose blocks wait
// for each other. 1: one runs to its end before the next begins.
extern int blocks_alive;

// In a loop that waits for what another thread writes to global memory: lets others run. A launch
// in which nobody can do anything but wait is stopped.
void spin(int line = __builtin_LINE());
extern int64_t n_spins; // so far

// An operation of the whole warp: the last lane to come calls run(args of all 32 lanes).
void warp_op(void (*run)(void *const args[32]), void *arg, int line);
void block_barrier(int line);
void warp_barrier(int line);
int lane();

} // namespace simt

#define threadIdx (simt::now.self->tid)
#define blockIdx  (simt::now.block)
#define blockDim  (simt::now.block_dim)
#define gridDim   (simt::now.grid_dim)

inline void __syncthreads(int line = __builtin_LINE()) {
    simt::block_barrier(line);
}
inline void __syncwarp(int line = __builtin_LINE()) {
    simt::warp_barrier(line);
}

#include "tests/simt/simt_shared.h"
#include "tests/simt/simt_types.h"
#include "tests/simt/simt_warp.h"

#endif

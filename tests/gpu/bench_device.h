// Shared by bench_device.c, bench_products.c and tile_of.cc, which are one program.
#ifndef TSR_TESTS_GPU_BENCH_DEVICE_H
#define TSR_TESTS_GPU_BENCH_DEVICE_H

#include <stdbool.h>
#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#else
#include "kernels/ops.h"

struct bench {
    struct tsr_ctx ctx; // bf16
    bool small;         // sizes that a simulated device can do
    double limit_s;     // for one measurement
};

// Ends the program with the error's sentence when a call fails.
#define CHECK(call) check((call), #call)
void check(int rc, const char *call);

// Device memory of normally distributed elements, or zero floats.
void *random_elems(struct bench *b, size_t n);
void *zero_floats(struct bench *b, size_t n);
void release(struct bench *b, void *p);

// Seconds of one call: the median of three rounds, each long enough that asking costs nothing.
double seconds_of(struct bench *b, int (*call)(struct bench *b, void *arg), void *arg);

// Every tile on the shapes of a model.
void bench_products(struct bench *b);
#endif

enum tile_layout { TILE_KK, TILE_KN, TILE_MN }; // as enum gemm_layout
// The tile that a device of n_sms multiprocessors takes for a bf16 product.
const char *tile_of(int m, int n, int n_pieces, enum tile_layout layout, int n_sms);

#ifdef __cplusplus
}
#endif
#endif

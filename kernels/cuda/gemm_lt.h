// Products by the vendor's library, for runs that don't ask for exactness (parallel.exact: false):
// any order of the sum, but the same bits from run to run on the same device.
#ifndef TSR_KERNELS_CUDA_GEMM_LT_H
#define TSR_KERNELS_CUDA_GEMM_LT_H

#include "kernels/ops.h"

struct tsr_cuda_lt;

enum { TSR_CUDA_LT_WORKSPACE = 32 << 20 }; // bytes of the device, taken once

// On the current device. TSR_ENOMEM, TSR_EIO.
int tsr_cuda_lt_open(struct tsr_cuda_lt **out);
// After the streams that it worked on are done. NULL is fine.
void tsr_cuda_lt_close(struct tsr_cuda_lt *lt);

// tsr_gemm with its pieces joined in any order. All pointers are the device's but g and g->segs.
// Calls share a workspace: one stream, or streams that wait for each other. Returns 0; 1 when the
// library can't do this product and nothing was asked of it; or TSR_EIO.
int tsr_cuda_lt_gemm(struct tsr_cuda_lt *lt, void *stream, enum tsr_dtype dtype,
                     const struct tsr_gemm *g);

#endif

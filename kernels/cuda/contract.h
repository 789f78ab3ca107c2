// kernels/ops.h for C++: what it pulls in has two things of C17 that C++ lacks, `_Noreturn` and
// array parameters with `static` (those of core/io.h, which no kernel needs).
#ifndef TSR_KERNELS_CUDA_CONTRACT_H
#define TSR_KERNELS_CUDA_CONTRACT_H

#ifdef __cplusplus
#define TSR_CORE_IO_H
#define _Noreturn [[noreturn]]
extern "C" {
#include "core/error.h"
#include "kernels/ops.h"
}
#undef _Noreturn
#else
#include "core/error.h"
#include "kernels/ops.h"
#endif

#endif

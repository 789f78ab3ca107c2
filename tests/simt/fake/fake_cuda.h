// For the other fake libraries (NCCL): a stream's work is a function that is called in its turn.
#ifndef TSR_TESTS_SIMT_FAKE_CUDA_H
#define TSR_TESTS_SIMT_FAKE_CUDA_H

#include "tests/simt/fake/cuda_runtime_api.h"

#ifdef __cplusplus
extern "C" {
#endif

// Asks work(arg), in its turn of the stream, until it returns nonzero: it is done. Until then the
// stream's later work stays queued (in the order of asking), an event recorded behind it hasn't
// happened, and a stream that waits for such an event (cudaStreamWaitEvent) queues its own later
// work; all other streams go on. Whatever queries, waits or asks for more goes round all streams.
// A message to receive is such work: it may arrive only after something that the host does later.
// It brackets what it does to device memory by the calls below.
void fake_cuda_enqueue(cudaStream_t stream, int (*work)(void *arg), void *arg);
// Between these two the host may touch device memory. They may be nested.
void fake_cuda_begin_access(void);
void fake_cuda_end_access(void);

#ifdef __cplusplus
}
#endif

#endif

// The calls of NCCL that the devices' transport makes, over MPI, for simulated devices
// (fake_nccl.c). Names and meanings are those of NCCL's reference; numbers are not.
//
// The environment's TESSERA_FAKE_NCCL holds words, separated by commas, that let things go wrong:
//   rank=R        only on rank R of the world
//   init-hang     this rank doesn't join communicators
//   init-error    joining fails
//   hang=N        from its Nth operation on (from 1) this rank neither sends nor receives
//   error=N       after its Nth operation communicators have a remote error
//   die=N         the process ends at its Nth operation
//   abort-hang    aborting never returns
// An operation is a group of calls, or a call outside of one.
//
// As in the real one a call on a communicator is in progress until its state has been asked for,
// and only then its work is in the stream. It stops the program when a communicator is aborted
// while another one, not aborted in the same group, has work on the device: the real one waits for
// that.
#ifndef TSR_TESTS_SIMT_FAKE_NCCL_H
#define TSR_TESTS_SIMT_FAKE_NCCL_H

#include <cuda_runtime_api.h>
#include <stddef.h>

typedef struct ncclComm *ncclComm_t;
typedef struct {
    char internal[128];
} ncclUniqueId;

typedef enum {
    ncclSuccess,
    ncclUnhandledCudaError,
    ncclSystemError,
    ncclInternalError,
    ncclInvalidArgument,
    ncclInvalidUsage,
    ncclRemoteError,
    ncclInProgress
} ncclResult_t;

typedef enum { ncclChar, ncclFloat } ncclDataType_t;
typedef enum { ncclSum } ncclRedOp_t;

typedef struct {
    int blocking;
    const char *commName;
} ncclConfig_t;
#define NCCL_CONFIG_INITIALIZER                                                                    \
    { 1, NULL }

const char *ncclGetErrorString(ncclResult_t rc);
const char *ncclGetLastError(ncclComm_t comm);
ncclResult_t ncclGetVersion(int *version);
ncclResult_t ncclGetUniqueId(ncclUniqueId *id);
ncclResult_t ncclCommInitRankConfig(ncclComm_t *comm, int n_ranks, ncclUniqueId id, int rank,
                                    ncclConfig_t *config);
ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t *state);
ncclResult_t ncclCommFinalize(ncclComm_t comm);
ncclResult_t ncclCommDestroy(ncclComm_t comm);
ncclResult_t ncclCommAbort(ncclComm_t comm);

ncclResult_t ncclGroupStart(void);
ncclResult_t ncclGroupEnd(void);
ncclResult_t ncclSend(const void *buf, size_t n, ncclDataType_t type, int to, ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclRecv(void *buf, size_t n, ncclDataType_t type, int from, ncclComm_t comm,
                      cudaStream_t stream);
ncclResult_t ncclAllReduce(const void *in, void *out, size_t n, ncclDataType_t type, ncclRedOp_t op,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclReduceScatter(const void *in, void *out, size_t n, ncclDataType_t type,
                               ncclRedOp_t op, ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclAllGather(const void *in, void *out, size_t n, ncclDataType_t type,
                           ncclComm_t comm, cudaStream_t stream);
ncclResult_t ncclBroadcast(const void *in, void *out, size_t n, ncclDataType_t type, int root,
                           ncclComm_t comm, cudaStream_t stream);

#endif

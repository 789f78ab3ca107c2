// The host side of the CUDA backend. One device, one stream of work in order; ctx->stream points
// to a struct tsr_cuda, whose operations (tsr_cuda_ops) bring the host's arrays to the device and
// launch the kernels of kernels/cuda/launch.h.
//
// Every call to CUDA that fails becomes one sentence with the call's name and CUDA's own words.
#ifndef TSR_KERNELS_CUDA_BACKEND_H
#define TSR_KERNELS_CUDA_BACKEND_H

#include <cuda_runtime_api.h>
#include "core/error.h"
#include "kernels/cuda/launch.h"
#include "kernels/ops.h"

struct tsr_cuda_uploads;
struct tsr_cuda_ring;
struct tsr_cuda_graph;
struct tsr_cuda_lt;

// Ranges of host memory that `pin` registered.
struct tsr_cuda_pinned {
    char *at;
    size_t n_bytes;
};

struct tsr_cuda {
    int device;
    cudaStream_t stream; // of every kernel and copy of the operations
    int n_sms;
    bool exact;       // products are our own, whatever the library offers
    double timeout_s; // deadline of a wait
    bool lost;        // a wait has failed: nothing is waited for any more, and no memory given back
    char name[320];   // what describe says

    size_t allocated, scratch_bytes;
    void *scratch; // of the operation under way
    size_t scratch_room;
    void **retired; // older scratch and upload memory that graphs may still read
    int n_retired;

    struct tsr_cuda_uploads *uploads;
    struct tsr_cuda_ring *ring;
    struct tsr_cuda_graph *recording; // NULL: operations run at once
    struct tsr_cuda_graph **graphs;   // all that are kept
    int n_graphs;
    struct tsr_cuda_pinned *pinned;
    int n_pinned;
    struct tsr_cuda_lt *lt; // the library's products, or NULL

    int (*poll)(void *arg); // asked while the host waits
    void *poll_arg;
};

extern const struct tsr_ops tsr_cuda_ops;

static inline struct tsr_cuda *tsr_cuda_of(const struct tsr_ctx *ctx) {
    return (struct tsr_cuda *)ctx->stream;
}

// Opens device `index`: TSR_EUSAGE, TSR_ENOMEM, TSR_EIO. ctx->ops->close ends it.
int tsr_cuda_open(struct tsr_ctx *ctx, int index, enum tsr_dtype dtype, bool exact,
                  double timeout_s);
// Devices that can be used; 0 or TSR_EUSAGE with the reason why there is none.
int tsr_cuda_count(int *n_devices);

// 0, or TSR_EIO with `what` (a call's name) and CUDA's words.
int tsr_cuda_check(const char *what, cudaError_t rc);
#define TSR_CUDA_TRY(call, ...) TSR_TRY(tsr_cuda_check(#call, call(__VA_ARGS__)))

// Brings n_bytes of the host to the device, in order on c->stream; what is there already from an
// earlier call isn't sent again. *dev is valid for the operation under way, on c->stream only.
int tsr_cuda_upload(struct tsr_cuda *c, const void *src, size_t n_bytes, const void **dev);
// The same; a replay of recorded operations reads `src` again.
int tsr_cuda_upload_live(struct tsr_cuda *c, const void *src, size_t n_bytes, const void **dev);
// Device memory of n_bytes that lasts until the next operation asks for some.
int tsr_cuda_scratch(struct tsr_cuda *c, size_t n_bytes, void **dev);

// Waits until the event has happened, or c->stream has nothing left to do; asks the poll hook
// meanwhile. TSR_ETIMEOUT names `what`, a device's failure is TSR_EIO. After a failure the device
// is lost: each later wait fails at once, and closing leaves to the process's end what CUDA would
// wait for without a deadline.
int tsr_cuda_wait(struct tsr_cuda *c, cudaEvent_t event, const char *what);
int tsr_cuda_wait_stream(struct tsr_cuda *c, cudaStream_t stream, const char *what);
// Whether the event has happened, for all that can be seen: a device's failure is left to waits.
bool tsr_cuda_happened(cudaEvent_t event);

// `poll` is asked every millisecond or so while the host waits for the device, and once when the
// wait is over; what it returns when that isn't 0 is what the wait returns. For transports, whose
// kernels hang when a peer has died. NULL: none.
void tsr_cuda_set_poll(struct tsr_cuda *c, int (*poll)(void *), void *arg);

#endif

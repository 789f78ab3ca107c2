// Opens and closes a device, says what it is, and waits for it.
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include "core/clock.h"
#include "kernels/cuda/backend_private.h"
#include "kernels/cuda/gemm_lt.h"

enum { OLDEST = 80 }; // compute capability times ten

int tsr_cuda_check(const char *what, cudaError_t rc) {
    if (rc == cudaSuccess)
        return 0;
    (void)cudaGetLastError(); // or the next launch would report it again
    return tsr_fail(TSR_EIO, "device: %s: %s", what, cudaGetErrorString(rc));
}

// Why no device can be had, as far as the runtime's code tells.
static int explain(cudaError_t rc) {
    int driver = 0, runtime = 0;
    (void)cudaGetLastError();
    (void)cudaDriverGetVersion(&driver); // 0 when there is none
    (void)cudaRuntimeGetVersion(&runtime);
    if (rc == cudaErrorNoDevice)
        return tsr_fail(TSR_EUSAGE,
                        "no NVIDIA device is visible to this process (nvidia-smi shows what the "
                        "machine has; CUDA_VISIBLE_DEVICES may hide it)");
    if (driver == 0)
        return tsr_fail(TSR_EUSAGE, "no NVIDIA driver is loaded (%s)", cudaGetErrorString(rc));
    if (rc == cudaErrorInsufficientDriver)
        return tsr_fail(TSR_EUSAGE,
                        "the NVIDIA driver is too old: expected one for CUDA %d.%d or newer, found "
                        "one for CUDA %d.%d",
                        runtime / 1000, runtime % 1000 / 10, driver / 1000, driver % 1000 / 10);
    return tsr_fail(TSR_EUSAGE, "the NVIDIA driver can't be used: %s", cudaGetErrorString(rc));
}

static int capability(int device, int *major, int *minor) {
    TSR_CUDA_TRY(cudaDeviceGetAttribute, major, cudaDevAttrComputeCapabilityMajor, device);
    TSR_CUDA_TRY(cudaDeviceGetAttribute, minor, cudaDevAttrComputeCapabilityMinor, device);
    return 0;
}

static int check_capability(int device) {
    int major = 0, minor = 0;
    TSR_TRY(capability(device, &major, &minor));
    if (10 * major + minor < OLDEST)
        return tsr_fail(TSR_EUSAGE,
                        "device %d has compute capability %d.%d: expected 8.0 (Ampere) or newer "
                        "(CUDA_VISIBLE_DEVICES chooses among several)",
                        device, major, minor);
    return 0;
}

int tsr_cuda_count(int *n_devices) {
    *n_devices = 0;
    int n = 0;
    cudaError_t rc = cudaGetDeviceCount(&n);
    if (rc == cudaSuccess && n == 0)
        rc = cudaErrorNoDevice;
    if (rc != cudaSuccess)
        return explain(rc);
    for (int i = 0; i < n; i++)
        if (check_capability(i) < 0)
            return TSR_EUSAGE;
    *n_devices = n;
    return 0;
}

static int look_at(struct tsr_cuda *c) {
    struct cudaDeviceProp p;
    memset(&p, 0, sizeof p);
    TSR_CUDA_TRY(cudaGetDeviceProperties, &p, c->device);
    c->n_sms = p.multiProcessorCount;
    snprintf(c->name, sizeof c->name, "%.200s, sm_%d%d, %.0f GiB", p.name, p.major, p.minor,
             (double)p.totalGlobalMem / 1073741824.0);
    return 0;
}

// Since CUDA 12 this makes the device's context, too.
static int take_device(struct tsr_cuda *c) {
    cudaError_t rc = cudaSetDevice(c->device);
    if (rc != cudaErrorDevicesUnavailable)
        return tsr_cuda_check("cudaSetDevice", rc);
    (void)cudaGetLastError();
    return tsr_fail(TSR_EUSAGE,
                    "device %d is busy or not to be used: another process may have it to itself "
                    "(nvidia-smi shows its compute mode)",
                    c->device);
}

static int open_parts(struct tsr_cuda *c, enum tsr_dtype dtype) {
    int n = 0;
    if (dtype != TSR_DT_F32 && dtype != TSR_DT_BF16 && dtype != TSR_DT_F16)
        return tsr_fail(TSR_EUSAGE, "device: no kernels for elements of type %s",
                        tsr_dtype_name(dtype));
    TSR_TRY(tsr_cuda_count(&n));
    if (c->device < 0 || c->device >= n)
        return tsr_fail(TSR_EUSAGE, "device %d: this process sees %d of them, from 0", c->device,
                        n);
    TSR_TRY(take_device(c));
    TSR_TRY(look_at(c));
    TSR_CUDA_TRY(cudaStreamCreateWithFlags, &c->stream, cudaStreamNonBlocking);
    TSR_TRY(tsr_cuda_ring_open(c));
    TSR_TRY(tsr_cuda_uploads_open(c));
    return c->exact ? 0 : tsr_cuda_lt_open(&c->lt);
}

static void close_parts(struct tsr_cuda *c) {
    if (c->recording != NULL) { // an operation failed before all were recorded
        cudaGraph_t unfinished = NULL;
        (void)cudaStreamEndCapture(c->stream, &unfinished);
        if (unfinished != NULL)
            (void)cudaGraphDestroy(unfinished);
        c->recording = NULL;
    }
    if (!tsr_cuda_idle(c)) // CUDA may wait for it for ever, whatever it is asked to give back
        return;
    tsr_cuda_lt_close(c->lt);
    while (c->n_graphs > 0)
        tsr_cuda_graph_close(c, c->graphs[c->n_graphs - 1]);
    tsr_cuda_uploads_close(c);
    tsr_cuda_ring_close(c);
    (void)cudaFree(c->scratch);
    for (int i = 0; i < c->n_retired; i++)
        (void)cudaFree(c->retired[i]);
    if (c->stream != NULL)
        (void)cudaStreamDestroy(c->stream);
    (void)cudaGetLastError(); // of what failed here
    free(c->retired);
    free(c->pinned);
    free(c->graphs);
    free(c);
}

int tsr_cuda_open(struct tsr_ctx *ctx, int index, enum tsr_dtype dtype, bool exact,
                  double timeout_s) {
    struct tsr_cuda *c = calloc(1, sizeof *c);
    if (c == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for a device's books");
    c->device = index;
    c->exact = exact;
    c->timeout_s = timeout_s;
    int rc = open_parts(c, dtype);
    if (rc < 0) {
        close_parts(c);
        return rc;
    }
    *ctx = (struct tsr_ctx){.ops = &tsr_cuda_ops, .stream = c, .dtype = dtype};
    return 0;
}

void tsr_cuda_close(struct tsr_ctx *ctx) {
    close_parts(tsr_cuda_of(ctx));
    *ctx = (struct tsr_ctx){0};
}

const char *tsr_cuda_describe(const struct tsr_ctx *ctx) {
    return tsr_cuda_of(ctx)->name;
}

size_t tsr_cuda_allocated(const struct tsr_ctx *ctx) {
    return tsr_cuda_of(ctx)->allocated;
}

size_t tsr_cuda_scratch_bytes(const struct tsr_ctx *ctx) {
    return tsr_cuda_of(ctx)->scratch_bytes;
}

int tsr_cuda_memory(struct tsr_ctx *ctx, size_t *free_bytes, size_t *total_bytes) {
    (void)ctx;
    TSR_CUDA_TRY(cudaMemGetInfo, free_bytes, total_bytes);
    return 0;
}

void tsr_cuda_set_poll(struct tsr_cuda *c, int (*poll)(void *), void *arg) {
    c->poll = poll;
    c->poll_arg = arg;
}

static cudaError_t ask(cudaEvent_t event, cudaStream_t stream) {
    cudaError_t rc = event != NULL ? cudaEventQuery(event) : cudaStreamQuery(stream);
    if (rc == cudaErrorNotReady) // no error, and not one that the next launch may find
        (void)cudaGetLastError();
    return rc;
}

bool tsr_cuda_happened(cudaEvent_t event) {
    return ask(event, NULL) == cudaSuccess;
}

// Asks again and again: without a pause for what takes microseconds, then with short sleeps, so
// that the host's threads and the other ranks get the core.
static int wait_for(struct tsr_cuda *c, cudaEvent_t event, cudaStream_t stream, const char *what) {
    const double begin = tsr_now(), spin_s = 1e-4, poll_s = 1e-3;
    double polled = begin;
    for (;;) {
        cudaError_t rc = ask(event, stream);
        if (rc == cudaSuccess) // a transport's kernel also ends when it is aborted
            return c->poll != NULL ? c->poll(c->poll_arg) : 0;
        if (rc != cudaErrorNotReady)
            return tsr_cuda_check(what, rc);
        double now = tsr_now();
        bool late = now - begin > c->timeout_s;
        if (c->poll != NULL && (late || now - polled > poll_s)) {
            polled = now;
            TSR_TRY(c->poll(c->poll_arg)); // it says whom the device waits for
        }
        if (late)
            return tsr_fail(TSR_ETIMEOUT, "device %d: %s: no end after %.0f s", c->device, what,
                            now - begin);
        if (now - begin > spin_s)
            nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        else
            sched_yield();
    }
}

static int wait_unless_lost(struct tsr_cuda *c, cudaEvent_t event, cudaStream_t stream,
                            const char *what) {
    if (c->lost && c->poll != NULL)
        TSR_TRY(c->poll(c->poll_arg)); // it may know why
    if (c->lost)
        return tsr_fail(TSR_EIO, "device %d: %s: an earlier wait for it has failed", c->device,
                        what);
    int rc = wait_for(c, event, stream, what);
    c->lost = rc < 0;
    return rc;
}

bool tsr_cuda_idle(struct tsr_cuda *c) {
    if (!c->lost && c->stream != NULL)
        (void)wait_unless_lost(c, NULL, c->stream, "the end of all work");
    return !c->lost;
}

int tsr_cuda_wait(struct tsr_cuda *c, cudaEvent_t event, const char *what) {
    return wait_unless_lost(c, event, NULL, what);
}

int tsr_cuda_wait_stream(struct tsr_cuda *c, cudaStream_t stream, const char *what) {
    return wait_unless_lost(c, NULL, stream, what);
}

int tsr_cuda_sync(struct tsr_ctx *ctx) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    TSR_ASSERT(c->recording == NULL);
    TSR_TRY(tsr_cuda_wait_stream(c, c->stream, "waiting for the device"));
    TSR_TRY(tsr_cuda_ring_deliver(c));
    tsr_cuda_graphs_deliver(c);
    return 0;
}

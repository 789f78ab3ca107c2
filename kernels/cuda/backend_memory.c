// The device's memory, and copies between it and the host. Host memory that `pin` registered is
// copied straight; all other goes through a ring of pinned memory, so that a copy never waits for
// the host's pages and the caller may use its memory again at once.
#include <stdlib.h>
#include <string.h>
#include "core/log.h"
#include "kernels/cuda/backend_private.h"

enum {
    RING_BYTES = 16 << 20,
    MOST_AT_ONCE = 4 << 20, // of one transfer; longer copies are several
    N_TRANSFERS = 64,       // under way at once
    ALIGNMENT = 64
};

struct transfer {
    size_t at, n_bytes; // in the ring
    void *deliver;      // where to_host's bytes go when they are there, or NULL
    size_t deliver_bytes;
    cudaEvent_t done;
};

// Transfers [first, first + n) modulo N_TRANSFERS are under way, the oldest first.
struct tsr_cuda_ring {
    char *pinned;
    size_t head; // where the next one goes
    struct transfer transfers[N_TRANSFERS];
    int first, n;
};

int tsr_cuda_ring_open(struct tsr_cuda *c) {
    struct tsr_cuda_ring *r = c->ring = calloc(1, sizeof *r);
    if (r == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for a device's books");
    TSR_CUDA_TRY(cudaHostAlloc, (void **)&r->pinned, RING_BYTES, cudaHostAllocDefault);
    for (int i = 0; i < N_TRANSFERS; i++)
        TSR_CUDA_TRY(cudaEventCreateWithFlags, &r->transfers[i].done, cudaEventDisableTiming);
    return 0;
}

void tsr_cuda_ring_close(struct tsr_cuda *c) {
    struct tsr_cuda_ring *r = c->ring;
    if (r == NULL)
        return;
    for (int i = 0; i < N_TRANSFERS; i++)
        if (r->transfers[i].done != NULL)
            (void)cudaEventDestroy(r->transfers[i].done);
    (void)cudaFreeHost(r->pinned);
    free(r);
    c->ring = NULL;
}

static void deliver(const struct tsr_cuda_ring *r, const struct transfer *t) {
    if (t->deliver != NULL)
        memcpy(t->deliver, r->pinned + t->at, t->deliver_bytes);
}

static int finish_oldest(struct tsr_cuda *c) {
    struct tsr_cuda_ring *r = c->ring;
    struct transfer *t = &r->transfers[r->first];
    TSR_TRY(tsr_cuda_wait(c, t->done, "a copy between host and device"));
    deliver(r, t);
    r->first = (r->first + 1) % N_TRANSFERS;
    r->n--;
    return 0;
}

// Whether [at, at + n_bytes) is free of transfers.
static bool is_free(const struct tsr_cuda_ring *r, size_t at, size_t n_bytes) {
    for (int i = 0; i < r->n; i++) {
        const struct transfer *t = &r->transfers[(r->first + i) % N_TRANSFERS];
        if (at < t->at + t->n_bytes && t->at < at + n_bytes)
            return false;
    }
    return true;
}

// A new transfer with its place; its event is recorded by `under_way`.
static int take(struct tsr_cuda *c, size_t n_bytes, struct transfer **out) {
    struct tsr_cuda_ring *r = c->ring;
    size_t room = (n_bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    if (r->head + room > RING_BYTES)
        r->head = 0;
    while (r->n == N_TRANSFERS || !is_free(r, r->head, room))
        TSR_TRY(finish_oldest(c));
    struct transfer *t = &r->transfers[(r->first + r->n) % N_TRANSFERS];
    t->at = r->head;
    t->n_bytes = room;
    t->deliver = NULL;
    r->head += room;
    *out = t;
    return 0;
}

static int under_way(struct tsr_cuda *c, struct transfer *t) {
    TSR_CUDA_TRY(cudaEventRecord, t->done, c->stream);
    c->ring->n++;
    return 0;
}

int tsr_cuda_ring_deliver(struct tsr_cuda *c) {
    while (c->ring->n > 0)
        TSR_TRY(finish_oldest(c));
    return 0;
}

int tsr_cuda_malloc(void **dev, size_t n_bytes, const char *what) {
    size_t free_bytes = 0, total = 0;
    cudaError_t rc = cudaMalloc(dev, n_bytes > 0 ? n_bytes : 1);
    if (rc != cudaErrorMemoryAllocation)
        return tsr_cuda_check("cudaMalloc", rc);
    (void)cudaGetLastError();
    *dev = NULL;
    TSR_CUDA_TRY(cudaMemGetInfo, &free_bytes, &total);
    return tsr_fail(
        TSR_ENOMEM,
        "out of device memory: %zu bytes are needed for %s, %zu of the device's %zu are free",
        n_bytes, what, free_bytes, total);
}

int tsr_cuda_alloc(struct tsr_ctx *ctx, size_t n_bytes, void **out) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    TSR_TRY(tsr_cuda_malloc(out, n_bytes, "a buffer"));
    int rc = tsr_cuda_zero(ctx, *out, n_bytes);
    if (rc < 0) {
        (void)cudaFree(*out);
        return rc;
    }
    c->allocated += n_bytes;
    return 0;
}

void tsr_cuda_free(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    if (p == NULL)
        return;
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    c->allocated -= n_bytes;
    // It waits for the device, for ever if need be; what failed before is reported by sync.
    if (!c->lost && cudaFree(p) != cudaSuccess)
        (void)cudaGetLastError();
}

int tsr_cuda_zero(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    if (n_bytes > 0)
        TSR_CUDA_TRY(cudaMemsetAsync, p, 0, n_bytes, tsr_cuda_of(ctx)->stream);
    return 0;
}

int tsr_cuda_copy(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    if (n_bytes > 0)
        TSR_CUDA_TRY(cudaMemcpyAsync, dst, src, n_bytes, cudaMemcpyDeviceToDevice,
                     tsr_cuda_of(ctx)->stream);
    return 0;
}

int tsr_cuda_to_device(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    if (c->recording != NULL)
        return tsr_cuda_graph_to_device(c, dst, src, n_bytes);
    if (n_bytes > 0 && tsr_cuda_is_pinned(c, src, n_bytes)) {
        TSR_CUDA_TRY(cudaMemcpyAsync, dst, src, n_bytes, cudaMemcpyHostToDevice, c->stream);
        return 0;
    }
    for (size_t at = 0; at < n_bytes; at += MOST_AT_ONCE) {
        size_t n = n_bytes - at < MOST_AT_ONCE ? n_bytes - at : MOST_AT_ONCE;
        struct transfer *t = NULL;
        TSR_TRY(take(c, n, &t));
        char *through = c->ring->pinned + t->at;
        memcpy(through, (const char *)src + at, n);
        TSR_CUDA_TRY(cudaMemcpyAsync, (char *)dst + at, through, n, cudaMemcpyHostToDevice,
                     c->stream);
        TSR_TRY(under_way(c, t));
    }
    return 0;
}

int tsr_cuda_to_host(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    if (c->recording != NULL)
        return tsr_cuda_graph_to_host(c, dst, src, n_bytes);
    TSR_CUDA_TRY(cudaSetDevice, c->device); // it may be another thread that asks
    if (n_bytes > 0 && tsr_cuda_is_pinned(c, dst, n_bytes)) {
        TSR_CUDA_TRY(cudaMemcpyAsync, dst, src, n_bytes, cudaMemcpyDeviceToHost, c->stream);
        return 0;
    }
    for (size_t at = 0; at < n_bytes; at += MOST_AT_ONCE) {
        size_t n = n_bytes - at < MOST_AT_ONCE ? n_bytes - at : MOST_AT_ONCE;
        struct transfer *t = NULL;
        TSR_TRY(take(c, n, &t));
        TSR_CUDA_TRY(cudaMemcpyAsync, c->ring->pinned + t->at, (const char *)src + at, n,
                     cudaMemcpyDeviceToHost, c->stream);
        t->deliver = (char *)dst + at;
        t->deliver_bytes = n;
        TSR_TRY(under_way(c, t));
    }
    return 0;
}

bool tsr_cuda_is_pinned(const struct tsr_cuda *c, const void *p, size_t n_bytes) {
    const char *at = p;
    for (int i = 0; i < c->n_pinned; i++) {
        const struct tsr_cuda_pinned *r = &c->pinned[i];
        if (at >= r->at && at + n_bytes <= r->at + r->n_bytes)
            return true;
    }
    return false;
}

int tsr_cuda_pin(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    if (n_bytes == 0)
        return 0;
    size_t room = ((size_t)c->n_pinned + 1) * sizeof *c->pinned;
    struct tsr_cuda_pinned *grown = realloc(c->pinned, room);
    if (grown == NULL)
        return tsr_fail(TSR_ENOMEM, "no memory for a device's books");
    c->pinned = grown;
    cudaError_t rc = cudaHostRegister(p, n_bytes, cudaHostRegisterDefault);
    if (rc != cudaSuccess) { // copies go through the ring, then
        (void)cudaGetLastError();
        tsr_warn("%zu bytes of host memory can't be pinned (%s): copies between host and "
                 "device will be slower",
                 n_bytes, cudaGetErrorString(rc));
        return 0;
    }
    c->pinned[c->n_pinned++] = (struct tsr_cuda_pinned){p, n_bytes};
    return 0;
}

void tsr_cuda_unpin(struct tsr_ctx *ctx, void *p, size_t n_bytes) {
    struct tsr_cuda *c = tsr_cuda_of(ctx);
    for (int i = 0; i < c->n_pinned; i++)
        if (c->pinned[i].at == p && c->pinned[i].n_bytes == n_bytes) {
            if (!c->lost)
                (void)cudaHostUnregister(p);
            c->pinned[i] = c->pinned[--c->n_pinned];
            return;
        }
}

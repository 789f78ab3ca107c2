// What the parts of the backend (backend*.c) share.
#ifndef TSR_KERNELS_CUDA_BACKEND_PRIVATE_H
#define TSR_KERNELS_CUDA_BACKEND_PRIVATE_H

#include "kernels/cuda/backend.h"

// ---- the device (backend.c)
void tsr_cuda_close(struct tsr_ctx *ctx);
const char *tsr_cuda_describe(const struct tsr_ctx *ctx);
size_t tsr_cuda_allocated(const struct tsr_ctx *ctx);
size_t tsr_cuda_scratch_bytes(const struct tsr_ctx *ctx);
int tsr_cuda_memory(struct tsr_ctx *ctx, size_t *free_bytes, size_t *total_bytes);
int tsr_cuda_sync(struct tsr_ctx *ctx);
// Waits for the stream, for what gives memory back: false when the device is lost.
bool tsr_cuda_idle(struct tsr_cuda *c);

// ---- memory (backend_memory.c)
int tsr_cuda_ring_open(struct tsr_cuda *c);
void tsr_cuda_ring_close(struct tsr_cuda *c);
// Once the stream is done: what to_host brought into the ring goes where it belongs.
int tsr_cuda_ring_deliver(struct tsr_cuda *c);
bool tsr_cuda_is_pinned(const struct tsr_cuda *c, const void *p, size_t n_bytes);

int tsr_cuda_alloc(struct tsr_ctx *ctx, size_t n_bytes, void **out);
void tsr_cuda_free(struct tsr_ctx *ctx, void *p, size_t n_bytes);
int tsr_cuda_zero(struct tsr_ctx *ctx, void *p, size_t n_bytes);
int tsr_cuda_to_device(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);
int tsr_cuda_to_host(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);
int tsr_cuda_copy(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);
int tsr_cuda_pin(struct tsr_ctx *ctx, void *p, size_t n_bytes);
void tsr_cuda_unpin(struct tsr_ctx *ctx, void *p, size_t n_bytes);
// TSR_ENOMEM with the bytes asked for and those that are free, or what tsr_cuda_check says.
int tsr_cuda_malloc(void **dev, size_t n_bytes, const char *what);

// ---- uploads and scratch (backend_upload.c)
int tsr_cuda_uploads_open(struct tsr_cuda *c);
void tsr_cuda_uploads_close(struct tsr_cuda *c);
// Keeps device memory until the device is closed: a kernel or a graph may still read it.
int tsr_cuda_retire(struct tsr_cuda *c, void *dev);

// ---- segments (backend_segments.c)
// The device's copy of segments, of their caches and block tables.
int tsr_cuda_segments(struct tsr_cuda *c, const struct tsr_segment *segs, int n_segs,
                      const struct tsr_cuda_segment **dev, int *max_length);
int tsr_cuda_attn_of(struct tsr_cuda *c, const struct tsr_attn *a, struct tsr_cuda_attn *out);
// Entries of a segment's block table.
int64_t tsr_cuda_table_length(const struct tsr_segment *s);
// Fills `to` from `s`, the table being at `blocks` on the device.
void tsr_cuda_fill_segment(struct tsr_cuda_segment *to, const struct tsr_segment *s,
                           const int32_t *blocks);

// ---- recorded operations (backend_graph.c)
int tsr_cuda_record(struct tsr_ctx *ctx);
int tsr_cuda_recorded(struct tsr_ctx *ctx, void **graph);
int tsr_cuda_replay(struct tsr_ctx *ctx, void *graph);
void tsr_cuda_graph_free(struct tsr_ctx *ctx, void *graph);
void tsr_cuda_graph_close(struct tsr_cuda *c, struct tsr_cuda_graph *g);
// The same as their namesakes, while operations are recorded.
int tsr_cuda_graph_upload(struct tsr_cuda *c, const void *src, size_t n_bytes, const void **dev);
int tsr_cuda_graph_upload_live(struct tsr_cuda *c, const void *src, size_t n_bytes,
                               const void **dev);
int tsr_cuda_graph_segments(struct tsr_cuda *c, const struct tsr_segment *segs, int n_segs,
                            const struct tsr_cuda_segment **dev);
int tsr_cuda_graph_to_device(struct tsr_cuda *c, void *dst, const void *src, size_t n_bytes);
int tsr_cuda_graph_to_host(struct tsr_cuda *c, void *dst, const void *src, size_t n_bytes);
// Once the stream is done: what replays brought to the host goes where it belongs.
void tsr_cuda_graphs_deliver(struct tsr_cuda *c);

// ---- measuring (backend_peak.c)
double tsr_cuda_measure_peak(struct tsr_ctx *ctx, int n_trials);

#endif

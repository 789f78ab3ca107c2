// Streams, events and graphs of the simulated device: functions in queues.
#include <algorithm>
#include <cstring>
#include <sched.h>
#include "core/clock.h"
#include "tests/simt/fake/fake_machine.h"
#include "tests/simt/simt.h"

// Runs the stream's work in order until some of it isn't done yet; true when `number` is.
static bool advance(CUstream_st *s, uint64_t number) {
    while (s->done < number && !s->queue.empty() && !s->running) {
        s->running = true; // streams may wait for each other
        bool done = s->queue.front()();
        s->running = false;
        if (!done)
            break;
        s->queue.pop_front();
        s->done++;
    }
    return s->done >= number;
}

// Whether the stream's work runs only when somebody waits for it.
static bool is_lazy(const CUstream_st *s) {
    return fake().lazy || (fake().late && s == fake().streams.front());
}

static void advance_all(bool lazy_ones) {
    for (size_t i = 0; i < fake().streams.size(); i++)
        if (lazy_ones || !is_lazy(fake().streams[i]))
            advance(fake().streams[i], fake().streams[i]->asked);
}

// What this stream can't do yet may need what others have to do.
static bool reached(CUstream_st *s, uint64_t number) {
    if (advance(s, number))
        return true;
    advance_all(true);
    return advance(s, number);
}

static void drain(CUstream_st *s, uint64_t number) {
    const double begun = tsr_now();
    while (!reached(s, number)) {
        sched_yield();
        if (tsr_now() - begun > 60)
            fake_stop("a call that waits for the device, as it may do, doesn't come back");
    }
}

void fake_finish_all() {
    drain(&fake().null_stream, fake().null_stream.asked);
    for (size_t i = 0; i < fake().streams.size(); i++)
        drain(fake().streams[i], fake().streams[i]->asked);
}

static void enqueue_task(CUstream_st *s, fake_task t) {
    s->asked++;
    s->queue.push_back(std::move(t));
    if (!is_lazy(s) && !advance(s, s->asked))
        advance_all(false);
}

static void enqueue(void *stream, fake_work w) {
    CUstream_st *s = fake_stream_of((cudaStream_t)stream);
    if (s->capture != nullptr) {
        s->capture->nodes.push_back(std::move(w));
        return;
    }
    enqueue_task(s, [w = std::move(w)] {
        fake_cuda_begin_access();
        w();
        fake_cuda_end_access();
        return true;
    });
}

// Kernels come here from the moment that the object is loaded.
static const bool hooked = (simt::enqueue_hook = enqueue, true);

void fake_cuda_enqueue(cudaStream_t stream, int (*work)(void *arg), void *arg) {
    fake().n_messages++;
    enqueue_task(fake_stream_of(stream), [=] {
        bool done = work(arg) != 0;
        fake().n_messages -= done;
        return done;
    });
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t *stream, unsigned) {
    *stream = new CUstream_st;
    (*stream)->device = fake_own.device;
    fake().streams.push_back(*stream);
    return hooked ? cudaSuccess : cudaErrorUnknown;
}
cudaError_t cudaStreamCreateWithPriority(cudaStream_t *stream, unsigned flags, int) {
    return cudaStreamCreateWithFlags(stream, flags);
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    drain(stream, stream->asked);
    fake_forget_stream(stream);
    auto &all = fake().streams;
    all.erase(std::find(all.begin(), all.end(), stream));
    delete stream;
    return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    CUstream_st *s = fake_stream_of(stream);
    if (fake_not_captured(s) != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    fake_wait_for_ever("cudaStreamSynchronize");
    drain(s, s->asked);
    return cudaSuccess;
}
cudaError_t cudaStreamQuery(cudaStream_t stream) {
    CUstream_st *s = fake_stream_of(stream);
    if (fake_not_captured(s) != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    if (fake().has("hang") || !reached(s, s->asked))
        return fake_error(cudaErrorNotReady);
    return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize(void) {
    for (CUstream_st *s : fake().streams)
        if (fake_not_captured(s) != cudaSuccess)
            return cudaErrorStreamCaptureUnsupported;
    fake_wait_for_ever("cudaDeviceSynchronize");
    fake_finish_all();
    return cudaSuccess;
}

cudaError_t cudaEventCreateWithFlags(cudaEvent_t *event, unsigned) {
    *event = new CUevent_st;
    return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
    delete event;
    return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    CUstream_st *s = fake_stream_of(stream);
    if (s->capture != nullptr)
        return fake_error(cudaErrorStreamCaptureInvalidated); // orders nothing outside of the graph
    enqueue(stream, [=] { event->at = tsr_now(); });
    event->stream = s;
    event->number = s->asked;
    return cudaSuccess;
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    fake_wait_for_ever("cudaEventSynchronize");
    if (event->stream != nullptr)
        drain(event->stream, event->number);
    return cudaSuccess;
}
cudaError_t cudaEventQuery(cudaEvent_t event) {
    if (fake_unsafe() != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    bool done =
        event->stream == nullptr || (!fake().has("hang") && reached(event->stream, event->number));
    return done ? cudaSuccess : fake_error(cudaErrorNotReady);
}
cudaError_t cudaEventElapsedTime(float *ms, cudaEvent_t begin, cudaEvent_t end) {
    *ms = (float)((end->at - begin->at) * 1e3);
    return cudaSuccess;
}
// What was recorded by now: a later record of the event doesn't count.
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
    CUstream_st *other = event->stream;
    uint64_t number = event->number;
    CUstream_st *s = fake_stream_of(stream);
    if (other != nullptr && other != s)
        enqueue_task(s, [=] { return advance(other, number); });
    return cudaSuccess;
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, enum cudaStreamCaptureMode mode) {
    if (stream == nullptr || stream->capture != nullptr)
        return fake_error(cudaErrorInvalidValue);
    stream->capture = new CUgraph_st;
    stream->relaxed = mode == cudaStreamCaptureModeRelaxed;
    stream->broken = false;
    return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t *graph) {
    *graph = stream->capture;
    stream->capture = nullptr;
    if (*graph == nullptr)
        return fake_error(cudaErrorInvalidValue);
    if (!stream->broken)
        return cudaSuccess;
    delete *graph;
    *graph = nullptr;
    return fake_error(cudaErrorStreamCaptureInvalidated);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t *exec, cudaGraph_t graph, unsigned long long) {
    *exec = new CUgraphExec_st{graph->nodes};
    return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    for (const fake_work &w : exec->nodes)
        enqueue(stream, w);
    return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) {
    delete exec;
    return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
    delete graph;
    return cudaSuccess;
}

// A copy to or from memory that isn't pinned is done when the call returns. Pinned memory of the
// host mustn't change before it has been copied.
static cudaError_t copy(void *dst, const void *src, size_t n_bytes, enum cudaMemcpyKind kind,
                        cudaStream_t stream, fake_work w) {
    bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
    bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
    if (to_device != fake_within(fake().allocated, dst, n_bytes) ||
        from_device != fake_within(fake().allocated, src, n_bytes))
        return fake_error(cudaErrorInvalidValue);
    bool pinned = (to_device || fake_within(fake().pinned, dst, n_bytes)) &&
                  (from_device || fake_within(fake().pinned, src, n_bytes));
    CUstream_st *s = fake_stream_of(stream);
    if (!pinned && s->capture != nullptr)
        return fake_error(cudaErrorStreamCaptureInvalidated);
    if (!pinned || s->capture != nullptr || to_device == from_device) {
        enqueue(stream, std::move(w));
        return pinned ? cudaSuccess : cudaStreamSynchronize(stream);
    }
    uint64_t sum = fake_use(s, s->asked + 1, to_device ? src : dst, n_bytes);
    enqueue(stream, [=] {
        if (to_device && fake_sum(src, n_bytes) != sum)
            fake_stop("pinned memory changed before it was copied to the device");
        w();
    });
    return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void *dst, const void *src, size_t n_bytes, enum cudaMemcpyKind kind,
                            cudaStream_t stream) {
    return copy(dst, src, n_bytes, kind, stream, [=] { memmove(dst, src, n_bytes); });
}
cudaError_t cudaMemcpy(void *dst, const void *src, size_t n_bytes, enum cudaMemcpyKind kind) {
    cudaError_t rc = cudaMemcpyAsync(dst, src, n_bytes, kind, nullptr);
    return rc != cudaSuccess ? rc : cudaStreamSynchronize(nullptr);
}
cudaError_t cudaMemcpy2DAsync(void *dst, size_t dst_pitch, const void *src, size_t src_pitch,
                              size_t width, size_t height, enum cudaMemcpyKind kind,
                              cudaStream_t stream) {
    if (height == 0)
        return cudaSuccess;
    return copy(dst, src, (height - 1) * std::max(dst_pitch, src_pitch) + width, kind, stream, [=] {
        for (size_t i = 0; i < height; i++)
            memmove((char *)dst + i * dst_pitch, (const char *)src + i * src_pitch, width);
    });
}
cudaError_t cudaMemsetAsync(void *p, int value, size_t n_bytes, cudaStream_t stream) {
    if (!fake_within(fake().allocated, p, n_bytes))
        return fake_error(cudaErrorInvalidValue);
    enqueue(stream, [=] { memset(p, value, n_bytes); });
    return cudaSuccess;
}
cudaError_t cudaMemset(void *p, int value, size_t n_bytes) {
    cudaError_t rc = cudaMemsetAsync(p, value, n_bytes, nullptr);
    return rc != cudaSuccess ? rc : cudaStreamSynchronize(nullptr);
}

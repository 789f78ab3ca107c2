// What a real device forgives in most runs and not in some: here it stops the program.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <set>
#include "tests/simt/fake/fake_machine.h"
#include "tests/simt/simt.h"

void fake_stop(const char *what) {
    fprintf(stderr, "simulated device: %s\n", what);
    abort();
}

// ---- waits

void fake_wait_for_ever(const char *call) {
    std::string text = std::string(call) + " would wait for ever for a device that hangs";
    for (const CUstream_st *s : fake().streams)
        if (fake().has("hang") && s->asked > 0)
            fake_stop(text.c_str());
}

// ---- launches

// What cudaGetLastError says after a launch may be an error from before it. A kernel is loaded by
// its first launch, and that may wait for the device.
static void load(const void *kernel, const char *name) {
    static std::set<const void *> loaded;
    std::string blamed = std::string("the launch of ") + name +
                         " is blamed for an earlier error: " + cudaGetErrorString(fake_own.last);
    if (fake_own.last != cudaSuccess)
        fake_stop(blamed.c_str());
    if (fake().eager || !loaded.insert(kernel).second || fake().n_messages == 0)
        return;
    fake_finish_all();
}

static const bool hooked = (simt::load_hook = load, true);

// ---- streams that capture, streams of other devices

cudaError_t fake_unsafe() {
    cudaError_t rc = cudaSuccess;
    for (CUstream_st *s : fake().streams)
        if (s->capture != nullptr && !s->relaxed) {
            s->broken = true;
            rc = fake_error(cudaErrorStreamCaptureUnsupported);
        }
    return hooked ? rc : cudaErrorUnknown;
}

CUstream_st *fake_stream_of(cudaStream_t stream) {
    CUstream_st *s = stream != nullptr ? stream : &fake().null_stream;
    if (stream != nullptr && s->device != fake_own.device)
        fake_stop("a stream is used by a thread that is on another device");
    return s;
}

cudaError_t fake_not_captured(CUstream_st *s) {
    if (s->capture == nullptr)
        return cudaSuccess;
    s->broken = true;
    return fake_error(cudaErrorStreamCaptureUnsupported);
}

// ---- host memory that copies use

struct use {
    const char *from;
    size_t n_bytes;
    const CUstream_st *stream;
    uint64_t number;
};

static std::vector<use> &uses() {
    static std::vector<use> all;
    return all;
}

uint64_t fake_sum(const void *p, size_t n_bytes) {
    uint64_t sum = n_bytes;
    for (size_t i = 0; i < n_bytes; i++)
        sum = (sum ^ ((const unsigned char *)p)[i]) * 0x100000001b3u;
    return sum;
}

uint64_t fake_use(CUstream_st *s, uint64_t number, const void *p, size_t n_bytes) {
    auto over = [](const use &u) { return u.stream->done >= u.number; };
    uses().erase(std::remove_if(uses().begin(), uses().end(), over), uses().end());
    uses().push_back({(const char *)p, n_bytes, s, number});
    return fake_sum(p, n_bytes);
}

void fake_check_unused(const void *p, size_t n_bytes) {
    for (const use &u : uses())
        if (u.stream->done < u.number && u.from < (const char *)p + n_bytes &&
            (const char *)p < u.from + u.n_bytes)
            fake_stop("pinned memory is given back while a copy uses it");
}

void fake_forget_stream(const CUstream_st *s) {
    auto of = [s](const use &u) { return u.stream == s; };
    uses().erase(std::remove_if(uses().begin(), uses().end(), of), uses().end());
}

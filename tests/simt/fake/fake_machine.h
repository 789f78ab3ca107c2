// What the parts of the simulated device share.
#ifndef TSR_TESTS_SIMT_FAKE_MACHINE_H
#define TSR_TESTS_SIMT_FAKE_MACHINE_H

#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <vector>
#include "tests/simt/fake/fake_cuda.h"

using fake_work = std::function<void()>;
using fake_task = std::function<bool()>; // true: done; else it is called again

struct CUgraph_st {
    std::vector<fake_work> nodes;
};
struct CUgraphExec_st {
    std::vector<fake_work> nodes;
};

// What is asked of a stream is numbered from 1; `done` is the number of the latest that has run.
struct CUstream_st {
    std::deque<fake_task> queue;
    uint64_t asked = 0, done = 0;
    int device = 0;
    bool running = false;
    CUgraph_st *capture = nullptr;
    bool relaxed = false, broken = false; // of the capture
};

struct CUevent_st {
    CUstream_st *stream = nullptr; // that it was recorded in
    uint64_t number = 0;
    double at = 0; // when it happened, in seconds
};

struct fake_machine {
    std::map<std::string, std::string> words; // of the environment
    bool strict, lazy, late, eager;
    size_t memory = (size_t)4 << 30, used = 0;
    int n_devices = 1;
    int n_messages = 0;                         // work of other libraries that isn't done
    std::map<char *, size_t> allocated, pinned; // start and size
    std::vector<CUstream_st *> streams;
    CUstream_st null_stream;
    int access = 0;

    fake_machine();
    bool has(const char *word) const {
        return words.count(word) > 0;
    }
};

// What each thread has its own of.
struct fake_thread {
    int device = 0;
    cudaError_t last = cudaSuccess;
};

fake_machine &fake();
extern thread_local fake_thread fake_own;
// Remembers an error for cudaGetLastError.
cudaError_t fake_error(cudaError_t rc);

// ---- fake_rules.cc
[[noreturn]] void fake_stop(const char *what);
// Before a call that waits for the device however long that takes.
void fake_wait_for_ever(const char *call);
// Before a call that isn't allowed while a stream captures in other than the relaxed mode.
cudaError_t fake_unsafe();
// The stream, which has to be of the thread's device.
CUstream_st *fake_stream_of(cudaStream_t stream);
// The stream, as above, for what mustn't be asked of one that captures.
cudaError_t fake_not_captured(CUstream_st *s);
// A copy reads or writes pinned memory until work `number` of the stream is done. Returns a sum
// over the bytes.
uint64_t fake_use(CUstream_st *s, uint64_t number, const void *p, size_t n_bytes);
uint64_t fake_sum(const void *p, size_t n_bytes);
void fake_check_unused(const void *p, size_t n_bytes);
void fake_forget_stream(const CUstream_st *s);
// Waits for all that was asked of all streams.
void fake_finish_all();

// Whether one of the arrays holds [p, p + n_bytes).
bool fake_within(const std::map<char *, size_t> &arrays, const void *p, size_t n_bytes);

#endif

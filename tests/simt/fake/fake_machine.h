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
    bool running = false;
    CUgraph_st *capture = nullptr;
};

struct CUevent_st {
    CUstream_st *stream = nullptr; // that it was recorded in
    uint64_t number = 0;
    double at = 0; // when it happened, in seconds
};

struct fake_machine {
    std::map<std::string, std::string> words; // of the environment
    bool strict, lazy, late;
    size_t memory = (size_t)4 << 30, used = 0;
    int n_devices = 1, device = 0;
    cudaError_t last = cudaSuccess;
    std::map<char *, size_t> allocated, pinned; // start and size
    std::vector<CUstream_st *> streams;
    CUstream_st null_stream;
    int access = 0;

    fake_machine();
    bool has(const char *word) const {
        return words.count(word) > 0;
    }
};

fake_machine &fake();
// Remembers an error for cudaGetLastError.
cudaError_t fake_error(cudaError_t rc);
// Whether one of the arrays holds [p, p + n_bytes).
bool fake_within(const std::map<char *, size_t> &arrays, const void *p, size_t n_bytes);

#endif

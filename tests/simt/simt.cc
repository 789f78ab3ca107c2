#include "tests/simt/simt.h"
#include <cstdarg>
#include <stdexcept>
#include <vector>
#include "tests/simt/simt_block.h"
#include "tests/simt/simt_fiber.h"
#include "tests/simt/simt_memory.h"

namespace simt {

state now;
bool reverse_order;
epochs clock_of;

namespace {

enum fiber_state { READY, AT_WARP_OP, AT_BARRIER, DONE };

struct fiber {
    thread t;
    context c;
    void *stack;
    fiber_state state;
    int line;
};

struct warp {
    void *args[32];
    void (*run)(void *const *);
    int arrived, line;
};

std::vector<fiber> fibers; // as many as the largest block so far
warp warps[MAX_WARPS];
context scheduler;
int n_threads, catching;
const std::function<void()> *kernel_body;
bool failed, in_kernel;
char sentence[1024];

fiber &self() {
    return fibers[(size_t)now.self->index];
}

void pause(fiber_state s, int line) {
    fiber &f = self();
    f.state = s;
    f.line = line;
    switch_context(&f.c, &scheduler);
}

void enter() {
    context_entered(&scheduler);
    (*kernel_body)();
    if (copies_left())
        stop("ended with asynchronous copies that it did not wait for");
    pause(DONE, 0);
}

void no_operation(void *const *) {
}

const char *state_name(const fiber &f) {
    return f.state == DONE         ? "has ended"
           : f.state == AT_BARRIER ? "waits for the block"
                                   : "waits for its warp";
}

// No thread can run and not all have ended or wait for the same barrier.
void report_stuck() {
    const fiber &a = fibers[0];
    for (int i = 1; i < n_threads; i++) {
        const fiber &b = fibers[(size_t)i];
        if (b.state == a.state && b.line == a.line && a.state != AT_WARP_OP)
            continue;
        now.self = &fibers[(size_t)i].t;
        snprintf(sentence, sizeof sentence,
                 "%s block (%u,%u,%u): divergence: thread 0 %s (line %d), thread %d %s (line %d)",
                 now.kernel, now.block.x, now.block.y, now.block.z, state_name(a), a.line, i,
                 state_name(b), b.line);
        if (b.state != a.state || b.line != a.line)
            break;
    }
    failed = true;
}

// Lets the threads of warp w run as far as they can.
void run_warp(int w) {
    for (bool again = true; again && !failed;) {
        again = false;
        for (int i = 0; i < 32 && !failed; i++) {
            fiber &f = fibers[(size_t)(32 * w + (reverse_order ? 31 - i : i))];
            if (f.state != READY)
                continue;
            again = true;
            now.self = &f.t;
            switch_context(&scheduler, &f.c);
        }
    }
}

void run_ready() {
    int n = n_threads / 32;
    for (int w = 0; w < n && !failed; w++)
        run_warp(reverse_order ? n - 1 - w : w);
}

void run_block() {
    for (int i = 0; i < n_threads; i++) {
        fibers[(size_t)i].state = READY;
        make_context(&fibers[(size_t)i].c, fibers[(size_t)i].stack, enter);
    }
    for (warp &w : warps)
        w.arrived = 0;
    shared_begin();
    while (!failed) {
        run_ready();
        if (failed)
            break;
        int done = 0, waiting = 0, line = fibers[0].line;
        for (int i = 0; i < n_threads; i++) {
            const fiber &f = fibers[(size_t)i];
            done += f.state == DONE;
            waiting += f.state == AT_BARRIER && f.line == line;
        }
        if (done == n_threads)
            break;
        if (waiting != n_threads) {
            report_stuck();
            break;
        }
        clock_of.block++;
        for (int i = 0; i < n_threads; i++)
            fibers[(size_t)i].state = READY;
    }
}

} // namespace

int lane() {
    return now.self->index % 32;
}

void stop(const char *fmt, ...) {
    char text[512];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    snprintf(sentence, sizeof sentence, "%s block (%u,%u,%u) thread %d: %s",
             now.kernel != nullptr ? now.kernel : "host", now.block.x, now.block.y, now.block.z,
             now.self != nullptr ? now.self->index : 0, text);
    if (in_kernel) {
        failed = true;
        fiber &f = self();
        switch_context(&f.c, &scheduler);
    }
    fprintf(stderr, "simt: %s\n", sentence);
    exit(1);
}

void warp_op(void (*run)(void *const args[32]), void *arg, int line) {
    warp &w = warps[now.self->index / 32];
    if (w.arrived == 0) {
        w.run = run;
        w.line = line;
    } else if (w.run != run || w.line != line) {
        stop("divergence within a warp: this lane is at line %d, others at line %d", line, w.line);
    }
    w.args[lane()] = arg;
    if (++w.arrived < 32) {
        pause(AT_WARP_OP, line);
        return;
    }
    w.arrived = 0;
    run(w.args);
    for (int i = 0; i < 32; i++)
        fibers[(size_t)(now.self->index / 32 * 32 + i)].state = READY;
}

void warp_barrier(int line) {
    int w = now.self->index / 32;
    bool last = warps[w].arrived == 31;
    if (last)
        clock_of.warp[w]++;
    warp_op(no_operation, nullptr, line);
}

void block_barrier(int line) {
    pause(AT_BARRIER, line);
}

void launch(const char *kernel, dim3 grid, int threads, size_t shared_bytes,
            const std::function<void()> &body) {
    now = {};
    now.kernel = kernel;
    if (threads <= 0 || threads > MAX_WARPS * 32 || threads % 32 != 0)
        stop("%d threads in a block: expected a multiple of 32 up to %d", threads, MAX_WARPS * 32);
    if (shared_bytes > MAX_SHARED)
        stop("%zu bytes of shared memory, more than %d", shared_bytes, MAX_SHARED);
    if (grid.y > 65535 || grid.z > 65535 || grid.x > 0x7fffffff || grid.x * grid.y * grid.z == 0)
        stop("a grid of %u x %u x %u blocks", grid.x, grid.y, grid.z);
    catch_faults();
    while (fibers.size() < (size_t)threads) {
        fibers.push_back({});
        fibers.back().t.index = (int)fibers.size() - 1;
        fibers.back().stack = new_stack();
    }
    now.block_dim = dim3((unsigned)threads);
    now.grid_dim = grid;
    now.shared_bytes = (int)shared_bytes;
    n_threads = threads;
    kernel_body = &body;
    failed = false;
    in_kernel = true;
    for (int i = 0; i < threads; i++)
        fibers[(size_t)i].t.tid = dim3((unsigned)i, 0, 0);
    size_t n = (size_t)grid.x * grid.y * grid.z;
    for (size_t k = 0; k < n && !failed; k++) {
        size_t b = reverse_order ? n - 1 - k : k;
        now.block = dim3((unsigned)(b % grid.x), (unsigned)(b / grid.x % grid.y),
                         (unsigned)(b / grid.x / grid.y));
        run_block();
    }
    in_kernel = false;
    if (failed && catching > 0)
        throw std::runtime_error(sentence);
    if (failed) {
        fprintf(stderr, "simt: %s\n", sentence);
        exit(1);
    }
}

std::string caught(const std::function<void()> &work) {
    catching++;
    std::string text;
    try {
        work();
    } catch (const std::runtime_error &e) {
        text = e.what();
    }
    catching--;
    return text;
}

} // namespace simt

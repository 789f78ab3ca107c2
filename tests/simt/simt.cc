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
int blocks_alive = 1;
int64_t n_spins;
void (*enqueue_hook)(void *stream, std::function<void()> work);
void (*load_hook)(const void *kernel, const char *name);

namespace {

enum fiber_state { READY, AT_WARP_OP, AT_BARRIER, SPINNING, DONE };

struct fiber {
    thread t;
    context c;
    void *stack;
    fiber_state state;
    int line;
    bool waited; // spun when it ran last
};

struct warp {
    void *args[32];
    void (*run)(void *const *);
    int arrived, line;
};

// A block that is alive, or a place for one.
struct block {
    dim3 index;
    std::vector<fiber> fibers; // as many as the largest block so far
    warp warps[MAX_WARPS];
    shared_memory *shared;
    bool alive, waits; // waits: could do nothing since another block last did something
};

std::vector<block *> places;
block *running;
context scheduler;
int n_threads, catching;
const std::function<void()> *kernel_body;
bool failed, in_kernel, moved; // moved: a thread did more than ask again for what it waits for
char sentence[1024];

fiber &self() {
    return running->fibers[(size_t)now.self->index];
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
           : f.state == SPINNING   ? "waits for another block"
                                   : "waits for its warp";
}

// No thread can run and not all have ended or wait for the same barrier.
void report_stuck() {
    std::vector<fiber> &fibers = running->fibers;
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
            fiber &f = running->fibers[(size_t)(32 * w + (reverse_order ? 31 - i : i))];
            if (f.state != READY)
                continue;
            again = true;
            now.self = &f.t;
            bool waited = f.waited;
            f.waited = false;
            switch_context(&scheduler, &f.c);
            moved |= !waited || f.state != SPINNING;
        }
    }
}

void run_ready() {
    int n = n_threads / 32;
    for (int w = 0; w < n && !failed; w++)
        run_warp(reverse_order ? n - 1 - w : w);
}

void begin_block(block *b, dim3 index) {
    running = b;
    b->index = index;
    b->alive = true;
    b->waits = false;
    for (int i = 0; i < n_threads; i++) {
        fiber &f = b->fibers[(size_t)i];
        f.state = READY;
        f.waited = false;
        f.t.tid = dim3((unsigned)i, 0, 0);
        make_context(&f.c, f.stack, enter);
    }
    for (warp &w : b->warps)
        w.arrived = 0;
    shared_select(b->shared);
    shared_begin();
}

// Lets the block go on until its threads have passed a barrier, have ended, or wait for others.
void run_block(block *b) {
    running = b;
    now.block = b->index;
    shared_select(b->shared);
    moved = false;
    run_ready();
    if (failed)
        return;
    int done = 0, waiting = 0, spinning = 0, line = b->fibers[0].line;
    for (int i = 0; i < n_threads; i++) {
        fiber &f = b->fibers[(size_t)i];
        done += f.state == DONE;
        waiting += f.state == AT_BARRIER && f.line == line;
        if (f.state == SPINNING) {
            spinning++;
            f.state = READY;
            f.waited = true;
        }
    }
    if (waiting == n_threads) {
        clock_of->block++;
        for (int i = 0; i < n_threads; i++)
            b->fibers[(size_t)i].state = READY;
    } else if (done == n_threads) {
        b->alive = false;
    } else if (spinning == 0) {
        report_stuck();
    }
    b->waits = !moved;
}

// Any block that is alive and, since somebody last did something, wasn't found to wait.
block *next_block(uint32_t *random) {
    std::vector<block *> able;
    for (block *b : places)
        if (b->alive && !b->waits)
            able.push_back(b);
    if (able.empty())
        return nullptr;
    *random = *random * 1664525u + 1013904223u;
    return able[(*random >> 16) % able.size()];
}

void run_blocks(size_t n) {
    uint32_t random = 1;
    size_t n_begun = 0, n_alive = 0;
    while (!failed && (n_begun < n || n_alive > 0)) {
        for (block *b : places) {
            if (b->alive || n_begun == n)
                continue;
            size_t i = reverse_order ? n - 1 - n_begun : n_begun;
            dim3 g = now.grid_dim;
            now.block =
                dim3((unsigned)(i % g.x), (unsigned)(i / g.x % g.y), (unsigned)(i / g.x / g.y));
            begin_block(b, now.block);
            n_begun++;
            n_alive++;
        }
        block *b = places.size() > 1 ? next_block(&random) : places[0]->waits ? nullptr : places[0];
        if (b == nullptr) {
            snprintf(sentence, sizeof sentence,
                     "%s: every block that is alive waits for another, as block (%u,%u,%u) does",
                     now.kernel, now.block.x, now.block.y, now.block.z);
            failed = true;
            break;
        }
        run_block(b);
        n_alive -= !b->alive;
        for (block *other : places)
            other->waits = other->waits && !moved;
    }
}

// Places for `n` blocks of n_threads threads.
void make_places(size_t n) {
    while (places.size() > n) {
        for (fiber &f : places.back()->fibers)
            free_stack(f.stack);
        shared_free(places.back()->shared);
        delete places.back();
        places.pop_back();
    }
    while (places.size() < n) {
        places.push_back(new block());
        places.back()->shared = shared_new();
    }
    for (block *b : places) {
        b->alive = false;
        while (b->fibers.size() < (size_t)n_threads) {
            b->fibers.push_back({});
            b->fibers.back().t.index = (int)b->fibers.size() - 1;
            b->fibers.back().stack = new_stack();
        }
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
    warp &w = running->warps[now.self->index / 32];
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
        running->fibers[(size_t)(now.self->index / 32 * 32 + i)].state = READY;
}

void warp_barrier(int line) {
    int w = now.self->index / 32;
    bool last = running->warps[w].arrived == 31;
    if (last)
        clock_of->warp[w]++;
    warp_op(no_operation, nullptr, line);
}

void block_barrier(int line) {
    pause(AT_BARRIER, line);
}

void spin(int line) {
    n_spins++;
    pause(SPINNING, line);
}

void load(const void *kernel, const char *name) {
    if (load_hook != nullptr)
        load_hook(kernel, name);
}

void enqueue(void *stream, std::function<void()> work) {
    if (enqueue_hook != nullptr)
        enqueue_hook(stream, std::move(work));
    else
        work();
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
    now.block_dim = dim3((unsigned)threads);
    now.grid_dim = grid;
    now.shared_bytes = (int)shared_bytes;
    n_threads = threads;
    kernel_body = &body;
    failed = false;
    in_kernel = true;
    make_places((size_t)blocks_alive);
    run_blocks((size_t)grid.x * grid.y * grid.z);
    in_kernel = false;
    now = {};
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

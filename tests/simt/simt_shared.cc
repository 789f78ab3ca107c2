#include "tests/simt/simt.h"
#include <deque>
#include <vector>
#include "tests/simt/simt_block.h"

namespace simt {
namespace {

enum { NOBODY = -1, SEVERAL = -2 };

// Who touched a granule, and when.
struct stamp {
    int64_t block, warp_epoch;
    int thread, warp; // SEVERAL threads of a warp, or of several warps
};

struct granule {
    stamp write, read;
    int flights; // asynchronous copies on their way here
};

struct copy {
    int at, n_bytes, lo, hi;
    const void *src;
    int n_src;
};

struct copies {
    std::deque<std::vector<copy>> groups;
    std::vector<copy> open;
};

} // namespace

struct shared_memory {
    alignas(16) unsigned char bytes[MAX_SHARED];
    granule granules[MAX_SHARED / 2];
    copies queues[MAX_WARPS * 32];
    epochs clock;
    int64_t first_epoch; // of its block
};

epochs *clock_of;

namespace {

shared_memory *own; // of the block that runs

int me() {
    return now.self->index;
}

// Whether a barrier lies between the stamp and the running thread, or it is its own.
bool ordered(const stamp &s) {
    int w = me() / 32;
    return s.block != clock_of->block || s.thread == me() ||
           (s.warp == w && s.warp_epoch < clock_of->warp[w]);
}

stamp mine() {
    return {clock_of->block, clock_of->warp[me() / 32], me(), me() / 32};
}

void race(const stamp &s, const char *what, int at) {
    char who[32];
    if (s.thread == SEVERAL)
        snprintf(who, sizeof who, "several threads");
    else
        snprintf(who, sizeof who, "thread %d", s.thread);
    stop("race in shared memory at byte %d: %s of %s and no barrier since", at, what, who);
}

void check_place(int at, int n_bytes, int lo, int hi) {
    if (at < lo || at + n_bytes > hi)
        stop("shared memory: bytes [%d, %d) of an array of [%d, %d)", at, at + n_bytes, lo, hi);
    if (at % n_bytes != 0)
        stop("shared memory: %d bytes at %d: misaligned", n_bytes, at);
}

void check_write(int at, int n_bytes) {
    for (int i = at / 2; i < (at + n_bytes + 1) / 2; i++) {
        const granule &g = own->granules[i];
        if (g.flights > 0)
            stop("shared memory at byte %d: written while an asynchronous copy is on its way", at);
        if (g.write.block >= own->first_epoch && !ordered(g.write))
            race(g.write, "written after a write", at);
        if (g.read.block >= own->first_epoch && !ordered(g.read))
            race(g.read, "written after a read", at);
    }
}

} // namespace

void *shared_write(int at, int n_bytes, int lo, int hi) {
    check_place(at, n_bytes, lo, hi);
    check_write(at, n_bytes);
    for (int i = at / 2; i < (at + n_bytes + 1) / 2; i++)
        own->granules[i].write = mine();
    return own->bytes + at;
}

void *shared_read(int at, int n_bytes, int lo, int hi) {
    check_place(at, n_bytes, lo, hi);
    stamp now_mine = mine();
    for (int i = at / 2; i < (at + n_bytes + 1) / 2; i++) {
        granule &g = own->granules[i];
        if (g.flights > 0)
            stop("shared memory at byte %d: read while an asynchronous copy is on its way", at);
        if (g.write.block < own->first_epoch)
            stop("shared memory at byte %d: read, but nobody wrote it", at);
        if (!ordered(g.write))
            race(g.write, "read after a write", at);
        if (g.read.block < own->first_epoch || ordered(g.read)) {
            g.read = now_mine;
        } else { // the latest of one warp says enough about the earlier ones
            g.read.warp_epoch = now_mine.warp_epoch;
            g.read.warp = g.read.warp == now_mine.warp ? g.read.warp : SEVERAL;
            g.read.thread = SEVERAL;
        }
    }
    return own->bytes + at;
}

void copy_async(int at, int n_bytes, int lo, int hi, const void *src, int n_src) {
    check_place(at, n_bytes, lo, hi);
    if (n_src < 0 || n_src > n_bytes)
        stop("asynchronous copy of %d of %d bytes", n_src, n_bytes);
    if ((uintptr_t)src % (uintptr_t)n_bytes != 0) // of empty ones, too: PTX makes no exception
        stop("asynchronous copy of %d bytes from a misaligned global address", n_bytes);
    check_write(at, n_bytes);
    for (int i = at / 2; i < (at + n_bytes) / 2; i++)
        own->granules[i].flights++;
    own->queues[me()].open.push_back({at, n_bytes, lo, hi, src, n_src});
}

void copy_commit() {
    copies &q = own->queues[me()];
    q.groups.push_back(std::move(q.open));
    q.open.clear();
}

// Only now do the data arrive.
void copy_wait(int groups_left) {
    copies &q = own->queues[me()];
    while (q.groups.size() > (size_t)groups_left) {
        for (const copy &c : q.groups.front()) {
            for (int i = c.at / 2; i < (c.at + c.n_bytes) / 2; i++)
                own->granules[i].flights--;
            unsigned char *to = (unsigned char *)shared_write(c.at, c.n_bytes, c.lo, c.hi);
            if (c.n_src > 0)
                memcpy(to, c.src, (size_t)c.n_src);
            memset(to + c.n_src, 0, (size_t)(c.n_bytes - c.n_src));
        }
        q.groups.pop_front();
    }
}

bool copies_left() {
    const copies &q = own->queues[me()];
    bool left = !q.open.empty();
    for (const std::vector<copy> &g : q.groups)
        left |= !g.empty();
    return left;
}

shared_memory *shared_new() {
    return new shared_memory();
}

void shared_free(shared_memory *m) {
    delete m;
}

void shared_select(shared_memory *m) {
    own = m;
    clock_of = &m->clock;
}

void shared_begin() {
    own->first_epoch = ++clock_of->block;
    for (int i = 0; i < now.shared_bytes / 2; i++)
        own->granules[i].flights = 0;
    memset(own->bytes, 0xff, (size_t)now.shared_bytes);
    for (copies &q : own->queues) {
        q.groups.clear();
        q.open.clear();
    }
}

} // namespace simt

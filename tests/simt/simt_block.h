// What the scheduler (simt.cc) and the shared memory of a block (simt_shared.cc) know of each
// other.
#ifndef TSR_TESTS_SIMT_SIMT_BLOCK_H
#define TSR_TESTS_SIMT_SIMT_BLOCK_H

#include <cstdint>

namespace simt {

enum {
    MAX_WARPS = 32,
    MAX_SHARED = 227 * 1024, // of sm_90 and sm_100
};

// Barriers passed so far, never set back: by blocks in one place, and by their warps with each
// number.
struct epochs {
    int64_t block = 1;
    int64_t warp[MAX_WARPS] = {};
};
extern epochs *clock_of; // of the block that runs

// The shared memory of one block that is alive. The functions of simt_shared.h use that of the
// block that runs.
struct shared_memory;
shared_memory *shared_new();
void shared_free(shared_memory *m);
void shared_select(shared_memory *m);
// A new block: nothing of its shared memory is written.
void shared_begin();
// The running thread has asynchronous copies that it has not waited for.
bool copies_left();

} // namespace simt

#endif

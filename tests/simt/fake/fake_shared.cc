// Shared memory of the simulated device: bytes, with no record of who touched them.
#include "tests/simt/simt.h"
#include "tests/simt/simt_block.h"

namespace simt {

struct shared_memory {
    alignas(16) unsigned char bytes[MAX_SHARED];
    epochs clock;
};

unsigned char *shared_now;
epochs *clock_of;

shared_memory *shared_new() {
    return new shared_memory();
}

void shared_free(shared_memory *m) {
    delete m;
}

void shared_select(shared_memory *m) {
    shared_now = m->bytes;
    clock_of = &m->clock;
}

void shared_begin() {
    memset(shared_now, 0xff, (size_t)now.shared_bytes);
}

bool copies_left() {
    return false;
}

} // namespace simt

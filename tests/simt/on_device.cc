// The simulator's arrays, where a test runs on a device.
#include "tests/simt/on_device.h"
#include "tests/simt/simt_memory.h"

namespace simt {

void *allocate(size_t n_bytes, size_t skew) {
    return on_device_allocate(n_bytes, skew);
}
void free_all() {
    on_device_free_all();
}

// What the simulator itself asks for.
void catch_faults() {
}
void forbid_access(bool) {
    on_device_leave("a device's arrays can't be forbidden");
}
void release(void *) {
    on_device_leave("a device's arrays are freed together");
}

} // namespace simt

// Global memory: arrays that end at a page without access (and begin a little after one), so that
// a kernel's stray access faults where it happens. The few bytes between an array and its pages
// are watched too. Fresh arrays are full of bytes 0xff: NaN in every type, -1 as an integer.
#ifndef TSR_TESTS_SIMT_SIMT_MEMORY_H
#define TSR_TESTS_SIMT_SIMT_MEMORY_H

#include <cstddef>

namespace simt {

// n_bytes of memory aligned to 16 bytes, or to `skew` bytes past such an address.
void *allocate(size_t n_bytes, size_t skew);
// Frees one array. Fails when bytes beside it have changed.
void release(void *p);
// Until the next call with false, no array may be touched.
void forbid_access(bool on);
// Frees all arrays. Fails when bytes beside one have changed.
void free_all();
// Turns a fault on a page beside an array into stop().
void catch_faults();

template <class T> T *array(size_t n, size_t skew = 0) {
    return (T *)allocate(n * sizeof(T), skew);
}

} // namespace simt

#endif

// Copies that leave the cache alone.
#ifndef TSR_KERNELS_CPU_STREAM_H
#define TSR_KERNELS_CPU_STREAM_H

#include <stddef.h>

// memcpy whose stores go past the cache: the destination's lines are not read first, which for more
// than the cache holds saves a third of the memory's work. For what nobody reads soon.
void tsr_stream_copy(void *dst, const void *src, size_t n_bytes);

#endif

// Anonymous memory straight from the kernel: zero-filled, on huge pages where the system gives
// them (packed panels and weights are walked with large strides, which small pages punish).
#ifndef TSR_KERNELS_CPU_PAGES_H
#define TSR_KERNELS_CPU_PAGES_H

#include <stddef.h>

// Maps n_bytes, aligned to the page, and to 2 MiB from that size on. NULL when n_bytes is too
// large or the system is out of memory. 0 bytes map one page.
void *tsr_pages_map(size_t n_bytes);
// Gives mapped memory its pages now: [p, p + n_bytes) of a mapping. Any thread.
void tsr_pages_populate(void *p, size_t n_bytes);
// Mapped memory stays on small pages, so that a touch costs little. p may be NULL.
void tsr_pages_keep_small(void *p, size_t n_bytes);
// Address space alone, which may not be touched.
void *tsr_pages_reserve(size_t n_bytes);
void tsr_pages_unmap(void *p, size_t n_bytes); // the same n_bytes; p may be NULL

#endif

#include "kernels/cpu/pages.h"

#include <stdint.h>
#include <sys/mman.h>

enum { SMALL_PAGE = 4096, HUGE_PAGE = 2 << 20 };

static size_t mapped_size(size_t n_bytes) {
    size_t page = n_bytes >= HUGE_PAGE ? HUGE_PAGE : SMALL_PAGE;
    return n_bytes == 0 ? page : (n_bytes + page - 1) / page * page;
}

void *tsr_pages_map(size_t n_bytes) {
    if (n_bytes > SIZE_MAX / 4)
        return NULL;
    size_t size = mapped_size(n_bytes);
    size_t slack = size >= HUGE_PAGE ? HUGE_PAGE : 0;
    char *p = mmap(NULL, size + slack, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED)
        return NULL;
    if (slack == 0)
        return p;
    // The kernel needn't align a mapping to huge pages: map more and give both ends back.
    size_t head = (HUGE_PAGE - (uintptr_t)p % HUGE_PAGE) % HUGE_PAGE;
    if (head > 0)
        munmap(p, head);
    if (slack > head)
        munmap(p + head + size, slack - head);
    madvise(p + head, size, MADV_HUGEPAGE); // advice only: small pages work too
    return p + head;
}

void tsr_pages_keep_small(void *p, size_t n_bytes) {
    if (p != NULL)
        madvise(p, mapped_size(n_bytes), MADV_NOHUGEPAGE); // advice only
}

void *tsr_pages_reserve(size_t n_bytes) {
    if (n_bytes > SIZE_MAX / 4)
        return NULL;
    void *p = mmap(NULL, mapped_size(n_bytes), PROT_NONE,
                   MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return p == MAP_FAILED ? NULL : p;
}

void tsr_pages_populate(void *p, size_t n_bytes) {
#ifndef MADV_POPULATE_WRITE
    enum { MADV_POPULATE_WRITE = 23 }; // Linux 5.14
#endif
    // Advice only, too: without it each page comes when it is touched first.
    madvise(p, n_bytes, MADV_POPULATE_WRITE);
}

void tsr_pages_unmap(void *p, size_t n_bytes) {
    if (p != NULL)
        munmap(p, mapped_size(n_bytes));
}

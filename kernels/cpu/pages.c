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

void tsr_pages_unmap(void *p, size_t n_bytes) {
    if (p != NULL)
        munmap(p, mapped_size(n_bytes));
}

#include "tests/simt/simt_memory.h"
#include <csignal>
#include <cstring>
#include <execinfo.h>
#include <sys/mman.h>
#include <unistd.h>
#include <vector>
#include "tests/simt/simt.h"

namespace simt {
namespace {

struct region {
    char *base;     // its first page without access
    size_t n_pages; // the two without access included
    char *at;       // the array
    size_t n_bytes;
};
std::vector<region> regions;

size_t page_bytes() {
    static const size_t n = (size_t)sysconf(_SC_PAGESIZE);
    return n;
}

void on_fault(int, siginfo_t *info, void *) {
    const char *p = (const char *)info->si_addr;
    for (const region &r : regions) {
        if (p < r.base || p >= r.base + r.n_pages * page_bytes())
            continue;
        if (now.kernel == nullptr) { // the host, which has no business there
            void *callers[32];
            backtrace_symbols_fd(callers, backtrace(callers, 32), 2);
        }
        stop("global memory: byte %td of an array of %zu bytes", p - r.at, r.n_bytes);
    }
    signal(SIGSEGV, SIG_DFL); // none of ours: let it happen again
}

} // namespace

// At every launch, since test frameworks set handlers of their own.
void catch_faults() {
    static char stack[64 * 1024];
    stack_t s = {};
    s.ss_sp = stack;
    s.ss_size = sizeof stack;
    struct sigaction a = {};
    a.sa_sigaction = on_fault;
    a.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER; // stop() leaves the handler for good
    if (sigaltstack(&s, nullptr) != 0 || sigaction(SIGSEGV, &a, nullptr) != 0) {
        perror("simt: cannot watch for faults");
        exit(1);
    }
}

void *allocate(size_t n_bytes, size_t skew) {
    size_t page = page_bytes(), room = (n_bytes + 15) / 16 * 16 + (skew > 0 ? 16 : 0);
    size_t n_pages = (room + page - 1) / page + 2;
    char *base = (char *)mmap(nullptr, n_pages * page, PROT_READ | PROT_WRITE,
                              MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *end = base + (n_pages - 1) * page;
    if (base == MAP_FAILED || mprotect(base, page, PROT_NONE) != 0 ||
        mprotect(end, page, PROT_NONE) != 0) {
        perror("simt: no memory for an array");
        exit(1);
    }
    memset(base + page, 0xff, (n_pages - 2) * page);
    regions.push_back({base, n_pages, end - room + skew, n_bytes});
    return regions.back().at;
}

static void free_region(const region &r) {
    const char *lo = r.base + page_bytes(), *hi = r.base + (r.n_pages - 1) * page_bytes();
    for (const char *p = lo; p < hi; p = p + 1 == r.at ? r.at + r.n_bytes : p + 1)
        if ((p < r.at || p >= r.at + r.n_bytes) && *p != (char)0xff)
            stop("global memory: byte %td beside an array of %zu bytes was written", p - r.at,
                 r.n_bytes);
    munmap(r.base, r.n_pages * page_bytes());
}

void release(void *p) {
    for (size_t i = 0; i < regions.size(); i++)
        if (regions[i].at == p) {
            free_region(regions[i]);
            regions.erase(regions.begin() + (ptrdiff_t)i);
            return;
        }
    stop("global memory: there is no such array to free");
}

void forbid_access(bool on) {
    for (const region &r : regions)
        if (mprotect(r.base + page_bytes(), (r.n_pages - 2) * page_bytes(),
                     on ? PROT_NONE : PROT_READ | PROT_WRITE) != 0) {
            perror("simt: mprotect");
            exit(1);
        }
}

void free_all() {
    for (const region &r : regions)
        free_region(r);
    regions.clear();
}

} // namespace simt

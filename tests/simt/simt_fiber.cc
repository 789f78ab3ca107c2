#include "tests/simt/simt_fiber.h"
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <sys/mman.h>
#include <unistd.h>
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {

static void jump(context *from, context *to);

#if defined(__SANITIZE_ADDRESS__)

void switch_context(context *from, context *to) {
    void *fake;
    __sanitizer_start_switch_fiber(&fake, to->stack, to->size);
    jump(from, to);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

// A launch that was stopped leaves its marks on the stacks of fibers that it never comes back to.
static void clean(void *stack) {
    ASAN_UNPOISON_MEMORY_REGION(stack, stack_bytes);
}

void context_entered(context *from) {
    __sanitizer_finish_switch_fiber(nullptr, &from->stack, &from->size);
}

#else

void switch_context(context *from, context *to) {
    jump(from, to);
}

static void clean(void *) {
}

void context_entered(context *) {
}

#endif

void *new_stack() {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    char *p = (char *)mmap(nullptr, page + stack_bytes, PROT_READ | PROT_WRITE,
                           MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (p == MAP_FAILED || mprotect(p, page, PROT_NONE) != 0) {
        perror("simt: no memory for stacks");
        exit(1);
    }
    return p + page;
}

void free_stack(void *stack) {
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    munmap((char *)stack - page, page + stack_bytes);
}

#if defined(__x86_64__)

// Saves what a callee must keep and the stack pointer; loads the other's.
extern "C" void simt_switch_stack(void **save, void *load);
__asm__(".text\n"
        ".globl simt_switch_stack\n"
        "simt_switch_stack:\n"
        "push %rbp\npush %rbx\npush %r12\npush %r13\npush %r14\npush %r15\n"
        "mov %rsp, (%rdi)\n"
        "mov %rsi, %rsp\n"
        "pop %r15\npop %r14\npop %r13\npop %r12\npop %rbx\npop %rbp\n"
        "ret\n");

void make_context(context *c, void *stack, void (*entry)()) {
    clean(stack);
    void **top = (void **)((char *)stack + stack_bytes);
    *--top = nullptr; // entry's return address; also aligns the stack as after a call
    *--top = (void *)entry;
    for (int i = 0; i < 6; i++)
        *--top = nullptr;
    c->sp = top;
    c->stack = stack;
    c->size = stack_bytes;
}

static void jump(context *from, context *to) {
    simt_switch_stack(&from->sp, to->sp);
}

#else

} // namespace simt
#include <ucontext.h>
namespace simt {

static ucontext_t *of(context *c) {
    if (c->sp == nullptr)
        c->sp = calloc(1, sizeof(ucontext_t));
    return (ucontext_t *)c->sp;
}

void make_context(context *c, void *stack, void (*entry)()) {
    clean(stack);
    ucontext_t *u = of(c);
    getcontext(u);
    u->uc_stack.ss_sp = stack;
    u->uc_stack.ss_size = stack_bytes;
    makecontext(u, entry, 0);
    c->stack = stack;
    c->size = stack_bytes;
}

static void jump(context *from, context *to) {
    swapcontext(of(from), of(to));
}

#endif

} // namespace simt

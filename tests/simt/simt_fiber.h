// Fibers: functions with stacks of their own, switched without the kernel's help.
#ifndef TSR_TESTS_SIMT_SIMT_FIBER_H
#define TSR_TESTS_SIMT_SIMT_FIBER_H

#include <cstddef>

namespace simt {

// A place to return to. On x86-64 its registers stand on its stack, elsewhere in a ucontext.
struct context {
    void *sp = nullptr;
    const void *stack = nullptr; // and its size: what AddressSanitizer wants to be told
    size_t size = 0;
};

constexpr size_t stack_bytes = 256 * 1024;

// A stack with an inaccessible page below it.
void *new_stack();
void free_stack(void *stack);
// Makes `c` a context that will call entry() on that stack; entry calls context_entered(from whom)
// first and never returns.
void make_context(context *c, void *stack, void (*entry)());
void switch_context(context *from, context *to);
void context_entered(context *from);

} // namespace simt

#endif

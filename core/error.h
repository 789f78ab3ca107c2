// Error codes, their texts and the process exit codes that they lead to.
//
// Every call that can fail returns 0 or a negative enum tsr_code and leaves one sentence in a
// per-thread buffer: what was expected, what was found, and where. A caller either handles the
// failure or returns the code unchanged; only the outermost layer prints.
#ifndef TSR_CORE_ERROR_H
#define TSR_CORE_ERROR_H

#include <stdio.h>
#include <stdlib.h>

// name, exit code of the process, short text
#define TSR_ERROR_MAP(X)                                                                           \
    X(USAGE, 2, "wrong command line")                                                              \
    X(CONFIG, 2, "wrong run file")                                                                 \
    X(MODEL, 2, "wrong model directory")                                                           \
    X(DATA, 2, "wrong data")                                                                       \
    X(REQUEST, 2, "wrong request")                                                                 \
    X(NOMEM, 3, "out of memory")                                                                   \
    X(NOSPC, 3, "no space left on the device")                                                     \
    X(IO, 3, "input or output failed")                                                             \
    X(PEER, 4, "a peer failed")                                                                    \
    X(TIMEOUT, 4, "waited too long")                                                               \
    X(INTERRUPTED, 5, "interrupted")                                                               \
    X(DIVERGED, 2, "training diverged")

enum tsr_code_index {
#define X(name, exit_code, text) TSR_I_##name,
    TSR_ERROR_MAP(X)
#undef X
        TSR_N_ERRORS
};

enum tsr_code {
    TSR_OK = 0,
#define X(name, exit_code, text) TSR_E##name = -(TSR_I_##name + 1),
    TSR_ERROR_MAP(X)
#undef X
};

enum {
    TSR_EXIT_BUG = 70,
    TSR_ERROR_TEXT = 8192, // bytes of the longest text kept, its NUL included
};

// Records a printf-style sentence for this thread and returns `code`, so that a failure is one
// line: `return tsr_fail(TSR_EDATA, "%s: expected ..., found ...", path, ...);`
__attribute__((format(printf, 2, 3))) int tsr_fail(enum tsr_code code, const char *fmt, ...);

// Like tsr_fail, but puts the new sentence and ": " before the one already recorded.
__attribute__((format(printf, 2, 3))) int tsr_fail_prefix(int code, const char *fmt, ...);

// The last sentence that this thread recorded; never NULL.
const char *tsr_error_text(void);

// "EDATA" and the like, for logs. A code that isn't ours reads "EUNKNOWN".
const char *tsr_error_name(int code);

// The process exit code (0, 2, 3, 4, 5 or 70) that a returned code leads to.
int tsr_exit_code(int code);

// Always on: a failure of this is our own bug. Prints the place and exits with code 70 by abort
// of the process image (no atexit handlers, so that no half-written state is flushed).
#define TSR_ASSERT(cond)                                                                           \
    do {                                                                                           \
        if (!(cond))                                                                               \
            tsr_assert_failed(#cond, __FILE__, __LINE__, __func__);                                \
    } while (0)
_Noreturn void tsr_assert_failed(const char *cond, const char *file, int line, const char *func);

// Returns from the calling function when `call` fails.
#define TSR_TRY(call)                                                                              \
    do {                                                                                           \
        int tsr_rc_ = (call);                                                                      \
        if (tsr_rc_ < 0)                                                                           \
            return tsr_rc_;                                                                        \
    } while (0)

#endif

#include "core/error.h"

#include <stdarg.h>
#include <string.h>
#include <unistd.h>

static _Thread_local char text[TSR_ERROR_TEXT];

int tsr_fail(enum tsr_code code, const char *fmt, ...) {
    char fresh[sizeof text];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(fresh, sizeof fresh, fmt, ap);
    va_end(ap);
    memcpy(text, fresh, sizeof text); // `fmt` may quote tsr_error_text() itself
    return code;
}

int tsr_fail_prefix(int code, const char *fmt, ...) {
    char fresh[sizeof text];
    va_list ap;
    va_start(ap, fmt);
    int n = vsnprintf(fresh, sizeof fresh, fmt, ap);
    va_end(ap);
    if (n >= 0 && (size_t)n < sizeof fresh - 2) {
        size_t at = (size_t)n + 2, kept = strnlen(text, sizeof fresh - at - 1);
        memcpy(fresh + n, ": ", 2);
        memcpy(fresh + at, text, kept);
        fresh[at + kept] = 0;
    }
    memcpy(text, fresh, sizeof text);
    return code;
}

const char *tsr_error_text(void) {
    return text;
}

const char *tsr_error_name(int code) {
    switch (code) {
    case TSR_OK:
        return "OK";
#define X(name, exit_code, msg)                                                                    \
    case TSR_E##name:                                                                              \
        return "E" #name;
        TSR_ERROR_MAP(X)
#undef X
    }
    return "EUNKNOWN";
}

int tsr_exit_code(int code) {
    switch (code) {
#define X(name, exit_code, msg)                                                                    \
    case TSR_E##name:                                                                              \
        return exit_code;
        TSR_ERROR_MAP(X)
#undef X
    }
    return code >= 0 ? 0 : TSR_EXIT_BUG;
}

void tsr_assert_failed(const char *cond, const char *file, int line, const char *func) {
    fprintf(stderr, "tessera: bug: %s:%d: %s: `%s` does not hold\n", file, line, func, cond);
    fflush(stderr);
    _exit(TSR_EXIT_BUG);
}

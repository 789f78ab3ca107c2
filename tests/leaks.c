// Linked into sanitizer builds only: what the leak checker needs to name and suppress what Open MPI
// leaves behind. Its plug-ins stay mapped. And its asprintf() goes through here, where a frame
// pointer leads on to the caller: glibc has none, and walking a stack without them at every malloc
// (fast_unwind_on_malloc=0) makes tests up to 20 times as slow.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

int dlclose(void *handle);
int __asprintf_chk(char **out, int flag, const char *format, ...);
int __vasprintf_chk(char **out, int flag, const char *format, va_list ap);

int dlclose(void *handle) {
    (void)handle;
    return 0;
}

int __vasprintf_chk(char **out, int flag, const char *format, va_list ap) {
    va_list again;
    (void)flag;
    va_copy(again, ap);
    int n = vsnprintf(NULL, 0, format, again);
    va_end(again);
    *out = n < 0 ? NULL : malloc((size_t)n + 1);
    return *out ? vsnprintf(*out, (size_t)n + 1, format, ap) : -1;
}

int __asprintf_chk(char **out, int flag, const char *format, ...) {
    va_list ap;
    va_start(ap, format);
    int n = __vasprintf_chk(out, flag, format, ap);
    va_end(ap);
    return n;
}

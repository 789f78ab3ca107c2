// What libtessera_cuda.so exports, and the few functions of the program that its parts call: they
// go back to the program through `host`.
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "dist/comm_nccl.h"
#include "dist/plugin.h"
#include "kernels/cuda/backend.h"

static const struct tsr_host *host;

int tsr_fail(enum tsr_code code, const char *fmt, ...) {
    char text[TSR_ERROR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    return host->fail(code, text);
}

int tsr_fail_prefix(int code, const char *fmt, ...) {
    char text[TSR_ERROR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    size_t at = strlen(text);
    snprintf(text + at, sizeof text - at, ": %s", host->error_text());
    return host->fail((enum tsr_code)code, text);
}

const char *tsr_error_text(void) {
    return host->error_text();
}

void tsr_log(enum tsr_log_level level, const char *fmt, ...) {
    char text[TSR_ERROR_TEXT];
    va_list ap;
    va_start(ap, fmt);
    vsnprintf(text, sizeof text, fmt, ap);
    va_end(ap);
    host->log(level, text);
}

void tsr_assert_failed(const char *cond, const char *file, int line, const char *func) {
    fprintf(stderr, "tessera: bug: %s:%d: %s: `%s` does not hold\n", file, line, func, cond);
    fflush(stderr);
    _exit(TSR_EXIT_BUG);
}

static int open_device(struct tsr_ctx *ctx, const struct tsr_device_opt *opt) {
    return tsr_cuda_open(ctx, opt->index, opt->dtype, opt->exact, opt->timeout_s);
}

static const struct tsr_plugin plugin = {.version = TSR_PLUGIN_VERSION,
                                         .name = "cuda",
                                         .count = tsr_cuda_count,
                                         .open = open_device,
                                         .comm_open = tsr_nccl_open,
                                         .comm_close = tsr_nccl_close};

tsr_plugin_fn tsr_plugin;

// NULL: the program's tables are laid out in another way.
__attribute__((visibility("default"))) const struct tsr_plugin *
tsr_plugin(const struct tsr_host *of) {
    if (of->version != TSR_PLUGIN_VERSION || of->ops_bytes != sizeof(struct tsr_ops) ||
        of->comm_ops_bytes != sizeof(struct tsr_comm_ops) ||
        of->comm_bytes != sizeof(struct tsr_comm))
        return NULL;
    host = of;
    return &plugin;
}

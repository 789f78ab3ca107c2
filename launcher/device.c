#include "launcher/device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "dist/comm_staged.h"
#include "dist/leaves.h"
#include "launcher/child.h"
#include "launcher/machine.h"

#define OBJECT "libtessera_cuda.so"

void tsr_device_environment(void) {
    // Compute, groups and pipeline lanes each have a stream; streams that share one of the driver's
    // queues (8 unless told otherwise) would wait for each other.
    setenv("CUDA_DEVICE_MAX_CONNECTIONS", "32", 0);
    // A kernel that is loaded by its first launch may wait until the device has nothing to do (CUDA
    // Programming Guide, Lazy Loading: Potential Hazards). A message that this rank receives is a
    // kernel that waits for its peer, which may wait for what the new kernel would have made. So
    // ranks load all kernels at the start, whatever the environment says: many images set LAZY.
    if (tsr_comm_under_mpi())
        setenv("CUDA_MODULE_LOADING", "EAGER", 1);
}

int tsr_device_object(char path[static TSR_PATH_MAX]) {
    const char *given = getenv("TESSERA_CUDA_OBJECT");
    char program[TSR_PATH_MAX];
    if (given) {
        TSR_TRY(tsr_path_join(path, given, ""));
        if (!tsr_path_exists(path))
            return tsr_fail(TSR_EUSAGE, "TESSERA_CUDA_OBJECT: there is no file %s", path);
        return 0;
    }
    TSR_TRY(tsr_own_program(program));
    char *slash = strrchr(program, '/');
    if (slash)
        *slash = 0;
    TSR_TRY(tsr_path_join(path, program, OBJECT));
    if (tsr_path_exists(path))
        return 0;
    TSR_TRY(tsr_path_join(path, program, "../lib/" OBJECT));
    if (tsr_path_exists(path))
        return 0;
    return tsr_fail(TSR_EUSAGE,
                    "this tessera has no CUDA backend: there is no " OBJECT
                    " in %s nor in its ../lib (build with -DTESSERA_CUDA=ON, or set "
                    "TESSERA_CUDA_OBJECT)",
                    program);
}

int tsr_device_parse(struct tsr_device_want *want, const char *device, const char *dtype) {
    want->backend_name = "--device";
    want->precision_name = "--dtype";
    if (strcmp(device, "auto") == 0)
        want->backend = TSR_BACKEND_AUTO;
    else if (strcmp(device, "cpu") == 0)
        want->backend = TSR_BACKEND_CPU;
    else if (strcmp(device, "cuda") == 0)
        want->backend = TSR_BACKEND_CUDA;
    else
        return tsr_fail(TSR_EUSAGE, "--device: expected auto, cpu or cuda, found \"%s\"", device);
    if (strcmp(dtype, "fp32") == 0)
        want->precision = TSR_FP32;
    else if (strcmp(dtype, "bf16") == 0)
        want->precision = TSR_BF16;
    else
        return tsr_fail(TSR_EUSAGE, "--dtype: expected fp32 or bf16, found \"%s\"", dtype);
    return 0;
}

static int open_cpu(struct tsr_ctx *ctx, const struct tsr_comm *c,
                    const struct tsr_device_want *want) {
    int64_t threads = want->threads ? want->threads : tsr_machine_cores() / c->local_size;
    const char *isa = getenv("TESSERA_CPU");
    if (want->precision == TSR_BF16)
        return tsr_fail(TSR_EUSAGE, "%s: bf16 needs a CUDA device; the CPU computes in fp32",
                        want->precision_name);
    int rc = tsr_cpu_open(ctx, isa, threads < 1 ? 1 : (int)threads);
    return rc == TSR_EUSAGE && isa ? tsr_fail_prefix(rc, "TESSERA_CPU") : rc;
}

static int find_devices(const struct tsr_plugin **plugin, int *n_devices) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_device_object(path));
    TSR_TRY(tsr_plugin_load(plugin, path));
    return (*plugin)->count(n_devices);
}

static int open_cuda(struct tsr_device *d, struct tsr_ctx *ctx, const struct tsr_comm *c,
                     const struct tsr_device_want *want) {
    struct tsr_device_opt opt = {.index = c->local_rank % d->n_devices,
                                 .dtype = want->precision == TSR_BF16 ? TSR_DT_BF16 : TSR_DT_F32,
                                 .timeout_s = c->timeout_s,
                                 .exact = want->exact};
    return d->plugin->open(ctx, &opt);
}

bool tsr_device_through_host(void) {
    const char *given = getenv("TESSERA_TRANSPORT");
    return given && strcmp(given, "host") == 0;
}

// The devices' own transport; with TESSERA_TRANSPORT=host messages go through the host.
static int join(struct tsr_device *d, struct tsr_ctx *ctx, struct tsr_comm *c) {
    const char *given = getenv("TESSERA_TRANSPORT");
    bool host = tsr_device_through_host();
    if (given && !host && strcmp(given, "nccl") != 0)
        return tsr_fail(TSR_EUSAGE, "TESSERA_TRANSPORT: expected nccl or host, found \"%s\"",
                        given);
    if (host)
        return tsr_agree(ctx, c, tsr_comm_use_staged(c, ctx));
    int rc = tsr_agree(ctx, c, d->plugin->comm_open(c, ctx));
    if (rc < 0)
        return tsr_fail((enum tsr_code)rc,
                        "%s (TESSERA_TRANSPORT=host sends messages through the host instead)",
                        tsr_error_text());
    d->joined = true;
    return 0;
}

// The sentence for a CUDA device that can't be had; 0 when the CPU does as well.
static int refuse(const struct tsr_device_want *want, int rc) {
    if (want->backend == TSR_BACKEND_CUDA)
        return tsr_fail_prefix(rc, "%s: cuda", want->backend_name);
    if (want->precision == TSR_BF16)
        return tsr_fail(TSR_EUSAGE,
                        "%s: bf16 needs a CUDA device (the CPU computes in fp32), and none can be "
                        "had: %s",
                        want->precision_name, tsr_error_text());
    return 0;
}

// Whether all ranks have a CUDA device.
static int choose(struct tsr_device *d, struct tsr_ctx *ctx, struct tsr_comm *c,
                  const struct tsr_device_want *want) {
    if (want->backend == TSR_BACKEND_CPU)
        return 0;
    int rc = tsr_agree(ctx, c, find_devices(&d->plugin, &d->n_devices));
    if (rc == 0)
        return 0;
    bool has_object = d->plugin != NULL;
    d->plugin = NULL;
    TSR_TRY(refuse(want, rc));
    c->culprit = 0;
    if (c->rank == 0)
        tsr_log(has_object ? TSR_LOG_INFO : TSR_LOG_DEBUG, "computing on the CPU: %s",
                tsr_error_text());
    return 0;
}

struct tsr_device_want tsr_device_of_run(const struct tsr_run *r) {
    return (struct tsr_device_want){.backend = r->device.backend,
                                    .precision = r->train.precision,
                                    .exact = r->parallel.exact,
                                    .threads = r->device.threads,
                                    .backend_name = "device.backend",
                                    .precision_name = "train.precision"};
}

int tsr_device_check(const struct tsr_device_want *want) {
    const struct tsr_plugin *plugin = NULL;
    int n_devices;
    bool needs = want->backend == TSR_BACKEND_CUDA ||
                 (want->backend == TSR_BACKEND_AUTO && want->precision == TSR_BF16);
    int rc = needs ? find_devices(&plugin, &n_devices) : 0;
    return rc < 0 ? refuse(want, rc) : 0;
}

struct survey {
    int n_devices;
    uint64_t free_bytes;
};

static int look_at_devices(struct survey *out) {
    const struct tsr_plugin *plugin;
    const struct tsr_device_opt first = {.dtype = TSR_DT_F32, .timeout_s = 60, .exact = true};
    struct tsr_ctx ctx;
    size_t n = 0, total;
    TSR_TRY(find_devices(&plugin, &out->n_devices));
    TSR_TRY(plugin->open(&ctx, &first));
    int rc = ctx.ops->memory(&ctx, &n, &total);
    out->free_bytes = n;
    return rc;
}

// In a process of its own: whoever has once opened a device holds some of its memory, or all of a
// device that takes one process only, until it ends.
int tsr_device_survey(int *n_devices, uint64_t *free_bytes) {
    struct survey found = {0, 0};
    int ends[2];
    if (pipe2(ends, O_CLOEXEC) < 0)
        return tsr_fail(TSR_EIO, "cannot open a pipe: %s", strerror(errno));
    pid_t child = fork();
    if (child == 0) {
        bool ok = look_at_devices(&found) == 0;
        _exit(ok && write(ends[1], &found, sizeof found) == sizeof found ? 0 : 1);
    }
    close(ends[1]);
    ssize_t n = child < 0 ? 0 : read(ends[0], &found, sizeof found);
    close(ends[0]);
    if (child > 0)
        while (waitpid(child, NULL, 0) < 0 && errno == EINTR)
            continue;
    if (n != sizeof found)
        return tsr_fail(TSR_EUSAGE, "this machine has no CUDA device that can be used");
    *n_devices = found.n_devices;
    *free_bytes = found.free_bytes;
    return 0;
}

int tsr_device_open(struct tsr_device *d, struct tsr_ctx *ctx, struct tsr_comm *c,
                    const struct tsr_device_want *want) {
    *d = (struct tsr_device){0};
    TSR_TRY(choose(d, ctx, c, want));
    int rc = d->plugin ? open_cuda(d, ctx, c, want) : open_cpu(ctx, c, want);
    d->open = rc == 0;
    TSR_TRY(tsr_agree(ctx, c, rc));
    if (d->plugin && c->rank == 0 && want->backend == TSR_BACKEND_AUTO)
        tsr_info("computing on %s", ctx->ops->describe(ctx));
    return d->plugin && c->world > 1 ? join(d, ctx, c) : 0;
}

void tsr_device_close(struct tsr_device *d, struct tsr_ctx *ctx, struct tsr_comm *c) {
    if (d->joined)
        d->plugin->comm_close(c);
    else if (d->plugin && c->control)
        tsr_comm_end_staged(c);
    if (d->open)
        ctx->ops->close(ctx);
    *d = (struct tsr_device){0};
}

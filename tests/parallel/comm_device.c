// The device whose buffers the calls move. Beside the CPU itself there is a late device: the CPU,
// but what is asked for is done at some later moment, at the latest by sync, as on a device with a
// queue. Whoever forgets to wait finds or sends what was there before.
#include <stdlib.h>
#include <string.h>
#include "dist/comm_nccl_private.h"
#include "dist/comm_staged.h"
#include "dist/plugin.h"
#include "kernels/ops.h"
#include "tests/parallel/comm_test.h"

enum { MAX_COPIES = 1 << 16 };

// Copies that were asked for and are not done.
static struct {
    struct tsr_ops ops;
    struct {
        void *dst;
        const void *src;
        size_t n_bytes;
    } copies[MAX_COPIES];
    int n;
    unsigned dice;
} late;

static int do_copies(int n) {
    for (int i = 0; i < n; i++)
        memmove(late.copies[i].dst, late.copies[i].src, late.copies[i].n_bytes);
    late.n -= n;
    memmove(late.copies, late.copies + n, (size_t)late.n * sizeof *late.copies);
    return 0;
}

static int late_copy(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes) {
    (void)ctx;
    if (late.n == MAX_COPIES)
        do_copies(MAX_COPIES);
    late.copies[late.n].dst = dst;
    late.copies[late.n].src = src;
    late.copies[late.n++].n_bytes = n_bytes;
    late.dice = late.dice * 1664525u + 1013904223u;
    unsigned roll = late.dice >> 24;
    return roll < 128 ? 0 : do_copies((int)(roll % (unsigned)(late.n + 1)));
}

static int late_sync(struct tsr_ctx *ctx) {
    (void)ctx;
    return do_copies(late.n);
}

static void use_staged(struct fixture *f) {
    CHECK_OK(f, tsr_comm_use_staged(&f->c, &f->ctx));
    struct tsr_staged *s = f->c.device;
    s->part = 20004; // several parts with little data
}

static void open_late(struct fixture *f) {
    CHECK_OK(f, tsr_cpu_open(&f->ctx, "portable", 1));
    late.ops = *f->ctx.ops;
    late.ops.to_host = late.ops.to_device = late.ops.copy = late_copy;
    late.ops.sync = late_sync;
    late.dice = (unsigned)f->c.rank;
    f->ctx.ops = &late.ops;
    use_staged(f);
}

static const struct tsr_plugin *plugin;

// Through the device's own transport, or through the host's memory.
static void open_object(struct fixture *f, const char *path, bool staged) {
    int n = 0;
    CHECK_OK(f, tsr_plugin_load(&plugin, path));
    CHECK_OK(f, plugin->count(&n));
    struct tsr_device_opt opt = {
        .index = f->c.local_rank % n, .dtype = TSR_DT_F32, .timeout_s = 60, .exact = true};
    CHECK_OK(f, plugin->open(&f->ctx, &opt));
    if (staged)
        use_staged(f);
    else
        CHECK_OK(f, plugin->comm_open(&f->c, &f->ctx));
}

void device_open(struct fixture *f, const char *transport) {
    if (strcmp(transport, "host") == 0) {
        CHECK_OK(f, tsr_cpu_open(&f->ctx, "portable", 1));
    } else if (strcmp(transport, "staged") == 0) {
        f->transport = STAGED;
        open_late(f);
    } else if (strncmp(transport, "staged:", 7) == 0) {
        f->transport = STAGED;
        open_object(f, transport + 7, true);
    } else {
        f->transport = DEVICE;
        open_object(f, transport, false);
    }
}

void device_close(struct fixture *f) {
    if (f->transport == STAGED)
        tsr_comm_end_staged(&f->c);
    if (f->transport == DEVICE)
        plugin->comm_close(&f->c);
    CHECK_EQ(f, f->c.ops == f->c.control && f->c.device == NULL, 1);
    CHECK_EQ(f, late.n, 0);
    if (plugin)
        CHECK_EQ(f, f->ctx.ops->allocated(&f->ctx), 0);
    f->ctx.ops->close(&f->ctx);
}

void device_group(struct fixture *f, struct tsr_group *g) {
    struct tsr_nccl_group *nccl = g->device;
    if (f->transport == DEVICE && g->size > 1 && nccl->all)
        nccl->part = 1500;
}

// The last copy isn't done when this returns: calls must begin after it.
void *up(struct fixture *f, const void *host, size_t n_bytes) {
    const struct tsr_ops *o = f->ctx.ops;
    size_t room = (n_bytes + 64) / 64 * 64;
    char *dev = NULL;
    CHECK_OK(f, o->alloc(&f->ctx, 2 * room, (void **)&dev));
    CHECK_OK(f, o->to_device(&f->ctx, dev + room, host, n_bytes));
    CHECK_OK(f, o->sync(&f->ctx)); // `host` may be gone when the call returns
    CHECK_OK(f, o->copy(&f->ctx, dev, dev + room, n_bytes));
    return dev;
}

void down(struct fixture *f, void *host, void *dev, size_t n_bytes) {
    CHECK_OK(f, f->ctx.ops->to_host(&f->ctx, host, dev, n_bytes));
    CHECK_OK(f, f->ctx.ops->sync(&f->ctx));
    f->ctx.ops->free(&f->ctx, dev, 2 * ((n_bytes + 64) / 64 * 64));
}

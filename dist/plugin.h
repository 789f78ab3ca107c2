// A device's backend as one loadable object: its operations and the transport between such
// devices. The object exports `tsr_plugin` and calls nothing of the program but what `host` holds,
// so that one installed program runs with and without a device.
#ifndef TSR_DIST_PLUGIN_H
#define TSR_DIST_PLUGIN_H

#include "core/error.h"
#include "core/log.h"
#include "dist/comm.h"
#include "kernels/ops.h"

enum { TSR_PLUGIN_VERSION = 1 }; // of this file, kernels/ops.h and dist/comm.h together

// What the program gives to the object.
struct tsr_host {
    int version;
    size_t ops_bytes, comm_ops_bytes, comm_bytes;      // sizeof: another build's tables don't fit
    int (*fail)(enum tsr_code code, const char *text); // records the sentence, returns the code
    const char *(*error_text)(void);                   // the latest one
    void (*log)(enum tsr_log_level level, const char *text);
};

struct tsr_device_opt {
    int index;            // of the device among those that this process sees
    enum tsr_dtype dtype; // of activations and weights
    double timeout_s;     // deadline of sync
    bool exact;           // every sum in its order; else products may be a library's
};

struct tsr_plugin {
    int version;
    const char *name; // "cuda"
    // Devices that can be used; 0 or TSR_EUSAGE with the reason why there is none (no driver, no
    // library, too old a device).
    int (*count)(int *n_devices);
    // Fills ctx; ctx->ops->close ends it. TSR_EUSAGE, TSR_ENOMEM.
    int (*open)(struct tsr_ctx *ctx, const struct tsr_device_opt *opt);
    // Makes `c`, whose host transport is open, exchange this device's buffers; c->ops then is the
    // devices' table, whose group_open opens the host's side of a group, too. Collective.
    // comm_close gives c->ops back to the host's table.
    int (*comm_open)(struct tsr_comm *c, struct tsr_ctx *ctx);
    void (*comm_close)(struct tsr_comm *c);
};

typedef const struct tsr_plugin *tsr_plugin_fn(const struct tsr_host *host);
#define TSR_PLUGIN_SYMBOL "tsr_plugin"

// Loads the object at `path`, which stays loaded. TSR_EUSAGE: it can't be loaded (with the loader's
// words), is no such object, or was built with another version of the program.
int tsr_plugin_load(const struct tsr_plugin **out, const char *path);

#endif

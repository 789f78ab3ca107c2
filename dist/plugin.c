// Loads a device's object and checks that it fits this program.
#include "dist/plugin.h"

#include <dlfcn.h>

static int fail(enum tsr_code code, const char *text) {
    return tsr_fail(code, "%s", text);
}

static void say(enum tsr_log_level level, const char *text) {
    tsr_log(level, "%s", text);
}

static const struct tsr_host host = {.version = TSR_PLUGIN_VERSION,
                                     .ops_bytes = sizeof(struct tsr_ops),
                                     .comm_ops_bytes = sizeof(struct tsr_comm_ops),
                                     .comm_bytes = sizeof(struct tsr_comm),
                                     .fail = fail,
                                     .error_text = tsr_error_text,
                                     .log = say};

int tsr_plugin_load(const struct tsr_plugin **out, const char *path) {
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (object == NULL)
        return tsr_fail(TSR_EUSAGE, "cannot load the device's object: %s", dlerror());
    tsr_plugin_fn *entry;
    *(void **)&entry = dlsym(object, TSR_PLUGIN_SYMBOL);
    if (entry == NULL) {
        dlclose(object);
        return tsr_fail(TSR_EUSAGE, "%s is not a device's object of tessera: it has no %s", path,
                        TSR_PLUGIN_SYMBOL);
    }
    const struct tsr_plugin *p = entry(&host);
    if (p == NULL || p->version != TSR_PLUGIN_VERSION) {
        dlclose(object);
        return tsr_fail(TSR_EUSAGE,
                        "%s was built with another version of tessera: install the program and "
                        "the object from one build",
                        path);
    }
    *out = p;
    return 0;
}

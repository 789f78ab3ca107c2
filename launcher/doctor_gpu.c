// GPUs, NCCL and the CUDA backend, through libraries that may be missing: nothing here is linked.
#include <dlfcn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "launcher/device.h"
#include "launcher/doctor.h"
#include "launcher/units.h"

enum { CAPABILITY_MAJOR = 75, CAPABILITY_MINOR = 76 }; // CUdevice_attribute

// The CUDA driver's calls that are made here (CUDA driver API reference).
struct cuda {
    int (*init)(unsigned);
    int (*count)(int *);
    int (*version)(int *);
    int (*device)(int *, int);
    int (*name)(char *, int, int);
    int (*memory)(size_t *, int);
    int (*attribute)(int *, int, int);
    int (*error)(int, const char **);
};

static void *symbol(void *lib, const char *name, bool *ok) {
    void *p = dlsym(lib, name);
    *ok = *ok && p;
    return p;
}

static bool find_calls(struct cuda *c, void *lib) {
    bool ok = true;
    *(void **)&c->init = symbol(lib, "cuInit", &ok);
    *(void **)&c->count = symbol(lib, "cuDeviceGetCount", &ok);
    *(void **)&c->version = symbol(lib, "cuDriverGetVersion", &ok);
    *(void **)&c->device = symbol(lib, "cuDeviceGet", &ok);
    *(void **)&c->name = symbol(lib, "cuDeviceGetName", &ok);
    *(void **)&c->memory = symbol(lib, "cuDeviceTotalMem_v2", &ok);
    *(void **)&c->attribute = symbol(lib, "cuDeviceGetAttribute", &ok);
    *(void **)&c->error = symbol(lib, "cuGetErrorString", &ok);
    return ok;
}

static void list_devices(struct tsr_doctor *d, const struct cuda *c, int n) {
    for (int i = 0; i < n; i++) {
        char name[128] = "", what[32], memory[32];
        int device = 0, major = 0, minor = 0;
        size_t n_bytes = 0;
        if (c->device(&device, i) || c->name(name, sizeof name, device) ||
            c->memory(&n_bytes, device) || c->attribute(&major, CAPABILITY_MAJOR, device) ||
            c->attribute(&minor, CAPABILITY_MINOR, device)) {
            tsr_doctor_say(d, TSR_DOUBTFUL, "GPU", "nvidia-smi may say more",
                           "device %d doesn't answer", i);
            continue;
        }
        bool old = major < 8;
        snprintf(what, sizeof what, "GPU %d", i);
        tsr_doctor_say(d, old ? TSR_DOUBTFUL : TSR_GOOD, what,
                       old ? "expected sm_80 or newer" : NULL, "%s, sm_%d%d, %s", name, major,
                       minor, tsr_bytes_text(memory, (double)n_bytes));
    }
}

// Returns how many GPUs answer.
static int look_at_cuda(struct tsr_doctor *d) {
    void *lib = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    struct cuda c;
    int n = 0, version = 0;
    const char *why = "no text";
    if (!lib) {
        bool card = access("/dev/nvidia0", F_OK) == 0 || access("/proc/driver/nvidia", F_OK) == 0;
        tsr_doctor_say(d, card ? TSR_DOUBTFUL : TSR_GOOD, "GPU",
                       card ? "in a container: --gpus all, with the NVIDIA container toolkit"
                            : NULL,
                       card ? "there is one, but libcuda.so.1 can't be loaded"
                            : "none: no NVIDIA driver is installed (libcuda.so.1)");
        return 0;
    }
    if (!find_calls(&c, lib)) {
        tsr_doctor_say(d, TSR_DOUBTFUL, "GPU", "install a newer NVIDIA driver",
                       "libcuda.so.1 lacks calls that every recent driver has");
        return 0;
    }
    int rc = c.init(0);
    if (rc == 0)
        rc = c.count(&n);
    if (rc != 0) {
        c.error(rc, &why);
        tsr_doctor_say(d, TSR_DOUBTFUL, "GPU",
                       "the driver's library is there: does nvidia-smi work?",
                       "the driver doesn't start: %s (error %d)", why ? why : "unknown", rc);
        return 0;
    }
    c.version(&version);
    tsr_doctor_say(d, TSR_GOOD, "NVIDIA driver", NULL, "for CUDA %d.%d, %d GPU%s", version / 1000,
                   version % 1000 / 10, n, n == 1 ? "" : "s");
    list_devices(d, &c, n);
    return n; // the library stays loaded: it may have threads
}

static void look_at_nvml(struct tsr_doctor *d) {
    void *lib = dlopen("libnvidia-ml.so.1", RTLD_NOW | RTLD_LOCAL);
    char text[96] = "";
    if (!lib) {
        tsr_doctor_say(d, TSR_DOUBTFUL, "NVML", "it comes with the NVIDIA driver",
                       "libnvidia-ml.so.1 can't be loaded");
        return;
    }
    bool ok = true;
    int (*init)(void), (*version)(char *, unsigned);
    *(void **)&init = symbol(lib, "nvmlInit_v2", &ok);
    *(void **)&version = symbol(lib, "nvmlSystemGetDriverVersion", &ok);
    ok = ok && init() == 0 && version(text, sizeof text) == 0;
    tsr_doctor_say(d, ok ? TSR_GOOD : TSR_DOUBTFUL, "NVML", NULL, "%s%s",
                   ok ? "driver " : "doesn't start", text);
}

static void look_at_nccl(struct tsr_doctor *d, int n_gpus) {
    void *lib = dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    int (*get_version)(int *), version = 0;
    bool ok = true;
    if (!lib) {
        tsr_doctor_say(d, n_gpus ? TSR_DOUBTFUL : TSR_GOOD, "NCCL",
                       n_gpus ? "apt install libnccl2" : NULL, "%s",
                       n_gpus ? "libnccl.so.2 can't be loaded: needed for more than one GPU"
                              : "not installed (libnccl.so.2); only GPUs need it");
        return;
    }
    *(void **)&get_version = symbol(lib, "ncclGetVersion", &ok);
    ok = ok && get_version(&version) == 0;
    if (ok) // 2.9 and later: 10000 major + 100 minor + patch
        tsr_doctor_say(d, TSR_GOOD, "NCCL", NULL, "%d.%d.%d", version / 10000,
                       version % 10000 / 100, version % 100);
    else
        tsr_doctor_say(d, TSR_DOUBTFUL, "NCCL", NULL, "libnccl.so.2 doesn't say its version");
}

// The object that computes on them, and whether it finds a device that it can use.
static void look_at_object(struct tsr_doctor *d, int n_gpus) {
    char path[TSR_PATH_MAX];
    const struct tsr_plugin *plugin;
    int n = 0;
    bool wanted = n_gpus > 0 || getenv("TESSERA_CUDA_OBJECT") != NULL;
    if (tsr_device_object(path) < 0) {
        tsr_doctor_say(d, wanted ? TSR_DOUBTFUL : TSR_GOOD, "CUDA backend", NULL, "%s",
                       wanted ? tsr_error_text()
                              : "not installed (libtessera_cuda.so); only GPUs need it");
        return;
    }
    if (tsr_plugin_load(&plugin, path) < 0 || plugin->count(&n) < 0)
        tsr_doctor_say(d, TSR_DOUBTFUL, "CUDA backend", "device.backend: cpu works without it",
                       "%s", tsr_error_text());
    else
        tsr_doctor_say(d, TSR_GOOD, "CUDA backend", NULL, "%s finds %d device%s", path, n,
                       n == 1 ? "" : "s");
}

void tsr_doctor_gpu(struct tsr_doctor *d) {
    int n = look_at_cuda(d);
    if (n)
        look_at_nvml(d);
    look_at_nccl(d, n);
    look_at_object(d, n);
}

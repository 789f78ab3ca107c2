// The kernels' tests on a device: the same programs, whose calls go to the object that
// TESSERA_CUDA_OBJECT names instead of to kernels of their own (tests/CMakeLists.txt leaves those
// out). Arrays are host memory that the device reaches, too, between pages that neither reaches.
// Launches must end before they return (CUDA_LAUNCH_BLOCKING), for tests look at arrays at once.
#include "tests/simt/on_device.h"
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>
#include "core/error.h"
#include "dist/plugin.h"

// Each entry of kernels/cuda/launch.h passes on to the object's own, whatever its arguments are.
#if defined __x86_64__
#define JUMP(name) "jmp *at_" #name "(%rip)\n"
#elif defined __aarch64__
#define JUMP(name) "adrp x16, at_" #name "\nldr x16, [x16, :lo12:at_" #name "]\nbr x16\n"
#endif
#define ENTRY(name)                                                                                \
    __attribute__((visibility("hidden"))) void *at_##name;                                         \
    __asm__(".text\n.globl " #name "\n.type " #name ", %function\n" #name ":\n" JUMP(name));
#include "launch_entries.h"
#undef ENTRY

static const struct {
    const char *name;
    void **at;
} entries[] = {
#define ENTRY(name) {#name, &at_##name},
#include "launch_entries.h"
#undef ENTRY
};

static struct tsr_ctx device;

static struct region {
    char *base; // its first page without access
    size_t n_bytes;
    char *at; // the array
    size_t array_bytes;
} * regions;
static size_t n_regions, page;

void on_device_leave(const char *what) {
    fprintf(stderr, "%s\n", what);
    exit(1);
}

// Before main, as the driver reads its environment once.
__attribute__((constructor)) static void open_object(void) {
    const struct tsr_plugin *plugin;
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 60, .exact = true};
    const char *path = getenv("TESSERA_CUDA_OBJECT");
    page = (size_t)sysconf(_SC_PAGESIZE);
    setenv("CUDA_LAUNCH_BLOCKING", "1", 1);
    if (!path)
        on_device_leave("expected TESSERA_CUDA_OBJECT to name a device's object");
    if (tsr_plugin_load(&plugin, path) < 0 || plugin->open(&device, &opt) < 0)
        on_device_leave(tsr_error_text());
    void *object = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    for (size_t i = 0; i < sizeof entries / sizeof *entries; i++) {
        *entries[i].at = dlsym(object, entries[i].name);
        if (!*entries[i].at)
            on_device_leave(dlerror());
    }
}

void *on_device_allocate(size_t n_bytes, size_t skew) {
    size_t room = (n_bytes + 15) / 16 * 16 + (skew > 0 ? 16 : 0);
    size_t inner = (room + page) / page * page, whole = inner + 2 * page; // a page, if for nothing
    char *base = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base == MAP_FAILED || mprotect(base, page, PROT_NONE) != 0 ||
        mprotect(base + page + inner, page, PROT_NONE) != 0)
        on_device_leave("no memory for an array");
    memset(base + page, 0xff, inner);
    if (device.ops->pin(&device, base + page, inner) < 0)
        on_device_leave(tsr_error_text());
    regions = realloc(regions, (n_regions + 1) * sizeof *regions);
    if (!regions)
        on_device_leave("no memory for an array");
    char *at = base + page + inner - room + skew;
    regions[n_regions++] = (struct region){base, whole, at, n_bytes};
    return at;
}

void on_device_free_all(void) {
    if (device.ops->sync(&device) < 0)
        on_device_leave(tsr_error_text());
    for (; n_regions > 0; n_regions--) {
        struct region r = regions[n_regions - 1];
        char *first = r.base + page, *end = r.base + r.n_bytes - page;
        for (char *p = first; p < end; p = p + 1 == r.at ? r.at + r.array_bytes : p + 1)
            if ((p < r.at || p >= r.at + r.array_bytes) && *p != (char)0xff) {
                fprintf(stderr, "byte %td beside an array of %zu bytes was written\n", p - r.at,
                        r.array_bytes);
                exit(1);
            }
        device.ops->unpin(&device, first, (size_t)(end - first));
        munmap(r.base, r.n_bytes);
    }
}

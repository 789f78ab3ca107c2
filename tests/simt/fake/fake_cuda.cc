// A simulated device behind the CUDA runtime's calls: what the machine is, and its memory.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include "tests/simt/fake/fake_machine.h"
#include "tests/simt/simt_memory.h"

fake_machine::fake_machine() {
    const char *text = getenv("TESSERA_FAKE_CUDA");
    std::string all = text != nullptr ? text : "";
    for (size_t at = 0; at < all.size();) {
        size_t end = std::min(all.find(',', at), all.size()), is = all.find('=', at);
        if (is < end)
            words[all.substr(at, is - at)] = all.substr(is + 1, end - is - 1);
        else
            words[all.substr(at, end - at)] = "";
        at = end + 1;
    }
    if (has("memory"))
        memory = strtoull(words["memory"].c_str(), nullptr, 10);
    if (has("devices"))
        n_devices = atoi(words["devices"].c_str());
    strict = has("strict");
    lazy = has("lazy");
    late = has("late");
    const char *loading = getenv("CUDA_MODULE_LOADING");
    eager = loading != nullptr && strcmp(loading, "EAGER") == 0;
}

fake_machine &fake() {
    static fake_machine m;
    return m;
}

thread_local fake_thread fake_own;

cudaError_t fake_error(cudaError_t rc) {
    if (rc != cudaSuccess)
        fake_own.last = rc;
    return rc;
}

static const struct {
    const char *name, *text;
} errors[] = {
    {"cudaSuccess", "no error"},
    {"cudaErrorInvalidValue", "invalid argument"},
    {"cudaErrorMemoryAllocation", "out of memory"},
    {"cudaErrorNotReady", "device not ready"},
    {"cudaErrorNoDevice", "no CUDA-capable device is detected"},
    {"cudaErrorInsufficientDriver", "CUDA driver version is insufficient for CUDA runtime version"},
    {"cudaErrorInvalidDevice", "invalid device ordinal"},
    {"cudaErrorDevicesUnavailable", "CUDA-capable device(s) is/are busy or unavailable"},
    {"cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {"cudaErrorStreamCaptureInvalidated",
     "operation failed due to a previous error during capture"},
    {"cudaErrorHostMemoryAlreadyRegistered", "part or all of the requested memory range is already "
                                             "mapped"},
    {"cudaErrorHostMemoryNotRegistered", "pointer does not correspond to a registered memory "
                                         "region"},
    {"cudaErrorUnknown", "unknown error"},
};

const char *cudaGetErrorString(cudaError_t rc) {
    return errors[rc].text;
}
const char *cudaGetErrorName(cudaError_t rc) {
    return errors[rc].name;
}
cudaError_t cudaGetLastError(void) {
    cudaError_t rc = fake_own.last;
    fake_own.last = cudaSuccess;
    return rc;
}

cudaError_t cudaDriverGetVersion(int *version) {
    *version = fake().has("no-driver") ? 0 : fake().has("old-driver") ? 11040 : 13000;
    return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int *version) {
    *version = 13000;
    return cudaSuccess;
}

cudaError_t cudaGetDeviceCount(int *n) {
    if (fake().has("no-driver") || fake().has("old-driver"))
        return fake_error(cudaErrorInsufficientDriver);
    if (fake().has("no-device") || fake().n_devices == 0)
        return fake_error(cudaErrorNoDevice);
    *n = fake().n_devices;
    return cudaSuccess;
}
cudaError_t cudaGetDevice(int *device) {
    *device = fake_own.device;
    return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
    if (device < 0 || device >= fake().n_devices)
        return fake_error(cudaErrorInvalidDevice);
    if (fake().has("busy"))
        return fake_error(cudaErrorDevicesUnavailable);
    fake_own.device = device;
    return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(struct cudaDeviceProp *p, int device) {
    if (device < 0 || device >= fake().n_devices)
        return fake_error(cudaErrorInvalidDevice);
    strcpy(p->name, "Simulated device");
    p->totalGlobalMem = fake().memory;
    p->major = fake().has("old-device") ? 7 : 8;
    p->minor = 0;
    p->multiProcessorCount = 4;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetAttribute(int *value, enum cudaDeviceAttr what, int device) {
    struct cudaDeviceProp p;
    cudaError_t rc = cudaGetDeviceProperties(&p, device);
    if (rc != cudaSuccess)
        return rc;
    *value = what == cudaDevAttrComputeCapabilityMajor   ? p.major
             : what == cudaDevAttrComputeCapabilityMinor ? p.minor
             : what == cudaDevAttrMultiProcessorCount    ? p.multiProcessorCount
                                                         : 163 * 1024;
    return cudaSuccess;
}
cudaError_t cudaDeviceGetPCIBusId(char *id, int size, int device) {
    if (device < 0 || device >= fake().n_devices)
        return fake_error(cudaErrorInvalidDevice);
    snprintf(id, (size_t)size, "0000:%02x:00.0", (unsigned)device);
    return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t *free_bytes, size_t *total_bytes) {
    *free_bytes = fake().memory - fake().used;
    *total_bytes = fake().memory;
    return cudaSuccess;
}

static size_t rounded(size_t n_bytes) {
    return (n_bytes + 255) / 256 * 256;
}

cudaError_t cudaMalloc(void **p, size_t n_bytes) {
    size_t take = rounded(n_bytes);
    if (fake_unsafe() != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    if (fake().n_messages > 0)
        fake_finish_all();
    if (take > fake().memory - fake().used)
        return fake_error(cudaErrorMemoryAllocation);
    fake_cuda_begin_access();
    *p = simt::allocate(take, 0);
    fake().allocated[(char *)*p] = take;
    fake().used += take;
    fake_cuda_end_access();
    return cudaSuccess;
}

cudaError_t cudaFree(void *p) {
    if (p == nullptr)
        return cudaSuccess;
    auto it = fake().allocated.find((char *)p);
    if (it == fake().allocated.end())
        return fake_error(cudaErrorInvalidValue);
    if (fake_unsafe() != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    fake_wait_for_ever("cudaFree");
    fake_finish_all();
    fake_cuda_begin_access();
    simt::release(p);
    fake().used -= it->second;
    fake().allocated.erase(it);
    fake_cuda_end_access();
    return cudaSuccess;
}

bool fake_within(const std::map<char *, size_t> &arrays, const void *p, size_t n_bytes) {
    auto it = arrays.upper_bound((char *)p);
    if (it == arrays.begin())
        return false;
    --it;
    return (char *)p + n_bytes <= it->first + it->second;
}

cudaError_t cudaHostAlloc(void **p, size_t n_bytes, unsigned) {
    if (fake_unsafe() != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    if (fake().n_messages > 0)
        fake_finish_all();
    *p = aligned_alloc(4096, (n_bytes + 4095) / 4096 * 4096);
    if (*p == nullptr)
        return fake_error(cudaErrorMemoryAllocation);
    fake().pinned[(char *)*p] = n_bytes;
    return cudaSuccess;
}
// Ends the use of pinned memory, which is an error of its own for either kind of it.
static cudaError_t unpin(const char *call, void *p, cudaError_t unknown) {
    auto it = fake().pinned.find((char *)p);
    if (it == fake().pinned.end())
        return fake_error(unknown);
    if (fake_unsafe() != cudaSuccess)
        return cudaErrorStreamCaptureUnsupported;
    fake_wait_for_ever(call);
    fake_check_unused(p, it->second);
    fake().pinned.erase(it);
    return cudaSuccess;
}

cudaError_t cudaFreeHost(void *p) {
    cudaError_t rc = p == nullptr ? cudaSuccess : unpin("cudaFreeHost", p, cudaErrorInvalidValue);
    if (rc == cudaSuccess)
        free(p);
    return rc;
}
cudaError_t cudaHostRegister(void *p, size_t n_bytes, unsigned) {
    if (fake().has("no-pin"))
        return fake_error(cudaErrorMemoryAllocation);
    for (const auto &[at, size] : fake().pinned)
        if (at < (char *)p + n_bytes && (char *)p < at + size)
            return fake_error(cudaErrorHostMemoryAlreadyRegistered);
    fake().pinned[(char *)p] = n_bytes;
    return cudaSuccess;
}
cudaError_t cudaHostUnregister(void *p) {
    return unpin("cudaHostUnregister", p, cudaErrorHostMemoryNotRegistered);
}

void fake_cuda_begin_access(void) {
    if (fake().access++ == 0 && fake().strict)
        simt::forbid_access(false);
}
void fake_cuda_end_access(void) {
    if (--fake().access == 0 && fake().strict) {
        simt::catch_faults();
        simt::forbid_access(true);
    }
}

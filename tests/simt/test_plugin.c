// What a user reads when a device can't be had. Each case is a process of its own, on a simulated
// machine that lacks something (tests/simt/fake/cuda_runtime_api.h).
#include <dlfcn.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>
#include "tests/simt/backend_util.h"
#include "tests/unit/scratch.h"

typedef int attempt_fn(const char *object);

static int load_and_count(const char *object) {
    int n = -1;
    TSR_TRY(tsr_plugin_load(&plugin, object));
    TSR_TRY(plugin->count(&n));
    return tsr_fail(TSR_EUSAGE, "%d devices", n);
}

static int open_device_3(const char *object) {
    struct tsr_device_opt opt = {.index = 3, .dtype = TSR_DT_F32, .timeout_s = 1};
    TSR_TRY(tsr_plugin_load(&plugin, object));
    return plugin->open(&cuda, &opt);
}

static int open_tiny(const char *object) {
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 1};
    TSR_TRY(tsr_plugin_load(&plugin, object));
    return plugin->open(&cuda, &opt);
}

static int sync_a_hanging_one(const char *object) {
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 0.2};
    TSR_TRY(tsr_plugin_load(&plugin, object));
    TSR_TRY(plugin->open(&cuda, &opt));
    return cuda.ops->sync(&cuda);
}

// All of it comes to an end, and the sentence stays the first one: what CUDA would wait for without
// a deadline isn't asked for.
static int close_a_hanging_one(const char *object) {
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 0.2};
    char host[64] = "";
    void *dev = NULL, *graph = NULL;
    TSR_TRY(tsr_plugin_load(&plugin, object));
    TSR_TRY(plugin->open(&cuda, &opt));
    TSR_TRY(cuda.ops->pin(&cuda, host, sizeof host));
    TSR_TRY(cuda.ops->alloc(&cuda, sizeof host, &dev));
    TSR_TRY(cuda.ops->record(&cuda));
    TSR_TRY(cuda.ops->zero(&cuda, dev, sizeof host));
    TSR_TRY(cuda.ops->recorded(&cuda, &graph));
    TSR_TRY(cuda.ops->to_host(&cuda, host, dev, sizeof host));
    int rc = cuda.ops->sync(&cuda);
    cuda.ops->graph_free(&cuda, graph);
    cuda.ops->unpin(&cuda, host, sizeof host);
    cuda.ops->free(&cuda, dev, sizeof host);
    cuda.ops->close(&cuda);
    return rc;
}

static int sync_twice(const char *object) {
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 0.2};
    TSR_TRY(tsr_plugin_load(&plugin, object));
    TSR_TRY(plugin->open(&cuda, &opt));
    (void)cuda.ops->sync(&cuda);
    return cuda.ops->sync(&cuda);
}

static int pin_in_vain(const char *object) {
    struct tsr_device_opt opt = {.dtype = TSR_DT_F32, .timeout_s = 1};
    char host[64] = "twelve", back[64] = "";
    void *dev = NULL;
    TSR_TRY(tsr_plugin_load(&plugin, object));
    TSR_TRY(plugin->open(&cuda, &opt));
    TSR_TRY(cuda.ops->pin(&cuda, host, sizeof host)); // a warning, and slower copies
    TSR_TRY(cuda.ops->alloc(&cuda, sizeof host, &dev));
    TSR_TRY(cuda.ops->to_device(&cuda, dev, host, sizeof host));
    TSR_TRY(cuda.ops->to_host(&cuda, back, dev, sizeof back));
    TSR_TRY(cuda.ops->sync(&cuda));
    cuda.ops->unpin(&cuda, host, sizeof host);
    return tsr_fail(TSR_EUSAGE, "copied %s", back);
}

// The code and the sentence of an attempt on such a machine.
static void attempt(attempt_fn *fn, const char *object, const char *machine, int code,
                    const char *piece) {
    int ends[2], status;
    char text[4096] = "";
    size_t n = 0;
    assert_int_equal(pipe(ends), 0);
    fflush(NULL);
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        setenv("TESSERA_FAKE_CUDA", machine, 1);
        int rc = fn(object);
        dprintf(ends[1], "%d %s", rc, tsr_error_text());
        _exit(0);
    }
    close(ends[1]);
    for (ssize_t got; (got = read(ends[0], text + n, sizeof text - 1 - n)) > 0;)
        n += (size_t)got;
    close(ends[0]);
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_int_equal(status, 0);
    char *end;
    long rc = strtol(text, &end, 10);
    if (rc != code || !strstr(end, piece))
        fail_msg("%s: found code %ld, \"%s\"; expected %d and \"%s\"", machine, rc, end, code,
                 piece);
}

static const char *object(void) {
    const char *path = getenv("TESSERA_CUDA_OBJECT");
    assert_non_null(path);
    return path;
}

static void test_machines(void **state) {
    (void)state;
    attempt(load_and_count, object(), "", TSR_EUSAGE, "1 devices");
    attempt(load_and_count, object(), "devices=3", TSR_EUSAGE, "3 devices");
    attempt(load_and_count, object(), "no-driver", TSR_EUSAGE, "no NVIDIA driver is loaded");
    attempt(load_and_count, object(), "old-driver", TSR_EUSAGE,
            "the NVIDIA driver is too old: expected one for CUDA 13.0 or newer, found one for CUDA "
            "11.4");
    attempt(load_and_count, object(), "no-device", TSR_EUSAGE, "no NVIDIA device is visible");
    attempt(load_and_count, object(), "devices=0", TSR_EUSAGE, "no NVIDIA device is visible");
    attempt(load_and_count, object(), "old-device", TSR_EUSAGE,
            "device 0 has compute capability 7.0: expected 8.0 (Ampere) or newer");
}

static void test_opening(void **state) {
    (void)state;
    attempt(open_device_3, object(), "devices=2", TSR_EUSAGE,
            "device 3: this process sees 2 of them, from 0");
    attempt(open_tiny, object(), "memory=100000", TSR_ENOMEM,
            "out of device memory: 4194304 bytes are needed for the arrays of operations, 100000 "
            "of the "
            "device's 100000 are free");
    attempt(sync_a_hanging_one, object(), "hang", TSR_ETIMEOUT,
            "device 0: waiting for the device: no end after 0 s");
    attempt(close_a_hanging_one, object(), "hang", TSR_ETIMEOUT,
            "device 0: waiting for the device: no end after 0 s");
    attempt(sync_twice, object(), "hang", TSR_EIO, "an earlier wait for it has failed");
    attempt(open_tiny, object(), "busy", TSR_EUSAGE,
            "device 0 is busy or not to be used: another process may have it to itself");
    attempt(pin_in_vain, object(), "no-pin", TSR_EUSAGE, "copied twelve");
}

// Files that are no such object, and an object that another program was built with.
static void test_objects(void **state) {
    (void)state;
    attempt(load_and_count, scratch("absent.so"), "", TSR_EUSAGE,
            "cannot load the device's object: ");
    attempt(load_and_count, scratch("absent.so"), "", TSR_EUSAGE, "No such file");
    scratch_write(scratch("text.so"), "text", 4);
    attempt(load_and_count, scratch("text.so"), "", TSR_EUSAGE, "text.so: ");
    attempt(load_and_count, "libm.so.6", "", TSR_EUSAGE,
            "libm.so.6 is not a device's object of tessera: it has no tsr_plugin");
}

static struct tsr_host other;
static int fail_there(enum tsr_code code, const char *text) {
    return tsr_fail(code, "%s", text);
}

static void test_versions(void **state) {
    (void)state;
    const struct tsr_host good = {.version = TSR_PLUGIN_VERSION,
                                  .ops_bytes = sizeof(struct tsr_ops),
                                  .comm_ops_bytes = sizeof(struct tsr_comm_ops),
                                  .comm_bytes = sizeof(struct tsr_comm),
                                  .fail = fail_there};
    void *handle = dlopen(object(), RTLD_NOW | RTLD_LOCAL);
    assert_non_null(handle);
    tsr_plugin_fn *entry;
    *(void **)&entry = dlsym(handle, TSR_PLUGIN_SYMBOL);
    assert_non_null(entry);
    assert_non_null(entry(&good));
    for (int i = 0; i < 4; i++) {
        other = good;
        other.version += i == 0;
        other.ops_bytes += i == 1;
        other.comm_ops_bytes += i == 2;
        other.comm_bytes += i == 3;
        assert_null(entry(&other));
    }
    dlclose(handle);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_machines), cmocka_unit_test(test_opening),
        cmocka_unit_test_setup_teardown(test_objects, scratch_setup, scratch_teardown),
        cmocka_unit_test(test_versions)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}

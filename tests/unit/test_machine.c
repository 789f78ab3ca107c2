// What memory and cores a machine lets a process use, on made-up /proc and /sys.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <string.h>
#include "core/error.h"
#include "launcher/machine.h"
#include "scratch.h"

static void put(const char *name, const char *text) {
    char dir[TSR_PATH_MAX];
    const char *path = scratch(name);
    assert_int_equal(tsr_path_dir(dir, path), 0);
    assert_int_equal(tsr_mkdir_p(dir), 0);
    scratch_write(path, text, strlen(text));
}

static int fresh(void **state) {
    (void)state;
    if (tsr_remove_tree(scratch_dir) < 0 || tsr_mkdir_p(scratch_dir) < 0)
        return -1;
    put("proc/meminfo", "MemTotal:  1000 kB\nMemFree:  10 kB\nMemAvailable:  800 kB\n");
    return 0;
}

static struct tsr_machine_memory memory(void) {
    struct tsr_machine_memory m;
    if (tsr_machine_memory(&m, scratch_dir) < 0)
        fail_msg("%s", tsr_error_text());
    return m;
}

static void test_no_limit(void **state) {
    (void)state;
    struct tsr_machine_memory m = memory();
    assert_int_equal(m.total, 1000 * 1024);
    assert_int_equal(m.available, 800 * 1024);
    assert_false(m.limited);
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 0);
    put("proc/self/cgroup", "0::/\n");
    put("sys/fs/cgroup/memory.max", "max\n");
    put("sys/fs/cgroup/memory.current", "5\n");
    put("sys/fs/cgroup/cpu.max", "max 100000\n");
    assert_false(memory().limited);
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 0);
}

// The tightest of the groups above counts; the cache of files gives way.
static void test_version_2(void **state) {
    (void)state;
    put("proc/self/cgroup", "0::/a/b\n");
    put("sys/fs/cgroup/a/b/memory.max", "700000\n");
    put("sys/fs/cgroup/a/b/memory.current", "300000\n");
    put("sys/fs/cgroup/a/b/memory.stat", "anon 5\ninactive_file 100000\nactive_file 7\n");
    put("sys/fs/cgroup/a/b/cpu.max", "250000 100000\n");
    assert_int_equal(memory().available, 500000);
    assert_true(memory().limited);
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 2.5);
    put("sys/fs/cgroup/a/memory.max", "500000\n");
    put("sys/fs/cgroup/a/memory.current", "499999\n");
    put("sys/fs/cgroup/a/cpu.max", "50000 100000\n");
    assert_int_equal(memory().available, 1);
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 0.5);
    put("sys/fs/cgroup/a/memory.current", "600000\n"); // above its limit
    assert_int_equal(memory().available, 0);
}

static void test_version_1(void **state) {
    (void)state;
    put("proc/self/cgroup", "9:name=systemd:/\n4:hugetlb,memory:/x/y\n3:cpu,cpuacct:/x\n0::/\n");
    put("sys/fs/cgroup/memory/x/memory.limit_in_bytes", "400000\n"); // y isn't seen from inside
    put("sys/fs/cgroup/memory/x/memory.usage_in_bytes", "100000\n");
    put("sys/fs/cgroup/memory/x/memory.stat", "inactive_file 1\ntotal_inactive_file 50000\n");
    put("sys/fs/cgroup/memory/memory.limit_in_bytes", "9223372036854771712\n");
    put("sys/fs/cgroup/memory/memory.usage_in_bytes", "100000\n");
    put("sys/fs/cgroup/cpu/cpu.cfs_quota_us", "-1\n");
    put("sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    assert_int_equal(memory().available, 350000);
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 0);
    put("sys/fs/cgroup/cpu/x/cpu.cfs_quota_us", "150000\n");
    put("sys/fs/cgroup/cpu/x/cpu.cfs_period_us", "100000\n");
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 1.5);
}

static void test_strange_files(void **state) {
    (void)state;
    put("proc/self/cgroup", "\nnonsense\n0:\n0::\n1:memor:/q\n");
    put("sys/fs/cgroup/memory.max", "\n");
    put("sys/fs/cgroup/cpu.max", "many few\n");
    assert_int_equal(memory().available, 800 * 1024);
    assert_true(tsr_machine_cpu_quota(scratch_dir) == 0);
    put("proc/meminfo", "nothing here\n");
    struct tsr_machine_memory m;
    assert_int_equal(tsr_machine_memory(&m, scratch_dir), TSR_EIO);
}

static void test_here(void **state) {
    (void)state;
    struct tsr_machine_memory m;
    assert_int_equal(tsr_machine_memory(&m, ""), 0);
    assert_true(m.available <= m.total && m.total > 0);
    assert_true(tsr_machine_cores() >= 1);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup(test_no_limit, fresh),
        cmocka_unit_test_setup(test_version_2, fresh),
        cmocka_unit_test_setup(test_version_1, fresh),
        cmocka_unit_test_setup(test_strange_files, fresh),
        cmocka_unit_test(test_here),
    };
    return cmocka_run_group_tests(tests, scratch_setup, scratch_teardown);
}

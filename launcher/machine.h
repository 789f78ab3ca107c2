// What this machine lets a process use: memory and cores, with the limits of its control group.
#ifndef TSR_LAUNCHER_MACHINE_H
#define TSR_LAUNCHER_MACHINE_H

#include <stdbool.h>
#include <stdint.h>

struct tsr_machine_memory {
    uint64_t total, available; // bytes; available: what more may be used without swapping
    bool limited;              // by a control group, which then decides `available`
};

// `root` stands before /proc and /sys: "" but in tests. What can't be read counts as no limit;
// TSR_EIO when /proc/meminfo can't be read.
int tsr_machine_memory(struct tsr_machine_memory *out, const char *root);

// Cores worth of time that the control groups grant (2.5), or 0: no limit.
double tsr_machine_cpu_quota(const char *root);

// Cores that this process may run on.
int tsr_machine_cores(void);

// The value of a line "KEY: 123 kB" or "KEY 123" of a file, in the file's unit; -1: none.
int64_t tsr_machine_value(const char *path, const char *key);

#endif

// The run's secret, which every process of a run reads from RUN_DIR/coordinator/key: 32 random
// bytes as 64 hexadecimal digits and a newline, readable by its owner only. And random bytes.
#ifndef TSR_LAUNCHER_CONTROL_SECRET_H
#define TSR_LAUNCHER_CONTROL_SECRET_H

#include <stddef.h>
#include <stdint.h>

enum { TSR_SECRET = 32 };

// Bytes of the kernel's generator. 0 or TSR_EIO.
int tsr_random_bytes(void *out, size_t n_bytes);

// Makes the file, durably, with mode 0600, and its folder; one that is there already is kept, and
// is checked as by tsr_secret_load. Any number of processes may do this at once: all then load one
// key. TSR_EIO, TSR_ENOSPC, or a code of tsr_secret_load.
int tsr_secret_create(const char *path);

// TSR_EUSAGE: missing, unreadable, or group or others may do anything with it; TSR_EDATA: not a
// key; TSR_EIO.
int tsr_secret_load(uint8_t out[static TSR_SECRET], const char *path);

#endif

// What on_device.cc has of on_device.c.
#ifndef TSR_TESTS_SIMT_ON_DEVICE_H
#define TSR_TESTS_SIMT_ON_DEVICE_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// As simt::allocate and simt::free_all.
void *on_device_allocate(size_t n_bytes, size_t skew);
void on_device_free_all(void);
void on_device_leave(const char *what);

#ifdef __cplusplus
}
#endif

#endif

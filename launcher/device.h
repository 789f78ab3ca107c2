// Chooses the device that this process computes on and opens it.
#ifndef TSR_LAUNCHER_DEVICE_H
#define TSR_LAUNCHER_DEVICE_H

#include "core/run.h"
#include "dist/plugin.h"

struct tsr_device_want {
    int backend;                               // enum tsr_backend
    int precision;                             // enum tsr_precision
    bool exact;                                // every sum in its order
    int64_t threads;                           // of the CPU backend; 0: cores / ranks on this host
    const char *backend_name, *precision_name; // for messages: "device.backend", "--device"
};

struct tsr_device {
    const struct tsr_plugin *plugin; // NULL: the CPU
    int n_devices;                   // that the plug-in sees on this host
    bool open;
    bool joined; // the plug-in's transport is open
};

// Sets what CUDA reads from the environment at its first call. Before MPI starts, because an MPI
// that knows CUDA makes that call.
void tsr_device_environment(void);
// Opens the device for `ctx`, and its transport when there are several ranks. `auto` is a CUDA
// device on every rank, or else the CPU on every rank. A rank's device is its number on the host
// modulo the devices. Collective. TSR_EUSAGE: what was asked for can't be had; the sentence says
// why and what to do.
int tsr_device_open(struct tsr_device *d, struct tsr_ctx *ctx, struct tsr_comm *c,
                    const struct tsr_device_want *want);
// After the groups of `c` are closed; c->ops is the host's table again.
void tsr_device_close(struct tsr_device *d, struct tsr_ctx *ctx, struct tsr_comm *c);

// What a run asks for.
struct tsr_device_want tsr_device_of_run(const struct tsr_run *r);
// Whether this process could open such a device, as far as can be told without opening it: for who
// starts the ranks on this host. TSR_EUSAGE.
int tsr_device_check(const struct tsr_device_want *want);

// How many devices this machine has, and what the first has free. TSR_EUSAGE: none.
int tsr_device_survey(int *n_devices, uint64_t *free_bytes);

// Whether messages between devices are to go through the host (TESSERA_TRANSPORT=host).
bool tsr_device_through_host(void);

// Where the object is: TESSERA_CUDA_OBJECT, or beside this program, or in ../lib. TSR_EUSAGE names
// the places.
int tsr_device_object(char path[static TSR_PATH_MAX]);
// The values of --device and --dtype. TSR_EUSAGE.
int tsr_device_parse(struct tsr_device_want *want, const char *device, const char *dtype);

#endif

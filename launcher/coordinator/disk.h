// The coordinator's disk steps, each on a worker thread of the loop: a slow or hanging file system
// stops no heartbeat.
#ifndef TSR_LAUNCHER_COORDINATOR_DISK_H
#define TSR_LAUNCHER_COORDINATOR_DISK_H

#include <uv.h>
#include "launcher/coordinator/coordinator.h"

struct tsr_disk;

// `done` answers each job from the loop, never from inside tsr_disk_start. TSR_ENOMEM.
int tsr_disk_open(struct tsr_disk **out, uv_loop_t *loop, const char *run_dir,
                  void (*done)(void *arg, uint64_t id, int rc, const char *error, uint64_t value),
                  void *arg);

// One at a time; what the job points to lives until `done`.
void tsr_disk_start(struct tsr_disk *d, const struct tsr_disk_job *job);

// From now on no job is answered.
void tsr_disk_stop(struct tsr_disk *d);
bool tsr_disk_busy(const struct tsr_disk *d);
void tsr_disk_close(struct tsr_disk *d); // only when it isn't busy; NULL is fine

#endif

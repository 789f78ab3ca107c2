// The coordinator with all that it needs of the world, on one libuv loop: connections, disk steps
// on worker threads, a clock, metrics, and the files by which others find it. Either a process of
// its own (tessera coordinator) or a thread of rank 0.
#ifndef TSR_LAUNCHER_COORDINATOR_LOOP_H
#define TSR_LAUNCHER_COORDINATOR_LOOP_H

#include <uv.h>
#include "launcher/coordinator/coordinator.h"
#include "launcher/epoch.h"

enum { TSR_METRICS_NONE = -1 };

struct tsr_coordinator_opt {
    struct tsr_coord_opt core; // its strings must outlive the call of open only
    const char *host;          // to listen on; NULL: 127.0.0.1
    int port;                  // 0: chosen by the kernel, as when it is taken
    int metrics_port;          // on 127.0.0.1; 0: chosen by the kernel; or TSR_METRICS_NONE
    // The run is lost; ranks and supervisors were told, and without a supervisor the line is
    // logged here. On the loop's thread; may be NULL.
    void (*failed)(void *arg, const Tessera__Control__Failed *f);
    void *arg;
};

struct tsr_coordinator;

// Checks the epoch, fences off older ones, listens, and writes the address file. TSR_EPEER when the
// epoch is not the run's newest; TSR_EUSAGE, TSR_EDATA, TSR_EIO, TSR_ENOMEM. A metrics port that is
// taken is no failure: it is logged, and there are no metrics.
int tsr_coordinator_open(struct tsr_coordinator **out, uv_loop_t *loop,
                         const struct tsr_coordinator_opt *opt);
const struct tsr_address *tsr_coordinator_address(const struct tsr_coordinator *c);

// True while ranks are connected or may come back, or a disk step is under way.
bool tsr_coordinator_needed(const struct tsr_coordinator *c);

// Runs the loop until it is empty: everything else on it must have been closed. Not from inside a
// callback. NULL is fine.
void tsr_coordinator_close(struct tsr_coordinator *c);

// The same on a thread of its own. To close it: when all ranks have closed their agents, which is
// known after a barrier; a rank that is still connected would look for it in vain.
struct tsr_coordinator_thread;
int tsr_coordinator_thread_open(struct tsr_coordinator_thread **out,
                                const struct tsr_coordinator_opt *opt, struct tsr_address *address);
void tsr_coordinator_thread_close(struct tsr_coordinator_thread *t); // NULL is fine

#endif

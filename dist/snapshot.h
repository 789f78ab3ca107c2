// The state that this rank owns: own slices of the weights and of both moments, each element of the
// run's state on exactly one rank. It is copied aside while training waits, and written to a
// checkpoint while it goes on; or, where training waits for the end anyway, written as it is.
#ifndef TSR_DIST_SNAPSHOT_H
#define TSR_DIST_SNAPSHOT_H

#include "core/checkpoint.h"
#include "dist/net.h"

struct tsr_snapshot;

// Bytes of host memory that open takes for this net; needs its layout, not its memory.
size_t tsr_snapshot_bytes(const struct tsr_net *net);

// The second buffer, touched once so that the first copy pays for no page. Ranks of one host can
// read each other's. The net must outlive it. Collective. TSR_ENOMEM.
int tsr_snapshot_open(struct tsr_snapshot **out, struct tsr_net *net);
void tsr_snapshot_close(struct tsr_snapshot *s); // NULL is fine

// Without a second buffer: from take until write has returned the net may not change, nor the
// device be used by others. What lies on a device comes to the host in small parts. Collective.
// TSR_ENOMEM.
int tsr_snapshot_open_direct(struct tsr_snapshot **out, struct tsr_net *net);
// Bytes of host memory that this takes; `device`: the net will lie in memory that isn't the host's.
size_t tsr_snapshot_direct_bytes(const struct tsr_net *net, bool device);

// Copies the net's state with the device's threads. Main thread; returns when the net may change.
int tsr_snapshot_take(struct tsr_snapshot *s);

// Elements that this rank owns, of weights and moments.
uint64_t tsr_snapshot_elements(const struct tsr_snapshot *s);

// Writes with the other ranks of this host, in shares of consecutive ranges, all that they own: so
// runs are long whatever the layout. To be called once when all ranks have taken the snapshot, and
// by all of them before one takes the next. Any thread; neither net nor device is touched. A direct
// one writes this rank's own regions, and touches both.
int tsr_snapshot_write(const struct tsr_snapshot *s, struct tsr_checkpoint *c);

// What this rank owns of the weights and, where the tensor isn't frozen, of both moments: one call
// per region, in the order of the tensor table, a tensor's regions in ascending order. A negative
// code of `fn` ends it and is returned.
typedef int (*tsr_shard_fn)(void *arg, const struct tsr_tensor *t, struct tsr_region region);
int tsr_snapshot_each(const struct tsr_snapshot *s, tsr_shard_fn fn, void *arg);

#endif

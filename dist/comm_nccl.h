// The transport between CUDA devices: NCCL, started and closed with the help of the host's
// transport (comm->control). It is part of libtessera_cuda.so.
#ifndef TSR_DIST_COMM_NCCL_H
#define TSR_DIST_COMM_NCCL_H

#include "dist/comm.h"

// Makes `c`, whose host transport is open, exchange buffers of ctx's device (a tsr_cuda): c->ops
// then is NCCL's table, whose group_open opens the host's side of a group, too. c->world_group
// stays the host's alone: comm->control is for it. Collective. TSR_ENOMEM, TSR_EPEER.
//
// Calls return once their work is in the queue: it begins after what ctx's stream had been asked
// for, and what the stream is asked for later begins after it. A send or receive is the exception:
// the stream goes on until its wait.
int tsr_nccl_open(struct tsr_comm *c, struct tsr_ctx *ctx);
// Gives c->ops back to the host's table: after the groups are closed and while the device is still
// open. Safe without tsr_nccl_open.
void tsr_nccl_close(struct tsr_comm *c);

#endif

// Fills the ranges, bounds and KV slots of a net from its mesh and model.
#ifndef TSR_DIST_LAYOUT_H
#define TSR_DIST_LAYOUT_H

#include "dist/net.h"

int tsr_layout_open(struct tsr_net *net); // TSR_ENOMEM
void tsr_layout_close(struct tsr_net *net);

#endif

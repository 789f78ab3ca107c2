// Answers of the coordinator to those who watch.
#ifndef TSR_LAUNCHER_COORDINATOR_STATUS_H
#define TSR_LAUNCHER_COORDINATOR_STATUS_H

#include "launcher/coordinator/coordinator.h"

// Sends a Status on a connection. TSR_ENOMEM.
int tsr_coord_send_status(struct tsr_coord *c, int conn);

#endif

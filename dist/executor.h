// Runs a schedule's actions on one rank: receives, computes, sends, with the next receive posted
// and sends left under way while it computes.
#ifndef TSR_DIST_EXECUTOR_H
#define TSR_DIST_EXECUTOR_H

#include "dist/schedule.h"
#include "dist/stage.h"

enum { TSR_RING = 3 }; // buffers per direction: being received, being used, being sent

struct tsr_times { // seconds of this rank since reset
    double forward, backward, communication, bubble, optimizer;
};

struct tsr_executor {
    struct tsr_model_state *s;
    struct tsr_action *actions; // of a training step
    int n_actions, n_micro_batches;
    tsr_elem *in[2][TSR_RING]; // [direction] received rows (Nl, C); backward ones turn into dx
    struct tsr_request recv[2][TSR_RING], send_dx[TSR_RING];
    // Steps after the first post each receive while the action before runs. In the first one a
    // device's library may load code, and wait for the device to be idle: a receive on it that
    // waits for what comes later would never end.
    bool warm;
    int in_at[2];                // ring position of the next action of that direction
    struct tsr_request **send_y; // [chunk][slot]
    tsr_elem **mailbox[2];       // pp = 1: [direction][chunk] hand-over between own chunks
    void *slab;
    size_t slab_bytes;
    struct tsr_times times;
    double *loss; // (Wl) sums over target tokens of each virtual replica, of the step under way
};

int tsr_executor_open(struct tsr_executor *x, struct tsr_model_state *s, const struct tsr_batch *b,
                      enum tsr_pipeline kind, int n_micro_batches);
void tsr_executor_close(struct tsr_executor *x);

// One step's forwards and backwards over `batches`; gradients and x->loss are then complete for
// this rank's virtual replicas.
int tsr_executor_run(struct tsr_executor *x, const struct tsr_batch *batches, float loss_scale);

#endif

// The transport of devices that have none of their own: what is sent is copied to the host and goes
// over the host's transport, so every call gives the host's bits. It moves a buffer in parts, two
// of them under way at once: one is copied while the other travels.
#ifndef TSR_DIST_COMM_STAGED_H
#define TSR_DIST_COMM_STAGED_H

#include "dist/comm.h"

enum { TSR_STAGE_BYTES = 4 << 20 }; // of each of the two buffers

// A message under way and its copy on the host. Kept for reuse.
struct tsr_staged_message {
    char *copy;
    size_t cap;
    bool busy;
    bool read; // the device may still be reading the copy
    struct tsr_request host;
    void *dst;      // on the device, of a message to receive; else NULL
    size_t n_bytes; // of it
    struct tsr_staged_message *next;
};

// struct tsr_comm's device.
struct tsr_staged {
    struct tsr_ctx ctx;
    char *stage[2]; // (TSR_STAGE_BYTES) each
    size_t part;    // bytes of a stage that are used, TSR_STAGE_BYTES; tests use less
    size_t *len;    // (world) of each rank in the round under way
    struct tsr_staged_message *messages;
};

// Copies between a stage and the device; 0 bytes are nothing.
int tsr_staged_from(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);
int tsr_staged_to(struct tsr_ctx *ctx, void *dst, const void *src, size_t n_bytes);

int tsr_staged_send(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, const void *buf,
                    size_t n_bytes, int to, int tag, struct tsr_request *r);
int tsr_staged_recv(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_group *g, void *buf,
                    size_t n_bytes, int from, int tag, struct tsr_request *r);
int tsr_staged_wait(struct tsr_ctx *ctx, struct tsr_comm *c, struct tsr_request *r);
void tsr_staged_free_messages(struct tsr_staged *s); // none of which is under way

// Makes `c`, whose host transport is open, exchange buffers of `ctx`'s device; c->ops then opens
// the host's side of groups, too. c->world_group works as it is. TSR_ENOMEM.
int tsr_comm_use_staged(struct tsr_comm *c, struct tsr_ctx *ctx);
// Gives c->ops back to the host's table: after the groups are closed and while the device is still
// open. tsr_comm_close does it for those who close the device last. Safe without
// tsr_comm_use_staged.
void tsr_comm_end_staged(struct tsr_comm *c);

#endif

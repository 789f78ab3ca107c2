// One connection to the coordinator on a libuv loop: connects, answers the Challenge with a Hello,
// and hands on what comes after the Welcome. What ranks, observers and supervisors have in common.
#ifndef TSR_LAUNCHER_LINK_H
#define TSR_LAUNCHER_LINK_H

#include "launcher/epoch.h"
#include "launcher/wire.h"

struct tsr_link;

struct tsr_link_opt {
    uv_loop_t *loop;
    const uint8_t *secret; // TSR_SECRET bytes
    const struct tsr_address *address;
    // version and nonce are filled in, and of those who aren't ranks, epoch 0 becomes the
    // coordinator's. Must outlive the link.
    const Tessera__Control__Hello *hello;
    double timeout_s; // until the Welcome
    // May be NULL.
    int (*welcome)(void *arg, const Tessera__Control__Welcome *w); // may be NULL
    tsr_frame_fn message; // everything after it; a negative code ends the connection
    // Once, never from inside a call here; then the link is freed. Code 0: closed in order by
    // either side. TSR_EREQUEST: refused, tsr_error_text() has the coordinator's reason.
    void (*ended)(void *arg, int code);
    void *arg;
};

// TSR_EUSAGE when the host can't be resolved, TSR_ENOMEM. Other failures are told by `ended`.
int tsr_link_open(struct tsr_link **out, const struct tsr_link_opt *opt);

// The coordinator's epoch, 0 before its Challenge has come.
uint64_t tsr_link_epoch(const struct tsr_link *l);

// Queues a frame; it is dropped before the Welcome and after the end.
void tsr_link_send(struct tsr_link *l, uint16_t type, const ProtobufCMessage *m);

void tsr_link_finish(struct tsr_link *l); // sends what is queued, then closes
void tsr_link_abort(struct tsr_link *l);

// A message of one's own; NULL: no memory. Free by protobuf_c_message_free_unpacked(m, NULL).
ProtobufCMessage *tsr_link_copy(const ProtobufCMessage *m);

#endif

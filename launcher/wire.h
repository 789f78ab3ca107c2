// One TCP connection that speaks the control protocol on a libuv loop, at either end: reads into
// the session, queues sealed frames with a bound, closes in order. All calls are made on the loop's
// thread.
#ifndef TSR_LAUNCHER_WIRE_H
#define TSR_LAUNCHER_WIRE_H

#include <uv.h>
#include "launcher/control/session.h"

enum {
    TSR_WIRE_MAX_OUT = 4 << 20, // bytes that a peer may leave unread before it is dropped
    TSR_WIRE_LINGER_MS = 1000,  // for the last frames and the peer's own end, after `finish`
};

struct tsr_wire;

struct tsr_wire_opt {
    uv_loop_t *loop;
    struct tsr_session_opt session;
    double handshake_s; // until tsr_wire_established is called
    // Each message; a negative code ends the connection, after what was queued has gone out.
    tsr_frame_fn message;
    // Once, from the loop and never from inside another call here; then the wire is freed. Code 0:
    // the peer or the owner closed in order. Negative: tsr_error_text() has the sentence.
    void (*ended)(void *arg, int code);
    void *arg;
};

// TSR_ENOMEM. Then one of accept, connect.
int tsr_wire_open(struct tsr_wire **out, const struct tsr_wire_opt *opt);
// A failure of these two is told by `ended`.
void tsr_wire_accept(struct tsr_wire *w, uv_stream_t *listener);
void tsr_wire_connect(struct tsr_wire *w, const struct sockaddr *to);

// The handshake is over: the deadline doesn't count any more.
void tsr_wire_established(struct tsr_wire *w);

// Queues a frame. What cannot be sent (no memory, too much unread) ends the connection. After the
// connection's end it does nothing.
void tsr_wire_send(struct tsr_wire *w, uint16_t type, const ProtobufCMessage *m);

void tsr_wire_finish(struct tsr_wire *w); // sends what is queued, then closes
void tsr_wire_abort(struct tsr_wire *w);  // closes now

// "host:port" of a name or number; blocks while it asks the resolver. TSR_EUSAGE.
int tsr_wire_resolve(struct sockaddr_storage *out, const char *host, int port);

#endif

// One authenticated connection's bytes: framing, key schedule, authentication, unpacking. No
// sockets and no clock; the same code on both ends (docs/protocol.md).
//
// Nothing is unpacked before its HMAC was right, no frame above the cap is taken in, and what one
// connection can make this process allocate is bounded: TSR_MAX_PAYLOAD of buffer
// (TSR_MAX_HANDSHAKE until the peer has proved that it knows the secret), only as bytes really
// arrive, and while `fn` runs, one message under the limits of launcher/control/alloc.h.
#ifndef TSR_LAUNCHER_CONTROL_SESSION_H
#define TSR_LAUNCHER_CONTROL_SESSION_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <protobuf-c/protobuf-c.h>
#include "core/io.h"
#include "launcher/control/registry.h"
#include "launcher/control/secret.h"

enum {
    TSR_NONCE = 32,
    TSR_MAC = 32,
    TSR_FRAME_HEADER = 48,     // length, type, flags, id, HMAC
    TSR_MAX_PAYLOAD = 1 << 20, // bytes, of any frame
    TSR_MAX_HANDSHAKE = 4096,  // bytes, of a Challenge or a Hello
    TSR_PROTOCOL_VERSION = 1,
};

struct tsr_session;

struct tsr_session_opt {
    bool server;                // the coordinator's end
    uint8_t secret[TSR_SECRET]; // tsr_secret_load
    uint8_t nonce[TSR_NONCE];   // own, fresh for each connection: tsr_random_bytes
};

// 0 or TSR_ENOMEM. The options are copied. tsr_session_close(NULL) is fine; keys are wiped.
int tsr_session_open(struct tsr_session **out, const struct tsr_session_opt *opt);
void tsr_session_close(struct tsr_session *s);

// The nonce of the options: what a Challenge (server) or Hello (client) must carry.
const uint8_t *tsr_session_nonce(const struct tsr_session *s);

// Whether the connection's keys are there: the server has taken a Hello with a right HMAC, or the
// client has sealed its own. From here on every frame except Challenge and Hello can be sealed.
bool tsr_session_ready(const struct tsr_session *s);

// Called with each whole, authenticated, checked message, which is freed after the call. It may
// seal; it must not close or feed the session.
typedef int (*tsr_frame_fn)(void *arg, uint16_t type, const ProtobufCMessage *m);

// Takes bytes that arrived, in pieces of any size. 0, or:
//   a negative code of fn: it stops there; the rest of the bytes is not looked at;
//   TSR_EREQUEST: refused (wrong key, replay, length, type, payload...), the text says why. The
//     frame was not given to fn. Close the connection; when tsr_session_ready, a Refused with the
//     reason may be sealed and sent first (it is, after a Hello of another protocol version);
//   TSR_ENOMEM: close the connection too.
// After a negative code every further call is TSR_EREQUEST.
int tsr_session_feed(struct tsr_session *s, const void *data, size_t n_bytes, tsr_frame_fn fn,
                     void *arg);

// Appends one sealed frame to `out`. On failure `out` and the session are as before.
//   Order. Server: Challenge first, with its own nonce; nothing else until a Hello has come.
//   Client: nothing until the Challenge has come; Hello, with its own nonce; then the rest.
//   Otherwise TSR_EREQUEST. The receiver's checks are run on what is sent, so what seals is
//   accepted: a payload above the cap, strings that aren't UTF-8 (tsr_frame_text repairs them), too
//   long strings or lists are TSR_EREQUEST here. A list that may be large has to be sent in parts
//   of 64 KiB or so.
// TSR_ENOMEM. A message that isn't of the type, and a type that this end never sends, are bugs.
int tsr_session_seal(struct tsr_session *s, uint16_t type, const ProtobufCMessage *m,
                     struct tsr_buf *out);

#endif

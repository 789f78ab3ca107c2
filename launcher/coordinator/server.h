// The coordinator's end of all connections: accepts, keeps within limits, and hands whole messages
// to whoever decides. It knows nothing of ranks and saves.
//
// A connection that has not said Hello within the handshake's deadline is closed; when all places
// are taken, the one that has been silent longest makes room, so that no number of half-open
// connections keeps a rank away.
#ifndef TSR_LAUNCHER_COORDINATOR_SERVER_H
#define TSR_LAUNCHER_COORDINATOR_SERVER_H

#include <uv.h>
#include "launcher/control/session.h"

enum { TSR_SERVER_PLACES = 4096, TSR_SERVER_BACKLOG = 1024 };

struct tsr_server;

struct tsr_server_opt {
    uv_loop_t *loop;
    const char *host; // name or number to listen on
    int port;         // 0: chosen by the kernel; one that is taken falls back to that
    uint64_t epoch;
    uint8_t secret[TSR_SECRET]; // all zero is none: then only loopback addresses are allowed
    double handshake_s;         // 0: 5 seconds
    int n_places;               // 0: TSR_SERVER_PLACES, which is the most
    // Each message from Hello on, of connection `conn`: a place, 0 to n_places - 1, which is used
    // again once its end was told or it was dropped. A negative code ends the connection, after
    // what was queued for it has gone out; `closed` is not called for it.
    int (*message)(void *arg, int conn, uint16_t type, const ProtobufCMessage *m);
    // A connection that has said Hello ended by itself. Never from inside another call.
    void (*closed)(void *arg, int conn);
    void *arg;
};

struct tsr_server_counts {
    int open;         // connections, half-open ones among them
    uint64_t refused; // ended for what they sent, or didn't send in time
};

// TSR_EUSAGE: the address can't be resolved, isn't of this machine, or would need a key.
// TSR_ENOMEM, TSR_EIO.
int tsr_server_open(struct tsr_server **out, const struct tsr_server_opt *opt);
int tsr_server_port(const struct tsr_server *s);
struct tsr_server_counts tsr_server_counts(const struct tsr_server *s);

// Both do nothing when the connection is gone.
void tsr_server_send(struct tsr_server *s, int conn, uint16_t type, const ProtobufCMessage *m);
void tsr_server_drop(struct tsr_server *s, int conn); // after what is queued; `closed` isn't called

// Ends all connections; what is queued still goes out. The server is freed when the loop has run
// until all of it is closed; no callback comes any more. NULL is fine.
void tsr_server_close(struct tsr_server *s);

#endif

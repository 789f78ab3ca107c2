// A client of the coordinator made by hand: blocking, and able to do all that one must not do.
#ifndef TSR_TESTS_CONTROL_CLIENT_H
#define TSR_TESTS_CONTROL_CLIENT_H

#include "control_support.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name
#define OBSERVER    TESSERA__CONTROL__ROLE__ROLE_OBSERVER

struct client {
    int fd;
    struct tsr_session *session;
    struct tsr_buf out; // sealed, not sent
    int n_messages;
    uint16_t last_type;
    char reason[256]; // of a Refused
};

static inline int on_client_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct client *c = arg;
    c->n_messages++;
    c->last_type = type;
    if (type == FRAME(REFUSED))
        snprintf(c->reason, sizeof c->reason, "%s", ((const Tessera__Control__Refused *)m)->reason);
    return 0;
}

static inline void client_open(struct client *c, int port,
                               const uint8_t secret[static TSR_SECRET]) {
    struct tsr_session_opt opt = {.server = false};
    *c = (struct client){.fd = connect_to(port)};
    memcpy(opt.secret, secret, TSR_SECRET);
    expect_ok(tsr_random_bytes(opt.nonce, TSR_NONCE));
    expect_ok(tsr_session_open(&c->session, &opt));
}

static inline void client_close(struct client *c) {
    close(c->fd);
    tsr_session_close(c->session);
    tsr_buf_free(&c->out);
}

// Takes what comes until `n` messages are there; false when the connection ended before.
static inline bool client_read(struct client *c, int n) {
    char bytes[1 << 16];
    while (c->n_messages < n) {
        ssize_t got = recv(c->fd, bytes, sizeof bytes, 0);
        if (got <= 0 || tsr_session_feed(c->session, bytes, (size_t)got, on_client_message, c) < 0)
            return false;
    }
    return true;
}

static inline bool client_send(struct client *c) {
    size_t sent = 0;
    while (sent < c->out.len) {
        ssize_t n = send(c->fd, c->out.data + sent, c->out.len - sent, 0);
        if (n < 0)
            return false;
        sent += (size_t)n;
    }
    c->out.len = 0;
    return true;
}

// Waits for the Challenge and says Hello.
static inline void client_greet(struct client *c, Tessera__Control__Hello h) {
    assert_true(client_read(c, 1));
    assert_int_equal(c->last_type, FRAME(CHALLENGE));
    h.version = TSR_PROTOCOL_VERSION;
    h.nonce = (ProtobufCBinaryData){TSR_NONCE, (uint8_t *)tsr_session_nonce(c->session)};
    expect_ok(tsr_session_seal(c->session, FRAME(HELLO), &h.base, &c->out));
    assert_true(client_send(c));
}

static inline void client_hello(struct client *c, Tessera__Control__Role role, uint64_t epoch) {
    Tessera__Control__Hello h = TESSERA__CONTROL__HELLO__INIT;
    h.role = role;
    h.epoch = epoch;
    client_greet(c, h);
}

static inline void client_ask(struct client *c) {
    Tessera__Control__StatusRequest r = TESSERA__CONTROL__STATUS_REQUEST__INIT;
    expect_ok(tsr_session_seal(c->session, FRAME(STATUS_REQUEST), &r.base, &c->out));
}

static inline void own_secret(uint8_t secret[static TSR_SECRET]) {
    expect_ok(tsr_run_key(run_dir, secret));
}

#endif

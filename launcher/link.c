#include "launcher/link.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

struct tsr_link {
    struct tsr_link_opt opt;
    struct tsr_wire *wire;
    uint8_t nonce[TSR_NONCE];
    uint64_t epoch;
    bool welcomed;
    char where[TSR_HOST_MAX + 16];
};

static int answer(struct tsr_link *l, const Tessera__Control__Challenge *c) {
    Tessera__Control__Hello h = *l->opt.hello;
    if (c->version != TSR_PROTOCOL_VERSION)
        return tsr_fail(TSR_EREQUEST, "it speaks version %" PRIu32 " of the protocol, expected %d",
                        c->version, TSR_PROTOCOL_VERSION);
    l->epoch = c->epoch;
    h.version = TSR_PROTOCOL_VERSION;
    h.nonce = (ProtobufCBinaryData){TSR_NONCE, l->nonce};
    if (h.role != TESSERA__CONTROL__ROLE__ROLE_RANK && h.epoch == 0)
        h.epoch = c->epoch;
    tsr_wire_send(l->wire, TESSERA__CONTROL__FRAME_TYPE__FRAME_HELLO, &h.base);
    return 0;
}

static int on_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_link *l = arg;
    switch (type) {
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_CHALLENGE:
        return answer(l, (const Tessera__Control__Challenge *)m);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_REFUSED:
        return tsr_fail(TSR_EREQUEST, "%s", ((const Tessera__Control__Refused *)m)->reason);
    case TESSERA__CONTROL__FRAME_TYPE__FRAME_WELCOME:
        if (l->welcomed)
            return tsr_fail(TSR_EREQUEST, "a second Welcome");
        l->welcomed = true;
        tsr_wire_established(l->wire);
        return l->opt.welcome ? l->opt.welcome(l->opt.arg, (const Tessera__Control__Welcome *)m)
                              : 0;
    default:
        if (!l->welcomed)
            return tsr_fail(TSR_EREQUEST, "a %s before the Welcome", tsr_frame_name(type));
        return l->opt.message(l->opt.arg, type, m);
    }
}

static void on_ended(void *arg, int code) {
    struct tsr_link *l = arg;
    if (code < 0)
        tsr_fail_prefix(code, "coordinator at %s", l->where);
    else if (!l->welcomed)
        tsr_fail(TSR_EPEER, "coordinator at %s: it closed the connection at once", l->where);
    l->opt.ended(l->opt.arg, code < 0 || l->welcomed ? code : TSR_EPEER);
    free(l);
}

int tsr_link_open(struct tsr_link **out, const struct tsr_link_opt *opt) {
    struct sockaddr_storage to;
    struct tsr_wire_opt wire = {
        .loop = opt->loop, .handshake_s = opt->timeout_s, .message = on_message, .ended = on_ended};
    TSR_TRY(tsr_wire_resolve(&to, opt->address->host, opt->address->port));
    TSR_TRY(tsr_random_bytes(wire.session.nonce, TSR_NONCE));
    memcpy(wire.session.secret, opt->secret, TSR_SECRET);
    struct tsr_link *l = calloc(1, sizeof *l);
    if (!l)
        return tsr_fail(TSR_ENOMEM, "no memory for a connection");
    l->opt = *opt;
    wire.arg = l;
    memcpy(l->nonce, wire.session.nonce, TSR_NONCE);
    tsr_address_text(l->where, opt->address->host, opt->address->port);
    int rc = tsr_wire_open(&l->wire, &wire);
    explicit_bzero(wire.session.secret, sizeof wire.session.secret);
    if (rc < 0) {
        free(l);
        return rc;
    }
    tsr_wire_connect(l->wire, (const struct sockaddr *)&to);
    *out = l;
    return 0;
}

uint64_t tsr_link_epoch(const struct tsr_link *l) {
    return l->epoch;
}

void tsr_link_send(struct tsr_link *l, uint16_t type, const ProtobufCMessage *m) {
    if (l->welcomed)
        tsr_wire_send(l->wire, type, m);
}

void tsr_link_finish(struct tsr_link *l) {
    tsr_wire_finish(l->wire);
}

void tsr_link_abort(struct tsr_link *l) {
    tsr_wire_abort(l->wire);
}

ProtobufCMessage *tsr_link_copy(const ProtobufCMessage *m) {
    uint8_t *bytes = malloc(protobuf_c_message_get_packed_size(m) + 1);
    if (!bytes)
        return NULL;
    size_t n = protobuf_c_message_pack(m, bytes);
    ProtobufCMessage *copy = protobuf_c_message_unpack(m->descriptor, NULL, n, bytes);
    free(bytes);
    return copy;
}

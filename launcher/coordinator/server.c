#include "launcher/coordinator/server.h"

#include <stdlib.h>
#include <string.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "launcher/wire.h"

static const double HANDSHAKE_S = 5.0, COMPLAIN_S = 10.0;

struct place {
    struct tsr_server *server;
    struct tsr_wire *wire; // NULL: free
    uint64_t since;        // which connection of all: the order of arrival
    bool greeted;          // its Hello was handed on
    bool dropped;          // by the owner, who isn't told of its end
};

struct tsr_server {
    struct tsr_server_opt opt;
    uv_tcp_t *listener; // frees itself when closed
    struct place *places;
    uint64_t n_accepted, refused;
    int port, open;
    bool closing;
    double complained; // when a refusal was logged
};

static void free_handle(uv_handle_t *h) {
    free(h);
}

static int number_of(const struct place *p) {
    return (int)(p - p->server->places);
}

static void free_when_closed(struct tsr_server *s) {
    if (!s->closing || s->open > 0)
        return;
    explicit_bzero(s->opt.secret, sizeof s->opt.secret);
    free(s->places);
    free(s);
}

// Garbage may come a thousand times a second: one line now and then has to do.
static void complain(struct tsr_server *s) {
    s->refused++;
    if (s->complained > 0 && tsr_now() - s->complained < COMPLAIN_S)
        return;
    s->complained = tsr_now();
    tsr_warn("coordinator: refused a connection: %s (%llu so far)", tsr_error_text(),
             (unsigned long long)s->refused);
}

static int on_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct place *p = arg;
    struct tsr_server *s = p->server;
    p->greeted = true;
    tsr_wire_established(p->wire);
    int rc = s->opt.message(s->opt.arg, number_of(p), type, m);
    p->dropped |= rc < 0;
    return rc;
}

static void on_ended(void *arg, int code) {
    struct place *p = arg;
    struct tsr_server *s = p->server;
    int conn = number_of(p);
    bool tell = p->greeted && !p->dropped && !s->closing;
    if (code < 0 && !s->closing && (!p->greeted || code == TSR_EREQUEST))
        complain(s);
    p->wire = NULL;
    s->open--;
    if (tell)
        s->opt.closed(s->opt.arg, conn);
    free_when_closed(s);
}

// A free place, NULL when there is none. Before the last ones are gone, connections without a Hello
// begin to make room, the oldest first.
static struct place *take_place(struct tsr_server *s) {
    struct place *oldest = NULL, *place = NULL;
    for (int i = 0; i < s->opt.n_places; i++) {
        struct place *p = &s->places[i];
        if (!p->wire)
            place = p;
        else if (!p->greeted && !p->dropped && (!oldest || p->since < oldest->since))
            oldest = p;
    }
    int spare = 1 + s->opt.n_places / 64;
    if (oldest && s->open >= s->opt.n_places - spare) {
        oldest->dropped = true;
        tsr_wire_abort(oldest->wire);
    }
    return place;
}

static void greet(struct place *p, const uint8_t *nonce) {
    Tessera__Control__Challenge c = TESSERA__CONTROL__CHALLENGE__INIT;
    c.version = TSR_PROTOCOL_VERSION;
    c.nonce = (ProtobufCBinaryData){TSR_NONCE, (uint8_t *)nonce};
    c.epoch = p->server->opt.epoch;
    tsr_wire_send(p->wire, TESSERA__CONTROL__FRAME_TYPE__FRAME_CHALLENGE, &c.base);
}

static int admit(struct tsr_server *s, struct place *p) {
    struct tsr_wire_opt opt = {.loop = s->opt.loop,
                               .session = {.server = true},
                               .handshake_s = s->opt.handshake_s,
                               .message = on_message,
                               .ended = on_ended,
                               .arg = p};
    memcpy(opt.session.secret, s->opt.secret, TSR_SECRET);
    TSR_TRY(tsr_random_bytes(opt.session.nonce, TSR_NONCE));
    struct tsr_wire *w;
    TSR_TRY(tsr_wire_open(&w, &opt));
    *p = (struct place){.server = s, .wire = w, .since = s->n_accepted++};
    s->open++;
    tsr_wire_accept(w, (uv_stream_t *)s->listener);
    greet(p, opt.session.nonce);
    return 0;
}

// Accepted and closed at once: left in the queue it would keep the listener busy.
static void turn_away(struct tsr_server *s) {
    uv_tcp_t *t = malloc(sizeof *t);
    if (!t)
        return;
    TSR_ASSERT(uv_tcp_init(s->opt.loop, t) == 0);
    uv_accept((uv_stream_t *)s->listener, (uv_stream_t *)t);
    uv_close((uv_handle_t *)t, free_handle);
    complain(s);
}

static void on_connection(uv_stream_t *listener, int status) {
    struct tsr_server *s = listener->data;
    if (status < 0) {
        tsr_fail(TSR_EIO, "cannot accept: %s", uv_strerror(status));
        complain(s);
        return;
    }
    struct place *p = take_place(s);
    if (!p) {
        tsr_fail(TSR_EIO, "all %d places are taken", s->opt.n_places);
        turn_away(s);
    } else if (admit(s, p) < 0) {
        turn_away(s);
    }
}

static bool is_loopback(const struct sockaddr_storage *a) {
    if (a->ss_family == AF_INET)
        return (ntohl(((const struct sockaddr_in *)a)->sin_addr.s_addr) >> 24) == 127;
    return a->ss_family == AF_INET6 &&
           IN6_IS_ADDR_LOOPBACK(&((const struct sockaddr_in6 *)a)->sin6_addr);
}

static bool has_key(const struct tsr_server *s) {
    static const uint8_t none[TSR_SECRET];
    return memcmp(s->opt.secret, none, TSR_SECRET) != 0;
}

// A negative code of libuv, or 0.
static int try_listen(struct tsr_server *s, const struct sockaddr *at) {
    struct sockaddr_storage bound;
    int n = sizeof bound;
    uv_tcp_t *t = malloc(sizeof *t);
    if (!t)
        return UV_ENOMEM;
    TSR_ASSERT(uv_tcp_init(s->opt.loop, t) == 0);
    t->data = s;
    int rc = uv_tcp_bind(t, at, 0);
    if (rc == 0)
        rc = uv_listen((uv_stream_t *)t, TSR_SERVER_BACKLOG, on_connection);
    if (rc == 0)
        rc = uv_tcp_getsockname(t, (struct sockaddr *)&bound, &n);
    if (rc < 0) {
        uv_close((uv_handle_t *)t, free_handle);
        return rc;
    }
    s->port = ntohs(((const struct sockaddr_in *)&bound)->sin_port); // same place in IPv6
    s->listener = t;
    return 0;
}

static int listen_at(struct tsr_server *s) {
    struct sockaddr_storage at;
    TSR_TRY(tsr_wire_resolve(&at, s->opt.host, s->opt.port));
    if (!is_loopback(&at) && !has_key(s))
        return tsr_fail(TSR_EUSAGE, "%s is not a loopback address: to listen there takes a key",
                        s->opt.host);
    int rc = try_listen(s, (const struct sockaddr *)&at);
    if (rc == UV_EADDRINUSE && s->opt.port != 0) {
        tsr_warn("coordinator: port %d is taken, the kernel chooses another", s->opt.port);
        ((struct sockaddr_in *)&at)->sin_port = 0;
        rc = try_listen(s, (const struct sockaddr *)&at);
    }
    if (rc == UV_EADDRNOTAVAIL)
        return tsr_fail(TSR_EUSAGE, "%s is not an address of this machine", s->opt.host);
    if (rc < 0)
        return tsr_fail(TSR_EIO, "cannot listen at %s: %s", s->opt.host, uv_strerror(rc));
    return 0;
}

int tsr_server_open(struct tsr_server **out, const struct tsr_server_opt *opt) {
    struct tsr_server *s = calloc(1, sizeof *s);
    struct place *places = calloc(TSR_SERVER_PLACES, sizeof *places);
    if (!s || !places) {
        free(s);
        free(places);
        return tsr_fail(TSR_ENOMEM, "no memory for the coordinator's connections");
    }
    s->opt = *opt;
    s->places = places;
    for (int i = 0; i < TSR_SERVER_PLACES; i++)
        places[i].server = s;
    if (s->opt.n_places <= 0 || s->opt.n_places > TSR_SERVER_PLACES)
        s->opt.n_places = TSR_SERVER_PLACES;
    if (s->opt.handshake_s <= 0)
        s->opt.handshake_s = HANDSHAKE_S;
    int rc = listen_at(s);
    if (rc < 0) {
        s->closing = true;
        free_when_closed(s);
        return rc;
    }
    *out = s;
    return 0;
}

int tsr_server_port(const struct tsr_server *s) {
    return s->port;
}

struct tsr_server_counts tsr_server_counts(const struct tsr_server *s) {
    return (struct tsr_server_counts){s->open, s->refused};
}

void tsr_server_send(struct tsr_server *s, int conn, uint16_t type, const ProtobufCMessage *m) {
    TSR_ASSERT(conn >= 0 && conn < s->opt.n_places);
    if (s->places[conn].wire)
        tsr_wire_send(s->places[conn].wire, type, m);
}

void tsr_server_drop(struct tsr_server *s, int conn) {
    TSR_ASSERT(conn >= 0 && conn < s->opt.n_places);
    struct place *p = &s->places[conn];
    if (!p->wire)
        return;
    p->dropped = true;
    tsr_wire_finish(p->wire);
}

void tsr_server_close(struct tsr_server *s) {
    if (!s)
        return;
    s->closing = true;
    uv_close((uv_handle_t *)s->listener, free_handle);
    for (int i = 0; i < s->opt.n_places; i++)
        if (s->places[i].wire)
            tsr_wire_finish(s->places[i].wire);
    free_when_closed(s);
}

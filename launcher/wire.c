#include "launcher/wire.h"

#include <netdb.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { READ_BYTES = 1 << 16, KEEPALIVE_S = 30 };
enum state { OPEN, FINISHING, CLOSED };

struct tsr_wire {
    struct tsr_wire_opt opt;
    uv_tcp_t tcp;
    uv_timer_t timer; // the handshake's deadline, later that of finishing
    uv_connect_t connect;
    uv_write_t write;
    uv_shutdown_t shutdown;
    struct tsr_session *session;
    struct tsr_buf out, writing; // queued; handed to the kernel
    enum state state;
    bool connected, refused_by_owner, shut;
    int n_handles; // not closed yet
    int code;
    char text[512];
};

static void on_handle_closed(uv_handle_t *h) {
    struct tsr_wire *w = h->data;
    if (--w->n_handles > 0)
        return;
    if (w->code < 0)
        tsr_fail((enum tsr_code)w->code, "%s", w->text);
    w->opt.ended(w->opt.arg, w->code);
    tsr_session_close(w->session);
    tsr_buf_free(&w->out);
    tsr_buf_free(&w->writing);
    free(w);
}

static void close_now(struct tsr_wire *w) {
    if (w->state == CLOSED)
        return;
    w->state = CLOSED;
    uv_close((uv_handle_t *)&w->tcp, on_handle_closed);
    uv_close((uv_handle_t *)&w->timer, on_handle_closed);
}

// Keeps the sentence that was recorded last; the first cause of an end is the one that counts.
static void keep_cause(struct tsr_wire *w, int code) {
    if (w->code == 0 && w->state == OPEN) {
        w->code = code;
        snprintf(w->text, sizeof w->text, "%s", tsr_error_text());
    }
}

static void end(struct tsr_wire *w, int code) {
    keep_cause(w, code);
    close_now(w);
}

static void on_timer(uv_timer_t *t) {
    struct tsr_wire *w = t->data;
    end(w, tsr_fail(TSR_ETIMEOUT, "no handshake within %.1f s", w->opt.handshake_s));
}

static void on_shutdown(uv_shutdown_t *req, int status) {
    if (status < 0 && status != UV_ECANCELED)
        close_now(req->data);
}

static void flush(struct tsr_wire *w);

static void on_written(uv_write_t *req, int status) {
    struct tsr_wire *w = req->data;
    w->writing.len = 0;
    if (w->writing.cap > READ_BYTES) // a burst is over
        tsr_buf_free(&w->writing);
    if (status < 0 && status != UV_ECANCELED)
        end(w, tsr_fail(TSR_EPEER, "cannot write: %s", uv_strerror(status)));
    flush(w);
}

static void flush(struct tsr_wire *w) {
    if (w->state == CLOSED || !w->connected || w->writing.len > 0)
        return;
    if (w->out.len > 0) {
        struct tsr_buf empty = w->writing;
        w->writing = w->out;
        w->out = empty;
        uv_buf_t b = uv_buf_init(w->writing.data, (unsigned)w->writing.len);
        int rc = uv_write(&w->write, (uv_stream_t *)&w->tcp, &b, 1, on_written);
        if (rc < 0)
            end(w, tsr_fail(TSR_EPEER, "cannot write: %s", uv_strerror(rc)));
    } else if (w->state == FINISHING && !w->shut) {
        w->shut = true;
        if (uv_shutdown(&w->shutdown, (uv_stream_t *)&w->tcp, on_shutdown) < 0)
            close_now(w);
    }
}

static int on_frame(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_wire *w = arg;
    int rc = w->opt.message(w->opt.arg, type, m);
    w->refused_by_owner = rc < 0;
    return rc < 0 || w->state == OPEN ? rc : TSR_EPEER;
}

static void refuse(struct tsr_wire *w, int code) {
    keep_cause(w, code);
    if (code == TSR_EREQUEST && !w->refused_by_owner && w->opt.session.server &&
        tsr_session_ready(w->session)) {
        char reason[sizeof w->text];
        Tessera__Control__Refused r = TESSERA__CONTROL__REFUSED__INIT;
        tsr_frame_text(reason, sizeof reason, w->text);
        r.reason = reason;
        tsr_wire_send(w, TESSERA__CONTROL__FRAME_TYPE__FRAME_REFUSED, &r.base);
    }
    tsr_wire_finish(w);
}

static void on_alloc(uv_handle_t *h, size_t hint, uv_buf_t *b) {
    static _Thread_local char bytes[READ_BYTES]; // used up before the next read of this thread
    (void)h;
    (void)hint;
    *b = uv_buf_init(bytes, sizeof bytes);
}

static void on_read(uv_stream_t *s, ssize_t n, const uv_buf_t *b) {
    struct tsr_wire *w = s->data;
    if (n == 0 || w->state == CLOSED)
        return;
    if (n == UV_EOF || (n < 0 && w->state == FINISHING)) {
        close_now(w);
    } else if (n < 0) {
        end(w, tsr_fail(TSR_EPEER, "the connection broke: %s", uv_strerror((int)n)));
    } else if (w->state == OPEN) { // else: read and thrown away, as closing on unread bytes resets
        int rc = tsr_session_feed(w->session, b->base, (size_t)n, on_frame, w);
        if (rc < 0 && w->state == OPEN)
            refuse(w, rc);
    }
}

static int start(struct tsr_wire *w) {
    w->connected = true;
    uv_tcp_nodelay(&w->tcp, 1);
    uv_tcp_keepalive(&w->tcp, 1, KEEPALIVE_S);
    int rc = uv_read_start((uv_stream_t *)&w->tcp, on_alloc, on_read);
    if (rc == 0)
        flush(w);
    return rc;
}

int tsr_wire_open(struct tsr_wire **out, const struct tsr_wire_opt *opt) {
    struct tsr_wire *w = calloc(1, sizeof *w);
    if (!w)
        return tsr_fail(TSR_ENOMEM, "no memory for a connection");
    int rc = tsr_session_open(&w->session, &opt->session);
    if (rc < 0) {
        free(w);
        return rc;
    }
    w->opt = *opt;
    explicit_bzero(w->opt.session.secret, sizeof w->opt.session.secret);
    TSR_ASSERT(uv_tcp_init(opt->loop, &w->tcp) == 0);
    TSR_ASSERT(uv_timer_init(opt->loop, &w->timer) == 0);
    w->n_handles = 2;
    w->tcp.data = w->timer.data = w->connect.data = w->write.data = w->shutdown.data = w;
    uv_timer_start(&w->timer, on_timer, (uint64_t)(opt->handshake_s * 1e3), 0);
    *out = w;
    return 0;
}

void tsr_wire_accept(struct tsr_wire *w, uv_stream_t *listener) {
    int rc = uv_accept(listener, (uv_stream_t *)&w->tcp);
    if (rc == 0)
        rc = start(w);
    if (rc < 0)
        end(w, tsr_fail(TSR_EPEER, "cannot accept: %s", uv_strerror(rc)));
}

static void on_connected(uv_connect_t *req, int status) {
    struct tsr_wire *w = req->data;
    if (w->state == CLOSED)
        return;
    if (status == 0)
        status = start(w);
    if (status < 0)
        end(w, tsr_fail(TSR_EPEER, "cannot connect: %s", uv_strerror(status)));
}

void tsr_wire_connect(struct tsr_wire *w, const struct sockaddr *to) {
    int rc = uv_tcp_connect(&w->connect, &w->tcp, to, on_connected);
    if (rc < 0)
        end(w, tsr_fail(TSR_EPEER, "cannot connect: %s", uv_strerror(rc)));
}

void tsr_wire_established(struct tsr_wire *w) {
    if (w->state == OPEN)
        uv_timer_stop(&w->timer);
}

void tsr_wire_send(struct tsr_wire *w, uint16_t type, const ProtobufCMessage *m) {
    if (w->state != OPEN)
        return;
    int rc = tsr_session_seal(w->session, type, m, &w->out);
    if (rc == 0 && w->out.len + w->writing.len > TSR_WIRE_MAX_OUT)
        rc = tsr_fail(TSR_EPEER, "the peer left %zu bytes unread", w->out.len + w->writing.len);
    if (rc < 0)
        end(w, rc);
    else
        flush(w);
}

static void on_linger(uv_timer_t *t) {
    close_now(t->data);
}

void tsr_wire_finish(struct tsr_wire *w) {
    if (w->state != OPEN)
        return;
    if (!w->connected) {
        close_now(w);
        return;
    }
    w->state = FINISHING;
    uv_timer_start(&w->timer, on_linger, TSR_WIRE_LINGER_MS, 0);
    flush(w);
}

void tsr_wire_abort(struct tsr_wire *w) {
    close_now(w);
}

int tsr_wire_resolve(struct sockaddr_storage *out, const char *host, int port) {
    struct addrinfo want = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_NUMERICSERV}, *found;
    char service[16];
    snprintf(service, sizeof service, "%d", port);
    int rc = getaddrinfo(host, service, &want, &found);
    if (rc != 0)
        return tsr_fail(TSR_EUSAGE, "cannot resolve the host %.200s: %s", host, gai_strerror(rc));
    memset(out, 0, sizeof *out);
    memcpy(out, found->ai_addr, found->ai_addrlen);
    freeaddrinfo(found);
    return 0;
}

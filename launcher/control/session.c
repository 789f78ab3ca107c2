#include "launcher/control/session.h"

#include <string.h>
#include <openssl/crypto.h>
#include "core/error.h"
#include "launcher/control/check.h"
#include "launcher/control/hkdf.h"

enum {
    CHALLENGE = TESSERA__CONTROL__FRAME_TYPE__FRAME_CHALLENGE,
    HELLO = TESSERA__CONTROL__FRAME_TYPE__FRAME_HELLO,
    AT_MAC = TSR_FRAME_HEADER - TSR_MAC, // 16: what is before it is authenticated with the payload
    KEEP_BUFFER = 1 << 16,               // bytes that an idle connection may hold
};

// One direction of the connection.
struct direction {
    uint8_t key[TSR_SHA256];
    uint64_t next_id;
    unsigned sender; // enum tsr_frame_sender; 0: nothing may pass
};

struct tsr_session {
    bool server;
    bool ready;  // both nonces are known
    bool broken; // feed has failed
    uint8_t secret[TSR_SECRET], nonce[TSR_NONCE];
    uint8_t peer_nonce[TSR_NONCE]; // once a Challenge or Hello has come
    struct direction in, out;
    struct tsr_buf buf; // the frame that is arriving
};

struct header {
    uint32_t length;
    uint16_t type, flags;
    uint64_t id;
};

static uint64_t get_le(const uint8_t *p, int n) {
    uint64_t v = 0;
    while (n-- > 0)
        v = v << 8 | p[n];
    return v;
}

static void put_le(uint8_t *p, uint64_t v, int n) {
    for (int i = 0; i < n; i++, v >>= 8)
        p[i] = (uint8_t)v;
}

static void header_get(struct header *h, const uint8_t *p) {
    h->length = (uint32_t)get_le(p, 4);
    h->type = (uint16_t)get_le(p + 4, 2);
    h->flags = (uint16_t)get_le(p + 6, 2);
    h->id = get_le(p + 8, 8);
}

static void header_put(uint8_t *p, const struct header *h) {
    put_le(p, h->length, 4);
    put_le(p + 4, h->type, 2);
    put_le(p + 6, h->flags, 2);
    put_le(p + 8, h->id, 8);
}

// ---- keys (docs/protocol.md)

static int derive(uint8_t key[static TSR_SHA256], const struct tsr_session *s, const void *salt,
                  size_t n_salt, const char *info) {
    return tsr_hkdf_sha256(key, TSR_SHA256, s->secret, TSR_SECRET, salt, n_salt, info,
                           strlen(info));
}

// The client's first frame: fresh for this connection by the server's nonce.
static int derive_hello(struct tsr_session *s, struct direction *d,
                        const uint8_t server_nonce[static TSR_NONCE]) {
    return derive(d->key, s, server_nonce, TSR_NONCE, "tessera hello");
}

// Everything after the handshake. Both directions change or none.
static int derive_rest(struct tsr_session *s) {
    uint8_t salt[2 * TSR_NONCE], to_server[TSR_SHA256], to_client[TSR_SHA256];
    memcpy(salt, s->server ? s->nonce : s->peer_nonce, TSR_NONCE);
    memcpy(salt + TSR_NONCE, s->server ? s->peer_nonce : s->nonce, TSR_NONCE);
    int rc = derive(to_server, s, salt, sizeof salt, "tessera client to server");
    if (rc == 0)
        rc = derive(to_client, s, salt, sizeof salt, "tessera server to client");
    if (rc == 0) {
        memcpy(s->in.key, s->server ? to_server : to_client, TSR_SHA256);
        memcpy(s->out.key, s->server ? to_client : to_server, TSR_SHA256);
        s->ready = true;
    }
    OPENSSL_cleanse(to_server, sizeof to_server);
    OPENSSL_cleanse(to_client, sizeof to_client);
    return rc;
}

int tsr_session_open(struct tsr_session **out, const struct tsr_session_opt *opt) {
    struct tsr_session *s = calloc(1, sizeof *s);
    if (!s)
        return tsr_fail(TSR_ENOMEM, "out of memory: a session");
    s->server = opt->server;
    memcpy(s->secret, opt->secret, sizeof s->secret);
    memcpy(s->nonce, opt->nonce, sizeof s->nonce);
    s->in.sender = s->server ? TSR_FROM_CLIENT : TSR_FROM_COORDINATOR;
    s->out.sender = s->server ? TSR_FROM_COORDINATOR : TSR_FROM_CLIENT;
    int rc = derive(s->server ? s->out.key : s->in.key, s, NULL, 0, "tessera challenge");
    if (rc == 0 && s->server)
        rc = derive_hello(s, &s->in, s->nonce);
    if (rc < 0) {
        tsr_session_close(s);
        return rc;
    }
    *out = s;
    return 0;
}

void tsr_session_close(struct tsr_session *s) {
    if (!s)
        return;
    tsr_buf_free(&s->buf);
    OPENSSL_cleanse(s, sizeof *s);
    free(s);
}

const uint8_t *tsr_session_nonce(const struct tsr_session *s) {
    return s->nonce;
}

bool tsr_session_ready(const struct tsr_session *s) {
    return s->ready;
}

// ---- receiving

// What may come in this state, judged by the header alone.
static int check_header(const struct tsr_session *s, const struct header *h) {
    const uint16_t first = s->server ? HELLO : CHALLENGE;
    const uint32_t cap = s->in.next_id == 0 ? TSR_MAX_HANDSHAKE : TSR_MAX_PAYLOAD;
    const struct tsr_frame_kind *kind = tsr_frame_kind(h->type);
    if (h->length > cap)
        return tsr_fail(TSR_EREQUEST, "frame of %u bytes: expected at most %u", h->length, cap);
    if (!kind)
        return tsr_fail(TSR_EREQUEST, "unknown frame type %u", h->type);
    if (h->flags != 0)
        return tsr_fail(TSR_EREQUEST, "%s: expected no flags, found %u", tsr_frame_name(h->type),
                        h->flags);
    if (h->id != s->in.next_id)
        return tsr_fail(TSR_EREQUEST, "%s: expected frame %llu of this connection, found %llu",
                        tsr_frame_name(h->type), (unsigned long long)s->in.next_id,
                        (unsigned long long)h->id);
    if ((h->type == first) != (s->in.next_id == 0) || (h->id > 0 && !s->ready) ||
        !(kind->senders & s->in.sender))
        return tsr_fail(TSR_EREQUEST, "%s: not expected here", tsr_frame_name(h->type));
    return 0;
}

// Whether the frame in `p` has the HMAC that the key gives. The header moves to where the HMAC was,
// so that what is authenticated lies in one piece; both were read before.
static int check_mac(struct tsr_session *s, uint8_t *p, const struct header *h) {
    uint8_t found[TSR_MAC], expected[TSR_MAC];
    memcpy(found, p + AT_MAC, TSR_MAC);
    memcpy(p + TSR_FRAME_HEADER - AT_MAC, p, AT_MAC);
    TSR_TRY(tsr_hmac_sha256(expected, s->in.key, TSR_SHA256, p + TSR_FRAME_HEADER - AT_MAC,
                            AT_MAC + (size_t)h->length));
    if (CRYPTO_memcmp(found, expected, TSR_MAC) == 0)
        return 0;
    return tsr_fail(TSR_EREQUEST, "%s: its HMAC is wrong: %s", tsr_frame_name(h->type),
                    h->id == 0 ? "the peer has another run's key" : "the stream was altered");
}

// The peer's nonce moves the key schedule on, before fn sees the message.
static int take_handshake(struct tsr_session *s, const ProtobufCMessage *m) {
    const Tessera__Control__Challenge *challenge = (const void *)m;
    const Tessera__Control__Hello *hello = (const void *)m;
    const ProtobufCBinaryData *nonce = s->server ? &hello->nonce : &challenge->nonce;
    const uint32_t version = s->server ? hello->version : challenge->version;
    if (nonce->len != TSR_NONCE)
        return tsr_fail(TSR_EREQUEST, "%s.nonce: expected %d bytes, found %zu",
                        m->descriptor->short_name, TSR_NONCE, nonce->len);
    memcpy(s->peer_nonce, nonce->data, TSR_NONCE);
    if (s->server) {
        s->in.sender = 1u << hello->role; // an unknown role was refused with the payload
        TSR_TRY(derive_rest(s));
    } else {
        TSR_TRY(derive_hello(s, &s->out, s->peer_nonce));
    }
    if (version != TSR_PROTOCOL_VERSION)
        return tsr_fail(TSR_EREQUEST, "%s.version: expected %d, found %u",
                        m->descriptor->short_name, TSR_PROTOCOL_VERSION, version);
    return 0;
}

static int take_frame(struct tsr_session *s, const struct header *h, tsr_frame_fn fn, void *arg) {
    uint8_t *p = (uint8_t *)s->buf.data;
    struct tsr_unpack_alloc a;
    ProtobufCMessage *m;
    TSR_TRY(check_mac(s, p, h));
    TSR_TRY(tsr_frame_unpack(tsr_frame_kind(h->type), p + TSR_FRAME_HEADER, h->length, &a, &m));
    s->in.next_id++;
    s->buf.len = 0;
    if (s->buf.cap > KEEP_BUFFER)
        tsr_buf_free(&s->buf);
    int rc = h->id == 0 ? take_handshake(s, m) : 0;
    if (rc == 0)
        rc = fn(arg, h->type, m);
    protobuf_c_message_free_unpacked(m, &a.base);
    TSR_ASSERT(a.used == 0);
    return rc < 0 ? rc : 0;
}

// Moves bytes out of *data until the present frame has `need`, or no more have come.
static int take_bytes(struct tsr_session *s, const uint8_t **data, size_t *n_bytes, size_t need) {
    const size_t missing = need - s->buf.len;
    const size_t n = *n_bytes < missing ? *n_bytes : missing;
    TSR_TRY(tsr_buf_append(&s->buf, *data, n));
    *data += n;
    *n_bytes -= n;
    return 0;
}

static int feed(struct tsr_session *s, const uint8_t *data, size_t n_bytes, tsr_frame_fn fn,
                void *arg) {
    while (n_bytes > 0) {
        const bool fresh = s->buf.len < TSR_FRAME_HEADER;
        struct header h;
        if (fresh)
            TSR_TRY(take_bytes(s, &data, &n_bytes, TSR_FRAME_HEADER));
        if (s->buf.len < TSR_FRAME_HEADER)
            break;
        header_get(&h, (const uint8_t *)s->buf.data);
        if (fresh)
            TSR_TRY(check_header(s, &h));
        TSR_TRY(take_bytes(s, &data, &n_bytes, TSR_FRAME_HEADER + (size_t)h.length));
        if (s->buf.len == TSR_FRAME_HEADER + (size_t)h.length)
            TSR_TRY(take_frame(s, &h, fn, arg));
    }
    return 0;
}

int tsr_session_feed(struct tsr_session *s, const void *data, size_t n_bytes, tsr_frame_fn fn,
                     void *arg) {
    if (s->broken)
        return tsr_fail(TSR_EREQUEST, "bytes after a frame that was refused");
    int rc = feed(s, data, n_bytes, fn, arg);
    if (rc < 0) {
        s->broken = true;
        tsr_buf_free(&s->buf);
    }
    return rc;
}

// ---- sending

static int check_order(const struct tsr_session *s, uint16_t type) {
    const uint16_t first = s->server ? CHALLENGE : HELLO;
    const bool may_begin = s->server || s->in.next_id > 0;
    if ((type == first) == (s->out.next_id == 0) && (type == first ? may_begin : s->ready))
        return 0;
    return tsr_fail(TSR_EREQUEST, "%s: cannot be sent yet, or again", tsr_frame_name(type));
}

// A Challenge or a Hello must carry the nonce that the keys come from.
static void assert_handshake(const struct tsr_session *s, const ProtobufCMessage *m) {
    const Tessera__Control__Challenge *challenge = (const void *)m;
    const Tessera__Control__Hello *hello = (const void *)m;
    const ProtobufCBinaryData *nonce = s->server ? &challenge->nonce : &hello->nonce;
    TSR_ASSERT(nonce->len == TSR_NONCE && memcmp(nonce->data, s->nonce, TSR_NONCE) == 0);
}

// The checks that the receiver will make.
static int check_payload(const struct tsr_frame_kind *kind, const uint8_t *payload,
                         size_t n_bytes) {
    struct tsr_unpack_alloc a;
    ProtobufCMessage *m;
    TSR_TRY(tsr_frame_unpack(kind, payload, n_bytes, &a, &m));
    protobuf_c_message_free_unpacked(m, &a.base);
    return 0;
}

static int write_frame(const struct tsr_session *s, uint8_t *p, const struct tsr_frame_kind *kind,
                       const ProtobufCMessage *m, size_t n) {
    const struct header h = {.length = (uint32_t)n, .type = kind->type, .id = s->out.next_id};
    uint8_t mac[TSR_MAC];
    TSR_ASSERT(protobuf_c_message_pack(m, p + TSR_FRAME_HEADER) == n);
    TSR_TRY(check_payload(kind, p + TSR_FRAME_HEADER, n));
    header_put(p + TSR_FRAME_HEADER - AT_MAC, &h); // first where the HMAC wants it
    TSR_TRY(
        tsr_hmac_sha256(mac, s->out.key, TSR_SHA256, p + TSR_FRAME_HEADER - AT_MAC, AT_MAC + n));
    header_put(p, &h);
    memcpy(p + AT_MAC, mac, TSR_MAC);
    return 0;
}

int tsr_session_seal(struct tsr_session *s, uint16_t type, const ProtobufCMessage *m,
                     struct tsr_buf *out) {
    const struct tsr_frame_kind *kind = tsr_frame_kind(type);
    TSR_ASSERT(kind && m->descriptor == kind->descriptor && (kind->senders & s->out.sender));
    TSR_TRY(check_order(s, type));
    const bool handshake = s->out.next_id == 0;
    const size_t n = protobuf_c_message_get_packed_size(m), before = out->len;
    const size_t cap = handshake ? TSR_MAX_HANDSHAKE : TSR_MAX_PAYLOAD;
    if (handshake)
        assert_handshake(s, m);
    if (n > cap)
        return tsr_fail(TSR_EREQUEST, "%s of %zu bytes: expected at most %zu", tsr_frame_name(type),
                        n, cap);
    uint8_t *p = malloc(TSR_FRAME_HEADER + n);
    if (!p)
        return tsr_fail(TSR_ENOMEM, "out of memory: a frame of %zu bytes", n);
    int rc = write_frame(s, p, kind, m, n);
    if (rc == 0)
        rc = tsr_buf_append(out, p, TSR_FRAME_HEADER + n);
    free(p);
    if (rc == 0 && handshake && !s->server) {
        rc = derive_rest(s);
        s->out.sender = rc == 0 ? 1u << ((const Tessera__Control__Hello *)m)->role : s->out.sender;
    }
    if (rc < 0)
        out->len = before;
    else
        s->out.next_id++;
    return rc;
}

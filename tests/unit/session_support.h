// Two ends of a control connection without sockets, and frames made by hand: the key schedule and
// the frame layout once more, written from docs/protocol.md over other OpenSSL calls than
// launcher/control uses.
#ifndef TSR_TESTS_SESSION_SUPPORT_H
#define TSR_TESTS_SESSION_SUPPORT_H

#include <stdlib.h>
#include <string.h>
#include <openssl/core_names.h>
#include <openssl/evp.h>
#include <openssl/kdf.h>
#include <openssl/params.h>
#include "core/error.h"
#include "launcher/control/session.h"

#define FRAME(name) TESSERA__CONTROL__FRAME_TYPE__FRAME_##name
#define ROLE(name)  TESSERA__CONTROL__ROLE__ROLE_##name

// ---- what a receiver was given

struct sink {
    int n, rc; // rc: what the callback returns
    uint16_t type;
    struct tsr_buf packed; // the last message again
};

static inline int sink_fn(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct sink *k = arg;
    const size_t n = protobuf_c_message_get_packed_size(m);
    TSR_ASSERT(protobuf_c_message_check(m));
    uint8_t *p = malloc(n + 1);
    TSR_ASSERT(p && protobuf_c_message_pack(m, p) == n);
    k->n++;
    k->type = type;
    k->packed.len = 0;
    TSR_ASSERT(tsr_buf_append(&k->packed, p, n) == 0);
    free(p);
    return k->rc;
}

// ---- frames by hand

struct end_keys {
    uint8_t challenge[32], hello[32], to_server[32], to_client[32];
};

static inline void key_of(uint8_t out[32], const uint8_t secret[32], const void *salt,
                          size_t n_salt, const char *info) {
    EVP_KDF *kdf = EVP_KDF_fetch(NULL, "HKDF", NULL);
    EVP_KDF_CTX *ctx = EVP_KDF_CTX_new(kdf);
    OSSL_PARAM p[5], *at = p;
    *at++ = OSSL_PARAM_construct_utf8_string(OSSL_KDF_PARAM_DIGEST, (char[]){"SHA256"}, 0);
    *at++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_KEY, (void *)(uintptr_t)secret, 32);
    *at++ = OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_INFO, (void *)(uintptr_t)info,
                                              strlen(info));
    if (n_salt > 0)
        *at++ =
            OSSL_PARAM_construct_octet_string(OSSL_KDF_PARAM_SALT, (void *)(uintptr_t)salt, n_salt);
    *at = OSSL_PARAM_construct_end();
    TSR_ASSERT(EVP_KDF_derive(ctx, out, 32, p) == 1);
    EVP_KDF_CTX_free(ctx);
    EVP_KDF_free(kdf);
}

static inline struct end_keys keys_of(const uint8_t secret[32], const uint8_t server_nonce[32],
                                      const uint8_t client_nonce[32]) {
    struct end_keys k;
    uint8_t both[64];
    memcpy(both, server_nonce, 32);
    memcpy(both + 32, client_nonce, 32);
    key_of(k.challenge, secret, NULL, 0, "tessera challenge");
    key_of(k.hello, secret, server_nonce, 32, "tessera hello");
    key_of(k.to_server, secret, both, 64, "tessera client to server");
    key_of(k.to_client, secret, both, 64, "tessera server to client");
    return k;
}

static inline void store_le(uint8_t *p, uint64_t v, int n) {
    for (int i = 0; i < n; i++)
        p[i] = (uint8_t)(v >> 8 * i);
}

// A frame with any header and the HMAC that fits it. `length` is what the header says.
static inline void forge_as(struct tsr_buf *out, const uint8_t key[32], uint32_t length,
                            uint16_t type, uint16_t flags, uint64_t id, const void *payload,
                            size_t n) {
    uint8_t head[48];
    size_t n_mac = 0;
    store_le(head, length, 4);
    store_le(head + 4, type, 2);
    store_le(head + 6, flags, 2);
    store_le(head + 8, id, 8);
    EVP_MAC *mac = EVP_MAC_fetch(NULL, "HMAC", NULL);
    EVP_MAC_CTX *ctx = EVP_MAC_CTX_new(mac);
    OSSL_PARAM p[2] = {
        OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char[]){"SHA256"}, 0),
        OSSL_PARAM_construct_end()};
    TSR_ASSERT(EVP_MAC_init(ctx, key, 32, p) == 1 && EVP_MAC_update(ctx, head, 16) == 1 &&
               EVP_MAC_update(ctx, payload, n) == 1 &&
               EVP_MAC_final(ctx, head + 16, &n_mac, 32) == 1 && n_mac == 32);
    EVP_MAC_CTX_free(ctx);
    EVP_MAC_free(mac);
    TSR_ASSERT(tsr_buf_append(out, head, sizeof head) == 0 && tsr_buf_append(out, payload, n) == 0);
}

static inline void forge(struct tsr_buf *out, const uint8_t key[32], uint16_t type, uint64_t id,
                         const void *payload, size_t n) {
    forge_as(out, key, (uint32_t)n, type, 0, id, payload, n);
}

// ---- a connection

struct pair {
    struct tsr_session *client, *server;
    uint8_t secret[32], client_nonce[32], server_nonce[32];
    struct end_keys keys;
    struct tsr_buf to_server, to_client; // bytes on their way
    struct sink at_server, at_client;
};

static inline void pair_open(struct pair *p, uint8_t seed) {
    struct tsr_session_opt opt = {0};
    *p = (struct pair){0};
    memset(p->secret, 7, sizeof p->secret);
    memset(p->client_nonce, seed, sizeof p->client_nonce);
    memset(p->server_nonce, seed ^ 0xff, sizeof p->server_nonce);
    memcpy(opt.secret, p->secret, sizeof opt.secret);
    memcpy(opt.nonce, p->client_nonce, sizeof opt.nonce);
    TSR_ASSERT(tsr_session_open(&p->client, &opt) == 0);
    opt.server = true;
    memcpy(opt.nonce, p->server_nonce, sizeof opt.nonce);
    TSR_ASSERT(tsr_session_open(&p->server, &opt) == 0);
    p->keys = keys_of(p->secret, p->server_nonce, p->client_nonce);
}

static inline void pair_close(struct pair *p) {
    tsr_session_close(p->client);
    tsr_session_close(p->server);
    tsr_buf_free(&p->to_server);
    tsr_buf_free(&p->to_client);
    tsr_buf_free(&p->at_server.packed);
    tsr_buf_free(&p->at_client.packed);
}

static inline int pair_challenge(struct pair *p, struct tsr_buf *out) {
    Tessera__Control__Challenge m = TESSERA__CONTROL__CHALLENGE__INIT;
    m.version = TSR_PROTOCOL_VERSION;
    m.nonce = (ProtobufCBinaryData){32, p->server_nonce};
    m.epoch = 3;
    return tsr_session_seal(p->server, FRAME(CHALLENGE), &m.base, out);
}

static inline int pair_hello(struct pair *p, Tessera__Control__Role role, struct tsr_buf *out) {
    Tessera__Control__Hello m = TESSERA__CONTROL__HELLO__INIT;
    m.version = TSR_PROTOCOL_VERSION;
    m.nonce = (ProtobufCBinaryData){32, p->client_nonce};
    m.role = role;
    m.epoch = 3;
    m.host = (char[]){"host-1"};
    return tsr_session_seal(p->client, FRAME(HELLO), &m.base, out);
}

static inline int to_server(struct pair *p) {
    int rc =
        tsr_session_feed(p->server, p->to_server.data, p->to_server.len, sink_fn, &p->at_server);
    p->to_server.len = 0;
    return rc;
}

static inline int to_client(struct pair *p) {
    int rc =
        tsr_session_feed(p->client, p->to_client.data, p->to_client.len, sink_fn, &p->at_client);
    p->to_client.len = 0;
    return rc;
}

// Open, and through the handshake.
static inline void pair_shake(struct pair *p, Tessera__Control__Role role, uint8_t seed) {
    pair_open(p, seed);
    TSR_ASSERT(pair_challenge(p, &p->to_client) == 0 && to_client(p) == 0);
    TSR_ASSERT(pair_hello(p, role, &p->to_server) == 0 && to_server(p) == 0);
    TSR_ASSERT(p->at_client.n == 1 && p->at_server.n == 1);
}

static inline int seal_heartbeat(struct pair *p, uint64_t step, struct tsr_buf *out) {
    Tessera__Control__Heartbeat m = TESSERA__CONTROL__HEARTBEAT__INIT;
    m.step = step;
    m.phase = TESSERA__CONTROL__PHASE__PHASE_FORWARD;
    m.collective = 1000 * step;
    return tsr_session_seal(p->client, FRAME(HEARTBEAT), &m.base, out);
}

static inline int seal_pulse(struct pair *p, uint64_t committed, struct tsr_buf *out) {
    Tessera__Control__Pulse m = TESSERA__CONTROL__PULSE__INIT;
    m.committed_step = committed;
    return tsr_session_seal(p->server, FRAME(PULSE), &m.base, out);
}

#endif

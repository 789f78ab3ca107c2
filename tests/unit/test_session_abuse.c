// A hostile or broken peer, and somebody on the wire: nothing of theirs reaches the callback, and
// the session is over after the first wrong frame.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include <malloc.h>
#include "tests/unit/session_support.h"

// The server refuses, for a reason that has `why` in it, gives nothing to the callback, and takes
// nothing afterwards.
static void refused_by_server(struct pair *p, const char *why) {
    const int before = p->at_server.n;
    assert_int_equal(to_server(p), TSR_EREQUEST);
    if (!strstr(tsr_error_text(), why))
        fail_msg("expected \"...%s...\", found \"%s\"", why, tsr_error_text());
    assert_int_equal(p->at_server.n, before);
    forge(&p->to_server, p->keys.to_server, FRAME(HEARTBEAT), 1, "", 0);
    assert_int_equal(to_server(p), TSR_EREQUEST);
    assert_int_equal(p->at_server.n, before);
}

static void refused_by_client(struct pair *p, const char *why) {
    const int before = p->at_client.n;
    assert_int_equal(to_client(p), TSR_EREQUEST);
    if (!strstr(tsr_error_text(), why))
        fail_msg("expected \"...%s...\", found \"%s\"", why, tsr_error_text());
    assert_int_equal(p->at_client.n, before);
}

static void wrong_key(void **state) {
    (void)state;
    struct pair p, other;
    struct tsr_session_opt opt = {.server = true};
    pair_open(&p, 1);
    memset(opt.secret, 8, sizeof opt.secret);
    memcpy(opt.nonce, p.server_nonce, sizeof opt.nonce);
    tsr_session_close(p.server);
    assert_int_equal(tsr_session_open(&p.server, &opt), 0);
    assert_int_equal(pair_challenge(&p, &p.to_client), 0);
    refused_by_client(&p, "another run's key");
    assert_int_equal(pair_hello(&p, ROLE(RANK), &p.to_server), TSR_EREQUEST);

    pair_open(&other, 1); // a client that pays no attention to that
    assert_int_equal(pair_challenge(&other, &other.to_client), 0);
    assert_int_equal(to_client(&other), 0);
    assert_int_equal(pair_hello(&other, ROLE(RANK), &p.to_server), 0);
    assert_int_equal(pair_challenge(&p, &p.to_client), TSR_EREQUEST);
    refused_by_server(&p, "another run's key");
    assert_false(tsr_session_ready(p.server));
    pair_close(&other);
    pair_close(&p);
}

static void any_flipped_bit(void **state) {
    (void)state;
    struct tsr_buf frame = {0};
    for (size_t bit = 0, n_bits = 1; bit < n_bits; bit++) {
        struct pair p;
        pair_shake(&p, ROLE(RANK), 1);
        frame.len = 0;
        assert_int_equal(seal_heartbeat(&p, 77, &frame), 0);
        n_bits = 8 * frame.len;
        frame.data[bit / 8] ^= (char)(1 << bit % 8);
        int rc = tsr_session_feed(p.server, frame.data, frame.len, sink_fn, &p.at_server);
        if (rc == 0) { // the length grew: the rest of the frame is still to come
            assert_true(bit < 20);
            TSR_ASSERT(tsr_buf_append(&p.to_server, (char[1 << 20]){0}, 1 << 20) == 0);
            rc = to_server(&p);
        }
        assert_int_equal(rc, TSR_EREQUEST);
        assert_int_equal(p.at_server.n, 1);
        pair_close(&p);
    }
    tsr_buf_free(&frame);
}

static void any_flipped_bit_of_the_handshake(void **state) {
    (void)state;
    struct tsr_buf frame = {0};
    for (int server = 0; server < 2; server++)
        for (size_t bit = 0, n_bits = 1; bit < n_bits; bit++) {
            struct pair p;
            pair_open(&p, 1);
            frame.len = 0;
            assert_int_equal(pair_challenge(&p, server ? &p.to_client : &frame), 0);
            if (server)
                assert_true(to_client(&p) == 0 && pair_hello(&p, ROLE(RANK), &frame) == 0);
            n_bits = 8 * frame.len;
            frame.data[bit / 8] ^= (char)(1 << bit % 8);
            TSR_ASSERT(tsr_buf_append(&frame, (char[4096]){0}, 4096) == 0); // for a longer length
            assert_int_equal(tsr_session_feed(server ? p.server : p.client, frame.data, frame.len,
                                              sink_fn, server ? &p.at_server : &p.at_client),
                             TSR_EREQUEST);
            assert_int_equal(p.at_client.n, server);
            assert_int_equal(p.at_server.n, 0);
            assert_false(server ? tsr_session_ready(p.server) : tsr_session_ready(p.client));
            pair_close(&p);
        }
    tsr_buf_free(&frame);
}

static void replayed_frame(void **state) {
    (void)state;
    struct pair p;
    pair_shake(&p, ROLE(RANK), 1);
    assert_int_equal(seal_heartbeat(&p, 1, &p.to_server), 0);
    const size_t n = p.to_server.len;
    assert_int_equal(to_server(&p), 0);
    p.to_server.len = n; // the same bytes again
    refused_by_server(&p, "expected frame 2 of this connection, found 1");
    pair_close(&p);
}

// In one piece or two: swapped frames, and one that is left out.
static void reordered_and_dropped_frames(void **state) {
    (void)state;
    for (int dropped = 0; dropped < 2; dropped++) {
        struct pair p;
        struct tsr_buf first = {0};
        pair_shake(&p, ROLE(RANK), 1);
        assert_int_equal(seal_heartbeat(&p, 1, &first), 0);
        assert_int_equal(seal_heartbeat(&p, 2, &p.to_server), 0);
        if (!dropped)
            assert_int_equal(tsr_buf_append(&p.to_server, first.data, first.len), 0);
        refused_by_server(&p, "expected frame 1 of this connection, found 2");
        tsr_buf_free(&first);
        pair_close(&p);
    }
}

// Everything that was said on an earlier connection under the same secret, in order.
static void replayed_connection(void **state) {
    (void)state;
    struct pair old, p;
    struct tsr_buf recorded = {0};
    pair_open(&old, 1);
    assert_true(pair_challenge(&old, &old.to_client) == 0 && to_client(&old) == 0);
    assert_int_equal(pair_hello(&old, ROLE(RANK), &recorded), 0);
    const size_t n_hello = recorded.len;
    assert_int_equal(seal_heartbeat(&old, 1, &recorded), 0);

    pair_open(&p, 2);
    assert_int_equal(pair_challenge(&p, &p.to_client), 0);
    assert_int_equal(tsr_buf_append(&p.to_server, recorded.data, recorded.len), 0);
    refused_by_server(&p, "Hello: its HMAC is wrong");
    pair_close(&p);

    pair_shake(&p, ROLE(RANK), 2); // after an honest handshake: the old frame with the right id
    assert_int_equal(tsr_buf_append(&p.to_server, recorded.data + n_hello, recorded.len - n_hello),
                     0);
    refused_by_server(&p, "Heartbeat: its HMAC is wrong");
    pair_close(&p);
    tsr_buf_free(&recorded);
    pair_close(&old);
}

// Someone without the secret who replays a recorded Challenge gets a Hello, and can't go on.
static void replayed_challenge(void **state) {
    (void)state;
    struct pair old, p;
    struct tsr_buf pulse = {0};
    pair_shake(&old, ROLE(RANK), 1);
    assert_int_equal(seal_pulse(&old, 5, &pulse), 0);
    pair_open(&p, 2);
    memcpy(p.server_nonce, old.server_nonce, 32);
    tsr_session_close(old.server);
    struct tsr_session_opt opt = {.server = true};
    memcpy(opt.secret, old.secret, 32);
    memcpy(opt.nonce, old.server_nonce, 32);
    assert_int_equal(tsr_session_open(&old.server, &opt), 0);
    assert_int_equal(pair_challenge(&old, &p.to_client), 0); // the same bytes as recorded
    assert_int_equal(to_client(&p), 0);
    assert_int_equal(pair_hello(&p, ROLE(RANK), &p.to_server), 0);
    assert_int_equal(tsr_buf_append(&p.to_client, pulse.data, pulse.len), 0);
    refused_by_client(&p, "Pulse: its HMAC is wrong");
    tsr_buf_free(&pulse);
    pair_close(&p);
    pair_close(&old);
}

// A frame sent back to who sealed it: Stop may go both ways, the keys differ.
static void reflected_frame(void **state) {
    (void)state;
    struct pair p;
    Tessera__Control__Stop stop = TESSERA__CONTROL__STOP__INIT;
    pair_shake(&p, ROLE(SUPERVISOR), 1);
    assert_int_equal(tsr_session_seal(p.client, FRAME(STOP), &stop.base, &p.to_client), 0);
    refused_by_client(&p, "Stop: its HMAC is wrong");
    assert_int_equal(tsr_session_seal(p.server, FRAME(STOP), &stop.base, &p.to_server), 0);
    refused_by_server(&p, "Stop: its HMAC is wrong");
    pair_close(&p);
}

// The keys of the other phases and direction, with every id right.
static void key_of_another_phase(void **state) {
    (void)state;
    for (int i = 0; i < 3; i++) {
        struct pair p;
        pair_shake(&p, ROLE(RANK), 1);
        const uint8_t *keys[] = {p.keys.challenge, p.keys.hello, p.keys.to_client};
        forge(&p.to_server, keys[i], FRAME(HEARTBEAT), 1, "", 0);
        refused_by_server(&p, "HMAC is wrong");
        pair_close(&p);
    }
}

// With the right key, so that only the header is to blame: refused from 48 bytes, before anything
// of the payload has come.
static void bad_headers(void **state) {
    (void)state;
    static const struct {
        uint32_t length;
        uint16_t type, flags;
        uint64_t id;
        const char *why;
    } cases[] = {
        {UINT32_MAX, FRAME(HEARTBEAT), 0, 1, "4294967295 bytes: expected at most 1048576"},
        {TSR_MAX_PAYLOAD + 1, FRAME(HEARTBEAT), 0, 1, "1048577 bytes: expected at most 1048576"},
        {0, FRAME(NONE), 0, 1, "unknown frame type 0"},
        {0, 13, 0, 1, "unknown frame type 13"},
        {0, 41, 0, 1, "unknown frame type 41"},
        {0, 65535, 0, 1, "unknown frame type 65535"},
        {0, FRAME(HEARTBEAT), 1, 1, "expected no flags, found 1"},
        {0, FRAME(HEARTBEAT), 0x8000, 1, "expected no flags, found 32768"},
        {0, FRAME(HEARTBEAT), 0, 0, "expected frame 1 of this connection, found 0"},
        {0, FRAME(HEARTBEAT), 0, UINT64_MAX, "expected frame 1 of this connection"},
        {0, FRAME(HELLO), 0, 1, "Hello: not expected here"},
        {0, FRAME(CHALLENGE), 0, 1, "Challenge: not expected here"},
        {0, FRAME(WELCOME), 0, 1, "Welcome: not expected here"},
        {0, FRAME(SAVE_WRITE), 0, 1, "SaveWrite: not expected here"},
        {0, FRAME(STATUS_REQUEST), 0, 1, "StatusRequest: not expected here"}, // of a rank
        {0, FRAME(STOP), 0, 1, "Stop: not expected here"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pair p;
        pair_shake(&p, ROLE(RANK), 1);
        forge_as(&p.to_server, p.keys.to_server, cases[i].length, cases[i].type, cases[i].flags,
                 cases[i].id, "", 0);
        refused_by_server(&p, cases[i].why);
        pair_close(&p);
    }
}

// A role may send its own frames only.
static void frames_of_another_role(void **state) {
    (void)state;
    size_t n, n_refused = 0;
    const struct tsr_frame_kind *kinds = tsr_frame_kinds(&n);
    for (int role = ROLE(RANK); role <= (int)ROLE(SUPERVISOR); role++)
        for (size_t i = 0; i < n; i++) {
            struct pair p;
            if (kinds[i].type != FRAME(HELLO) && kinds[i].senders & 1u << role)
                continue;
            pair_shake(&p, (Tessera__Control__Role)role, 1);
            forge(&p.to_server, p.keys.to_server, kinds[i].type, 1, "", 0);
            refused_by_server(&p, "not expected here");
            pair_close(&p);
            n_refused++;
        }
    assert_int_equal(n_refused, 3 * 21 - 13);
}

// Before the peer has proved anything it can't make us hold more than a handshake.
static void before_the_handshake(void **state) {
    (void)state;
    static const struct {
        uint16_t type;
        uint32_t length;
        const char *why;
    } cases[] = {
        {FRAME(HELLO), TSR_MAX_HANDSHAKE + 1, "expected at most 4096"},
        {FRAME(HELLO), UINT32_MAX, "expected at most 4096"},
        {FRAME(HEARTBEAT), 0, "Heartbeat: not expected here"},
        {FRAME(SHARD_MAP), 4000, "ShardMap: not expected here"},
        {FRAME(CHALLENGE), 0, "Challenge: not expected here"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct pair p;
        pair_open(&p, 1);
        forge_as(&p.to_server, p.keys.hello, cases[i].length, cases[i].type, 0, 0, "", 0);
        refused_by_server(&p, cases[i].why);
        pair_close(&p);
        pair_open(&p, 1);
        forge_as(&p.to_client, p.keys.challenge, cases[i].length,
                 cases[i].type == FRAME(HELLO)       ? FRAME(CHALLENGE)
                 : cases[i].type == FRAME(CHALLENGE) ? FRAME(WELCOME)
                                                     : cases[i].type,
                 0, 0, "", 0);
        refused_by_client(&p, strstr(cases[i].why, "4096") ? cases[i].why : "not expected here");
        pair_close(&p);
    }
}

static void bad_handshakes(void **state) {
    (void)state;
    static const size_t nonce_bytes[] = {0, 31, 33};
    for (int i = 0; i < 6; i++) {
        struct pair p;
        uint8_t packed[256];
        Tessera__Control__Hello m = TESSERA__CONTROL__HELLO__INIT;
        pair_open(&p, 1);
        m.version = i == 3 ? 2 : i == 4 ? 0 : 1;
        m.nonce = (ProtobufCBinaryData){i < 3 ? nonce_bytes[i] : 32, packed + 200};
        m.role = (Tessera__Control__Role)(i == 5 ? 3 : 0);
        memset(packed + 200, 1, 33);
        const size_t n = protobuf_c_message_pack(&m.base, packed);
        assert_int_equal(pair_challenge(&p, &p.to_client), 0);
        forge(&p.to_server, p.keys.hello, FRAME(HELLO), 0, packed, n);
        refused_by_server(&p, i < 3   ? "Hello.nonce: expected 32 bytes"
                              : i < 5 ? "Hello.version: expected 1"
                                      : "Hello.role");
        // Another version is told so; the others can't be.
        assert_int_equal(tsr_session_ready(p.server), i == 3 || i == 4);
        assert_int_equal(seal_pulse(&p, 1, &p.to_client), i == 3 || i == 4 ? 0 : TSR_EREQUEST);
        pair_close(&p);
    }
}

// A torn frame reaches nobody, at any length; its bytes are held, not more.
static void torn_frames(void **state) {
    (void)state;
    struct pair p;
    struct tsr_buf frame = {0};
    pair_shake(&p, ROLE(RANK), 1);
    assert_int_equal(seal_heartbeat(&p, 1, &frame), 0);
    for (size_t i = 0; i + 1 < frame.len; i++) {
        assert_int_equal(tsr_session_feed(p.server, frame.data + i, 1, sink_fn, &p.at_server), 0);
        assert_int_equal(p.at_server.n, 1);
    }
    pair_close(&p); // in the middle of a frame

    // 1,000 peers that announce the largest frame, send its header and nothing more
    struct tsr_session *held[1000];
    struct tsr_session_opt opt = {.server = true};
    struct tsr_buf header = {0};
    uint8_t nonce[32] = {0};
    struct end_keys keys = keys_of(opt.secret, nonce, nonce);
    forge_as(&header, keys.hello, TSR_MAX_HANDSHAKE, FRAME(HELLO), 0, 0, "", 0);
    const size_t before = mallinfo2().uordblks;
    for (int i = 0; i < 1000; i++) {
        assert_int_equal(tsr_session_open(&held[i], &opt), 0);
        assert_int_equal(tsr_session_feed(held[i], header.data, header.len, sink_fn, NULL), 0);
    }
    assert_true(mallinfo2().uordblks - before < 1000 * 1024); // 0 under AddressSanitizer
    for (int i = 0; i < 1000; i++)
        tsr_session_close(held[i]);
    tsr_buf_free(&header);
    tsr_buf_free(&frame);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(wrong_key),
        cmocka_unit_test(any_flipped_bit),
        cmocka_unit_test(any_flipped_bit_of_the_handshake),
        cmocka_unit_test(replayed_frame),
        cmocka_unit_test(reordered_and_dropped_frames),
        cmocka_unit_test(replayed_connection),
        cmocka_unit_test(replayed_challenge),
        cmocka_unit_test(reflected_frame),
        cmocka_unit_test(key_of_another_phase),
        cmocka_unit_test(bad_headers),
        cmocka_unit_test(frames_of_another_role),
        cmocka_unit_test(before_the_handshake),
        cmocka_unit_test(bad_handshakes),
        cmocka_unit_test(torn_frames),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// A connection that goes well: handshake, keys, order, every kind of frame, pieces of any size;
// HKDF against the vectors of its RFC and against OpenSSL's own.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launcher/control/check.h"
#include "launcher/control/hkdf.h"
#include "tests/unit/session_support.h"

static void bytes_of(uint8_t *out, const char *hex) {
    for (; *hex; hex += 2) {
        unsigned v;
        assert_int_equal(sscanf(hex, "%2x", &v), 1);
        *out++ = (uint8_t)v;
    }
}

// RFC 5869, appendix A, test cases 1 and 3.
static void hkdf_vectors(void **state) {
    (void)state;
    uint8_t ikm[22], salt[13], info[10], okm[42], expected[42];
    memset(ikm, 0x0b, sizeof ikm);
    bytes_of(salt, "000102030405060708090a0b0c");
    bytes_of(info, "f0f1f2f3f4f5f6f7f8f9");
    assert_int_equal(tsr_hkdf_sha256(okm, 42, ikm, 22, salt, 13, info, 10), 0);
    bytes_of(expected, "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"
                       "34007208d5b887185865");
    assert_memory_equal(okm, expected, 42);
    assert_int_equal(tsr_hkdf_sha256(okm, 42, ikm, 22, NULL, 0, NULL, 0), 0);
    bytes_of(expected, "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d"
                       "9d201395faa4b61a96c8");
    assert_memory_equal(okm, expected, 42);
}

// The frames are those that docs/protocol.md describes: the same bytes come out of an independent
// writer, for each of the four keys.
static void frames_are_as_documented(void **state) {
    (void)state;
    struct pair p;
    struct tsr_buf sealed = {0}, made = {0};
    pair_open(&p, 1);
    assert_int_equal(pair_challenge(&p, &sealed), 0);
    forge(&made, p.keys.challenge, FRAME(CHALLENGE), 0, sealed.data + 48, sealed.len - 48);
    assert_int_equal(sealed.len, made.len);
    assert_memory_equal(sealed.data, made.data, made.len);
    assert_int_equal(tsr_session_feed(p.client, made.data, made.len, sink_fn, &p.at_client), 0);

    sealed.len = made.len = 0;
    assert_int_equal(pair_hello(&p, ROLE(RANK), &sealed), 0);
    forge(&made, p.keys.hello, FRAME(HELLO), 0, sealed.data + 48, sealed.len - 48);
    assert_memory_equal(sealed.data, made.data, made.len);
    assert_int_equal(tsr_session_feed(p.server, made.data, made.len, sink_fn, &p.at_server), 0);

    sealed.len = made.len = 0;
    for (uint64_t id = 1; id < 300; id++) {
        sealed.len = made.len = 0;
        assert_int_equal(seal_heartbeat(&p, id, &sealed), 0);
        forge(&made, p.keys.to_server, FRAME(HEARTBEAT), id, sealed.data + 48, sealed.len - 48);
        assert_memory_equal(sealed.data, made.data, made.len);
        sealed.len = made.len = 0;
        assert_int_equal(seal_pulse(&p, id, &sealed), 0);
        forge(&made, p.keys.to_client, FRAME(PULSE), id, sealed.data + 48, sealed.len - 48);
        assert_memory_equal(sealed.data, made.data, made.len);
    }
    tsr_buf_free(&sealed);
    tsr_buf_free(&made);
    pair_close(&p);
}

// Every kind from everybody who may send it: what arrives packs to the same bytes.
static void every_kind_both_ways(void **state) {
    (void)state;
    size_t n;
    const struct tsr_frame_kind *kinds = tsr_frame_kinds(&n);
    int seen = 0;
    for (int role = ROLE(RANK); role <= (int)ROLE(SUPERVISOR); role++) {
        struct pair p;
        pair_shake(&p, (Tessera__Control__Role)role, 1);
        for (size_t i = 2; i < n; i++) { // after Challenge and Hello
            ProtobufCMessage *m = calloc(1, kinds[i].descriptor->sizeof_message);
            assert_non_null(m);
            protobuf_c_message_init(kinds[i].descriptor, m);
            p.at_server.type = p.at_client.type = 0;
            if (kinds[i].senders & 1u << role) {
                assert_int_equal(tsr_session_seal(p.client, kinds[i].type, m, &p.to_server), 0);
                assert_int_equal(p.to_server.len, 48); // all defaults: an empty payload
                assert_int_equal(to_server(&p), 0);
                assert_int_equal(p.at_server.type, kinds[i].type);
                seen++;
            }
            if (kinds[i].senders & TSR_FROM_COORDINATOR) {
                assert_int_equal(tsr_session_seal(p.server, kinds[i].type, m, &p.to_client), 0);
                assert_int_equal(to_client(&p), 0);
                assert_int_equal(p.at_client.type, kinds[i].type);
                seen++;
            }
            free(m);
        }
        pair_close(&p);
    }
    assert_int_equal(seen, 10 + 1 + 2 + 3 * 10); // ranks, observers, supervisors, the coordinator
}

static void registry_is_complete(void **state) {
    (void)state;
    size_t n, n_known = 0;
    const struct tsr_frame_kind *kinds = tsr_frame_kinds(&n);
    const ProtobufCEnumDescriptor *types = &tessera__control__frame_type__descriptor;
    for (unsigned i = 0; i < types->n_values; i++)
        n_known += types->values[i].value != FRAME(NONE);
    assert_int_equal(n, n_known);
    for (size_t i = 0; i < n; i++) {
        assert_true(i == 0 || kinds[i - 1].type < kinds[i].type);
        assert_non_null(protobuf_c_enum_descriptor_get_value(types, kinds[i].type));
        assert_ptr_equal(tsr_frame_kind(kinds[i].type), &kinds[i]);
        assert_ptr_equal(tsr_frame_descriptor(kinds[i].type), kinds[i].descriptor);
        assert_true(kinds[i].senders != 0);
        for (size_t j = 0; j < i; j++)
            assert_ptr_not_equal(kinds[i].descriptor, kinds[j].descriptor);
    }
    assert_null(tsr_frame_descriptor(FRAME(NONE)));
    assert_null(tsr_frame_descriptor(13));
    assert_null(tsr_frame_descriptor(65535));
    assert_string_equal(tsr_frame_name(FRAME(HEARTBEAT)), "Heartbeat");
    assert_string_equal(tsr_frame_name(99), "frame of unknown type");
}

// A whole conversation in pieces of 1, 2, 3, ... bytes, which also join frames.
static void pieces_of_any_size(void **state) {
    (void)state;
    for (size_t piece = 1; piece < 200; piece += piece < 60 ? 1 : 13) {
        struct pair p;
        pair_open(&p, 1);
        assert_int_equal(pair_challenge(&p, &p.to_client), 0);
        for (size_t at = 0; at < p.to_client.len; at += piece) {
            const size_t n = p.to_client.len - at < piece ? p.to_client.len - at : piece;
            assert_int_equal(p.at_client.n, 0);
            assert_int_equal(
                tsr_session_feed(p.client, p.to_client.data + at, n, sink_fn, &p.at_client), 0);
        }
        assert_int_equal(p.at_client.n, 1);
        assert_int_equal(pair_hello(&p, ROLE(RANK), &p.to_server), 0);
        for (uint64_t i = 1; i <= 5; i++)
            assert_int_equal(seal_heartbeat(&p, i, &p.to_server), 0);
        for (size_t at = 0; at < p.to_server.len; at += piece) {
            const size_t n = p.to_server.len - at < piece ? p.to_server.len - at : piece;
            assert_int_equal(
                tsr_session_feed(p.server, p.to_server.data + at, n, sink_fn, &p.at_server), 0);
        }
        assert_int_equal(p.at_server.n, 6);
        assert_int_equal(tsr_session_feed(p.server, NULL, 0, sink_fn, &p.at_server), 0);
        pair_close(&p);
    }
}

static void order_of_sealing(void **state) {
    (void)state;
    struct pair p;
    struct tsr_buf out = {0};
    pair_open(&p, 1);
    assert_memory_equal(tsr_session_nonce(p.client), p.client_nonce, 32);
    assert_int_equal(seal_pulse(&p, 1, &out), TSR_EREQUEST); // before the Challenge
    assert_int_equal(pair_hello(&p, ROLE(RANK), &out), TSR_EREQUEST);
    assert_int_equal(seal_heartbeat(&p, 1, &out), TSR_EREQUEST);
    assert_int_equal(out.len, 0);
    assert_int_equal(pair_challenge(&p, &p.to_client), 0);
    assert_int_equal(pair_challenge(&p, &out), TSR_EREQUEST);
    assert_int_equal(seal_pulse(&p, 1, &out), TSR_EREQUEST); // before the Hello
    assert_int_equal(to_client(&p), 0);
    assert_int_equal(seal_heartbeat(&p, 1, &out), TSR_EREQUEST);
    assert_false(tsr_session_ready(p.client));
    assert_int_equal(pair_hello(&p, ROLE(RANK), &p.to_server), 0);
    assert_true(tsr_session_ready(p.client));
    assert_int_equal(pair_hello(&p, ROLE(RANK), &out), TSR_EREQUEST);
    assert_false(tsr_session_ready(p.server));
    assert_int_equal(to_server(&p), 0);
    assert_true(tsr_session_ready(p.server));
    assert_int_equal(pair_challenge(&p, &out), TSR_EREQUEST);
    assert_int_equal(out.len, 0);
    assert_int_equal(seal_heartbeat(&p, 1, &p.to_server), 0); // refusals used up no ids
    assert_int_equal(seal_pulse(&p, 1, &p.to_client), 0);
    assert_int_equal(to_server(&p), 0);
    assert_int_equal(to_client(&p), 0);
    tsr_buf_free(&out);
    pair_close(&p);
}

static int seal_reason(struct pair *p, const char *reason, size_t n, struct tsr_buf *out) {
    Tessera__Control__Refused m = TESSERA__CONTROL__REFUSED__INIT;
    char *text = strndup(reason, n);
    assert_non_null(text);
    m.reason = text;
    int rc = tsr_session_seal(p->server, FRAME(REFUSED), &m.base, out);
    free(text);
    return rc;
}

// What the peer would refuse isn't sent; the connection goes on.
static void sealing_checks_what_the_peer_checks(void **state) {
    (void)state;
    struct pair p;
    char text[TSR_MAX_TEXT + 8];
    Tessera__Checkpoint__RangeDigests r = TESSERA__CHECKPOINT__RANGE_DIGESTS__INIT, *list[] = {&r};
    Tessera__Checkpoint__SaveVote vote = TESSERA__CHECKPOINT__SAVE_VOTE__INIT;
    pair_shake(&p, ROLE(RANK), 1);
    memset(text, 'x', sizeof text);
    assert_int_equal(seal_reason(&p, text, TSR_MAX_TEXT, &p.to_client), TSR_EREQUEST);
    assert_int_equal(seal_reason(&p, "a\xff", 2, &p.to_client), TSR_EREQUEST);
    assert_int_equal(p.to_client.len, 0);
    assert_int_equal(seal_reason(&p, text, TSR_MAX_TEXT - 1, &p.to_client), 0);
    assert_int_equal(to_client(&p), 0);

    vote.ranges = list;
    vote.n_ranges = 1;
    r.digests.len = TSR_MAX_PAYLOAD; // with its fields' tags: above the cap
    r.digests.data = calloc(1, TSR_MAX_PAYLOAD);
    assert_non_null(r.digests.data);
    assert_int_equal(tsr_session_seal(p.client, FRAME(SAVE_VOTE), &vote.base, &p.to_server),
                     TSR_EREQUEST);
    r.digests.len -= 8; // two tags and two lengths of three bytes: exactly the cap
    assert_int_equal(tsr_session_seal(p.client, FRAME(SAVE_VOTE), &vote.base, &p.to_server), 0);
    assert_int_equal(p.to_server.len, TSR_FRAME_HEADER + TSR_MAX_PAYLOAD);
    assert_int_equal(to_server(&p), 0);
    assert_int_equal(p.at_server.packed.len, TSR_MAX_PAYLOAD);
    free(r.digests.data);
    pair_close(&p);
}

// A path or an error may hold anything; as a text of a message it may not.
static void texts_are_repaired(void **state) {
    (void)state;
    char out[16];
    tsr_frame_text(out, sizeof out, "plain");
    assert_string_equal(out, "plain");
    tsr_frame_text(out, sizeof out, "");
    assert_string_equal(out, "");
    tsr_frame_text(out, sizeof out,
                   "a\xff"
                   "b\xc3");
    assert_string_equal(out, "a\xef\xbf\xbd"
                             "b\xef\xbf\xbd");
    tsr_frame_text(out, 4, "ab\xc3\xa9"); // the two bytes of é don't fit
    assert_string_equal(out, "ab");
    tsr_frame_text(out, 3, "a\xff"); // nor the three of U+FFFD
    assert_string_equal(out, "a");
    tsr_frame_text(out, 1, "abc");
    assert_string_equal(out, "");
    tsr_frame_text(out, sizeof out, "0123456789abcdefghi");
    assert_string_equal(out, "0123456789abcde");
}

static int reply(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct pair *p = arg;
    assert_int_equal(type, FRAME(HEARTBEAT));
    return seal_pulse(p, ((const Tessera__Control__Heartbeat *)m)->step, &p->to_client);
}

static void callback_may_seal_and_may_stop(void **state) {
    (void)state;
    struct pair p;
    pair_shake(&p, ROLE(RANK), 1);
    for (uint64_t i = 1; i <= 3; i++)
        assert_int_equal(seal_heartbeat(&p, i, &p.to_server), 0);
    assert_int_equal(tsr_session_feed(p.server, p.to_server.data, p.to_server.len, reply, &p), 0);
    assert_int_equal(to_client(&p), 0);
    assert_int_equal(p.at_client.n, 1 + 3);
    p.to_server.len = 0;
    for (uint64_t i = 4; i <= 6; i++)
        assert_int_equal(seal_heartbeat(&p, i, &p.to_server), 0);
    p.at_server = (struct sink){.rc = TSR_EPEER, .packed = p.at_server.packed};
    assert_int_equal(to_server(&p), TSR_EPEER);
    assert_int_equal(p.at_server.n, 1); // the frames behind it were not looked at
    assert_int_equal(seal_heartbeat(&p, 7, &p.to_server), 0);
    assert_int_equal(to_server(&p), TSR_EREQUEST);
    assert_int_equal(p.at_server.n, 1);
    assert_int_equal(seal_reason(&p, "epoch 2 is over", 15, &p.to_client), 0); // still possible
    assert_int_equal(to_client(&p), 0);
    assert_int_equal(p.at_client.type, FRAME(REFUSED));
    pair_close(&p);
    tsr_session_close(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(hkdf_vectors),
        cmocka_unit_test(frames_are_as_documented),
        cmocka_unit_test(every_kind_both_ways),
        cmocka_unit_test(registry_is_complete),
        cmocka_unit_test(pieces_of_any_size),
        cmocka_unit_test(order_of_sealing),
        cmocka_unit_test(sealing_checks_what_the_peer_checks),
        cmocka_unit_test(texts_are_repaired),
        cmocka_unit_test(callback_may_seal_and_may_stop),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

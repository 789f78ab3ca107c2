// Authentic frames with payloads that no honest peer packs: what the schema forbids, what
// protobuf-c would take, and what would make it allocate out of proportion.
#include <stdarg.h>
#include <stddef.h>
#include <setjmp.h>
#include <stdint.h>
#include <cmocka.h>

#include "launcher/control/check.h"
#include "tests/unit/session_support.h"

static int unpack(uint16_t type, const void *payload, size_t n, size_t *peak) {
    struct tsr_unpack_alloc a;
    ProtobufCMessage *m;
    int rc = tsr_frame_unpack(tsr_frame_kind(type), payload, n, &a, &m);
    if (rc == 0) {
        assert_true(protobuf_c_message_check(m));
        assert_int_equal(m->n_unknown_fields, 0);
        protobuf_c_message_free_unpacked(m, &a.base);
    }
    assert_int_equal(a.used, 0);
    assert_true(a.peak <= a.limit && a.limit <= TSR_UNPACK_MAX);
    if (peak)
        *peak = a.peak;
    return rc;
}

static void no_surprises_in(const ProtobufCMessageDescriptor *d, int depth) {
    assert_true(depth < 4); // a recursive message would go on for ever
    assert_true(d->n_fields <= 32);
    for (unsigned i = 0; i < d->n_fields; i++) {
        const ProtobufCFieldDescriptor *f = &d->fields[i];
        assert_false(f->flags & PROTOBUF_C_FIELD_FLAG_ONEOF);
        assert_true(f->label == PROTOBUF_C_LABEL_NONE ||
                    (f->label == PROTOBUF_C_LABEL_REPEATED && f->type == PROTOBUF_C_TYPE_MESSAGE));
        switch (f->type) {
        case PROTOBUF_C_TYPE_MESSAGE:
            no_surprises_in(f->descriptor, depth + 1);
            break;
        case PROTOBUF_C_TYPE_UINT32:
        case PROTOBUF_C_TYPE_UINT64:
        case PROTOBUF_C_TYPE_BOOL:
        case PROTOBUF_C_TYPE_ENUM:
        case PROTOBUF_C_TYPE_DOUBLE:
        case PROTOBUF_C_TYPE_STRING:
        case PROTOBUF_C_TYPE_BYTES:
            break;
        default:
            fail_msg("%s.%s: its type is not known to launcher/control/check.c", d->name, f->name);
        }
    }
}

// The .proto files use only what the checks know; a new kind of field fails here first.
static void schema(void **state) {
    (void)state;
    size_t n;
    const struct tsr_frame_kind *kinds = tsr_frame_kinds(&n);
    for (size_t i = 0; i < n; i++)
        no_surprises_in(kinds[i].descriptor, 0);
}

#define BYTES(s) s, sizeof s - 1

static void forbidden_payloads(void **state) {
    (void)state;
    static const struct {
        uint16_t type;
        const char *payload;
        size_t n;
        const char *why;
    } cases[] = {
        {FRAME(PULSE), BYTES("\x10\x01"), "Pulse: unknown field 2"},
        {FRAME(STATUS_REQUEST), BYTES("\x08\x01"), "StatusRequest: unknown field 1"},
        {FRAME(PULSE), BYTES("\x00\x01"), "Pulse: unknown field 0"},
        {FRAME(PULSE), BYTES("\x08"), "committed_step: the number is torn"},
        {FRAME(PULSE), BYTES("\x08\x80"), "committed_step: the number is torn"},
        {FRAME(PULSE), BYTES("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x02"), "too long"},
        {FRAME(PULSE), BYTES("\x08\x80\x80\x80\x80\x80\x80\x80\x80\x80\x80\x01"), "too long"},
        {FRAME(PULSE), BYTES("\x80"), "tag is torn"},
        {FRAME(PULSE), BYTES("\x88\x80\x80\x80\x80\x01\x01"), "tag is torn or too long"},
        {FRAME(PULSE), BYTES("\x0a\x00"), "committed_step: the field has another field's type"},
        {FRAME(PULSE), BYTES("\x0b\x0c"), "another field's type"}, // a group
        {FRAME(PULSE), BYTES("\x0d\x01\x02\x03\x04"), "another field's type"},
        {FRAME(PULSE), BYTES("\x0f\x01"), "another field's type"}, // there is no wire type 7
        {FRAME(PULSE), BYTES("\x08\x01\x08\x02"), "committed_step: the field stands there twice"},
        {FRAME(HEARTBEAT), BYTES("\x10\x0a"), "phase: expected a value of its enumeration"},
        {FRAME(HEARTBEAT), BYTES("\x10\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "enumeration"},
        {FRAME(HEARTBEAT), BYTES("\x10\x80\x80\x80\x80\x10"), "enumeration"}, // 2^32: as int 0
        {FRAME(HEARTBEAT), BYTES("\x20\x80\x80\x80\x80\x10"), "expected at most 32 bits"},
        {FRAME(STOP), BYTES("\x08\x02"), "expected 0 or 1"},
        {FRAME(STEP), BYTES("\x11\x00\x00\x00\x00\x00\x00\x00"), "loss: the number is torn"},
        {FRAME(REFUSED), BYTES("\x0a\x02\xc3"), "expected its whole length"},
        {FRAME(REFUSED), BYTES("\x0a\x02\x61\xc3"), "reason: the text is not UTF-8"},
        {FRAME(REFUSED), BYTES("\x0a\x02\xc0\x80"), "not UTF-8"},         // overlong NUL
        {FRAME(REFUSED), BYTES("\x0a\x03\xed\xa0\x80"), "not UTF-8"},     // a surrogate
        {FRAME(REFUSED), BYTES("\x0a\x04\xf4\x90\x80\x80"), "not UTF-8"}, // above U+10FFFF
        {FRAME(REFUSED), BYTES("\x0a\x03\x61\x00\x62"), "has a NUL byte"},
        {FRAME(REFUSED), BYTES("\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01"), "whole length"},
        {FRAME(REFUSED), BYTES("\x0a\xff\xff\xff\xff\x0f"), "whole length"}, // 4 GiB - 1
        {FRAME(STATUS), BYTES("\x52\x02\x08"), "expected its whole length"},
        {FRAME(STATUS), BYTES("\x52\x01\x08\x48\x01"), "step: the number is torn"}, // in the inner
        {FRAME(STATUS), BYTES("\x52\x00\x52\x00"), "last: the field stands there twice"},
        {FRAME(STATUS), BYTES("\x5a\x04\x12\x02\xff\xfe"), "RankStatus.host: the text is not"},
        {FRAME(STATUS), BYTES("\x5a\x02\x78\x01"), "RankStatus: unknown field 15"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        assert_int_equal(unpack(cases[i].type, cases[i].payload, cases[i].n, NULL), TSR_EREQUEST);
        if (!strstr(tsr_error_text(), cases[i].why))
            fail_msg("case %zu: expected \"...%s...\", found \"%s\"", i, cases[i].why,
                     tsr_error_text());
        // through a session: not a word of it reaches the callback
        struct pair p;
        const struct tsr_frame_kind *kind = tsr_frame_kind(cases[i].type);
        const bool up = !(kind->senders & TSR_FROM_COORDINATOR);
        pair_shake(&p, kind->senders & TSR_FROM_RANK ? ROLE(RANK) : ROLE(OBSERVER), 1);
        forge(up ? &p.to_server : &p.to_client, up ? p.keys.to_server : p.keys.to_client,
              cases[i].type, 1, cases[i].payload, cases[i].n);
        assert_int_equal(up ? to_server(&p) : to_client(&p), TSR_EREQUEST);
        assert_int_equal(p.at_server.n + p.at_client.n, 2); // the handshake
        pair_close(&p);
    }
}

static void allowed_payloads(void **state) {
    (void)state;
    static const struct {
        uint16_t type;
        const char *payload;
        size_t n;
    } cases[] = {
        {FRAME(PULSE), BYTES("")},
        {FRAME(PULSE), BYTES("\x08\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01")}, // 2^64 - 1
        {FRAME(PULSE), BYTES("\x08\x81\x00")},                                 // a longer spelling
        {FRAME(HEARTBEAT), BYTES("\x10\x09\x08\x05")},                         // any order
        {FRAME(REFUSED), BYTES("\x0a\x00")},
        {FRAME(REFUSED), BYTES("\x0a\x04\xf0\x9f\x98\x80")},
        {FRAME(STEP), BYTES("\x11\x00\x00\x00\x00\x00\x00\xf8\x7f")}, // a loss that is NaN
        {FRAME(STATUS), BYTES("\x52\x00\x5a\x00\x5a\x00")},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        assert_int_equal(unpack(cases[i].type, cases[i].payload, cases[i].n, NULL), 0);
}

// n times the same bytes.
static struct tsr_buf repeat(const char *bytes, size_t n_bytes, size_t n) {
    struct tsr_buf b = {0};
    for (size_t i = 0; i < n; i++)
        TSR_ASSERT(tsr_buf_append(&b, bytes, n_bytes) == 0);
    return b;
}

// Fields that nobody knows, one of 2^20 bytes or as many as fit: refused at the first, and nothing
// is allocated.
static void unknown_field_floods(void **state) {
    (void)state;
    struct tsr_buf many = repeat("\x78\x01", 2, TSR_MAX_PAYLOAD / 2), one = {0};
    size_t peak;
    assert_int_equal(unpack(FRAME(HEARTBEAT), many.data, many.len, &peak), TSR_EREQUEST);
    assert_int_equal(peak, 0);
    assert_int_equal(tsr_buf_append(&one, "\x7a\xfc\xff\x3f", 4), 0);
    assert_int_equal(tsr_buf_append(&one, many.data, TSR_MAX_PAYLOAD - 4), 0);
    assert_int_equal(unpack(FRAME(HEARTBEAT), one.data, one.len, &peak), TSR_EREQUEST);
    assert_int_equal(peak, 0);
    tsr_buf_free(&many);
    tsr_buf_free(&one);
}

// Empty sub-messages: two bytes each, some 130 once unpacked.
static void amplifying_lists(void **state) {
    (void)state;
    size_t peak;
    struct tsr_buf b = repeat("\x5a\x00", 2, TSR_MAX_LIST + 1);
    assert_int_equal(unpack(FRAME(STATUS), b.data, b.len, &peak), TSR_EREQUEST);
    assert_non_null(strstr(tsr_error_text(), "ranks: the list is too long"));
    assert_int_equal(peak, 0);
    assert_int_equal(unpack(FRAME(STATUS), b.data, b.len - 2, &peak), TSR_EREQUEST);
    assert_non_null(strstr(tsr_error_text(), "to unpack"));
    assert_true(peak > 0 && peak <= TSR_UNPACK_MAX);
    for (size_t n = 1; n < TSR_MAX_LIST; n = n * 3 + 1) { // in proportion at any size
        int rc = unpack(FRAME(STATUS), b.data, 2 * n, &peak);
        assert_true(rc == 0 || rc == TSR_EREQUEST);
        assert_true(n < 1000 || rc == TSR_EREQUEST);
        assert_true(peak <= TSR_UNPACK_BASE + TSR_UNPACK_FACTOR * 2 * n);
    }
    tsr_buf_free(&b);
}

static void put_varint(struct tsr_buf *b, uint64_t v) {
    for (; v >= 0x80; v >>= 7)
        TSR_ASSERT(tsr_buf_append(b, &(uint8_t){(uint8_t)(v | 0x80)}, 1) == 0);
    TSR_ASSERT(tsr_buf_append(b, &(uint8_t){(uint8_t)v}, 1) == 0);
}

// The deepest list of lists there is, full of empty messages; and message in message as deep as the
// bytes allow (34 KB of it overflow the stack of an unpacker that follows), refused where the
// schema ends.
static void nested_payloads(void **state) {
    (void)state;
    struct tsr_buf regions = repeat("\x2a\x00", 2, 60000), map = {0};
    uint8_t deep[50000];
    size_t n_deep = 0, peak;
    assert_int_equal(tsr_buf_append(&map, "\x0a", 1), 0);
    put_varint(&map, regions.len);
    assert_int_equal(tsr_buf_append(&map, regions.data, regions.len), 0);
    assert_int_equal(unpack(FRAME(SHARD_MAP), map.data, map.len, NULL), TSR_EREQUEST);
    for (int i = 0; i < 11000; i++) { // field 10 in field 10 in field 10 ..., from the inside
        struct tsr_buf layer = {0};
        assert_int_equal(tsr_buf_append(&layer, "\x52", 1), 0);
        put_varint(&layer, n_deep);
        n_deep += layer.len;
        memcpy(deep + sizeof deep - n_deep, layer.data, layer.len);
        tsr_buf_free(&layer);
    }
    assert_true(n_deep > 34000);
    assert_int_equal(unpack(FRAME(STATUS), deep + sizeof deep - n_deep, n_deep, &peak),
                     TSR_EREQUEST);
    assert_int_equal(peak, 0);
    tsr_buf_free(&regions);
    tsr_buf_free(&map);
}

// What honest peers pack fits, at any length up to the longest that they send.
static void honest_lists_fit(void **state) {
    (void)state;
    static const struct {
        uint16_t type;
        const char *element; // a field of the payload
        size_t n, most;
    } cases[] = {
        {FRAME(SAVE_DIGEST), BYTES("\x1a\x04\x08\x01\x10\x01"), 32768},             // spans
        {FRAME(STATUS), BYTES("\x5a\x0a\x08\x01\x12\x02h1\x18\x7f\x20\x01"), 8192}, // ranks
        {FRAME(SAVE_VOTE),
         BYTES("\x3a\x14\x08\x01\x12\x10"
               "0123456789abcdef"),
         20000},
        {FRAME(SAVE_PLAN),
         BYTES("\x2a\x05\x0a\x01"
               "a\x10\x01"),
         20000},
        // tensors: a name, sizes and one region of one row
        {FRAME(SHARD_MAP),
         BYTES("\x0a\x0f\x0a\x01w\x10\x01\x18\x40\x2a\x06\x10\x01\x18\x00\x20\x40"), 4000},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++)
        for (size_t n = 1; n <= cases[i].most; n = n * 3 / 2 + 1) {
            struct tsr_buf all = repeat(cases[i].element, cases[i].n, cases[i].most);
            int rc = unpack(cases[i].type, all.data, n * cases[i].n, NULL);
            if (rc == 0)
                rc = unpack(cases[i].type, all.data, all.len, NULL);
            if (rc != 0)
                fail_msg("case %zu, %zu elements: %s", i, n, tsr_error_text());
            tsr_buf_free(&all);
        }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(schema),           cmocka_unit_test(forbidden_payloads),
        cmocka_unit_test(allowed_payloads), cmocka_unit_test(unknown_field_floods),
        cmocka_unit_test(amplifying_lists), cmocka_unit_test(nested_payloads),
        cmocka_unit_test(honest_lists_fit),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}

// Input: a byte that says which end is attacked and how, then, for even ways, a stream of bytes as
// a stranger sends them; for odd ones records {u16 type, u16 length, payload}, which are sealed
// with the right keys and ids after a handshake, so that payloads get through to the unpacking.
// Keys and nonces are fixed: the corpus (make_session_corpus.py) has whole conversations that are
// authentic.
#include "launcher/control/check.h"
#include "tests/unit/session_support.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct target {
    struct pair p;
    bool refused;
    uint64_t n_frames;
};

// What was taken is well formed, and would be taken again as its sender would pack it.
static int check(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct target *t = arg;
    struct tsr_unpack_alloc a;
    ProtobufCMessage *again;
    TSR_ASSERT(!t->refused);
    struct sink first = {0}, second = {0};
    sink_fn(&first, type, m);
    TSR_ASSERT(m->n_unknown_fields == 0);
    TSR_ASSERT(tsr_frame_unpack(tsr_frame_kind(type), (const uint8_t *)first.packed.data,
                                first.packed.len, &a, &again) == 0);
    sink_fn(&second, type, again);
    TSR_ASSERT(first.packed.len == second.packed.len &&
               memcmp(first.packed.data, second.packed.data, first.packed.len) == 0);
    protobuf_c_message_free_unpacked(again, &a.base);
    TSR_ASSERT(a.used == 0);
    tsr_buf_free(&first.packed);
    tsr_buf_free(&second.packed);
    t->n_frames++;
    if (type == FRAME(CHALLENGE)) // the conversation goes on
        TSR_ASSERT(pair_hello(&t->p, ROLE(RANK), &t->p.to_server) == 0);
    return 0;
}

// Feeds in pieces whose sizes come from the data; everything behind a refusal is refused.
static void feed(struct target *t, struct tsr_session *s, const uint8_t *data, size_t n) {
    while (n > 0) {
        size_t piece = 1 + (size_t)data[0] * 5 % 300;
        piece = piece < n ? piece : n;
        int rc = tsr_session_feed(s, data, piece, check, t);
        TSR_ASSERT(rc == 0 || rc == TSR_EREQUEST);
        TSR_ASSERT(rc < 0 || !t->refused);
        t->refused |= rc < 0;
        data += piece;
        n -= piece;
    }
}

static void feed_records(struct target *t, bool server, const uint8_t *data, size_t size) {
    struct tsr_buf frame = {0};
    uint64_t id = 1;
    while (size >= 4) {
        const uint16_t type = (uint16_t)(data[0] | data[1] << 8);
        size_t n = (size_t)(data[2] | data[3] << 8);
        data += 4;
        size -= 4;
        n = n < size ? n : size;
        forge(&frame, server ? t->p.keys.to_server : t->p.keys.to_client, type, id++, data, n);
        data += n;
        size -= n;
    }
    feed(t, server ? t->p.server : t->p.client, (const uint8_t *)frame.data, frame.len);
    tsr_buf_free(&frame);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct target t = {0};
    if (size == 0)
        return 0;
    const int way = data[0] % 8;
    const Tessera__Control__Role role = (Tessera__Control__Role)(way / 2 % 3);
    const bool server = way < 6;
    if (way % 2 == 0) {
        pair_open(&t.p, 1);
        if (server)
            TSR_ASSERT(pair_challenge(&t.p, &t.p.to_client) == 0);
        feed(&t, server ? t.p.server : t.p.client, data + 1, size - 1);
    } else {
        pair_shake(&t.p, role, 1);
        feed_records(&t, server, data + 1, size - 1);
    }
    pair_close(&t.p);
    return 0;
}

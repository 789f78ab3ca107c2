#include "launcher/control/registry.h"

#include <stdbool.h>
#include <string.h>
#include "core/error.h"
#include "core/tokenizer.h"

#define C   TSR_FROM_COORDINATOR
#define R   TSR_FROM_RANK
#define O   TSR_FROM_OBSERVER
#define S   TSR_FROM_SUPERVISOR
#define ANY TSR_FROM_CLIENT

#define CONTROL(NAME, name, senders)                                                               \
    { TESSERA__CONTROL__FRAME_TYPE__FRAME_##NAME, senders, &tessera__control__##name##__descriptor }
#define CHECKPOINT(NAME, name, senders)                                                            \
    {                                                                                              \
        TESSERA__CONTROL__FRAME_TYPE__FRAME_##NAME, senders,                                       \
            &tessera__checkpoint__##name##__descriptor                                             \
    }

static const struct tsr_frame_kind kinds[] = {
    CONTROL(CHALLENGE, challenge, C),
    CONTROL(HELLO, hello, ANY),
    CONTROL(WELCOME, welcome, C),
    CONTROL(REFUSED, refused, C),
    CONTROL(HEARTBEAT, heartbeat, R),
    CONTROL(PULSE, pulse, C),
    CONTROL(STEP, step_report, R),
    CONTROL(STOP, stop, C | S),
    CONTROL(STATUS_REQUEST, status_request, O | S),
    CONTROL(STATUS, status, C),
    CONTROL(FAILED, failed, C),
    CONTROL(BYE, bye, R),
    CHECKPOINT(SHARD_MAP, shard_map, R),
    CHECKPOINT(SAVE_PLAN, save_plan, R),
    CHECKPOINT(SAVE_READY, save_ready, R),
    CHECKPOINT(SAVE_WRITE, save_write, C),
    CHECKPOINT(SAVE_VOTE, save_vote, R),
    CHECKPOINT(SAVE_DIGEST, save_digest, C),
    CHECKPOINT(SAVE_DIGESTS, save_digests, R),
    CHECKPOINT(SAVE_DONE, save_done, C | R),
    CHECKPOINT(SAVE_ABORT, save_abort, C | R),
};

const struct tsr_frame_kind *tsr_frame_kinds(size_t *n) {
    *n = sizeof kinds / sizeof kinds[0];
    return kinds;
}

const struct tsr_frame_kind *tsr_frame_kind(uint16_t type) {
    for (size_t i = 0; i < sizeof kinds / sizeof kinds[0]; i++)
        if (kinds[i].type == type)
            return &kinds[i];
    return NULL;
}

const ProtobufCMessageDescriptor *tsr_frame_descriptor(uint16_t type) {
    const struct tsr_frame_kind *k = tsr_frame_kind(type);
    return k ? k->descriptor : NULL;
}

const char *tsr_frame_name(uint16_t type) {
    const struct tsr_frame_kind *k = tsr_frame_kind(type);
    return k ? k->descriptor->short_name : "frame of unknown type";
}

void tsr_frame_text(char *out, size_t cap, const char *s) {
    static const char replacement[] = "\xef\xbf\xbd"; // U+FFFD
    size_t left = strlen(s), at = 0;
    TSR_ASSERT(cap > 0);
    while (left > 0) {
        size_t good = tsr_utf8_valid_prefix(s, left);
        const bool torn = good == 0;
        const char *from = torn ? replacement : s;
        size_t n = torn ? sizeof replacement - 1 : good;
        if (n > cap - 1 - at) {
            n = tsr_utf8_whole_prefix(from, cap - 1 - at);
            memcpy(out + at, from, n);
            at += n;
            break;
        }
        memcpy(out + at, from, n);
        at += n;
        s += torn ? 1 : good;
        left -= torn ? 1 : good;
    }
    out[at] = 0;
}

// The frames of the control plane: which number is which message, and who may send it.
#ifndef TSR_LAUNCHER_CONTROL_REGISTRY_H
#define TSR_LAUNCHER_CONTROL_REGISTRY_H

#include <stddef.h>
#include <stdint.h>
#include <protobuf-c/protobuf-c.h>
#include "control.pb-c.h"
#include "checkpoint.pb-c.h"

// Bit 1 << role for the roles of control.proto, and one for the coordinator.
enum tsr_frame_sender {
    TSR_FROM_RANK = 1 << TESSERA__CONTROL__ROLE__ROLE_RANK,
    TSR_FROM_OBSERVER = 1 << TESSERA__CONTROL__ROLE__ROLE_OBSERVER,
    TSR_FROM_SUPERVISOR = 1 << TESSERA__CONTROL__ROLE__ROLE_SUPERVISOR,
    TSR_FROM_COORDINATOR = 1 << 3,
    TSR_FROM_CLIENT = TSR_FROM_RANK | TSR_FROM_OBSERVER | TSR_FROM_SUPERVISOR,
};

struct tsr_frame_kind {
    uint16_t type;
    uint16_t senders; // enum tsr_frame_sender
    const ProtobufCMessageDescriptor *descriptor;
};

// All kinds in ascending order of type; *n of them.
const struct tsr_frame_kind *tsr_frame_kinds(size_t *n);

// NULL: unknown type.
const struct tsr_frame_kind *tsr_frame_kind(uint16_t type);
const ProtobufCMessageDescriptor *tsr_frame_descriptor(uint16_t type);

// "Heartbeat"; "frame of unknown type" when it is. For messages and logs.
const char *tsr_frame_name(uint16_t type);

// Copies a text that may hold anything (a path, an error sentence, a host name) so that it may
// stand in a message: torn or wrong UTF-8 becomes U+FFFD, and it is clipped between characters to
// `cap` bytes with its NUL, of which at most TSR_MAX_TEXT (launcher/control/check.h) are useful.
void tsr_frame_text(char *out, size_t cap, const char *s);

#endif

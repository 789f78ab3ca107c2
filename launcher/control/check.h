// A payload against its schema, before anything is allocated for it, and its unpacking.
//
// Stricter than protobuf: unknown fields, wrong wire types, a single field given twice, numbers out
// of their type's range and unknown enum values are refused. Both ends of a run are one version, so
// nothing honest is lost, and a message has no hidden parts. protobuf-c itself checks neither UTF-8
// nor nesting; as no message of ours is recursive and unknown fields don't get through, the depth
// is that of the schema.
#ifndef TSR_LAUNCHER_CONTROL_CHECK_H
#define TSR_LAUNCHER_CONTROL_CHECK_H

#include <stddef.h>
#include <stdint.h>
#include "launcher/control/alloc.h"
#include "launcher/control/registry.h"

enum {
    TSR_MAX_LIST = 65536, // elements of one repeated field
    TSR_MAX_TEXT = 8192,  // bytes of one string: the longest error text and its NUL
};

// Checks and unpacks. Free with protobuf_c_message_free_unpacked(*out, &a->base); `a` is
// initialised here. TSR_EREQUEST (also: needs more memory than its size allows), TSR_ENOMEM.
int tsr_frame_unpack(const struct tsr_frame_kind *kind, const uint8_t *payload, size_t n_bytes,
                     struct tsr_unpack_alloc *a, ProtobufCMessage **out);

#endif

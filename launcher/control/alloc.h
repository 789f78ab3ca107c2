// The allocator that messages are unpacked with. protobuf-c multiplies its input (two bytes of an
// empty sub-message become about 130), so the payload's cap alone doesn't bound memory.
#ifndef TSR_LAUNCHER_CONTROL_ALLOC_H
#define TSR_LAUNCHER_CONTROL_ALLOC_H

#include <stdbool.h>
#include <stddef.h>
#include <protobuf-c/protobuf-c.h>

enum {
    // A message with every field small needs its C structure anyway...
    TSR_UNPACK_BASE = 4096,
    // ... and the most that an honest list takes is 24 bytes for one (a Region of six bytes: its
    // structure, a pointer to it, and protobuf-c's scratch for the field twice).
    TSR_UNPACK_FACTOR = 32,
    TSR_UNPACK_MAX = 8 << 20, // bytes in use at once
};

struct tsr_unpack_alloc {
    ProtobufCAllocator base;  // pass this to protobuf-c; filled by the _init
    size_t limit, used, peak; // bytes, as asked for
    bool over;                // an allocation was refused because of the limit
};

// `payload_bytes` sets the limit: min(MAX, BASE + FACTOR payload_bytes). The structure must not
// move.
void tsr_unpack_alloc_init(struct tsr_unpack_alloc *a, size_t payload_bytes);

#endif

#include "launcher/control/check.h"

#include <stdbool.h>
#include <string.h>
#include "core/error.h"
#include "core/tokenizer.h"

// A place in a payload. The wire format is the one of protobuf.dev's "Encoding" page.
struct wire {
    const uint8_t *p, *end;
};

static bool take_varint(struct wire *w, uint64_t *out) {
    *out = 0;
    for (int shift = 0;; shift += 7) {
        if (w->p == w->end)
            return false;
        const uint8_t b = *w->p++;
        if (shift == 63 && b > 1) // the tenth byte has one bit left
            return false;
        *out |= (uint64_t)(b & 0x7f) << shift;
        if (b < 0x80)
            return true;
    }
}

static ProtobufCWireType wire_type_of(const ProtobufCFieldDescriptor *f) {
    switch (f->type) {
    case PROTOBUF_C_TYPE_UINT32:
    case PROTOBUF_C_TYPE_UINT64:
    case PROTOBUF_C_TYPE_BOOL:
    case PROTOBUF_C_TYPE_ENUM:
        return PROTOBUF_C_WIRE_TYPE_VARINT;
    case PROTOBUF_C_TYPE_DOUBLE:
        return PROTOBUF_C_WIRE_TYPE_64BIT;
    default:
        // Types that no message of ours has are refused here when a .proto begins to use one.
        TSR_ASSERT(f->type == PROTOBUF_C_TYPE_STRING || f->type == PROTOBUF_C_TYPE_BYTES ||
                   f->type == PROTOBUF_C_TYPE_MESSAGE);
        return PROTOBUF_C_WIRE_TYPE_LENGTH_PREFIXED;
    }
}

static int fail_field(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                      const char *what) {
    return tsr_fail(TSR_EREQUEST, "%s.%s: %s", d->short_name, f->name, what);
}

static int check_number(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                        uint64_t v) {
    if (f->type == PROTOBUF_C_TYPE_UINT32 && v > UINT32_MAX)
        return fail_field(d, f, "expected at most 32 bits, found more");
    if (f->type == PROTOBUF_C_TYPE_BOOL && v > 1)
        return fail_field(d, f, "expected 0 or 1, found another number");
    if (f->type == PROTOBUF_C_TYPE_ENUM &&
        (v > INT32_MAX || !protobuf_c_enum_descriptor_get_value(f->descriptor, (int)v)))
        return fail_field(d, f, "expected a value of its enumeration, found another number");
    return 0;
}

static int check_string(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                        const uint8_t *p, size_t n) {
    if (n >= TSR_MAX_TEXT)
        return fail_field(d, f, "the text is too long");
    if (memchr(p, 0, n))
        return fail_field(d, f, "the text has a NUL byte");
    if (tsr_utf8_valid_prefix((const char *)p, n) != n)
        return fail_field(d, f, "the text is not UTF-8");
    return 0;
}

static int check_message(const ProtobufCMessageDescriptor *d, struct wire w);

static int check_value(const ProtobufCMessageDescriptor *d, const ProtobufCFieldDescriptor *f,
                       struct wire *w) {
    uint64_t v;
    switch (wire_type_of(f)) {
    case PROTOBUF_C_WIRE_TYPE_VARINT:
        if (!take_varint(w, &v))
            return fail_field(d, f, "the number is torn or too long");
        return check_number(d, f, v);
    case PROTOBUF_C_WIRE_TYPE_64BIT:
        if (w->end - w->p < 8)
            return fail_field(d, f, "the number is torn");
        w->p += 8;
        return 0;
    default:
        break;
    }
    if (!take_varint(w, &v) || v > (uint64_t)(w->end - w->p))
        return fail_field(d, f, "expected its whole length, found the end of the message");
    const uint8_t *p = w->p;
    w->p += v;
    if (f->type == PROTOBUF_C_TYPE_STRING)
        return check_string(d, f, p, (size_t)v);
    if (f->type == PROTOBUF_C_TYPE_MESSAGE)
        return check_message(f->descriptor, (struct wire){p, p + v});
    return 0;
}

// The depth of this recursion is that of the schema, which has no recursive message.
static int check_message(const ProtobufCMessageDescriptor *d, struct wire w) {
    enum { MAX_FIELDS = 32 };
    uint32_t seen[MAX_FIELDS] = {0};
    TSR_ASSERT(d->n_fields <= MAX_FIELDS);
    while (w.p < w.end) {
        uint64_t tag;
        if (!take_varint(&w, &tag) || tag > UINT32_MAX)
            return tsr_fail(TSR_EREQUEST, "%s: a field's tag is torn or too long", d->short_name);
        const ProtobufCFieldDescriptor *f =
            protobuf_c_message_descriptor_get_field(d, (unsigned)(tag >> 3));
        if (!f)
            return tsr_fail(TSR_EREQUEST, "%s: unknown field %u", d->short_name,
                            (unsigned)(tag >> 3));
        if ((tag & 7) != (uint64_t)wire_type_of(f))
            return fail_field(d, f, "the field has another field's type");
        const bool list = f->label == PROTOBUF_C_LABEL_REPEATED;
        TSR_ASSERT(!list || f->type == PROTOBUF_C_TYPE_MESSAGE); // packed numbers: not in a .proto
        if (++seen[f - d->fields] > (list ? TSR_MAX_LIST : 1))
            return fail_field(d, f, list ? "the list is too long" : "the field stands there twice");
        TSR_TRY(check_value(d, f, &w));
    }
    return 0;
}

// 0 or TSR_EREQUEST; the text names the field.
static int check_frame(const struct tsr_frame_kind *kind, const uint8_t *payload, size_t n_bytes) {
    if (n_bytes == 0)
        return 0; // all fields have their default values
    return check_message(kind->descriptor, (struct wire){payload, payload + n_bytes});
}

int tsr_frame_unpack(const struct tsr_frame_kind *kind, const uint8_t *payload, size_t n_bytes,
                     struct tsr_unpack_alloc *a, ProtobufCMessage **out) {
    const char *name = kind->descriptor->short_name;
    tsr_unpack_alloc_init(a, n_bytes);
    TSR_TRY(check_frame(kind, payload, n_bytes));
    *out = protobuf_c_message_unpack(kind->descriptor, &a->base, n_bytes, payload);
    if (*out)
        return 0;
    if (a->over)
        return tsr_fail(TSR_EREQUEST, "%s: %zu bytes would need more than %zu to unpack", name,
                        n_bytes, a->limit);
    return tsr_fail(TSR_ENOMEM, "out of memory: unpacking a %s of %zu bytes", name, n_bytes);
}

// The `decoder` of tokenizer.json, and tokens that stand for bytes.
#include "core/tokenizer_parts.h"
#include "core/error.h"
#include "core/json_field.h"

#include <ctype.h>
#include <string.h>

enum { MOST_REPLACED = 64 }; // bytes that each character of the vocabulary may become

int tsr_byte_of_token(const char *text, size_t n_bytes) {
    if (n_bytes != 6 || memcmp(text, "<0x", 3) != 0 || text[5] != '>' ||
        !isxdigit((unsigned char)text[3]) || !isxdigit((unsigned char)text[4]))
        return -1;
    return (int)strtol((char[]){text[3], text[4], 0}, NULL, 16);
}

// ByteLevel, alone or with Fuse, which changes nothing: decoding gives the bytes of the tokens.
static int check_byte_level(const json_t *decoder, const char *where) {
    const char *type = tsr_field_type(decoder);
    if (strcmp(type, "Sequence") != 0)
        return strcmp(type, "ByteLevel") == 0 ? 0 : tsr_field_refuse(decoder, where);
    const json_t *list = json_object_get(decoder, "decoders"), *item;
    size_t i;
    bool byte_level = false;
    json_array_foreach(list, i, item) {
        const char *part = tsr_field_type(item);
        if (strcmp(part, "ByteLevel") != 0 && strcmp(part, "Fuse") != 0)
            return tsr_field_refuse(item, where);
        byte_level |= strcmp(part, "ByteLevel") == 0;
    }
    return byte_level ? 0 : tsr_fail(TSR_EMODEL, "%s: no \"ByteLevel\" in it", where);
}

static int read_replace(struct tsr_decoder *d, const json_t *json, const char *where) {
    const char *from, *to;
    bool literal;
    TSR_TRY(tsr_field_pattern(json, "pattern", where, &from, &literal));
    TSR_TRY(tsr_field_string(json, "content", where, &to));
    if (strlen(to) > MOST_REPLACED)
        return tsr_fail(TSR_EMODEL, "%s: expected a Replace by at most %d bytes, found %zu", where,
                        MOST_REPLACED, strlen(to));
    if (!literal || !*from)
        return tsr_fail(TSR_EMODEL, "%s: a Replace of anything but a text is not supported", where);
    d->from = strdup(from);
    d->to = strdup(to);
    return d->from && d->to ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a decoder");
}

static int read_strip(struct tsr_decoder *d, const json_t *json, const char *where) {
    json_int_t start, stop;
    const char *content;
    TSR_TRY(tsr_field_string(json, "content", where, &content));
    TSR_TRY(tsr_field_int(json, "start", 0, 1 << 20, where, &start));
    TSR_TRY(tsr_field_int(json, "stop", 0, 1 << 20, where, &stop));
    if (strcmp(content, " ") != 0 || stop != 0)
        return tsr_fail(TSR_EMODEL,
                        "%s: a Strip of anything but spaces at the beginning is not supported",
                        where);
    d->strip = (size_t)start;
    return 0;
}

// Replace, ByteFallback, Fuse, Strip: each may be absent, in this order; a Strip before Fuse would
// be one of each token.
static int read_chars(struct tsr_decoder *d, const json_t *decoder, const char *where) {
    static const char *const parts[] = {"Replace", "ByteFallback", "Fuse", "Strip"};
    const json_t *list = json_object_get(decoder, "decoders"), *item;
    size_t i, next = 0;
    bool fused = false;
    if (strcmp(tsr_field_type(decoder), "Sequence") != 0)
        return tsr_field_refuse(decoder, where);
    if (!json_is_array(list))
        return tsr_fail(TSR_EMODEL, "%s: expected a list as \"decoders\"", where);
    json_array_foreach(list, i, item) {
        const char *type = tsr_field_type(item);
        size_t k = next;
        while (k < 4 && strcmp(type, parts[k]) != 0)
            k++;
        if (k == 4 || (k == 3 && !fused))
            return tsr_field_refuse(item, where);
        if (k == 0)
            TSR_TRY(read_replace(d, item, where));
        if (k == 3)
            TSR_TRY(read_strip(d, item, where));
        d->bytes |= k == 1;
        fused |= k == 2;
        next = k + 1;
    }
    return 0;
}

int tsr_tokenizer_read_decoder(struct tsr_tokenizer *t, const json_t *decoder, const char *where) {
    if (tsr_pretok_byte_level(t->pretok))
        return check_byte_level(decoder, where);
    return read_chars(&t->decoder, decoder, where);
}

int tsr_decode_token(const struct tsr_decoder *d, const char *text, size_t n_bytes,
                     struct tsr_buf *out) {
    int byte = d->bytes ? tsr_byte_of_token(text, n_bytes) : -1;
    if (byte >= 0)
        return tsr_buf_append(out, &(char){(char)byte}, 1);
    size_t done = 0, n_from = d->from ? strlen(d->from) : n_bytes + 1;
    for (size_t i = 0; i + n_from <= n_bytes;) {
        if (memcmp(text + i, d->from, n_from) != 0) {
            i++;
            continue;
        }
        TSR_TRY(tsr_buf_append(out, text + done, i - done));
        TSR_TRY(tsr_buf_append(out, d->to, strlen(d->to)));
        done = i += n_from;
    }
    return tsr_buf_append(out, text + done, n_bytes - done);
}

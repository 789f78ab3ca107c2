#include "core/tokenizer_parts.h"
#include "core/error.h"
#include "core/json_field.h"
#include "core/utf8.h"

#include <string.h>

static int push_id(struct tsr_tokenizer *t, struct tsr_ids *ids, const json_t *v,
                   const char *where) {
    json_int_t id = json_integer_value(v);
    if (!json_is_integer(v) || id < 0 || id >= t->n_ids || !t->piece[id].known)
        return tsr_fail(TSR_EMODEL, "%s: expected the id of a token, found %lld", where,
                        (long long)id);
    return tsr_ids_push(ids, (int32_t)id);
}

// The ids that a template's special token stands for.
static int push_special(struct tsr_tokenizer *t, struct tsr_ids *ids, const json_t *post,
                        const json_t *special, const char *where) {
    const char *name;
    TSR_TRY(tsr_field_string(special, "id", where, &name));
    const json_t *entry = json_object_get(json_object_get(post, "special_tokens"), name);
    const json_t *list = json_object_get(entry, "ids"), *v;
    size_t i;
    if (!json_is_array(list))
        return tsr_fail(TSR_EMODEL, "%s: \"special_tokens\" lacks \"%.*s\"", where,
                        tsr_utf8_clip(name, 80), name);
    json_array_foreach(list, i, v) TSR_TRY(push_id(t, ids, v, where));
    return 0;
}

// TemplateProcessing for a single text: special tokens around $A.
static int read_template(struct tsr_tokenizer *t, const json_t *post, const char *where) {
    const json_t *single = json_object_get(post, "single"), *piece;
    size_t i;
    bool seen = false;
    json_array_foreach(single, i, piece) {
        const json_t *special = json_object_get(piece, "SpecialToken");
        const char *sequence =
            json_string_value(json_object_get(json_object_get(piece, "Sequence"), "id"));
        if (special) {
            TSR_TRY(push_special(t, seen ? &t->suffix : &t->prefix, post, special, where));
            continue;
        }
        if (!sequence || strcmp(sequence, "A") != 0 || seen)
            return tsr_fail(TSR_EMODEL, "%s: a template that doesn't have its text just once",
                            where);
        seen = true;
    }
    if (!seen)
        return tsr_fail(TSR_EMODEL, "%s: a template without its text", where);
    return 0;
}

static int read_one(struct tsr_tokenizer *t, const json_t *post, const char *where, int depth) {
    const char *type = tsr_field_type(post);
    if (strcmp(type, "ByteLevel") == 0) // only moves offsets
        return 0;
    if (strcmp(type, "Sequence") == 0) {
        const json_t *list = json_object_get(post, "processors"), *item;
        size_t i;
        if (!json_is_array(list) || depth == 8)
            return tsr_fail(TSR_EMODEL, "%s: expected a list as \"processors\"", where);
        json_array_foreach(list, i, item) TSR_TRY(read_one(t, item, where, depth + 1));
        return 0;
    }
    if (t->prefix.n + t->suffix.n > 0)
        return tsr_fail(TSR_EMODEL, "%s: a second template is not supported", where);
    if (strcmp(type, "TemplateProcessing") == 0)
        return read_template(t, post, where);
    if (strcmp(type, "RobertaProcessing") == 0 || strcmp(type, "BertProcessing") == 0) {
        TSR_TRY(push_id(t, &t->prefix, json_array_get(json_object_get(post, "cls"), 1), where));
        return push_id(t, &t->suffix, json_array_get(json_object_get(post, "sep"), 1), where);
    }
    return tsr_field_refuse(post, where);
}

int tsr_tokenizer_read_post(struct tsr_tokenizer *t, const json_t *post, const char *where) {
    return !post || json_is_null(post) ? 0 : read_one(t, post, where, 0);
}

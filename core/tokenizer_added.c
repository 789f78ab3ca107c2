#include "core/tokenizer_parts.h"
#include "core/error.h"
#include "core/json_field.h"
#include "core/log.h"

#include <string.h>

static int read_token(struct tsr_added *a, const json_t *item, const char *where,
                      int32_t *file_id) {
    const char *text;
    json_int_t id;
    TSR_TRY(tsr_field_string(item, "content", where, &text));
    TSR_TRY(tsr_field_int(item, "id", 0, TSR_MAX_TOKEN_ID, where, &id));
    TSR_TRY(tsr_field_bool(item, "single_word", -1, where, &a->single_word));
    TSR_TRY(tsr_field_bool(item, "lstrip", -1, where, &a->lstrip));
    TSR_TRY(tsr_field_bool(item, "rstrip", -1, where, &a->rstrip));
    TSR_TRY(tsr_field_bool(item, "normalized", -1, where, &a->normalized));
    TSR_TRY(tsr_field_bool(item, "special", -1, where, &a->special));
    *file_id = (int32_t)id;
    a->text = strdup(text);
    return a->text ? 0 : tsr_fail(TSR_ENOMEM, "no memory for an added token");
}

static int normal_form(const struct tsr_tokenizer *t, struct tsr_added *a) {
    struct tsr_buf form = {0};
    TSR_TRY(
        tsr_normalizer_run(a->normalized ? t->normalizer : NULL, a->text, strlen(a->text), &form));
    a->match = form.data;
    a->n_match = form.len;
    return 0;
}

// Hugging Face numbers the tokens itself: a text of the vocabulary keeps its id, others are
// counted on from the size of the vocabulary, whatever the file says.
static int add(struct tsr_tokenizer *t, struct tsr_added *a, int32_t *next_id) {
    size_t len = strlen(a->text);
    int64_t known = tsr_strmap_find(&t->vocab, a->text, len);
    uint32_t index;
    size_t n_before = t->added_text.n;
    TSR_TRY(tsr_strmap_add(&t->added_text, a->text, len, &index));
    if (index < n_before) { // again: the later entry counts
        struct tsr_added was = t->added.token[index];
        a->id = was.id;
        a->special |= was.special;
        t->added.token[index] = *a;
        *a = was; // the caller frees its texts
        return 0;
    }
    a->id = known >= 0 ? t->vocab_id.v[known] : (*next_id)++;
    if (a->id > TSR_MAX_TOKEN_ID)
        return tsr_fail(TSR_EMODEL, "too many added tokens");
    struct tsr_added pushed = *a;
    a->text = a->match = NULL; // they go into the set
    return tsr_added_push(&t->added, &pushed);
}

// One entry of the list. *as_in_file: its id is the one that the file gives.
static int read_entry(struct tsr_tokenizer *t, const json_t *item, const char *where,
                      int32_t *next_id, bool *as_in_file) {
    struct tsr_added a = {0};
    int32_t file_id = 0;
    int rc = read_token(&a, item, where, &file_id);
    if (rc == 0)
        rc = normal_form(t, &a);
    if (rc == 0 && a.text[0] != 0) { // Hugging Face passes over an empty one
        rc = add(t, &a, next_id);
        *as_in_file = rc == 0 && a.id == file_id;
    }
    free(a.text);
    free(a.match);
    return rc;
}

int tsr_tokenizer_read_added(struct tsr_tokenizer *t, const json_t *list, const char *where) {
    const json_t *item;
    size_t i;
    int32_t next_id = (int32_t)t->vocab.n;
    bool warned = false;
    if (list && !json_is_null(list) && !json_is_array(list))
        return tsr_fail(TSR_EMODEL, "%s: expected a list", where);
    json_array_foreach(list, i, item) {
        bool as_in_file = true;
        TSR_TRY(read_entry(t, item, where, &next_id, &as_in_file));
        if (!as_in_file && !warned)
            tsr_warn("%s: entry %zu has an id that Hugging Face's tokenizers don't give it, and "
                     "neither do we: tokens that the model lacks are counted on from its %zu",
                     where, i + 1, t->vocab.n);
        warned |= !as_in_file;
    }
    return tsr_added_index(&t->added);
}

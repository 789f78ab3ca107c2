#include "core/tokenizer_parts.h"
#include "core/byte_alphabet.h"
#include "core/error.h"
#include "core/json_field.h"
#include "core/utf8.h"

#include <ctype.h>
#include <string.h>

static int read_vocab(struct tsr_tokenizer *t, const json_t *vocab, const char *where) {
    const char *text;
    json_t *value;
    if (!json_is_object(vocab) || json_object_size(vocab) == 0)
        return tsr_fail(TSR_EMODEL, "%s: expected an object of tokens as \"vocab\"", where);
    json_object_foreach((json_t *)vocab, text, value) {
        json_int_t id = json_integer_value(value);
        if (!json_is_integer(value) || id < 0 || id > TSR_MAX_TOKEN_ID)
            return tsr_fail(TSR_EMODEL, "%s: the id of token \"%.*s\" is not in [0, %d]", where,
                            tsr_utf8_clip(text, 80), text, TSR_MAX_TOKEN_ID);
        uint32_t index;
        TSR_TRY(tsr_strmap_add(&t->vocab, text, strlen(text), &index));
        TSR_TRY(tsr_ids_push(&t->vocab_id, (int32_t)id));
    }
    return 0;
}

static int32_t id_of(const struct tsr_tokenizer *t, const char *text, size_t n_bytes) {
    int64_t index = tsr_strmap_find(&t->vocab, text, n_bytes);
    return index < 0 ? -1 : t->vocab_id.v[index];
}

// One merge: its halves are left[0..n_left) and right[0..n_right).
static int add_merge(struct tsr_tokenizer *t, const char *left, size_t n_left, const char *right,
                     size_t n_right, uint32_t rank, const char *where) {
    struct tsr_buf joined = {0};
    int32_t a = id_of(t, left, n_left), b = id_of(t, right, n_right), id = -1;
    int rc = tsr_buf_append(&joined, left, n_left);
    if (rc == 0)
        rc = tsr_buf_append(&joined, right, n_right);
    if (rc == 0)
        id = id_of(t, joined.data, joined.len);
    tsr_buf_free(&joined);
    TSR_TRY(rc);
    if (a < 0 || b < 0 || id < 0)
        return tsr_fail(TSR_EMODEL, "%s: merge %u (\"%.*s\" and \"%.*s\"): %s is not a token",
                        where, rank, tsr_utf8_clip(left, n_left < 80 ? n_left : 80), left,
                        tsr_utf8_clip(right, n_right < 80 ? n_right : 80), right,
                        a < 0   ? "the first half"
                        : b < 0 ? "the second half"
                                : "the whole");
    if (t->bpe.chars)
        TSR_TRY(tsr_bpe_add_seam(&t->bpe, left, n_left, right, n_right));
    return tsr_bpe_add_merge(&t->bpe, a, b, rank, id);
}

// "a b"; lines that begin with "#version" don't count.
static int read_merge_line(struct tsr_tokenizer *t, const json_t *line, uint32_t *rank,
                           const char *where) {
    const char *s = json_string_value(line);
    if (!s)
        return tsr_fail(TSR_EMODEL, "%s: merge %u: expected a string, as the ones before", where,
                        *rank);
    if (strncmp(s, "#version", 8) == 0)
        return 0;
    const char *space = strchr(s, ' ');
    if (!space || strchr(space + 1, ' '))
        return tsr_fail(TSR_EMODEL, "%s: merge %u: expected two tokens and a space, found \"%.*s\"",
                        where, *rank, tsr_utf8_clip(s, 80), s);
    return add_merge(t, s, (size_t)(space - s), space + 1, strlen(space + 1), (*rank)++, where);
}

static int read_merges(struct tsr_tokenizer *t, const json_t *merges, const char *where) {
    const json_t *m;
    size_t i;
    uint32_t rank = 0;
    if (!json_is_array(merges) || json_array_size(merges) > INT32_MAX)
        return tsr_fail(TSR_EMODEL, "%s: expected a list as \"merges\"", where);
    bool lines = json_is_string(json_array_get(merges, 0));
    json_array_foreach(merges, i, m) {
        if (lines) {
            TSR_TRY(read_merge_line(t, m, &rank, where));
            continue;
        }
        const char *a = json_string_value(json_array_get(m, 0));
        const char *b = json_string_value(json_array_get(m, 1));
        if (json_array_size(m) != 2 || !a || !b)
            return tsr_fail(TSR_EMODEL, "%s: merge %u: expected two tokens", where, rank);
        TSR_TRY(add_merge(t, a, strlen(a), b, strlen(b), rank++, where));
    }
    return 0;
}

// Tokens of one character, or that stand for a byte; and, when whole words go before merges, all.
static int index_letters(struct tsr_tokenizer *t) {
    for (size_t i = 0; i < t->vocab.n; i++) {
        size_t len, first = 0;
        const char *text = tsr_strmap_at(&t->vocab, i, &len);
        int byte = tsr_byte_of_token(text, len);
        if (byte >= 0 && !islower((unsigned char)text[3]) && !islower((unsigned char)text[4]))
            t->bpe.byte_id[byte] = t->vocab_id.v[i];
        if (len > 0)
            tsr_utf8_get(text, &first);
        if (len > 0 && first == len)
            TSR_TRY(tsr_bpe_add_letter(&t->bpe, text, len, t->vocab_id.v[i]));
        if (t->bpe.whole_words && len > 0)
            TSR_TRY(tsr_bpe_add_word(&t->bpe, text, len, t->vocab_id.v[i]));
    }
    return 0;
}

// Tokens of single bytes; and, when whole words go before merges, all that are spelled in bytes.
static int index_bytes(struct tsr_tokenizer *t) {
    struct tsr_buf word = {0};
    int rc = 0;
    for (size_t i = 0; i < t->vocab.n && rc == 0; i++) {
        size_t len;
        const char *text = tsr_strmap_at(&t->vocab, i, &len);
        bool ok = false;
        word.len = 0;
        rc = tsr_bytes_unspell(text, len, &word, &ok);
        if (rc < 0 || !ok || word.len == 0)
            continue;
        if (word.len == 1)
            t->bpe.byte_id[(unsigned char)word.data[0]] = t->vocab_id.v[i];
        if (t->bpe.whole_words)
            rc = tsr_bpe_add_word(&t->bpe, word.data, word.len, t->vocab_id.v[i]);
    }
    tsr_buf_free(&word);
    return rc;
}

static int refuse_text(const json_t *model, const char *key, const char *where) {
    const json_t *v = json_object_get(model, key);
    if (!v || json_is_null(v) || (json_is_string(v) && json_string_length(v) == 0))
        return 0;
    return tsr_fail(TSR_EMODEL, "%s: \"%s\" is not supported", where, key);
}

static int read_options(struct tsr_tokenizer *t, const json_t *model, const char *where) {
    const json_t *type = json_object_get(model, "type"), *unk = json_object_get(model, "unk_token");
    const json_t *dropout = json_object_get(model, "dropout");
    if (type && strcmp(tsr_field_type(model), "BPE") != 0)
        return tsr_field_refuse(model, where);
    if (dropout && !json_is_null(dropout) &&
        (!json_is_number(dropout) || json_number_value(dropout) != 0))
        return tsr_fail(TSR_EMODEL, "%s: \"dropout\" is not supported", where);
    TSR_TRY(refuse_text(model, "continuing_subword_prefix", where));
    TSR_TRY(refuse_text(model, "end_of_word_suffix", where));
    TSR_TRY(tsr_field_bool(model, "ignore_merges", 0, where, &t->bpe.whole_words));
    TSR_TRY(tsr_field_bool(model, "fuse_unk", 0, where, &t->bpe.fuse_unk));
    if (unk && !json_is_null(unk) && !json_is_string(unk))
        return tsr_fail(TSR_EMODEL, "%s: expected a string or null as \"unk_token\"", where);
    t->bpe.has_unk = json_is_string(unk);
    t->bpe.unk_id = -1;
    return 0;
}

int tsr_tokenizer_read_model(struct tsr_tokenizer *t, const json_t *model, const char *where) {
    if (!json_is_object(model))
        return tsr_fail(TSR_EMODEL, "%s: expected an object", where);
    TSR_TRY(read_options(t, model, where));
    TSR_TRY(read_vocab(t, json_object_get(model, "vocab"), where));
    memset(t->bpe.byte_id, 0xFF, sizeof t->bpe.byte_id); // -1
    t->bpe.chars = !tsr_pretok_byte_level(t->pretok);
    TSR_TRY(t->bpe.chars ? index_letters(t) : index_bytes(t));
    if (t->bpe.has_unk) {
        const char *unk = json_string_value(json_object_get(model, "unk_token"));
        t->bpe.unk_id = id_of(t, unk, strlen(unk));
    }
    bool fallback, complete = true;
    TSR_TRY(tsr_field_bool(model, "byte_fallback", 0, where, &fallback));
    for (int i = 0; i < 256; i++)
        complete = complete && t->bpe.byte_id[i] >= 0;
    t->bpe.byte_fallback = fallback && t->bpe.chars;
    if (fallback && !complete && !t->bpe.chars)
        return tsr_fail(TSR_EMODEL,
                        "%s: \"byte_fallback\" of a vocabulary that lacks bytes is not supported "
                        "beside \"ByteLevel\"",
                        where);
    return read_merges(t, json_object_get(model, "merges"), where);
}

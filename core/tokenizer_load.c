#include "core/tokenizer_parts.h"
#include "core/byte_alphabet.h"
#include "core/error.h"
#include "core/io.h"
#include "core/json_field.h"
#include "core/utf8.h"

#include <string.h>

enum { MAX_FILE_BYTES = 1 << 30 };

static int read_json(const char *path, size_t flags, json_t **out) {
    char *text;
    size_t n_bytes;
    json_error_t e;
    TSR_TRY(tsr_read_regular_file(path, MAX_FILE_BYTES, TSR_EMODEL, &text, &n_bytes));
    *out = json_loadb(text, n_bytes, JSON_REJECT_DUPLICATES | flags, &e);
    free(text);
    if (!*out)
        return tsr_fail(TSR_EMODEL, "%s:%d:%d: %s", path, e.line, e.column, e.text);
    if (json_is_object(*out))
        return 0;
    json_decref(*out);
    return tsr_fail(TSR_EMODEL, "%s: expected an object", path);
}

static int set_piece(struct tsr_tokenizer *t, int32_t id, size_t at) {
    struct tsr_piece *p = &t->piece[id];
    if (t->bytes.len - at > UINT32_MAX)
        return tsr_fail(TSR_EMODEL, "token %d is longer than 4 GiB", id);
    p->at = at;
    p->n_bytes = (uint32_t)(t->bytes.len - at);
    p->known = true;
    return 0;
}

static int append_token(struct tsr_tokenizer *t, const char *text, size_t n_bytes) {
    if (t->bpe.chars)
        return tsr_decode_token(&t->decoder, text, n_bytes, &t->bytes);
    bool spelled;
    TSR_TRY(tsr_bytes_unspell(text, n_bytes, &t->bytes, &spelled));
    return spelled ? 0 : tsr_buf_append(&t->bytes, text, n_bytes);
}

// What each id decodes to. A token that isn't spelled in the byte alphabet is its own text, and
// so is an added token that the model lacks: it was found in the text as it stands.
static int index_pieces(struct tsr_tokenizer *t, const char *where) {
    for (size_t i = 0; i < t->vocab.n; i++)
        t->n_ids = t->vocab_id.v[i] >= t->n_ids ? t->vocab_id.v[i] + 1 : t->n_ids;
    for (size_t i = 0; i < t->added.n; i++)
        t->n_ids = t->added.token[i].id >= t->n_ids ? t->added.token[i].id + 1 : t->n_ids;
    t->piece = calloc((size_t)t->n_ids, sizeof *t->piece);
    if (!t->piece)
        return tsr_fail(TSR_ENOMEM, "no memory for %d tokens", t->n_ids);
    for (size_t i = 0; i < t->vocab.n; i++) {
        size_t len, at = t->bytes.len;
        const char *text = tsr_strmap_at(&t->vocab, i, &len);
        if (t->piece[t->vocab_id.v[i]].known)
            return tsr_fail(TSR_EMODEL, "%s: two tokens have the id %d, one is \"%.*s\"", where,
                            t->vocab_id.v[i], tsr_utf8_clip(text, len < 80 ? len : 80), text);
        TSR_TRY(append_token(t, text, len));
        TSR_TRY(set_piece(t, t->vocab_id.v[i], at));
    }
    for (size_t i = 0; i < t->added.n; i++) {
        const struct tsr_added *a = &t->added.token[i];
        size_t at = t->bytes.len;
        t->piece[a->id].special = a->special;
        if (!t->bpe.chars && tsr_strmap_find(&t->vocab, a->text, strlen(a->text)) >= 0)
            continue;
        TSR_TRY(t->bpe.chars ? tsr_decode_token(&t->decoder, a->match, a->n_match, &t->bytes)
                             : tsr_buf_append(&t->bytes, a->match, a->n_match));
        TSR_TRY(set_piece(t, a->id, at));
    }
    return 0;
}

static int read_parts(struct tsr_tokenizer *t, const json_t *root, const char *path) {
    char where[TSR_PATH_MAX + 32];
    const json_t *version = json_object_get(root, "version");
    if (version && (!json_is_string(version) || strcmp(json_string_value(version), "1.0") != 0))
        return tsr_fail(TSR_EMODEL, "%s: expected version \"1.0\"", path);
    TSR_TRY(tsr_pretok_parse(&t->pretok, json_object_get(root, "pre_tokenizer"), path));
    TSR_TRY(tsr_normalizer_parse(&t->normalizer, json_object_get(root, "normalizer"), path));
    snprintf(where, sizeof where, "%s: decoder", path);
    TSR_TRY(tsr_tokenizer_read_decoder(t, json_object_get(root, "decoder"), where));
    snprintf(where, sizeof where, "%s: model", path);
    TSR_TRY(tsr_tokenizer_read_model(t, json_object_get(root, "model"), where));
    snprintf(where, sizeof where, "%s: added_tokens", path);
    TSR_TRY(tsr_tokenizer_read_added(t, json_object_get(root, "added_tokens"), where));
    TSR_TRY(index_pieces(t, path));
    snprintf(where, sizeof where, "%s: post_processor", path);
    return tsr_tokenizer_read_post(t, json_object_get(root, "post_processor"), where);
}

// A token of tokenizer_config.json: a string, an object with "content", or null.
static int read_named(const struct tsr_tokenizer *t, const json_t *config, const char *key,
                      const char *path, int32_t *id) {
    const json_t *v = json_object_get(config, key);
    const char *text = json_string_value(json_is_object(v) ? json_object_get(v, "content") : v);
    if (!v || json_is_null(v))
        return 0;
    *id = text ? tsr_tokenizer_id(t, text) : -1;
    if (*id < 0)
        return tsr_fail(TSR_EMODEL, "%s: %s \"%.*s\" is not a token of tokenizer.json", path, key,
                        text ? tsr_utf8_clip(text, 80) : 1, text ? text : "?");
    return 0;
}

static int read_config(struct tsr_tokenizer *t, const char *dir) {
    static const char *const usual[] = {"<|endoftext|>", "<|end_of_text|>", "</s>"};
    char path[TSR_PATH_MAX];
    json_t *config = NULL;
    TSR_TRY(tsr_path_join(path, dir, "tokenizer_config.json"));
    // transformers writes a model_max_length of 10^30 when there is no limit: no integer of ours.
    if (tsr_path_exists(path))
        TSR_TRY(read_json(path, JSON_DECODE_INT_AS_REAL, &config));
    int rc = read_named(t, config, "eos_token", path, &t->eos);
    if (rc == 0)
        rc = read_named(t, config, "bos_token", path, &t->bos);
    json_decref(config);
    for (size_t i = 0; i < sizeof usual / sizeof usual[0] && t->eos < 0; i++)
        t->eos = tsr_tokenizer_id(t, usual[i]);
    return rc;
}

int tsr_tokenizer_load(struct tsr_tokenizer **out, const char *dir) {
    char path[TSR_PATH_MAX];
    json_t *root;
    TSR_TRY(tsr_path_join(path, dir, "tokenizer.json"));
    TSR_TRY(read_json(path, 0, &root));
    struct tsr_tokenizer *t = calloc(1, sizeof *t);
    int rc = t ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a tokenizer");
    if (rc == 0) {
        t->eos = t->bos = -1;
        rc = read_parts(t, root, path);
    }
    json_decref(root);
    if (rc == 0)
        rc = read_config(t, dir);
    if (rc < 0)
        tsr_tokenizer_free(t);
    else
        *out = t;
    return rc;
}

#include "core/tokenizer.h"
#include "core/error.h"
#include "core/tokenizer_parts.h"

#include <stdlib.h>
#include <string.h>

int tsr_ids_push(struct tsr_ids *ids, int32_t id) {
    if (ids->n == ids->cap) {
        size_t cap = ids->cap ? 2 * ids->cap : 64;
        int32_t *v = realloc(ids->v, cap * sizeof *v);
        if (!v)
            return tsr_fail(TSR_ENOMEM, "no memory for %zu token ids", cap);
        ids->v = v;
        ids->cap = cap;
    }
    ids->v[ids->n++] = id;
    return 0;
}

void tsr_ids_free(struct tsr_ids *ids) {
    free(ids->v);
    *ids = (struct tsr_ids){0};
}

void tsr_tokenizer_free(struct tsr_tokenizer *t) {
    if (!t)
        return;
    tsr_strmap_free(&t->vocab);
    tsr_ids_free(&t->vocab_id);
    tsr_strmap_free(&t->added_text);
    tsr_added_free(&t->added);
    free(t->piece);
    tsr_buf_free(&t->bytes);
    tsr_bpe_free(&t->bpe);
    tsr_pretok_free(t->pretok);
    tsr_normalizer_free(t->normalizer);
    free(t->decoder.from);
    free(t->decoder.to);
    tsr_ids_free(&t->prefix);
    tsr_ids_free(&t->suffix);
    free(t);
}

int32_t tsr_tokenizer_vocab(const struct tsr_tokenizer *t) {
    return t->n_ids;
}

int32_t tsr_tokenizer_id(const struct tsr_tokenizer *t, const char *token) {
    size_t len = strlen(token);
    int64_t index = tsr_strmap_find(&t->added_text, token, len);
    if (index >= 0)
        return t->added.token[index].id;
    index = tsr_strmap_find(&t->vocab, token, len);
    return index < 0 ? -1 : t->vocab_id.v[index];
}

bool tsr_tokenizer_is_special(const struct tsr_tokenizer *t, int32_t id) {
    return id >= 0 && id < t->n_ids && t->piece[id].special;
}

int32_t tsr_tokenizer_eos(const struct tsr_tokenizer *t) {
    return t->eos;
}

int32_t tsr_tokenizer_bos(const struct tsr_tokenizer *t) {
    return t->bos;
}

// One call of encode.
struct encoding {
    struct tsr_tokenizer *t;
    const char *text; // the whole
    bool plain;
    bool at_start;         // the stretch is the text's beginning
    struct tsr_buf normal; // the stretch under work
    struct tsr_ids *out;
};

static int on_word(void *arg, const char *word, size_t n_bytes) {
    struct encoding *e = arg;
    return tsr_bpe_encode(&e->t->bpe, word, n_bytes, e->out);
}

// Third: text between added tokens of both kinds.
static int on_normal_text(void *arg, const struct tsr_added *token, const char *s, size_t n_bytes) {
    struct encoding *e = arg;
    if (token) {
        e->at_start = false;
        return tsr_ids_push(e->out, token->id);
    }
    bool at_start = e->at_start;
    e->at_start = false;
    return tsr_pretok_run(e->t->pretok, s, n_bytes, at_start, on_word, e);
}

// Second: text between the tokens that are looked for in the raw text.
static int on_raw_text(void *arg, const struct tsr_added *token, const char *s, size_t n_bytes) {
    struct encoding *e = arg;
    if (token)
        return tsr_ids_push(e->out, token->id);
    e->at_start = s == e->text;
    if (e->t->normalizer) {
        TSR_TRY(tsr_normalizer_run(e->t->normalizer, s, n_bytes, &e->normal));
        s = e->normal.data;
        n_bytes = e->normal.len;
    }
    return tsr_added_split(&e->t->added, &e->t->added.normalized, s, n_bytes, e->plain,
                           on_normal_text, e);
}

static int push_all(struct tsr_ids *out, const struct tsr_ids *ids) {
    for (size_t i = 0; i < ids->n; i++)
        TSR_TRY(tsr_ids_push(out, ids->v[i]));
    return 0;
}

int tsr_tokenizer_encode(struct tsr_tokenizer *t, const char *text, size_t n_bytes, int flags,
                         struct tsr_ids *out) {
    size_t valid = tsr_utf8_valid_prefix(text, n_bytes), n_before = out->n;
    if (valid != n_bytes)
        return tsr_fail(TSR_EDATA,
                        "expected UTF-8 text, found an invalid byte 0x%02x at offset %zu",
                        (unsigned)(unsigned char)text[valid], valid);
    struct encoding e = {
        .t = t, .text = text, .plain = (flags & TSR_ENCODE_PLAIN) != 0, .out = out};
    bool add_special = (flags & TSR_ENCODE_ADD_SPECIAL) != 0;
    int rc = add_special ? push_all(out, &t->prefix) : 0;
    if (rc == 0)
        rc = tsr_added_split(&t->added, &t->added.raw, text, n_bytes, e.plain, on_raw_text, &e);
    if (rc == 0 && add_special)
        rc = push_all(out, &t->suffix);
    if (rc < 0)
        out->n = n_before;
    tsr_buf_free(&e.normal);
    return rc;
}

int tsr_tokenizer_decode(const struct tsr_tokenizer *t, const int32_t *ids, size_t n,
                         bool skip_special, struct tsr_buf *out) {
    size_t n_before = out->len;
    int rc = 0;
    for (size_t i = 0; i < n && rc == 0; i++) {
        if (ids[i] < 0 || ids[i] >= t->n_ids || !t->piece[ids[i]].known) {
            rc = tsr_fail(TSR_EDATA, "id %d (number %zu) is not in the vocabulary of %d tokens",
                          ids[i], i + 1, t->n_ids);
            break;
        }
        const struct tsr_piece *p = &t->piece[ids[i]];
        if (!(skip_special && p->special))
            rc = tsr_buf_append(out, t->bytes.data + p->at, p->n_bytes);
    }
    if (rc < 0)
        out->len = n_before;
    return rc;
}

size_t tsr_tokenizer_extra_spaces(const struct tsr_tokenizer *t, const char *text, size_t n_bytes) {
    size_t n = 0;
    while (n < t->decoder.strip && n < n_bytes && text[n] == ' ')
        n++;
    return n;
}

bool tsr_tokenizer_may_cut(const struct tsr_tokenizer *t) {
    return !t->bpe.chars;
}

int tsr_tokenizer_copy(const char *from_dir, const char *to_dir) {
    static const char *const files[] = {
        "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.json",
        "merges.txt",     "tokenizer.model",       "chat_template.jinja"};
    for (size_t i = 0; i < sizeof files / sizeof files[0]; i++) {
        char from[TSR_PATH_MAX], to[TSR_PATH_MAX], *text;
        size_t n_bytes;
        TSR_TRY(tsr_path_join(from, from_dir, files[i]));
        TSR_TRY(tsr_path_join(to, to_dir, files[i]));
        if (!tsr_path_exists(from))
            continue;
        TSR_TRY(tsr_read_regular_file(from, SIZE_MAX / 2, TSR_EMODEL, &text, &n_bytes));
        int rc = tsr_write_file_durable(to, text, n_bytes);
        free(text);
        TSR_TRY(rc);
    }
    return 0;
}

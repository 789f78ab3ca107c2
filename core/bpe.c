#include "core/bpe.h"
#include "core/error.h"
#include "core/utf8.h"

#include <string.h>

// What SentencePiece writes for a space: U+2581.
static const char SPACE[] = "\xE2\x96\x81";
enum { SPACE_BYTES = sizeof SPACE - 1 };

// Longer words are rare and not worth the memory. The cache is emptied when it is full.
enum { CACHED_WORD_MAX = 128, CACHED_WORDS = 1 << 18 };

static const uint32_t END = UINT32_MAX;

int tsr_bpe_add_merge(struct tsr_bpe *b, int32_t left, int32_t right, uint32_t rank, int32_t id) {
    uint64_t *value;
    TSR_TRY(tsr_pairmap_put(&b->merges, tsr_pair(left, right), &value));
    *value = (uint64_t)rank << 32 | (uint32_t)id;
    return 0;
}

int tsr_bpe_add_word(struct tsr_bpe *b, const char *bytes, size_t n_bytes, int32_t id) {
    uint32_t index;
    TSR_TRY(tsr_strmap_add(&b->words, bytes, n_bytes, &index));
    return index == b->word_ids.n ? tsr_ids_push(&b->word_ids, id) : 0;
}

int tsr_bpe_add_letter(struct tsr_bpe *b, const char *bytes, size_t n_bytes, int32_t id) {
    uint32_t index;
    TSR_TRY(tsr_strmap_add(&b->letters, bytes, n_bytes, &index));
    return index == b->letter_ids.n ? tsr_ids_push(&b->letter_ids, id) : 0;
}

// Where the last character of s[0..n), n > 0, begins.
static size_t last_char(const char *s, size_t n) {
    size_t at = n - 1;
    while (at > 0 && ((unsigned char)s[at] & 0xC0) == 0x80)
        at--;
    return at;
}

int tsr_bpe_add_seam(struct tsr_bpe *b, const char *left, size_t n_left, const char *right,
                     size_t n_right) {
    uint32_t index;
    if (n_left == 0 || n_right < SPACE_BYTES || memcmp(right, SPACE, SPACE_BYTES) != 0)
        return 0;
    size_t at = last_char(left, n_left);
    return tsr_strmap_add(&b->before_space, left + at, n_left - at, &index);
}

static bool before(const struct tsr_bpe_merge *x, const struct tsr_bpe_merge *y) {
    return x->rank != y->rank ? x->rank < y->rank : x->at < y->at;
}

static int heap_push(struct tsr_bpe *b, struct tsr_bpe_merge m) {
    if (b->heap_n == b->heap_cap) {
        size_t cap = b->heap_cap ? 2 * b->heap_cap : 256;
        struct tsr_bpe_merge *heap = realloc(b->heap, cap * sizeof *heap);
        if (!heap)
            return tsr_fail(TSR_ENOMEM, "no memory for %zu merges", cap);
        b->heap = heap;
        b->heap_cap = cap;
    }
    size_t i = b->heap_n++;
    for (; i > 0 && before(&m, &b->heap[(i - 1) / 2]); i = (i - 1) / 2)
        b->heap[i] = b->heap[(i - 1) / 2];
    b->heap[i] = m;
    return 0;
}

static struct tsr_bpe_merge heap_pop(struct tsr_bpe *b) {
    struct tsr_bpe_merge top = b->heap[0], last = b->heap[--b->heap_n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < b->heap_n; i = child) {
        if (child + 1 < b->heap_n && before(&b->heap[child + 1], &b->heap[child]))
            child++;
        if (!before(&b->heap[child], &last))
            break;
        b->heap[i] = b->heap[child];
    }
    b->heap[i] = last;
    return top;
}

// Queues the merge of the symbol at `at` with the next one, if there is such a merge.
static int queue_pair(struct tsr_bpe *b, uint32_t at) {
    uint32_t next = b->symbol[at].next;
    if (next == END)
        return 0;
    uint64_t m = tsr_pairmap_get(&b->merges, tsr_pair(b->symbol[at].id, b->symbol[next].id));
    if (m == TSR_PAIR_NONE)
        return 0;
    return heap_push(b, (struct tsr_bpe_merge){(uint32_t)(m >> 32), at, (int32_t)(uint32_t)m});
}

static int no_unk(const char *word, size_t at) {
    return tsr_fail(
        TSR_EDATA,
        "the tokenizer has no token for text with the byte 0x%02x and its unk_token is not in its "
        "vocabulary",
        (unsigned)(unsigned char)word[at]);
}

static void put_symbol(struct tsr_bpe *b, size_t *n, int32_t id) {
    b->symbol[*n] = (struct tsr_bpe_symbol){id, *n ? (uint32_t)*n - 1 : END, (uint32_t)*n + 1};
    ++*n;
}

static bool has_bytes(const struct tsr_bpe *b, const char *s, size_t n_bytes) {
    for (size_t i = 0; i < n_bytes; i++)
        if (b->byte_id[(unsigned char)s[i]] < 0)
            return false;
    return b->byte_fallback;
}

// One symbol per character, or for each byte of one that the vocabulary lacks. What has no bytes
// either is the unknown token or nothing; as in Hugging Face's encoder an unknown token waits for
// the next character of the vocabulary, or the end: bytes overtake it.
static int64_t spell_chars(struct tsr_bpe *b, const char *word, size_t n_bytes) {
    size_t n = 0, len;
    bool pending = false;
    for (size_t i = 0; i < n_bytes; i += len) {
        tsr_utf8_get(word + i, &len);
        int64_t letter = tsr_strmap_find(&b->letters, word + i, len);
        if (letter < 0 && has_bytes(b, word + i, len)) {
            for (size_t k = 0; k < len; k++)
                put_symbol(b, &n, b->byte_id[(unsigned char)word[i + k]]);
            continue;
        }
        if (letter < 0 && b->has_unk && b->unk_id < 0)
            return no_unk(word, i);
        if (pending && (letter >= 0 || !b->fuse_unk))
            put_symbol(b, &n, b->unk_id);
        pending = letter < 0 && b->has_unk;
        if (letter >= 0)
            put_symbol(b, &n, b->letter_ids.v[letter]);
    }
    if (pending)
        put_symbol(b, &n, b->unk_id);
    if (n > 0)
        b->symbol[n - 1].next = END;
    return (int64_t)n;
}

// One symbol per byte. A missing byte is the unknown token (a run of them is one when they are
// fused), or nothing. Returns their number, or an error.
static int64_t spell_bytes(struct tsr_bpe *b, const char *word, size_t n_bytes) {
    size_t n = 0;
    bool in_unk = false;
    for (size_t i = 0; i < n_bytes; i++) {
        int32_t id = b->byte_id[(unsigned char)word[i]];
        bool unknown = id < 0;
        if (unknown && !b->has_unk)
            continue;
        if (unknown && b->unk_id < 0)
            return no_unk(word, i);
        if (unknown && in_unk && b->fuse_unk)
            continue;
        in_unk = unknown;
        put_symbol(b, &n, unknown ? b->unk_id : id);
    }
    if (n > 0)
        b->symbol[n - 1].next = END;
    return (int64_t)n;
}

static int merge_all(struct tsr_bpe *b, size_t n) {
    struct tsr_bpe_symbol *s = b->symbol;
    b->heap_n = 0;
    for (size_t i = 0; i < n; i++)
        TSR_TRY(queue_pair(b, (uint32_t)i));
    while (b->heap_n > 0) {
        struct tsr_bpe_merge m = heap_pop(b);
        if (s[m.at].id < 0 || s[m.at].next == END)
            continue;
        // Neighbours may have changed since the merge was queued. As in Hugging Face's encoder
        // the entry still holds when the pair there now makes the same token.
        uint32_t right = s[m.at].next;
        uint64_t now = tsr_pairmap_get(&b->merges, tsr_pair(s[m.at].id, s[right].id));
        if (now == TSR_PAIR_NONE || (int32_t)(uint32_t)now != m.id)
            continue;
        s[m.at].id = m.id;
        s[m.at].next = s[right].next;
        s[right].id = -1;
        if (s[m.at].next != END)
            s[s[m.at].next].prev = m.at;
        if (s[m.at].prev != END)
            TSR_TRY(queue_pair(b, s[m.at].prev));
        TSR_TRY(queue_pair(b, m.at));
    }
    return 0;
}

static int encode_fresh(struct tsr_bpe *b, const char *word, size_t n_bytes, struct tsr_ids *out) {
    if (n_bytes >= INT32_MAX)
        return tsr_fail(TSR_EDATA,
                        "a word of %zu bytes: the tokenizer's pattern does not cut this "
                        "text",
                        n_bytes);
    if (n_bytes > b->symbol_cap) {
        struct tsr_bpe_symbol *symbol = realloc(b->symbol, n_bytes * sizeof *symbol);
        if (!symbol)
            return tsr_fail(TSR_ENOMEM, "no memory for a word of %zu bytes", n_bytes);
        b->symbol = symbol;
        b->symbol_cap = n_bytes;
    }
    int64_t n = b->chars ? spell_chars(b, word, n_bytes) : spell_bytes(b, word, n_bytes);
    if (n <= 0)
        return (int)n;
    TSR_TRY(merge_all(b, (size_t)n));
    for (uint32_t i = 0; i != END; i = b->symbol[i].next)
        TSR_TRY(tsr_ids_push(out, b->symbol[i].id));
    return 0;
}

// Keeps the ids from `begin` on.
static int remember(struct tsr_bpe *b, const char *word, size_t n_bytes, const struct tsr_ids *ids,
                    size_t begin) {
    if (b->cached.n == CACHED_WORDS) {
        tsr_strmap_clear(&b->cached);
        b->cached_ids.n = 0;
    }
    if (b->cached.n == b->cached_cap) {
        size_t cap = b->cached_cap ? 2 * b->cached_cap : 1024;
        struct tsr_bpe_cached *w = realloc(b->cached_word, cap * sizeof *w);
        if (!w)
            return tsr_fail(TSR_ENOMEM, "no memory for %zu words", cap);
        b->cached_word = w;
        b->cached_cap = cap;
    }
    struct tsr_bpe_cached w = {b->cached_ids.n, ids->n - begin};
    for (size_t i = begin; i < ids->n; i++)
        TSR_TRY(tsr_ids_push(&b->cached_ids, ids->v[i]));
    uint32_t index;
    TSR_TRY(tsr_strmap_add(&b->cached, word, n_bytes, &index));
    b->cached_word[index] = w;
    return 0;
}

static int encode_part(struct tsr_bpe *b, const char *word, size_t n_bytes, struct tsr_ids *out) {
    if (n_bytes > CACHED_WORD_MAX) {
        int64_t whole = b->whole_words ? tsr_strmap_find(&b->words, word, n_bytes) : -1;
        return whole >= 0 ? tsr_ids_push(out, b->word_ids.v[whole])
                          : encode_fresh(b, word, n_bytes, out);
    }
    int64_t hit = tsr_strmap_find(&b->cached, word, n_bytes);
    if (hit >= 0) {
        struct tsr_bpe_cached w = b->cached_word[hit];
        for (size_t i = 0; i < w.n; i++)
            TSR_TRY(tsr_ids_push(out, b->cached_ids.v[w.at + i]));
        return 0;
    }
    size_t begin = out->n;
    int64_t whole = b->whole_words ? tsr_strmap_find(&b->words, word, n_bytes) : -1;
    TSR_TRY(whole >= 0 ? tsr_ids_push(out, b->word_ids.v[whole])
                       : encode_fresh(b, word, n_bytes, out));
    return remember(b, word, n_bytes, out, begin);
}

// Whether a merge can never join what lies on the two sides of the mark at `at`. A character that
// is no token is spelled together with what follows.
static bool can_cut(const struct tsr_bpe *b, const char *word, size_t at) {
    size_t last = last_char(word, at);
    return tsr_strmap_find(&b->letters, word + last, at - last) >= 0 &&
           tsr_strmap_find(&b->before_space, word + last, at - last) < 0;
}

// Texts that were SentencePiece's are one word. Cut at spaces they need little memory, and their
// parts come again.
int tsr_bpe_encode(struct tsr_bpe *b, const char *word, size_t n_bytes, struct tsr_ids *out) {
    const bool cuts =
        b->chars && !b->whole_words && tsr_strmap_find(&b->letters, SPACE, SPACE_BYTES) >= 0;
    size_t begun = 0;
    for (size_t at = cuts ? 1 : n_bytes; at < n_bytes; at++) {
        const char *mark = memmem(word + at, n_bytes - at, SPACE, SPACE_BYTES);
        if (!mark)
            break;
        at = (size_t)(mark - word);
        if (!can_cut(b, word, at))
            continue;
        TSR_TRY(encode_part(b, word + begun, at - begun, out));
        begun = at;
    }
    return encode_part(b, word + begun, n_bytes - begun, out);
}

void tsr_bpe_free(struct tsr_bpe *b) {
    tsr_pairmap_free(&b->merges);
    tsr_strmap_free(&b->words);
    tsr_ids_free(&b->word_ids);
    tsr_strmap_free(&b->letters);
    tsr_ids_free(&b->letter_ids);
    tsr_strmap_free(&b->before_space);
    tsr_strmap_free(&b->cached);
    tsr_ids_free(&b->cached_ids);
    free(b->cached_word);
    free(b->symbol);
    free(b->heap);
}

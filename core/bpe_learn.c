// Learning merges (Sennrich et al. 2016, algorithm 1), with the counts of pairs kept up to date
// and a queue of pairs, so that a merge touches only the words that hold it. The order is that of
// Hugging Face's trainer: most frequent pair first, then lower ids. What it does when a merge
// makes a token that exists already (a pair may come into the queue twice; counts of merged pairs
// stay) decides which merges follow, and is done here alike.
#include "core/bpe_train.h"
#include "core/byte_alphabet.h"
#include "core/error.h"
#include "core/log.h"
#include "core/pairmap.h"
#include "core/progress_bar.h"
#include "core/utf8.h"

#include <stdlib.h>
#include <string.h>

struct word {
    int32_t *id;
    uint32_t n;
    int64_t count;
};

struct words_of { // words in which a pair stands, ascending, none twice
    uint32_t *v;
    uint32_t n, cap;
};

struct pair {
    uint64_t key;
    int64_t count;
    struct words_of fresh; // words in which it came up since the last merge
};

struct queued {
    int64_t count;
    uint64_t key;
    uint32_t pair, order; // index in `pair`; the sequence of pushes
    struct words_of words;
};

struct learner {
    struct tsr_learned *out;
    struct word *word;
    size_t n_words;
    int32_t *ids; // of all words
    struct tsr_pairmap index;
    struct pair *pair;
    size_t n_pairs, pairs_cap;
    struct tsr_ids touched; // pairs whose `fresh` isn't empty
    struct queued *heap;
    size_t heap_n, heap_cap;
    uint32_t n_pushed;
};

void tsr_learned_free(struct tsr_learned *l) {
    tsr_strmap_free(&l->tokens);
    free(l->merge);
    *l = (struct tsr_learned){0};
}

static void learner_free(struct learner *l) {
    for (size_t i = 0; i < l->n_pairs; i++)
        free(l->pair[i].fresh.v);
    for (size_t i = 0; i < l->heap_n; i++)
        free(l->heap[i].words.v);
    free(l->word);
    free(l->ids);
    tsr_pairmap_free(&l->index);
    free(l->pair);
    tsr_ids_free(&l->touched);
    free(l->heap);
}

static bool sooner(const struct queued *a, const struct queued *b) {
    if (a->count != b->count)
        return a->count > b->count;
    return a->key != b->key ? a->key < b->key : a->order < b->order;
}

static int heap_push(struct learner *l, struct queued q) {
    if (l->heap_n == l->heap_cap) {
        size_t cap = l->heap_cap ? 2 * l->heap_cap : 1024;
        struct queued *heap = realloc(l->heap, cap * sizeof *heap);
        if (!heap) {
            free(q.words.v);
            return tsr_fail(TSR_ENOMEM, "no memory for %zu pairs", cap);
        }
        l->heap = heap;
        l->heap_cap = cap;
    }
    size_t i = l->heap_n++;
    for (; i > 0 && sooner(&q, &l->heap[(i - 1) / 2]); i = (i - 1) / 2)
        l->heap[i] = l->heap[(i - 1) / 2];
    l->heap[i] = q;
    return 0;
}

static struct queued heap_pop(struct learner *l) {
    struct queued top = l->heap[0], last = l->heap[--l->heap_n];
    size_t i = 0;
    for (size_t child; (child = 2 * i + 1) < l->heap_n; i = child) {
        if (child + 1 < l->heap_n && sooner(&l->heap[child + 1], &l->heap[child]))
            child++;
        if (!sooner(&l->heap[child], &last))
            break;
        l->heap[i] = l->heap[child];
    }
    l->heap[i] = last;
    return top;
}

// The entry of a pair, which is made when it's new.
static int find_pair(struct learner *l, uint64_t key, uint32_t *index) {
    uint64_t *value;
    TSR_TRY(tsr_pairmap_put(&l->index, key, &value));
    if (*value == TSR_PAIR_NONE) {
        if (l->n_pairs == l->pairs_cap) {
            size_t cap = l->pairs_cap ? 2 * l->pairs_cap : 1024;
            struct pair *pair = realloc(l->pair, cap * sizeof *pair);
            if (!pair)
                return tsr_fail(TSR_ENOMEM, "no memory for %zu pairs", cap);
            l->pair = pair;
            l->pairs_cap = cap;
        }
        *value = l->n_pairs;
        l->pair[l->n_pairs++] = (struct pair){.key = key};
    }
    *index = (uint32_t)*value;
    return 0;
}

// `delta` more occurrences of a pair; a positive one says that it stands in word w now. Words are
// gone through in ascending order, so that the last one noted tells whether w is noted.
static int change(struct learner *l, int32_t left, int32_t right, int64_t delta, uint32_t w) {
    uint32_t index = 0;
    TSR_TRY(find_pair(l, tsr_pair(left, right), &index));
    struct pair *p = &l->pair[index];
    struct words_of *f = &p->fresh;
    p->count += delta;
    if (delta < 0 || (f->n > 0 && f->v[f->n - 1] == w))
        return 0;
    if (f->n == 0)
        TSR_TRY(tsr_ids_push(&l->touched, (int32_t)index));
    if (f->n == f->cap) {
        uint32_t cap = f->cap ? 2 * f->cap : 4;
        uint32_t *v = realloc(f->v, cap * sizeof *v);
        if (!v)
            return tsr_fail(TSR_ENOMEM, "no memory for the words of a pair");
        f->v = v;
        f->cap = cap;
    }
    f->v[f->n++] = w;
    return 0;
}

// Queues the pairs that came up.
static int queue_touched(struct learner *l) {
    for (size_t i = 0; i < l->touched.n; i++) {
        struct pair *p = &l->pair[l->touched.v[i]];
        struct queued q = {p->count, p->key, (uint32_t)l->touched.v[i], l->n_pushed++, p->fresh};
        p->fresh = (struct words_of){0};
        if (q.count > 0)
            TSR_TRY(heap_push(l, q));
        else
            free(q.words.v);
    }
    l->touched.n = 0;
    return 0;
}

// Special token, then the byte alphabet in order of code points: ids 0 to 256.
static int first_tokens(struct learner *l, const char *eos, int32_t id_of_byte[256]) {
    uint32_t id;
    TSR_TRY(tsr_strmap_add(&l->out->tokens, eos, strlen(eos), &id));
    for (uint32_t c = 0; c < 0x200; c++) {
        int byte = tsr_char_to_byte(c);
        char text[4];
        if (byte < 0)
            continue;
        TSR_TRY(tsr_strmap_add(&l->out->tokens, text, tsr_utf8_put(text, c), &id));
        id_of_byte[byte] = (int32_t)id;
    }
    return 0;
}

static int spell_words(struct learner *l, const struct tsr_word_counts *w,
                       const int32_t id_of_byte[256]) {
    l->n_words = w->words.n;
    l->word = calloc(l->n_words + 1, sizeof *l->word);
    l->ids = malloc((w->words.text.len + 1) * sizeof *l->ids);
    if (!l->word || !l->ids)
        return tsr_fail(TSR_ENOMEM, "no memory for %zu words", l->n_words);
    int32_t *id = l->ids;
    for (size_t i = 0; i < l->n_words; i++) {
        size_t n_bytes;
        const char *s = tsr_strmap_at(&w->words, i, &n_bytes);
        l->word[i] = (struct word){id, (uint32_t)n_bytes, w->count[i]};
        for (size_t k = 0; k < n_bytes; k++)
            *id++ = id_of_byte[(unsigned char)s[k]];
        for (size_t k = 0; k + 1 < n_bytes; k++)
            TSR_TRY(change(l, l->word[i].id[k], l->word[i].id[k + 1], w->count[i], (uint32_t)i));
    }
    return queue_touched(l);
}

// Replaces (a, b) by `made` in word w, from the left, and counts the neighbours anew.
static int merge_in_word(struct learner *l, uint32_t w, int32_t a, int32_t b, int32_t made) {
    struct word *x = &l->word[w];
    uint32_t n = 0;
    for (uint32_t i = 0; i < x->n; i++) {
        if (x->id[i] != a || i + 1 == x->n || x->id[i + 1] != b) {
            x->id[n++] = x->id[i];
            continue;
        }
        if (n > 0) {
            TSR_TRY(change(l, x->id[n - 1], a, -x->count, w));
            TSR_TRY(change(l, x->id[n - 1], made, x->count, w));
        }
        x->id[n++] = made;
        i++;
        if (i + 1 < x->n) {
            TSR_TRY(change(l, b, x->id[i + 1], -x->count, w));
            TSR_TRY(change(l, made, x->id[i + 1], x->count, w));
        }
    }
    x->n = n;
    return 0;
}

// The token that a merge makes; it may exist.
static int make_token(struct learner *l, int32_t a, int32_t b, uint32_t *made) {
    struct tsr_buf joined = {0};
    size_t len;
    const char *s = tsr_strmap_at(&l->out->tokens, (size_t)a, &len);
    int rc = tsr_buf_append(&joined, s, len);
    s = tsr_strmap_at(&l->out->tokens, (size_t)b, &len);
    if (rc == 0)
        rc = tsr_buf_append(&joined, s, len);
    if (rc == 0)
        rc = tsr_strmap_add(&l->out->tokens, joined.data, joined.len, made);
    tsr_buf_free(&joined);
    return rc;
}

static int keep_merge(struct tsr_learned *out, int32_t a, int32_t b) {
    if (out->n_merges == out->cap) {
        size_t cap = out->cap ? 2 * out->cap : 1024;
        struct tsr_learned_merge *merge = realloc(out->merge, cap * sizeof *merge);
        if (!merge)
            return tsr_fail(TSR_ENOMEM, "no memory for %zu merges", cap);
        out->merge = merge;
        out->cap = cap;
    }
    out->merge[out->n_merges++] = (struct tsr_learned_merge){a, b};
    return 0;
}

static int merge_pair(struct learner *l, const struct queued *q) {
    int32_t a = (int32_t)(q->key >> 32), b = (int32_t)(uint32_t)q->key;
    uint32_t made;
    TSR_TRY(make_token(l, a, b, &made));
    TSR_TRY(keep_merge(l->out, a, b));
    for (uint32_t i = 0; i < q->words.n; i++)
        TSR_TRY(merge_in_word(l, q->words.v[i], a, b, (int32_t)made));
    return queue_touched(l);
}

static int learn_merges(struct learner *l, int32_t vocab_size, struct tsr_bar *bar) {
    while (l->out->tokens.n < (size_t)vocab_size && l->heap_n > 0) {
        struct queued q = heap_pop(l);
        int64_t count = l->pair[q.pair].count;
        if (q.count != count) { // it has changed since it was queued
            q.count = count;
            TSR_TRY(heap_push(l, q));
            continue;
        }
        if (count < 1) {
            free(q.words.v);
            break;
        }
        int rc = merge_pair(l, &q);
        free(q.words.v);
        TSR_TRY(rc);
        tsr_bar_update(bar, l->out->tokens.n, NULL);
    }
    return 0;
}

// A pair that was merged twice has its last rank.
static int drop_repeated(struct tsr_learned *out) {
    struct tsr_pairmap last = {0};
    uint64_t *value;
    size_t n = 0;
    int rc = 0;
    for (size_t i = 0; i < out->n_merges && rc == 0; i++) {
        rc = tsr_pairmap_put(&last, tsr_pair(out->merge[i].left, out->merge[i].right), &value);
        if (rc == 0)
            *value = i;
    }
    for (size_t i = 0; i < out->n_merges && rc == 0; i++)
        if (tsr_pairmap_get(&last, tsr_pair(out->merge[i].left, out->merge[i].right)) == i)
            out->merge[n++] = out->merge[i];
    out->n_merges = n;
    tsr_pairmap_free(&last);
    return rc;
}

int tsr_bpe_learn(struct tsr_learned *out, const struct tsr_word_counts *w, int32_t vocab_size,
                  const char *eos) {
    struct learner l = {.out = out};
    int32_t id_of_byte[256];
    struct tsr_bar bar;
    tsr_bar_begin(&bar, "learning tokens", "tokens", 0, (uint64_t)vocab_size);
    int rc = first_tokens(&l, eos, id_of_byte);
    if (rc == 0)
        rc = spell_words(&l, w, id_of_byte);
    if (rc == 0)
        rc = learn_merges(&l, vocab_size, &bar);
    if (rc == 0)
        rc = drop_repeated(out);
    learner_free(&l);
    if (rc == 0)
        tsr_bar_end(&bar);
    else
        tsr_bar_stop(&bar);
    return rc;
}

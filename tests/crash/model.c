#include "tests/crash/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <xxhash.h>
#include "core/error.h"

int *crash_map_at(struct crash_map *m, uint64_t key) {
    key = key ? key : 1;
    if (2 * (m->n + 1) > m->cap) {
        struct crash_map old = *m;
        m->cap = old.cap ? 2 * old.cap : 1 << 12;
        m->keys = calloc(m->cap, sizeof *m->keys);
        m->values = crash_more(NULL, m->cap * sizeof *m->values);
        m->n = 0;
        TSR_ASSERT(m->keys);
        for (size_t i = 0; i < old.cap; i++)
            if (old.keys[i])
                *crash_map_at(m, old.keys[i]) = old.values[i];
        crash_map_free(&old);
    }
    size_t i = key & (m->cap - 1);
    while (m->keys[i] && m->keys[i] != key)
        i = (i + 1) & (m->cap - 1);
    if (!m->keys[i]) {
        m->keys[i] = key;
        m->values[i] = -1;
        m->n++;
    }
    return &m->values[i];
}

void crash_map_free(struct crash_map *m) {
    free(m->keys);
    free(m->values);
    *m = (struct crash_map){0};
}

void crash_model_open(struct crash_model *m, const struct crash_trace *t, const char *store) {
    *m = (struct crash_model){.t = t};
    snprintf(m->store, sizeof m->store, "%s", store);
    TSR_ASSERT(tsr_mkdir_p(store) == 0);
}

void crash_model_close(struct crash_model *m) {
    for (int i = 0; i < m->n_lists; i++)
        free(m->lists[i].entries);
    free(m->lists);
    crash_map_free(&m->seen);
    crash_map_free(&m->contents);
}

static bool is_dropped(const struct crash_state *s, int op) {
    for (int i = 0; i < s->n_dropped; i++)
        if (s->dropped[i] == op)
            return true;
    return false;
}

static int n_before(const struct crash_object *o, int k) {
    int lo = 0, hi = o->n_ops;
    while (lo < hi) {
        int mid = (lo + hi) / 2;
        if (o->ops[mid] < k)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

static bool changes(const struct crash_op *op, int obj) {
    if (op->n_changes == 0)
        return op->obj == obj;
    return op->changes[0].dir == obj || (op->n_changes > 1 && op->changes[1].dir == obj);
}

// What an object is depends on its own operations and on which of them were dropped.
static uint64_t key_of(const struct crash_model *m, int obj, const struct crash_state *s) {
    int key[2 + CRASH_MAX_DROPPED] = {obj, n_before(&m->t->objs[obj], s->k), -1, -1, -1};
    for (int i = 0, n = 2; i < s->n_dropped; i++)
        if (changes(&m->t->ops[s->dropped[i]], obj))
            key[n++] = s->dropped[i];
    return XXH3_64bits(key, sizeof key);
}

struct bytes {
    uint8_t *v;
    size_t n;
};

static void resize(struct bytes *b, size_t n) {
    b->v = crash_more(b->v, n);
    if (n > b->n)
        memset(b->v + b->n, 0, n - b->n);
    b->n = n;
}

static void apply(struct bytes *b, const struct crash_op *op) {
    size_t end = op->offset + op->n_data;
    if (op->kind == CRASH_TRUNCATE || end > b->n)
        resize(b, end);
    if (op->n_data)
        memcpy(b->v + op->offset, op->data, op->n_data);
}

static int store(struct crash_model *m, const struct bytes *b) {
    char path[TSR_PATH_MAX + 16];
    int *id = crash_map_at(&m->contents, XXH3_64bits(b->v, b->n) + b->n);
    if (*id < 0) {
        *id = m->n_contents++;
        snprintf(path, sizeof path, "%s/%d", m->store, *id);
        FILE *f = fopen(path, "wb");
        TSR_ASSERT(f && fwrite(b->v, 1, b->n, f) == b->n);
        TSR_ASSERT(fclose(f) == 0);
    }
    return *id;
}

int crash_content(struct crash_model *m, int obj, const struct crash_state *s) {
    uint64_t key = key_of(m, obj, s);
    int id = *crash_map_at(&m->seen, key);
    if (id >= 0)
        return id;
    const struct crash_object *o = &m->t->objs[obj];
    struct bytes b = {crash_more(NULL, 1), 0};
    for (int i = 0; i < o->n_ops && o->ops[i] < s->k; i++)
        if (!is_dropped(s, o->ops[i]))
            apply(&b, &m->t->ops[o->ops[i]]);
    id = store(m, &b);
    free(b.v);
    *crash_map_at(&m->seen, key) = id;
    return id;
}

static void put(const struct crash_model *m, struct crash_list *l, struct crash_change c) {
    char *const *names = m->t->names;
    int i = 0;
    while (i < l->n && strcmp(names[l->entries[i].name], names[c.name]) < 0)
        i++;
    bool there = i < l->n && l->entries[i].name == c.name;
    if (there && c.target >= 0) {
        l->entries[i] = c;
    } else if (there) {
        memmove(&l->entries[i], &l->entries[i + 1], (size_t)(--l->n - i) * sizeof *l->entries);
    } else if (c.target >= 0) {
        l->entries = crash_more(l->entries, (size_t)(l->n + 1) * sizeof *l->entries);
        memmove(&l->entries[i + 1], &l->entries[i], (size_t)(l->n++ - i) * sizeof *l->entries);
        l->entries[i] = c;
    }
}

const struct crash_list *crash_entries(struct crash_model *m, int obj,
                                       const struct crash_state *s) {
    uint64_t key = key_of(m, obj, s);
    int id = *crash_map_at(&m->seen, key);
    if (id >= 0)
        return &m->lists[id];
    const struct crash_object *o = &m->t->objs[obj];
    struct crash_list l = {0};
    for (int i = 0; i < o->n_ops && o->ops[i] < s->k; i++) {
        const struct crash_op *op = &m->t->ops[o->ops[i]];
        for (int c = 0; c < op->n_changes && !is_dropped(s, o->ops[i]); c++)
            if (op->changes[c].dir == obj)
                put(m, &l, op->changes[c]);
    }
    m->lists = crash_more(m->lists, (size_t)(m->n_lists + 1) * sizeof *m->lists);
    m->lists[m->n_lists] = l;
    *crash_map_at(&m->seen, key) = m->n_lists;
    return &m->lists[m->n_lists++];
}

static uint64_t mix(uint64_t h, uint64_t x) {
    h = (h ^ x) * 0x9E3779B97F4A7C15u;
    return h ^ h >> 29;
}

static uint64_t hash_dir(struct crash_model *m, int dir, const struct crash_state *s, bool all) {
    // A copy: a list of another folder may move the array that holds it.
    const struct crash_list l = *crash_entries(m, dir, s);
    uint64_t h = 0x2545F4914F6CDD1Du;
    for (int i = 0; i < l.n; i++) {
        int target = l.entries[i].target;
        const char *name = m->t->names[l.entries[i].name];
        if (!all && dir == m->t->checkpoints && strncmp(name, ".tmp-", 5) == 0)
            continue;
        uint64_t child = m->t->objs[target].is_dir ? hash_dir(m, target, s, all)
                                                   : (uint64_t)crash_content(m, target, s);
        h = mix(mix(h, (uint64_t)l.entries[i].name), child);
    }
    return h;
}

uint64_t crash_tree_hash(struct crash_model *m, const struct crash_state *s, bool all) {
    return hash_dir(m, 0, s, all);
}

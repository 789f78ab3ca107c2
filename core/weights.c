#include "core/weights.h"

#include <jansson.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/io.h"
#include "core/place.h"

enum { MAX_INDEX = 64 << 20 }; // bytes of model.safetensors.index.json

struct slot {
    const struct tsr_st_file *file; // NULL: not found yet
    const struct tsr_st_entry *entry;
};

struct tsr_weights {
    const struct tsr_tensor_table *table;
    struct tsr_st_file *files;
    int n_files;
    struct slot *slots;              // one per entry of the table
    const struct tsr_tensor **by_hf; // the table by hf_name; parts of a fused tensor side by side
};

struct opening {
    struct tsr_weights *w;
    const struct tsr_model *model;
    const char *dir, *prefix; // of the base model, with the dot
    json_t *map;              // weight_map of the index, or NULL: one file
};

static int by_hf_name(const void *a, const void *b) {
    const struct tsr_tensor *const *x = a, *const *y = b;
    int order = strcmp((*x)->hf_name, (*y)->hf_name);
    if (order != 0)
        return order;
    return (*x)->hf_offset < (*y)->hf_offset ? -1 : (*x)->hf_offset > (*y)->hf_offset;
}

// The first in by_hf whose hf_name isn't below `name`.
static int lower_bound(const struct tsr_weights *w, const char *name) {
    int lo = 0, hi = w->table->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (strcmp(w->by_hf[mid]->hf_name, name) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return lo;
}

// True when `name` is `part` or ends with ".part".
static bool ends_with_part(const char *name, const char *part) {
    size_t n = strlen(name), k = strlen(part);
    return n >= k && strcmp(name + n - k, part) == 0 && (n == k || name[n - k - 1] == '.');
}

// Buffers that old versions of transformers saved beside the weights.
static bool is_ignored(const char *name) {
    return ends_with_part(name, "rotary_emb.inv_freq") || ends_with_part(name, "attn.bias") ||
           ends_with_part(name, "attn.masked_bias");
}

// A file's name as the table spells it: AutoModel.save_pretrained leaves the prefix out.
static void full_name(char out[static 1024], const struct opening *o, const char *name) {
    bool as_is =
        strcmp(name, "lm_head.weight") == 0 || strncmp(name, o->prefix, strlen(o->prefix)) == 0;
    snprintf(out, 1024, "%s%s", as_is ? "" : o->prefix, name);
}

// A tied model's lm_head is the embedding; a copy of it in the file is left alone.
static int check_tied_head(const struct opening *o, const struct tsr_st_file *f,
                           const struct tsr_st_entry *e) {
    struct tsr_place p = {o->model->vocab, o->model->hidden, 2, 0, false};
    return tsr_place_check(&p, e, f->path);
}

// An entry of a shard is one that the index places in this shard.
static int check_in_index(const struct opening *o, const struct tsr_st_file *f,
                          const struct tsr_st_entry *e) {
    if (!o->map)
        return 0;
    const char *shard = json_string_value(json_object_get(o->map, e->name));
    if (shard && strcmp(shard, tsr_path_base(f->path)) == 0)
        return 0;
    return tsr_fail(TSR_EMODEL,
                    "%s: tensor \"%s\": expected the index to place it in this file, found %s",
                    f->path, e->name, shard ? "another file" : "nothing");
}

static int place_entry(const struct opening *o, const struct tsr_st_file *f,
                       const struct tsr_st_entry *e) {
    struct tsr_weights *w = o->w;
    char name[1024];
    if (is_ignored(e->name))
        return 0;
    full_name(name, o, e->name);
    if (o->model->tied && strcmp(name, "lm_head.weight") == 0)
        return check_tied_head(o, f, e);
    TSR_TRY(check_in_index(o, f, e));
    int i = lower_bound(w, name);
    if (i == w->table->n || strcmp(w->by_hf[i]->hf_name, name) != 0)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is not part of this model", f->path,
                        e->name);
    struct tsr_place p = tsr_place_hf(w->by_hf[i]);
    TSR_TRY(tsr_place_check(&p, e, f->path));
    for (; i < w->table->n && strcmp(w->by_hf[i]->hf_name, name) == 0; i++) {
        struct slot *s = &w->slots[w->by_hf[i] - w->table->t];
        if (s->file)
            return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is there twice, also in %s as \"%s\"",
                            f->path, e->name, s->file->path, s->entry->name);
        *s = (struct slot){f, e};
    }
    return 0;
}

static int place_file(const struct opening *o, const struct tsr_st_file *f) {
    for (int i = 0; i < f->n; i++)
        TSR_TRY(place_entry(o, f, &f->entries[i]));
    return 0;
}

static int check_missing(const struct opening *o) {
    const struct tsr_weights *w = o->w;
    const char *first = NULL, *last = NULL;
    int n_missing = 0;
    for (int i = 0; i < w->table->n; i++) {
        const struct tsr_tensor *t = w->by_hf[i];
        if (w->slots[t - w->table->t].file || (last && strcmp(last, t->hf_name) == 0))
            continue;
        last = t->hf_name;
        first = first ? first : last;
        n_missing++;
    }
    if (n_missing > 1)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is missing, and %d more", o->dir, first,
                        n_missing - 1);
    if (n_missing == 1)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is missing", o->dir, first);
    return 0;
}

static int open_file(struct tsr_weights *w, const char *dir, const char *name) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, dir, name));
    TSR_TRY(tsr_st_open(&w->files[w->n_files], path));
    w->n_files++;
    return 0;
}

// A shard is a plain name in the index's own folder: nothing outside of it is ever opened.
static int check_pair(const char *index, const char *key, const json_t *value) {
    const char *name = json_string_value(value);
    bool plain = name && *name && strlen(name) < 256 && strcmp(name, ".") != 0 &&
                 strcmp(name, "..") != 0 && !strchr(name, '/');
    for (const char *p = name; plain && *p; p++)
        plain = (unsigned char)*p >= 0x20 && *p != 0x7f;
    for (const char *p = key; plain && *p; p++)
        plain = (unsigned char)*p >= 0x20 && *p != 0x7f;
    if (plain)
        return 0;
    return tsr_fail(TSR_EMODEL,
                    "%s: expected `weight_map` to give tensor names plain file names without a "
                    "folder",
                    index);
}

static int order_of_strings(const void *a, const void *b) {
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int open_named(const struct opening *o, const char **names, size_t n) {
    qsort(names, n, sizeof *names, order_of_strings);
    size_t n_unique = 0;
    for (size_t i = 0; i < n; i++)
        if (i == 0 || strcmp(names[i], names[n_unique - 1]) != 0)
            names[n_unique++] = names[i];
    o->w->files = calloc(n_unique + 1, sizeof *o->w->files);
    if (!o->w->files)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for %zu files", o->dir, n_unique);
    for (size_t i = 0; i < n_unique; i++)
        TSR_TRY(open_file(o->w, o->dir, names[i]));
    return 0;
}

static int open_shards(const struct opening *o, const char *index) {
    const char *key;
    json_t *value;
    size_t n = 0;
    const char **names = malloc((json_object_size(o->map) + 1) * sizeof *names);
    if (!names)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for its names", index);
    int rc = 0;
    json_object_foreach(o->map, key, value) {
        rc = check_pair(index, key, value);
        if (rc < 0)
            break;
        names[n++] = json_string_value(value);
    }
    if (rc == 0)
        rc = open_named(o, names, n);
    free(names);
    return rc;
}

// Every name of the index is in the file that it says.
static int check_index(const struct opening *o, const char *index) {
    const char *key;
    json_t *value;
    json_object_foreach(o->map, key, value) {
        const char *shard = json_string_value(value);
        for (int i = 0; i < o->w->n_files; i++)
            if (strcmp(tsr_path_base(o->w->files[i].path), shard) == 0 &&
                !tsr_st_find(&o->w->files[i], key))
                return tsr_fail(TSR_EMODEL, "%s: expected tensor \"%.512s\" in %s, found none",
                                index, key, shard);
    }
    return 0;
}

static int load_index(struct opening *o, const char *index) {
    char *text;
    size_t n;
    json_error_t err;
    TSR_TRY(tsr_read_regular_file(index, MAX_INDEX, TSR_EMODEL, &text, &n));
    json_t *root = json_loadb(text, n, JSON_REJECT_DUPLICATES, &err);
    free(text);
    if (!root)
        return tsr_fail(TSR_EMODEL, "%s: not valid JSON at line %d, column %d", index, err.line,
                        err.column);
    o->map = json_incref(json_object_get(root, "weight_map"));
    json_decref(root);
    if (!json_is_object(o->map))
        return tsr_fail(TSR_EMODEL, "%s: expected an object `weight_map`", index);
    TSR_TRY(open_shards(o, index));
    return check_index(o, index);
}

static int open_files(struct opening *o) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, o->dir, "model.safetensors"));
    if (tsr_path_exists(path)) {
        o->w->files = calloc(1, sizeof *o->w->files);
        if (!o->w->files)
            return tsr_fail(TSR_ENOMEM, "%s: out of memory", path);
        return open_file(o->w, o->dir, "model.safetensors");
    }
    TSR_TRY(tsr_path_join(path, o->dir, "model.safetensors.index.json"));
    if (!tsr_path_exists(path))
        return tsr_fail(TSR_EMODEL,
                        "%s: expected model.safetensors or model.safetensors.index.json, found "
                        "neither",
                        o->dir);
    return load_index(o, path);
}

static int open_all(struct opening *o) {
    struct tsr_weights *w = o->w;
    size_t n = (size_t)w->table->n;
    w->slots = calloc(n, sizeof *w->slots);
    w->by_hf = malloc(n * sizeof *w->by_hf);
    if (!w->slots || !w->by_hf)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for %zu tensors", o->dir, n);
    for (size_t i = 0; i < n; i++)
        w->by_hf[i] = &w->table->t[i];
    qsort(w->by_hf, n, sizeof *w->by_hf, by_hf_name);
    TSR_TRY(open_files(o));
    for (int i = 0; i < w->n_files; i++)
        TSR_TRY(place_file(o, &w->files[i]));
    return check_missing(o);
}

int tsr_weights_open(struct tsr_weights **out, const char *dir, const struct tsr_model *m,
                     const struct tsr_tensor_table *tt) {
    struct tsr_weights *w = calloc(1, sizeof *w);
    if (!w)
        return tsr_fail(TSR_ENOMEM, "%s: out of memory", dir);
    w->table = tt;
    const char *prefix = m->arch == TSR_ARCH_LLAMA ? "model." : "transformer.";
    struct opening o = {.w = w, .model = m, .dir = dir, .prefix = prefix};
    int rc = open_all(&o);
    json_decref(o.map);
    if (rc < 0) {
        tsr_weights_close(w);
        return rc;
    }
    *out = w;
    return 0;
}

void tsr_weights_close(struct tsr_weights *w) {
    if (!w)
        return;
    for (int i = 0; i < w->n_files; i++)
        tsr_st_close(&w->files[i]);
    free(w->files);
    free(w->slots);
    free(w->by_hf);
    free(w);
}

int tsr_weights_read(const struct tsr_weights *w, const struct tsr_tensor *t,
                     struct tsr_region region, float *out) {
    TSR_ASSERT(t >= w->table->t && t < w->table->t + w->table->n);
    const struct slot *s = &w->slots[t - w->table->t];
    struct tsr_place p = tsr_place_hf(t);
    return tsr_place_read(&p, t, s->file, s->entry, region, out);
}

const struct tsr_st_file *tsr_weights_file(const struct tsr_weights *w, const struct tsr_tensor *t,
                                           const struct tsr_st_entry **entry) {
    TSR_ASSERT(t >= w->table->t && t < w->table->t + w->table->n);
    const struct slot *s = &w->slots[t - w->table->t];
    *entry = s->entry;
    return s->file;
}

struct tsr_st_file *tsr_weights_files(struct tsr_weights *w, int *n) {
    *n = w->n_files;
    return w->files;
}

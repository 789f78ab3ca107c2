// Reading optimizer/{m,v,master}-*.safetensors: canonical fp32 tensors under the table's names.
#include "core/checkpoint_audit.h"
#include "core/checkpoint_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

enum { MAX_FILES = 99999 }; // by the five digits of the names

struct slot {
    const struct tsr_st_file *file; // NULL: not found yet
    const struct tsr_st_entry *entry;
};

struct part {
    struct tsr_st_file *files;
    int n_files;
    struct slot *slots; // one per entry of the table; NULL when the part isn't there
};

struct tsr_moments {
    const struct tsr_tensor_table *table;
    const struct tsr_tensor **by_name;
    struct part parts[3]; // by enum tsr_checkpoint_part; weights: the master
};

static const char *const stems[3] = {"master", "m", "v"};

static int order_of_names(const void *a, const void *b) {
    const struct tsr_tensor *const *x = a, *const *y = b;
    return strcmp((*x)->name, (*y)->name);
}

static int order_to_name(const void *key, const void *b) {
    const struct tsr_tensor *const *y = b;
    return strcmp(key, (*y)->name);
}

static int place_entry(struct tsr_moments *m, enum tsr_checkpoint_part which,
                       const struct tsr_st_file *f, const struct tsr_st_entry *e) {
    const struct tsr_tensor *const *found =
        bsearch(e->name, m->by_name, (size_t)m->table->n, sizeof *m->by_name, order_to_name);
    if (!found || ((*found)->frozen && which != TSR_CKPT_WEIGHTS))
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is not part of this model", f->path,
                        e->name);
    struct tsr_place p = tsr_place_canonical(*found);
    TSR_TRY(tsr_place_check(&p, e, f->path));
    if (e->dtype != TSR_DT_F32)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\": expected dtype F32, found %s", f->path,
                        e->name, tsr_dtype_name(e->dtype));
    struct slot *s = &m->parts[which].slots[*found - m->table->t];
    if (s->file)
        return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is there twice, also in %s", f->path,
                        e->name, s->file->path);
    *s = (struct slot){f, e};
    return 0;
}

// How many files the part has, by the name of its first: "m-00001-of-00002.safetensors".
static int count_files(const char *dir, const struct tsr_ckpt_names *names, const char *stem,
                       int *n) {
    char prefix[64];
    *n = 0;
    int n_prefix = snprintf(prefix, sizeof prefix, "optimizer/%s-00001-of-", stem);
    for (int i = 0; i < names->n; i++) {
        if (strncmp(names->v[i], prefix, (size_t)n_prefix) != 0)
            continue;
        const char *digits = names->v[i] + n_prefix;
        long count = strspn(digits, "0123456789") == 5 ? strtol(digits, NULL, 10) : 0;
        if (*n != 0 || count < 1 || count > MAX_FILES || strcmp(digits + 5, ".safetensors") != 0)
            return tsr_fail(TSR_EMODEL, "%s/%s: expected one set of %s files numbered 1 to n", dir,
                            names->v[i], stem);
        *n = (int)count;
    }
    return 0;
}

static int open_part(struct tsr_moments *m, enum tsr_checkpoint_part which, const char *dir,
                     const struct tsr_ckpt_names *names) {
    struct part *part = &m->parts[which];
    int n;
    TSR_TRY(count_files(dir, names, stems[which], &n));
    if (n == 0)
        return which == TSR_CKPT_WEIGHTS
                   ? 0
                   : tsr_fail(TSR_EMODEL,
                              "%s: expected optimizer/%s-00001-of-….safetensors, found none", dir,
                              stems[which]);
    part->slots = calloc((size_t)m->table->n, sizeof *part->slots);
    part->files = calloc((size_t)n, sizeof *part->files);
    if (!part->slots || !part->files)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for the optimizer's tensors", dir);
    for (int i = 0; i < n; i++) {
        char name[64], path[TSR_PATH_MAX];
        snprintf(name, sizeof name, "optimizer/%s-%05d-of-%05d.safetensors", stems[which], i + 1,
                 n);
        TSR_TRY(tsr_path_join(path, dir, name));
        TSR_TRY(tsr_st_open(&part->files[i], path));
        part->n_files++;
        for (int k = 0; k < part->files[i].n; k++)
            TSR_TRY(place_entry(m, which, &part->files[i], &part->files[i].entries[k]));
    }
    for (int i = 0; i < m->table->n; i++)
        if (!part->slots[i].file && !(m->table->t[i].frozen && which != TSR_CKPT_WEIGHTS))
            return tsr_fail(TSR_EMODEL, "%s: tensor \"%s\" is missing in optimizer/%s files", dir,
                            m->table->t[i].name, stems[which]);
    return 0;
}

static int open_parts(struct tsr_moments *m, const char *dir) {
    struct tsr_ckpt_names names;
    m->by_name = malloc((size_t)m->table->n * sizeof *m->by_name);
    if (!m->by_name)
        return tsr_fail(TSR_ENOMEM, "%s: no memory for %d tensors", dir, m->table->n);
    for (int i = 0; i < m->table->n; i++)
        m->by_name[i] = &m->table->t[i];
    qsort(m->by_name, (size_t)m->table->n, sizeof *m->by_name, order_of_names);
    TSR_TRY(tsr_ckpt_list(&names, dir));
    int rc = open_part(m, TSR_CKPT_WEIGHTS, dir, &names);
    if (rc == 0)
        rc = open_part(m, TSR_CKPT_M, dir, &names);
    if (rc == 0)
        rc = open_part(m, TSR_CKPT_V, dir, &names);
    tsr_ckpt_names_free(&names);
    return rc;
}

int tsr_moments_open(struct tsr_moments **out, const char *dir, const struct tsr_tensor_table *tt) {
    struct tsr_moments *m = calloc(1, sizeof *m);
    if (!m)
        return tsr_fail(TSR_ENOMEM, "%s: out of memory", dir);
    m->table = tt;
    int rc = open_parts(m, dir);
    if (rc < 0) {
        tsr_moments_close(m);
        return rc;
    }
    *out = m;
    return 0;
}

void tsr_moments_close(struct tsr_moments *m) {
    if (!m)
        return;
    for (int i = 0; i < 3; i++) {
        for (int k = 0; k < m->parts[i].n_files; k++)
            tsr_st_close(&m->parts[i].files[k]);
        free(m->parts[i].files);
        free(m->parts[i].slots);
    }
    free(m->by_name);
    free(m);
}

bool tsr_moments_has_master(const struct tsr_moments *m) {
    return m->parts[TSR_CKPT_WEIGHTS].slots != NULL;
}

int tsr_moments_read(const struct tsr_moments *m, enum tsr_checkpoint_part part,
                     const struct tsr_tensor *t, struct tsr_region region, float *out) {
    TSR_ASSERT(t >= m->table->t && t < m->table->t + m->table->n);
    TSR_ASSERT(m->parts[part].slots);
    const struct slot *s = &m->parts[part].slots[t - m->table->t];
    if (!s->file) { // frozen
        memset(out, 0, (size_t)tsr_region_elems(region) * sizeof *out);
        return 0;
    }
    struct tsr_place p = tsr_place_canonical(t);
    return tsr_place_read(&p, t, s->file, s->entry, region, out);
}

const struct tsr_st_file *tsr_moments_file(const struct tsr_moments *m,
                                           enum tsr_checkpoint_part part,
                                           const struct tsr_tensor *t,
                                           const struct tsr_st_entry **entry) {
    TSR_ASSERT(t >= m->table->t && t < m->table->t + m->table->n);
    TSR_ASSERT(m->parts[part].slots);
    const struct slot *s = &m->parts[part].slots[t - m->table->t];
    *entry = s->entry;
    return s->file;
}

struct tsr_st_file *tsr_moments_files(struct tsr_moments *m, enum tsr_checkpoint_part part,
                                      int *n) {
    *n = m->parts[part].n_files;
    return m->parts[part].files;
}

// Which tensor goes to which place of which file. A pure function of the table, the dtype and the
// maximal size of a file: every rank computes the same.
#include "core/checkpoint_private.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"

static const uint64_t MAX_FILE = 5000000000; // bytes; "5GB" of transformers' save_pretrained
static const uint64_t RANGE = 16 << 20;

// The entry of an earlier part of the same fused tensor, or -1.
static int fused_with(const struct tsr_ckpt_set *s, const struct tsr_tensor_table *tt, int i) {
    const struct tsr_tensor *t = &tt->t[i];
    for (int j = i - 1; j >= 0 && tt->t[j].layer == t->layer; j--)
        if (strcmp(tt->t[j].hf_name, t->hf_name) == 0)
            return s->entry_of[j];
    return -1;
}

static int add_entry(struct tsr_ckpt_set *s, const struct tsr_tensor *t) {
    struct tsr_place p = s->hf ? tsr_place_hf(t) : tsr_place_canonical(t);
    struct tsr_st_entry *e = &s->entries[s->n_entries];
    int64_t n_elems;
    e->name = strdup(s->hf ? t->hf_name : t->name);
    if (!e->name)
        return tsr_fail(TSR_ENOMEM, "no memory for the names of a checkpoint");
    s->n_entries++;
    e->dtype = s->dtype;
    e->ndim = p.ndim;
    e->shape[0] = p.rows;
    if (p.ndim == 2)
        e->shape[1] = p.cols;
    if (__builtin_mul_overflow(p.rows, p.cols, &n_elems) || n_elems > INT64_MAX / 64)
        return tsr_fail(TSR_EMODEL, "tensor \"%s\" of %" PRId64 " x %" PRId64 " is too large",
                        e->name, p.rows, p.cols);
    return 0;
}

static int fill_set(struct tsr_ckpt_set *s, const struct tsr_tensor_table *tt) {
    s->entries = calloc((size_t)tt->n, sizeof *s->entries);
    s->entry_of = malloc((size_t)tt->n * sizeof *s->entry_of);
    if (!s->entries || !s->entry_of)
        return tsr_fail(TSR_ENOMEM, "no memory for the layout of a checkpoint");
    for (int i = 0; i < tt->n; i++) {
        bool absent = tt->t[i].frozen && s->part != TSR_CKPT_WEIGHTS;
        int fused = s->hf ? fused_with(s, tt, i) : -1;
        s->entry_of[i] = absent ? -1 : fused >= 0 ? fused : s->n_entries;
        if (!absent && fused < 0)
            TSR_TRY(add_entry(s, &tt->t[i]));
    }
    return 0;
}

static uint64_t entry_bytes(const struct tsr_st_entry *e) {
    uint64_t n = tsr_dtype_size(e->dtype);
    for (int i = 0; i < e->ndim; i++)
        n *= (uint64_t)e->shape[i];
    return n;
}

// How many entries from `first` on share a file: at least one, else no more than `max` bytes.
static int n_together(const struct tsr_ckpt_set *s, int first, uint64_t max) {
    uint64_t bytes = 0;
    int i = first;
    while (i < s->n_entries && (i == first || entry_bytes(&s->entries[i]) <= max - bytes)) {
        uint64_t n = entry_bytes(&s->entries[i++]);
        bytes = n < max - bytes ? bytes + n : max;
    }
    return i - first;
}

static int cut_set(struct tsr_checkpoint *c, struct tsr_ckpt_set *s) {
    const uint64_t max = c->opt.max_file_bytes;
    s->first_file = c->n_files;
    for (int i = 0; i < s->n_entries; i += n_together(s, i, max))
        s->n_files++;
    struct tsr_ckpt_file *files =
        realloc(c->files, (size_t)(c->n_files + s->n_files) * sizeof *files);
    if (!files)
        return tsr_fail(TSR_ENOMEM, "no memory for the files of a checkpoint");
    c->files = files;
    for (int i = 0, k = 0; i < s->n_entries; k++) {
        struct tsr_ckpt_file *f = &files[c->n_files];
        *f = (struct tsr_ckpt_file){.entries = &s->entries[i], .n_entries = n_together(s, i, max)};
        snprintf(f->path, sizeof f->path, "%s-%05d-of-%05d.safetensors", s->stem, k + 1,
                 s->n_files);
        c->n_files++; // before what can fail: the header is freed with the file
        TSR_TRY(tsr_st_header(f->entries, f->n_entries, &f->header));
        f->size = f->header.len + f->entries[f->n_entries - 1].end;
        i += f->n_entries;
    }
    return 0;
}

int tsr_ckpt_layout(struct tsr_checkpoint *c) {
    const struct tsr_ckpt_set model = {TSR_CKPT_WEIGHTS, true, c->opt.dtype, .stem = "model"};
    const struct tsr_ckpt_set master = {TSR_CKPT_WEIGHTS, false, TSR_DT_F32,
                                        .stem = "optimizer/master"};
    const struct tsr_ckpt_set m = {TSR_CKPT_M, false, TSR_DT_F32, .stem = "optimizer/m"};
    const struct tsr_ckpt_set v = {TSR_CKPT_V, false, TSR_DT_F32, .stem = "optimizer/v"};
    TSR_ASSERT(c->opt.dtype == TSR_DT_F32 || c->opt.dtype == TSR_DT_F16 ||
               c->opt.dtype == TSR_DT_BF16);
    TSR_ASSERT((c->opt.range_bytes & (c->opt.range_bytes - 1)) == 0);
    if (c->opt.max_file_bytes == 0)
        c->opt.max_file_bytes = MAX_FILE;
    if (c->opt.range_bytes == 0)
        c->opt.range_bytes = RANGE;
    c->sets[c->n_sets++] = model;
    if (c->opt.dtype != TSR_DT_F32)
        c->sets[c->n_sets++] = master;
    c->sets[c->n_sets++] = m;
    c->sets[c->n_sets++] = v;
    for (int i = 0; i < c->n_sets; i++) {
        TSR_TRY(fill_set(&c->sets[i], c->opt.table));
        TSR_TRY(cut_set(c, &c->sets[i]));
    }
    return 0;
}

void tsr_ckpt_layout_free(struct tsr_checkpoint *c) {
    for (int i = 0; i < c->n_files; i++)
        tsr_buf_free(&c->files[i].header);
    for (int i = 0; i < c->n_sets; i++) {
        for (int j = 0; j < c->sets[i].n_entries; j++)
            free(c->sets[i].entries[j].name);
        free(c->sets[i].entries);
        free(c->sets[i].entry_of);
    }
    free(c->files);
}

#include "launcher/ckpt_compare.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/place.h"

enum { BLOCK = 1 << 20 }; // elements read at once

int tsr_compared_open(struct tsr_compared *c, const char *dir) {
    *c = (struct tsr_compared){.dir = dir};
    TSR_TRY(tsr_model_load(&c->model, dir));
    c->model_open = true;
    TSR_TRY(tsr_tensor_table_build(&c->table, &c->model));
    c->table_open = true;
    TSR_TRY(tsr_state_read(&c->state, dir));
    c->state_open = true;
    TSR_TRY(tsr_checkpoint_digests_open(&c->digests, dir));
    TSR_TRY(tsr_moments_open(&c->moments, dir, &c->table));
    return tsr_weights_open(&c->weights, dir, &c->model, &c->table);
}

void tsr_compared_close(struct tsr_compared *c) {
    tsr_weights_close(c->weights);
    tsr_moments_close(c->moments);
    tsr_checkpoint_digests_close(c->digests);
    if (c->state_open)
        tsr_state_free(&c->state);
    if (c->table_open)
        tsr_tensor_table_free(&c->table);
    if (c->model_open)
        tsr_model_free(&c->model);
    *c = (struct tsr_compared){0};
}

// ---- where a tensor lies

struct place {
    char file[64]; // below the directory; "": frozen, it has no moments
    uint64_t first, end;
    bool hf;
};

static struct place place_of(const struct tsr_compared *c, enum tsr_checkpoint_part part,
                             const struct tsr_tensor *t) {
    const struct tsr_st_entry *e = NULL;
    struct place p = {.hf = part == TSR_CKPT_WEIGHTS && !tsr_moments_has_master(c->moments)};
    const struct tsr_st_file *f =
        p.hf ? tsr_weights_file(c->weights, t, &e) : tsr_moments_file(c->moments, part, t, &e);
    if (!f)
        return p;
    snprintf(p.file, sizeof p.file, "%s%s", p.hf ? "" : "optimizer/", tsr_path_base(f->path));
    p.first = f->data_offset + e->begin;
    p.end = f->data_offset + e->end;
    return p;
}

// Same bytes at the same place of the same file, by the manifests alone.
static bool same_by_digest(const struct tsr_compared *a, const struct tsr_compared *b,
                           enum tsr_checkpoint_part part, const struct tsr_tensor *t,
                           const struct tsr_tensor *u) {
    const struct place p = place_of(a, part, t), q = place_of(b, part, u);
    if (!p.file[0] || !q.file[0])
        return !p.file[0] && !q.file[0];
    return p.hf == q.hf && p.first == q.first && p.end == q.end && strcmp(p.file, q.file) == 0 &&
           t->hf_offset == u->hf_offset && t->hf_transposed == u->hf_transposed &&
           tsr_checkpoint_digests_equal(a->digests, b->digests, p.file, p.first, p.end);
}

static int read_rows(const struct tsr_compared *c, enum tsr_checkpoint_part part,
                     const struct tsr_tensor *t, struct tsr_region r, float *out) {
    if (part == TSR_CKPT_WEIGHTS && !tsr_moments_has_master(c->moments))
        return tsr_weights_read(c->weights, t, r, out);
    return tsr_moments_read(c->moments, part, t, r, out);
}

// ---- one tensor

static void compare_block(struct tsr_tensor_difference *d, struct tsr_region r, const float *x,
                          const float *y) {
    const int64_t cols = r.c1 - r.c0, n = tsr_region_elems(r);
    for (int64_t i = 0; i < n; i++) {
        if (memcmp(&x[i], &y[i], sizeof x[i]) == 0)
            continue;
        if (d->n_different++ == 0) {
            d->row = r.r0 + i / cols;
            d->col = r.c0 + i % cols;
            d->a = x[i];
            d->b = y[i];
        }
        double a = (double)x[i], b = (double)y[i], size = fmax(fabs(a), fabs(b));
        bool finite = isfinite(a) && isfinite(b);
        double abs = finite ? fabs(a - b) : INFINITY;
        double rel = !finite ? INFINITY : size > 0.0 ? abs / size : 0.0;
        d->max_abs = abs > d->max_abs ? abs : d->max_abs;
        d->max_rel = rel > d->max_rel ? rel : d->max_rel;
    }
}

static int compare_tensor(struct tsr_tensor_difference *d, const struct tsr_compared *a,
                          const struct tsr_compared *b, const struct tsr_tensor *t,
                          const struct tsr_tensor *u, float *buf[2]) {
    const int64_t width = t->cols < BLOCK ? t->cols : BLOCK, height = BLOCK / width;
    for (int64_t i = 0; i < t->rows; i += height)
        for (int64_t j = 0; j < t->cols; j += width) {
            struct tsr_region r = {i, i + height < t->rows ? i + height : t->rows, j,
                                   j + width < t->cols ? j + width : t->cols};
            TSR_TRY(read_rows(a, d->part, t, r, buf[0]));
            TSR_TRY(read_rows(b, d->part, u, r, buf[1]));
            compare_block(d, r, buf[0], buf[1]);
        }
    d->verdict = d->n_different ? TSR_DIFFERS : TSR_SAME;
    return 0;
}

static int compare_part(struct tsr_tensor_difference *d, const struct tsr_compared *a,
                        const struct tsr_compared *b, const struct tsr_tensor *t,
                        const struct tsr_tensor *u, const struct tsr_comparison *how,
                        float *buf[2]) {
    d->n_elems = t->rows * t->cols;
    d->shape_a[0] = t->rows;
    d->shape_a[1] = t->cols;
    d->verdict = TSR_ONLY_A;
    if (!u)
        return 0;
    d->shape_b[0] = u->rows;
    d->shape_b[1] = u->cols;
    d->verdict = TSR_SHAPES;
    if (t->rows != u->rows || t->cols != u->cols)
        return 0;
    d->by_digest = !how->read_all && same_by_digest(a, b, d->part, t, u);
    d->verdict = TSR_SAME;
    return d->by_digest ? 0 : compare_tensor(d, a, b, t, u, buf);
}

// ---- all tensors

static uint64_t n_elems_of(const struct tsr_tensor_table *tt) {
    uint64_t n = 0;
    for (int i = 0; i < tt->n; i++)
        n += (uint64_t)(tt->t[i].rows * tt->t[i].cols);
    return n;
}

static int compare_all(const struct tsr_compared *a, const struct tsr_compared *b,
                       const struct tsr_comparison *how, float *buf[2]) {
    const uint64_t total = 3 * n_elems_of(&a->table);
    uint64_t done = 0;
    for (int part = 0; part < 3; part++) {
        for (int i = 0; i < a->table.n; i++) {
            const struct tsr_tensor *t = &a->table.t[i];
            const struct tsr_tensor *u = tsr_tensor_by_name(&b->table, t->name);
            struct tsr_tensor_difference d = {.part = (enum tsr_checkpoint_part)part,
                                              .name = t->name};
            TSR_TRY(compare_part(&d, a, b, t, u, how, buf));
            done += (uint64_t)d.n_elems;
            if (how->progress)
                how->progress(how->arg, done, total);
            TSR_TRY(how->each(how->arg, &d));
        }
        for (int i = 0; i < b->table.n; i++) {
            const struct tsr_tensor *u = &b->table.t[i];
            struct tsr_tensor_difference d = {.part = (enum tsr_checkpoint_part)part,
                                              .name = u->name,
                                              .verdict = TSR_ONLY_B,
                                              .shape_b = {u->rows, u->cols},
                                              .n_elems = u->rows * u->cols};
            if (!tsr_tensor_by_name(&a->table, u->name))
                TSR_TRY(how->each(how->arg, &d));
        }
    }
    return 0;
}

int tsr_compare(const struct tsr_compared *a, const struct tsr_compared *b,
                const struct tsr_comparison *how) {
    float *buf[2] = {malloc(BLOCK * sizeof(float)), malloc(BLOCK * sizeof(float))};
    int rc = buf[0] && buf[1] ? compare_all(a, b, how, buf)
                              : tsr_fail(TSR_ENOMEM, "no memory to compare checkpoints");
    free(buf[0]);
    free(buf[1]);
    return rc;
}

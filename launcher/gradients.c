#include "launcher/gradients.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "dist/grad_dump.h"

static int read_scalar(const struct tsr_st_file *f, const char *name, double *out) {
    const struct tsr_st_entry *e = tsr_st_find(f, name);
    if (!e || e->dtype != TSR_DT_F64 || e->end - e->begin != sizeof *out)
        return tsr_fail(TSR_EDATA, "%s: expected a number of type F64 named %s, found none",
                        f->path, name);
    return tsr_pread_all(f->fd, out, sizeof *out, f->data_offset + e->begin, f->path);
}

static int open_files(struct tsr_gradients *g, const char *dir, int64_t step, int n_ranks) {
    g->files = calloc((size_t)n_ranks, sizeof *g->files);
    if (!g->files)
        return tsr_fail(TSR_ENOMEM, "no memory for the files of %d ranks", n_ranks);
    for (; g->n_ranks < n_ranks; g->n_ranks++) {
        char path[TSR_PATH_MAX];
        TSR_TRY(tsr_grad_dump_path(path, dir, step, g->n_ranks));
        TSR_TRY(tsr_st_open(&g->files[g->n_ranks], path));
    }
    TSR_TRY(read_scalar(&g->files[0], "loss", &g->loss));
    return read_scalar(&g->files[0], "grad_norm", &g->grad_norm);
}

int tsr_gradients_open(struct tsr_gradients *g, const char *dir, int64_t step, int n_ranks) {
    *g = (struct tsr_gradients){0};
    int rc = open_files(g, dir, step, n_ranks);
    if (rc < 0)
        tsr_gradients_close(g);
    return rc;
}

void tsr_gradients_close(struct tsr_gradients *g) {
    for (int r = 0; r < g->n_ranks; r++)
        tsr_st_close(&g->files[r]);
    free(g->files);
    *g = (struct tsr_gradients){0};
}

// ---- one tensor out of its pieces

// A whole tensor under construction.
struct whole {
    const struct tsr_tensor *t;
    float *v;      // (rows, cols)
    uint8_t *here; // (rows, cols) whether an element has come
    int64_t n_here;
    struct tsr_first *clash;
    bool clashed;
};

// Where a piece named "NAME@R0,C0" lies; false: it is another tensor's.
static bool place_of(const struct tsr_st_entry *e, const char *name, int64_t *r0, int64_t *c0) {
    size_t n = strlen(name);
    char *end;
    if (strncmp(e->name, name, n) != 0 || e->name[n] != '@')
        return false;
    *r0 = strtoll(e->name + n + 1, &end, 10);
    if (*end != ',')
        return false;
    *c0 = strtoll(end + 1, &end, 10);
    return *end == 0;
}

static void put(struct whole *w, int64_t row, int64_t col, float v) {
    size_t at = (size_t)(row * w->t->cols + col);
    if (!w->here[at]) {
        w->here[at] = 1;
        w->n_here++;
        w->v[at] = v;
    } else if (memcmp(&w->v[at], &v, sizeof v) != 0 && !w->clashed) {
        w->clashed = true;
        *w->clash = (struct tsr_first){row, col, w->v[at], v};
    }
}

static int put_piece(struct whole *w, const struct tsr_st_file *f, const struct tsr_st_entry *e,
                     int64_t r0, int64_t c0) {
    int64_t rows = e->ndim == 2 ? e->shape[0] : -1, cols = e->ndim == 2 ? e->shape[1] : -1;
    if (e->dtype != TSR_DT_F32 || rows < 0 || r0 < 0 || c0 < 0 || rows > w->t->rows - r0 ||
        cols > w->t->cols - c0)
        return tsr_fail(TSR_EDATA, "%s: %s doesn't lie in a tensor of %lld x %lld", f->path,
                        e->name, (long long)w->t->rows, (long long)w->t->cols);
    float *v = malloc((size_t)(rows * cols) * sizeof *v + 1);
    if (!v)
        return tsr_fail(TSR_ENOMEM, "no memory for %s", e->name);
    int rc = tsr_st_read_region(f, e, 0, rows, 0, cols, v);
    for (int64_t i = 0; rc == 0 && i < rows * cols; i++)
        put(w, r0 + i / cols, c0 + i % cols, v[i]);
    free(v);
    return rc;
}

// The entries of a file are sorted by name: those of one tensor stand together.
static const struct tsr_st_entry *first_of(const struct tsr_st_file *f, const char *prefix) {
    int lo = 0, hi = f->n;
    while (lo < hi) {
        int mid = lo + (hi - lo) / 2;
        if (strcmp(f->entries[mid].name, prefix) < 0)
            lo = mid + 1;
        else
            hi = mid;
    }
    return &f->entries[lo];
}

static int collect(struct whole *w, const struct tsr_gradients *g) {
    char prefix[160];
    size_t n = (size_t)snprintf(prefix, sizeof prefix, "%s@", w->t->name);
    for (int r = 0; r < g->n_ranks; r++) {
        const struct tsr_st_file *f = &g->files[r];
        const struct tsr_st_entry *e = first_of(f, prefix), *end = f->entries + f->n;
        int64_t r0, c0;
        for (; e < end && strncmp(e->name, prefix, n) == 0; e++)
            if (place_of(e, w->t->name, &r0, &c0))
                TSR_TRY(put_piece(w, f, e, r0, c0));
    }
    if (w->n_here == w->t->rows * w->t->cols)
        return w->clashed;
    return tsr_fail(TSR_EDATA,
                    "gradient of %s: expected %lld elements in the files of %d ranks, "
                    "found %lld",
                    w->t->name, (long long)(w->t->rows * w->t->cols), g->n_ranks,
                    (long long)w->n_here);
}

// The whole tensor, rows x cols. Returns 1 and fills `clash` when two ranks disagree about an
// element, 0, or TSR_EDATA when some element is in no file.
static int read_whole(const struct tsr_gradients *g, const struct tsr_tensor *t, float *out,
                      struct tsr_first *clash) {
    struct whole w = {.t = t, .v = out, .clash = clash};
    w.here = calloc((size_t)(t->rows * t->cols) + 1, 1);
    if (!w.here)
        return tsr_fail(TSR_ENOMEM, "no memory for the gradient of %s", t->name);
    int rc = collect(&w, g);
    free(w.here);
    return rc;
}

// ---- two layouts

static bool find_first(struct tsr_first *out, const float *a, const float *b,
                       const struct tsr_tensor *t) {
    for (int64_t i = 0; i < t->rows * t->cols; i++)
        if (memcmp(&a[i], &b[i], sizeof *a) != 0) {
            *out = (struct tsr_first){i / t->cols, i % t->cols, a[i], b[i]};
            return true;
        }
    return false;
}

static void note(struct tsr_difference *d, const struct tsr_tensor *t, struct tsr_first first,
                 int within) {
    if (d->n_different++ == 0) {
        snprintf(d->name, sizeof d->name, "%s", t->name);
        d->layer = t->layer;
        d->first = first;
        d->within = within;
    }
    snprintf(d->last, sizeof d->last, "%s", t->name);
}

static void note_distance(struct tsr_difference *d, const struct tsr_tensor *t, const float *a,
                          const float *b) {
    double apart = 0, size = 0, least = 1e-6 * d->grad_norm[1];
    for (int64_t i = 0; i < t->rows * t->cols; i++) {
        double delta = (double)a[i] - (double)b[i];
        apart += delta * delta;
        size += (double)b[i] * (double)b[i];
    }
    size = sqrt(size) > least ? sqrt(size) : least;
    double distance = apart > 0 || isnan(apart) ? sqrt(apart) / size : 0;
    if (distance > d->distance || (isnan(distance) && !isnan(d->distance))) {
        d->distance = distance;
        snprintf(d->far, sizeof d->far, "%s", t->name);
    }
}

static int compare_tensor(struct tsr_difference *d, const struct tsr_gradients *const g[2],
                          const struct tsr_tensor *t, float *const v[2]) {
    struct tsr_first first = {0};
    int within = 0;
    for (int k = 0; k < 2; k++) {
        struct tsr_first clash = {0};
        int rc = read_whole(g[k], t, v[k], &clash);
        TSR_TRY(rc);
        if (rc == 1 && !within) {
            within = k + 1;
            first = clash;
        }
    }
    d->n_tensors++;
    if (within || find_first(&first, v[0], v[1], t))
        note(d, t, first, within);
    note_distance(d, t, v[0], v[1]);
    return 0;
}

int tsr_gradients_compare(struct tsr_difference *out, const struct tsr_gradients *a,
                          const struct tsr_gradients *b, const struct tsr_tensor_table *tt) {
    const struct tsr_gradients *const g[2] = {a, b};
    int64_t most = 1;
    int rc = 0;
    *out = (struct tsr_difference){.loss = {a->loss, b->loss},
                                   .grad_norm = {a->grad_norm, b->grad_norm}};
    for (int i = 0; i < tt->n; i++)
        if (tt->t[i].rows * tt->t[i].cols > most)
            most = tt->t[i].rows * tt->t[i].cols;
    float *v[2] = {malloc((size_t)most * sizeof **v), malloc((size_t)most * sizeof **v)};
    if (!v[0] || !v[1])
        rc = tsr_fail(TSR_ENOMEM, "no memory for two tensors of %lld elements", (long long)most);
    for (int i = 0; rc == 0 && i < tt->n; i++)
        if (!tt->t[i].frozen)
            rc = compare_tensor(out, g, &tt->t[i], v);
    free(v[0]);
    free(v[1]);
    return rc;
}

bool tsr_gradients_equal(const struct tsr_difference *d) {
    return d->n_different == 0 && memcmp(&d->loss[0], &d->loss[1], sizeof *d->loss) == 0 &&
           memcmp(&d->grad_norm[0], &d->grad_norm[1], sizeof *d->grad_norm) == 0;
}

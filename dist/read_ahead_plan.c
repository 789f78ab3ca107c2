#include "dist/read_ahead_plan.h"

#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/fetch.h"

enum {
    LEAST_UNIT = 64 << 10,
    MOST_UNITS = 1 << 20, // a byte each, of every rank
};

static uint64_t ceil_div(uint64_t a, uint64_t b) {
    return a / b + (a % b != 0);
}

// ---- files and units

static size_t count_units(struct tsr_ahead_plan *p) {
    size_t n = 0;
    for (int i = 0; i < p->n_files; i++) {
        p->files[i].first_unit = n;
        n += (size_t)ceil_div(p->files[i].size, p->unit);
    }
    return n;
}

static void list_files(struct tsr_ahead_plan *p, const struct tsr_ahead_opt *opt) {
    for (int i = 0; i < p->n_files; i++) {
        const struct tsr_ahead_file *from = &opt->files[i];
        struct tsr_ahead_listed *f = &p->files[i];
        snprintf(f->name, sizeof f->name, "%s%s", from->optimizer ? "optimizer/" : "",
                 tsr_path_base(from->f->path));
        f->size = from->f->data_offset + from->f->data_size;
        f->first_range = p->n_ranges;
        f->n_ranges = p->range_bytes ? (int64_t)ceil_div(f->size, p->range_bytes) : 0;
        p->n_ranges += f->n_ranges;
    }
}

int tsr_ahead_plan_open(struct tsr_ahead_plan *p, const struct tsr_ahead_opt *opt,
                        const struct tsr_checkpoint_digests *d) {
    const uint64_t range = d ? tsr_checkpoint_digests_range_bytes(d) : 0;
    *p = (struct tsr_ahead_plan){.n_files = opt->n_files, .unit = LEAST_UNIT};
    if (range % TSR_FETCH_PAGE == 0) // others are digested afterwards
        p->range_bytes = range;
    p->files = calloc((size_t)p->n_files + 1, sizeof *p->files);
    if (!p->files)
        return tsr_fail(TSR_ENOMEM, "no memory to read files");
    list_files(p, opt);
    while ((p->n_units = count_units(p)) > MOST_UNITS && p->unit < (uint64_t)1 << 40)
        p->unit *= 2;
    p->units_bytes = ceil_div(p->n_units + 1, TSR_FETCH_PAGE) * TSR_FETCH_PAGE;
    p->digested = calloc((size_t)p->n_ranges + 1, sizeof *p->digested);
    return p->digested ? 0 : tsr_fail(TSR_ENOMEM, "no memory to read files");
}

void tsr_ahead_plan_close(struct tsr_ahead_plan *p) {
    free(p->files);
    free(p->digested);
    free(p->pieces);
}

void tsr_ahead_plan_mark(const struct tsr_ahead_plan *p, const struct tsr_ahead_opt *opt,
                         unsigned char *units) {
    for (int i = 0; i < opt->n_needs; i++) {
        const struct tsr_ahead_need *x = &opt->needs[i];
        if (x->n_bytes == 0)
            continue;
        const size_t first = (size_t)(x->offset / p->unit);
        const size_t last = (size_t)((x->offset + x->n_bytes - 1) / p->unit);
        memset(units + p->files[x->file].first_unit + first, 1, last - first + 1);
    }
}

// ---- pieces

static int add_piece(struct tsr_ahead_plan *p, struct tsr_ahead_piece x) {
    if (p->n_pieces == p->cap_pieces) {
        int64_t cap = p->cap_pieces ? 2 * p->cap_pieces : 256;
        struct tsr_ahead_piece *grown = realloc(p->pieces, (size_t)cap * sizeof *grown);
        if (!grown)
            return tsr_fail(TSR_ENOMEM, "no memory to read files");
        p->pieces = grown;
        p->cap_pieces = cap;
    }
    p->pieces[p->n_pieces++] = x;
    return 0;
}

// Bytes [at, end) of a file, which are just the range, or of none (-1).
static int add_run(struct tsr_ahead_plan *p, int file, uint64_t at, uint64_t end, int64_t range) {
    for (uint64_t x = at; x < end; x += TSR_AHEAD_PIECE) {
        const uint64_t left = end - x, n = left < TSR_AHEAD_PIECE ? left : TSR_AHEAD_PIECE;
        TSR_TRY(
            add_piece(p, (struct tsr_ahead_piece){file, x, (size_t)n, range, x == at, n == left}));
    }
    return 0;
}

static bool is_needed(const struct tsr_ahead_plan *p, int file, char *const *units, int n,
                      uint64_t offset) {
    const size_t unit = p->files[file].first_unit + (size_t)(offset / p->unit);
    for (int i = 0; i < n; i++)
        if (units[i][unit])
            return true;
    return false;
}

// What is needed of the window [at, end) of a file.
static int add_needed(struct tsr_ahead_plan *p, int file, char *const *units, int n, uint64_t at,
                      uint64_t end) {
    while (at < end) {
        uint64_t to = at; // up to here all is needed
        while (to < end && is_needed(p, file, units, n, to))
            to = (to / p->unit + 1) * p->unit;
        to = to < end ? to : end;
        if (to > at)
            TSR_TRY(add_run(p, file, at, to, -1));
        at = to > at ? to : (at / p->unit + 1) * p->unit;
    }
    return 0;
}

// Whether at least half of it is needed.
static bool is_mostly_needed(const struct tsr_ahead_plan *p, int file, char *const *units, int n,
                             uint64_t at, uint64_t end) {
    uint64_t needed = 0;
    for (uint64_t x = at; x < end;) {
        uint64_t to = (x / p->unit + 1) * p->unit;
        to = to < end ? to : end;
        needed += is_needed(p, file, units, n, x) ? to - x : 0;
        x = to;
    }
    return 2 * needed >= end - at;
}

static int plan_file(struct tsr_ahead_plan *p, int file, char *const *units, int n) {
    const struct tsr_ahead_listed *f = &p->files[file];
    const uint64_t window = p->range_bytes ? p->range_bytes : f->size;
    for (uint64_t at = 0; at < f->size; at += window) {
        const uint64_t end = f->size - at < window ? f->size : at + window;
        const int64_t range = (int64_t)(at / window);
        if (!p->range_bytes || !is_mostly_needed(p, file, units, n, at, end)) {
            TSR_TRY(add_needed(p, file, units, n, at, end));
            continue;
        }
        TSR_TRY(add_run(p, file, at, end, range));
        p->digested[f->first_range + range] = 1.0f;
    }
    return 0;
}

int tsr_ahead_plan_make(struct tsr_ahead_plan *p, char *const *units, int n) {
    for (int i = 0; i < p->n_files; i++)
        TSR_TRY(plan_file(p, i, units, n));
    return 0;
}

bool tsr_ahead_plan_digested(const struct tsr_ahead_plan *p, const char *file, int64_t range) {
    for (int i = 0; i < p->n_files; i++)
        if (strcmp(p->files[i].name, file) == 0)
            return range < p->files[i].n_ranges &&
                   p->digested[p->files[i].first_range + range] > 0.0f;
    return false;
}

// What a save consists of, and what one rank has done of it: plan, flush and digest.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include "core/error.h"

void tsr_save_plan_free(struct tsr_save_plan *p) {
    for (int i = 0; i < p->n_files; i++)
        free(p->files[i].path);
    free(p->files);
    *p = (struct tsr_save_plan){0};
}

void tsr_save_vote_free(struct tsr_save_vote *v) {
    for (int i = 0; i < v->n_ranges; i++)
        free(v->ranges[i].digests);
    free(v->ranges);
    *v = (struct tsr_save_vote){0};
}

static uint64_t n_elements(const struct tsr_tensor_table *tt) {
    uint64_t n = 0;
    for (int i = 0; i < tt->n; i++)
        n += (uint64_t)(tt->t[i].rows * tt->t[i].cols) * (tt->t[i].frozen ? 1 : 3);
    return n;
}

static const struct tsr_ckpt_file *tensor_file(const struct tsr_checkpoint *c, const char *path) {
    for (int i = 0; i < c->n_files; i++)
        if (strcmp(c->files[i].path, path) == 0)
            return &c->files[i];
    return NULL;
}

static int plan_file(const struct tsr_checkpoint *c, const char *dir, const char *name,
                     struct tsr_planned_file *f) {
    char path[TSR_PATH_MAX];
    struct stat st;
    TSR_TRY(tsr_path_join(path, dir, name));
    if (stat(path, &st) < 0)
        return tsr_fail_errno(errno, "cannot read", path);
    const struct tsr_ckpt_file *tensors = tensor_file(c, name);
    if (tensors && (uint64_t)st.st_size != tensors->size)
        return tsr_fail(TSR_EIO, "%s: expected %" PRIu64 " bytes, found %" PRId64, path,
                        tensors->size, (int64_t)st.st_size);
    f->size = (uint64_t)st.st_size;
    f->path = strdup(name);
    return f->path ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the plan of a checkpoint");
}

static int plan_of(const struct tsr_checkpoint *c, const char *dir, struct tsr_save_plan *plan) {
    struct tsr_ckpt_names names;
    *plan = (struct tsr_save_plan){.range_bytes = c->opt.range_bytes,
                                   .elements = n_elements(c->opt.table)};
    tsr_ckpt_temporary(plan->temporary, c->opt.step, c->opt.epoch, c->opt.attempt);
    TSR_TRY(tsr_ckpt_list(&names, dir));
    plan->files = calloc((size_t)names.n + 1, sizeof *plan->files);
    int rc = plan->files ? 0 : tsr_fail(TSR_ENOMEM, "no memory for the plan of a checkpoint");
    for (int i = 0; rc == 0 && i < names.n; i++)
        if (strcmp(names.v[i], TSR_CKPT_MANIFEST) != 0)
            rc = plan_file(c, dir, names.v[i], &plan->files[plan->n_files++]);
    tsr_ckpt_names_free(&names);
    if (rc < 0)
        tsr_save_plan_free(plan);
    return rc;
}

int tsr_checkpoint_plan(const struct tsr_checkpoint *c, struct tsr_save_plan *plan) {
    return plan_of(c, c->tmp, plan);
}

// ---- flush

static int sync_file(const struct tsr_checkpoint *c, const char *name) {
    char path[TSR_PATH_MAX];
    TSR_TRY(tsr_path_join(path, c->tmp, name));
    return tsr_fsync_path(path);
}

static int sync_all(struct tsr_checkpoint *c, const struct tsr_save_plan *plan) {
    for (int i = 0; i < c->n_files; i++) {
        if (c->files[i].dirty)
            TSR_TRY(sync_file(c, c->files[i].path));
        c->files[i].dirty = false;
    }
    if (!c->began)
        return 0;
    for (int i = 0; i < plan->n_files; i++)
        if (!tensor_file(c, plan->files[i].path))
            TSR_TRY(sync_file(c, plan->files[i].path));
    TSR_TRY(sync_file(c, "optimizer"));
    return sync_file(c, "");
}

static int order_of_done(const void *a, const void *b) {
    const struct tsr_ckpt_done *x = a, *y = b;
    return x->range < y->range ? -1 : x->range > y->range;
}

// From numbers within a file to numbers within the plan.
static void number_ranges(struct tsr_checkpoint *c, const struct tsr_save_plan *plan) {
    int64_t first = 0;
    for (int i = 0; i < plan->n_files; i++) {
        const struct tsr_ckpt_file *f = tensor_file(c, plan->files[i].path);
        for (size_t k = 0; f && k < c->n_done; k++)
            if (c->done[k].file == f - c->files)
                c->done[k] =
                    (struct tsr_ckpt_done){-1, first + c->done[k].range, c->done[k].digest};
        first += tsr_ckpt_n_ranges(plan->files[i].size, plan->range_bytes);
    }
    if (c->n_done > 0)
        qsort(c->done, c->n_done, sizeof *c->done, order_of_done);
}

static int add_ranges(struct tsr_save_vote *v, const struct tsr_ckpt_done *done, size_t n) {
    struct tsr_range_digests *r = &v->ranges[v->n_ranges++];
    r->first = (uint64_t)done[0].range;
    r->n = (int)n;
    r->digests = malloc(n * sizeof *r->digests);
    if (!r->digests)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    for (size_t i = 0; i < n; i++)
        r->digests[i] = done[i].digest;
    return 0;
}

static int fill_vote(struct tsr_checkpoint *c, struct tsr_save_vote *v) {
    const struct tsr_ckpt_done *d = c->done;
    v->elements = (uint64_t)c->elems_written;
    v->ranges = calloc(c->n_done + 1, sizeof *v->ranges);
    if (!v->ranges)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    for (size_t i = 0, n; i < c->n_done; i += n) {
        for (n = 1; i + n < c->n_done && d[i + n].range == d[i].range + (int64_t)n;)
            n++;
        TSR_TRY(add_ranges(v, d + i, n));
    }
    return 0;
}

int tsr_checkpoint_flush(struct tsr_checkpoint *c, struct tsr_save_vote *vote) {
    struct tsr_save_plan plan;
    *vote = (struct tsr_save_vote){0};
    TSR_TRY(tsr_ckpt_runs_finish(c));
    TSR_TRY(tsr_checkpoint_plan(c, &plan));
    int rc = sync_all(c, &plan);
    number_ranges(c, &plan);
    if (rc == 0)
        rc = fill_vote(c, vote);
    c->n_done = 0;
    tsr_save_plan_free(&plan);
    if (rc < 0)
        tsr_save_vote_free(vote);
    return rc;
}

// ---- ranges that several ranks wrote

// The ranges of `span` that lie in a file whose first range is `first`.
static int digest_file(const char *dir, const struct tsr_planned_file *f, uint64_t range,
                       uint64_t first, struct tsr_span span, struct tsr_digest *out) {
    char path[TSR_PATH_MAX];
    const uint64_t n = (uint64_t)tsr_ckpt_n_ranges(f->size, range);
    uint64_t lo = span.first > first ? span.first : first;
    uint64_t hi = span.first + span.count < first + n ? span.first + span.count : first + n;
    if (lo >= hi)
        return 0;
    TSR_TRY(tsr_path_join(path, dir, f->path));
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    int rc = 0;
    for (uint64_t r = lo; rc == 0 && r < hi; r++) {
        uint64_t at = (r - first) * range, left = f->size - at;
        rc = tsr_ckpt_digest_range(fd, path, at, left < range ? left : range, &out[r - span.first]);
    }
    close(fd);
    return rc;
}

static int digest_span(const char *dir, const struct tsr_save_plan *plan, struct tsr_span span,
                       struct tsr_range_digests *out) {
    uint64_t first = 0, total = 0;
    for (int i = 0; i < plan->n_files; i++)
        total += (uint64_t)tsr_ckpt_n_ranges(plan->files[i].size, plan->range_bytes);
    if (span.first > total || span.count > total - span.first || span.count > INT32_MAX)
        return tsr_fail(TSR_EPEER,
                        "asked for digests of ranges %" PRIu64 " to %" PRIu64
                        " of a checkpoint that has %" PRIu64,
                        span.first, span.first + span.count, total);
    out->first = span.first;
    out->n = (int)span.count;
    out->digests = calloc(span.count + 1, sizeof *out->digests);
    if (!out->digests)
        return tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    for (int i = 0; i < plan->n_files; i++) {
        TSR_TRY(digest_file(dir, &plan->files[i], plan->range_bytes, first, span, out->digests));
        first += (uint64_t)tsr_ckpt_n_ranges(plan->files[i].size, plan->range_bytes);
    }
    return 0;
}

int tsr_checkpoint_digest(struct tsr_checkpoint *c, const struct tsr_span *spans, int n,
                          struct tsr_save_vote *vote) {
    struct tsr_save_plan plan;
    *vote = (struct tsr_save_vote){0};
    // A coordinator that takes over may ask again for what was renamed already; whether it is the
    // same save is for the rename to find out.
    const char *dir = tsr_path_exists(c->tmp) ? c->tmp : c->dir;
    TSR_TRY(plan_of(c, dir, &plan));
    vote->ranges = calloc((size_t)n + 1, sizeof *vote->ranges);
    int rc = vote->ranges ? 0 : tsr_fail(TSR_ENOMEM, "no memory for a checkpoint's digests");
    for (int i = 0; rc == 0 && i < n; i++)
        rc = digest_span(dir, &plan, spans[i], &vote->ranges[vote->n_ranges++]);
    tsr_save_plan_free(&plan);
    if (rc < 0)
        tsr_save_vote_free(vote);
    return rc;
}

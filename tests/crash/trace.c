#include "tests/crash/trace.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include "core/error.h"
#include "core/io.h"

enum { SECTOR = 512 }; // bytes that a disk writes wholly or not at all

static _Noreturn void give_up(const char *what, const char *path) {
    fprintf(stderr, "crash_states: %s: %s\n", path, what);
    exit(1);
}

void *crash_more(void *p, size_t n_bytes) {
    void *more = realloc(p, n_bytes ? n_bytes : 1);
    if (!more)
        give_up("out of memory", "a record");
    return more;
}

static int name_number(struct crash_trace *t, const char *s, size_t n) {
    for (int i = 0; i < t->n_names; i++)
        if (strlen(t->names[i]) == n && memcmp(t->names[i], s, n) == 0)
            return i;
    t->names = crash_more(t->names, (size_t)(t->n_names + 1) * sizeof *t->names);
    t->names[t->n_names] = crash_more(NULL, n + 1);
    snprintf(t->names[t->n_names], n + 1, "%.*s", (int)n, s);
    return t->n_names++;
}

static int new_object(struct crash_trace *t, bool is_dir) {
    t->objs = crash_more(t->objs, (size_t)(t->n_objs + 1) * sizeof *t->objs);
    t->objs[t->n_objs] = (struct crash_object){.is_dir = is_dir};
    return t->n_objs++;
}

static int lookup(const struct crash_trace *t, int dir, int name) {
    const struct crash_object *d = &t->objs[dir];
    for (int i = 0; i < d->n_now; i++)
        if (d->now[i].name == name)
            return d->now[i].target;
    return -1;
}

static void set_now(struct crash_trace *t, struct crash_change c) {
    struct crash_object *d = &t->objs[c.dir];
    int i = 0;
    while (i < d->n_now && d->now[i].name != c.name)
        i++;
    if (i == d->n_now && c.target >= 0) {
        d->now = crash_more(d->now, (size_t)(d->n_now + 1) * sizeof *d->now);
        d->now[d->n_now++] = c;
    } else if (i < d->n_now) {
        d->now[i] = c.target >= 0 ? c : d->now[--d->n_now];
    }
}

struct place {
    int dir, name; // -1, -1: the run directory itself
    int obj;       // -1: nothing there now
};

// Where a path below the run directory stands now. False when its folder isn't known.
static bool find(struct crash_trace *t, const char *rel, struct place *at) {
    *at = (struct place){-1, -1, 0};
    while (*rel) {
        rel += strspn(rel, "/");
        size_t n = strcspn(rel, "/");
        if (n == 0)
            break;
        if (at->obj < 0 || !t->objs[at->obj].is_dir)
            return false;
        at->dir = at->obj;
        at->name = name_number(t, rel, n);
        at->obj = lookup(t, at->dir, at->name);
        rel += n;
    }
    return true;
}

static struct crash_op *add_op(struct crash_trace *t, enum crash_kind kind, const char *path) {
    t->ops = crash_more(t->ops, (size_t)(t->n_ops + 1) * sizeof *t->ops);
    struct crash_op *op = &t->ops[t->n_ops++];
    *op = (struct crash_op){.kind = kind, .obj = -1};
    op->path = crash_more(NULL, strlen(path) + 1);
    snprintf(op->path, strlen(path) + 1, "%s", path);
    return op;
}

static void own(struct crash_trace *t, int obj) {
    struct crash_object *o = &t->objs[obj];
    if (o->n_ops > 0 && o->ops[o->n_ops - 1] == t->n_ops - 1)
        return;
    o->ops = crash_more(o->ops, (size_t)(o->n_ops + 1) * sizeof *o->ops);
    o->ops[o->n_ops++] = t->n_ops - 1;
}

static void change(struct crash_trace *t, struct crash_op *op, struct place at, int target) {
    struct crash_change c = {at.dir, at.name, target};
    op->changes[op->n_changes++] = c;
    set_now(t, c);
    own(t, at.dir);
}

static void add_data(struct crash_trace *t, enum crash_kind kind, const char *path, int obj,
                     uint64_t offset, const uint8_t *data, size_t n) {
    struct crash_op *op = add_op(t, kind, path);
    op->obj = obj;
    op->offset = offset;
    op->data = data;
    op->n_data = n;
    own(t, obj);
}

// A write of several sectors may reach the disk in parts: it counts as two writes.
static void add_write(struct crash_trace *t, const char *path, int obj, uint64_t offset,
                      const uint8_t *data, size_t n) {
    size_t first = n > 2 * SECTOR ? n / 2 / SECTOR * SECTOR : n;
    add_data(t, CRASH_WRITE, path, obj, offset, data, first);
    if (first < n)
        add_data(t, CRASH_WRITE, path, obj, offset + first, data + first, n - first);
}

static void add_names(struct crash_trace *t, enum crash_kind kind, const char *path,
                      struct place from, struct place to) {
    if (from.obj < 0 || from.dir < 0 || to.dir < 0)
        give_up("renamed, but never made", path);
    struct crash_op *op = add_op(t, kind, path);
    if (kind != CRASH_LINK)
        change(t, op, from, kind == CRASH_EXCHANGE ? to.obj : -1);
    change(t, op, to, from.obj);
}

static void add(struct crash_trace *t, const struct crash_record *r, const char *rel,
                const char *other, const uint8_t *data) {
    struct place at, to = {-1, -1, -1};
    const size_t n = strlen(rel);
    if (r->kind == CRASH_UNKNOWN)
        give_up(other, rel);
    if (r->kind == CRASH_HINT || (n > 10 && strcmp(rel + n - 10, " (deleted)") == 0))
        return;
    if (r->kind == CRASH_SYNC_ALL) {
        add_op(t, CRASH_SYNC_ALL, rel);
        return;
    }
    if (!find(t, rel, &at) || (r->n_other && !find(t, other, &to)))
        give_up("in a folder that was never made", rel);
    switch (r->kind) {
    case CRASH_CREATE:
    case CRASH_MKDIR:
        if (at.dir < 0)
            return; // the run directory
        at.obj = new_object(t, r->kind == CRASH_MKDIR);
        change(t, add_op(t, r->kind, rel), at, at.obj);
        return;
    case CRASH_UNLINK:
    case CRASH_RMDIR:
        change(t, add_op(t, r->kind, rel), at, -1);
        return;
    case CRASH_RENAME:
    case CRASH_EXCHANGE:
    case CRASH_LINK:
        add_names(t, r->kind, rel, at, to);
        return;
    }
    if (at.obj < 0)
        give_up("changed, but never made", rel);
    if (r->kind == CRASH_WRITE)
        add_write(t, rel, at.obj, r->offset, data, r->n_data);
    else if (r->kind == CRASH_SYNC)
        add_op(t, CRASH_SYNC, rel)->obj = at.obj;
    else
        add_data(t, r->kind, rel, at.obj, r->offset, NULL, 0);
}

// Below checkpoints, or the run directory itself.
static bool is_kept(const char *rel) {
    return rel[0] == 0 || strcmp(rel, "/checkpoints") == 0 ||
           strncmp(rel, "/checkpoints/", 13) == 0;
}

void crash_trace_read(struct crash_trace *t, const char *path, const char *run_dir) {
    size_t n_bytes, n_dir = strlen(run_dir);
    char *bytes, rel[TSR_PATH_MAX], other[TSR_PATH_MAX];
    *t = (struct crash_trace){.checkpoints = -1};
    if (tsr_read_file(path, (size_t)1 << 30, TSR_EIO, &bytes, &n_bytes) < 0)
        give_up(tsr_error_text(), path);
    t->bytes = (uint8_t *)bytes;
    new_object(t, true);
    for (size_t at = 0; at < n_bytes;) {
        struct crash_record r;
        memcpy(&r, bytes + at, sizeof r);
        const char *p = bytes + at + sizeof r;
        at += sizeof r + r.n_path + r.n_other + r.n_data;
        if (at > n_bytes || r.kind >= CRASH_N_KINDS || r.n_path < n_dir)
            give_up("not a whole record", path);
        bool both = r.n_other >= n_dir && r.kind != CRASH_UNKNOWN;
        size_t skip = both ? n_dir : 0;
        snprintf(rel, sizeof rel, "%.*s", (int)(r.n_path - n_dir), p + n_dir);
        snprintf(other, sizeof other, "%.*s", (int)(r.n_other - skip), p + r.n_path + skip);
        if (is_kept(rel) || (both && is_kept(other)))
            add(t, &r, rel, other, (const uint8_t *)p + r.n_path + r.n_other);
        struct place c;
        if (t->checkpoints < 0 && find(t, "/checkpoints", &c))
            t->checkpoints = c.obj;
    }
    crash_trace_cover(t, -1);
}

void crash_trace_free(struct crash_trace *t) {
    for (int i = 0; i < t->n_ops; i++)
        free(t->ops[i].path);
    for (int i = 0; i < t->n_objs; i++) {
        free(t->objs[i].ops);
        free(t->objs[i].now);
    }
    for (int i = 0; i < t->n_names; i++)
        free(t->names[i]);
    free(t->ops);
    free(t->objs);
    free(t->names);
    free(t->bytes);
}

// The first operation after `i` that puts object `obj` on the disk.
static int synced_after(const struct crash_trace *t, int i, int obj, int forgotten) {
    int j = i + 1;
    while (j < t->n_ops &&
           !(t->ops[j].kind == CRASH_SYNC && t->ops[j].obj == obj && obj != forgotten) &&
           t->ops[j].kind != CRASH_SYNC_ALL)
        j++;
    return j;
}

void crash_trace_cover(struct crash_trace *t, int forgotten) {
    for (int i = 0; i < t->n_ops; i++) {
        struct crash_op *op = &t->ops[i];
        op->covered_at = op->n_changes ? i : synced_after(t, i, op->obj, forgotten);
        for (int k = 0; k < op->n_changes; k++) { // all folders that it touches
            int j = synced_after(t, i, op->changes[k].dir, forgotten);
            op->covered_at = j > op->covered_at ? j : op->covered_at;
        }
        if (op->kind == CRASH_SYNC || op->kind == CRASH_SYNC_ALL)
            op->covered_at = i;
    }
}

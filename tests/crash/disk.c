#include "tests/crash/disk.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>
#include <xxhash.h>
#include "core/checkpoint.h"
#include "core/checkpoint_publish.h"
#include "core/error.h"

void crash_disk_open(struct crash_disk *d, struct crash_model *m, const char *dir) {
    *d = (struct crash_disk){.m = m};
    snprintf(d->dir, sizeof d->dir, "%s", dir);
    TSR_ASSERT(tsr_mkdir_p(dir) == 0);
}

static void forget(struct crash_disk *d) {
    for (int i = 0; i < d->n_now; i++)
        free(d->now[i].path);
    free(d->now);
    d->now = NULL;
    d->n_now = 0;
}

void crash_disk_close(struct crash_disk *d) {
    forget(d);
}

struct paths {
    struct crash_path *v;
    int n;
};

static void list_dir(struct crash_disk *d, int dir, const char *prefix, const struct crash_state *s,
                     struct paths *out) {
    const struct crash_list l = *crash_entries(d->m, dir, s);
    for (int i = 0; i < l.n; i++) {
        int target = l.entries[i].target;
        const char *name = d->m->t->names[l.entries[i].name];
        bool is_dir = d->m->t->objs[target].is_dir;
        size_t n = strlen(prefix) + strlen(name) + 2;
        char *path = crash_more(NULL, n);
        snprintf(path, n, "%s/%s", prefix, name);
        out->v = crash_more(out->v, (size_t)(out->n + 1) * sizeof *out->v);
        out->v[out->n++] = (struct crash_path){path, is_dir ? -1 : crash_content(d->m, target, s)};
        if (is_dir)
            list_dir(d, target, path, s, out);
    }
}

static int by_path(const void *a, const void *b) {
    return strcmp(((const struct crash_path *)a)->path, ((const struct crash_path *)b)->path);
}

static bool is_same_in(const struct crash_path *p, const struct crash_path *v, int n) {
    const struct crash_path *found = n ? bsearch(p, v, (size_t)n, sizeof *v, by_path) : NULL;
    return found && found->content == p->content;
}

static void whole_path(const struct crash_disk *d, const char *path,
                       char out[static TSR_PATH_MAX]) {
    snprintf(out, TSR_PATH_MAX, "%s%s", d->dir, path);
}

static void remove_path(const struct crash_disk *d, const struct crash_path *p) {
    char path[TSR_PATH_MAX];
    whole_path(d, p->path, path);
    TSR_ASSERT((p->content < 0 ? rmdir(path) : unlink(path)) == 0);
}

// Files are links to the one copy of each content: nothing in a recovery writes into them.
static void make_path(const struct crash_disk *d, const struct crash_path *p) {
    char path[TSR_PATH_MAX], from[TSR_PATH_MAX + 16];
    whole_path(d, p->path, path);
    snprintf(from, sizeof from, "%s/%d", d->m->store, p->content);
    TSR_ASSERT((p->content < 0 ? mkdir(path, 0777) : link(from, path)) == 0);
}

static void show(struct crash_disk *d, const struct crash_state *s) {
    struct paths want = {0};
    list_dir(d, 0, "", s, &want);
    if (want.n > 0)
        qsort(want.v, (size_t)want.n, sizeof *want.v, by_path);
    for (int i = d->n_now; i-- > 0;) // what lies in a folder comes after it
        if (!is_same_in(&d->now[i], want.v, want.n))
            remove_path(d, &d->now[i]);
    for (int i = 0; i < want.n; i++)
        if (!is_same_in(&want.v[i], d->now, d->n_now))
            make_path(d, &want.v[i]);
    forget(d);
    d->now = want.v;
    d->n_now = want.n;
}

// Recovery removes, renames and puts back what isn't a checkpoint: after it nothing is known.
static void start_over(struct crash_disk *d) {
    char path[TSR_PATH_MAX];
    bool untouched = true;
    for (int i = 0; i < d->n_now; i++)
        untouched &= strncmp(d->now[i].path, "/checkpoints/.", 14) != 0;
    if (untouched)
        return;
    whole_path(d, "/checkpoints", path);
    TSR_ASSERT(tsr_remove_tree(path) == 0);
    forget(d);
}

static uint64_t hash_manifest(const char *dir) {
    char path[TSR_PATH_MAX], *text;
    size_t n;
    TSR_ASSERT(tsr_path_join(path, dir, "manifest.json") == 0);
    TSR_ASSERT(tsr_read_file(path, (size_t)1 << 30, TSR_EIO, &text, &n) == 0);
    uint64_t h = XXH3_64bits(text, n);
    free(text);
    return h;
}

static struct crash_found find_newest(const struct crash_disk *d) {
    struct crash_found found = {-1, 0, 0};
    char dir[TSR_PATH_MAX];
    int64_t step, below = INT64_MAX;
    for (;;) {
        int rc = tsr_checkpoint_latest(d->dir, below, &step, dir);
        TSR_ASSERT(rc >= 0);
        if (rc == 0)
            return found;
        rc = tsr_checkpoint_verify(dir, 0, 1);
        TSR_ASSERT(rc == 0 || rc == TSR_EMODEL);
        if (rc == 0) {
            found.step = step;
            found.manifest = hash_manifest(dir);
            return found;
        }
        found.n_refused++;
        below = step;
    }
}

struct crash_found crash_disk_recover(struct crash_disk *d, const struct crash_state *s) {
    show(d, s);
    TSR_ASSERT(tsr_checkpoint_fence(d->dir, UINT64_MAX) == 0);
    struct crash_found found = find_newest(d);
    start_over(d);
    return found;
}

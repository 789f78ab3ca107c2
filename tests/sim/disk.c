// A file system that keeps at a crash what was synced, and of the rest an arbitrary part.
#include <inttypes.h>
#include <string.h>
#include "core/error.h"
#include "tests/sim/sim.h"

static int index_of(const struct sim *s, const struct sim_dir *d) {
    return (int)(d - s->disk.dirs);
}

// ---- names in the parent directory

static void apply(struct sim_disk *k, const struct sim_move *m, bool durable) {
    for (int i = 0; i < 2; i++) {
        if (m->dir[i] < 0)
            continue;
        if (durable)
            k->dirs[m->dir[i]].durable_name = m->to[i];
        else
            k->dirs[m->dir[i]].name = m->to[i];
    }
}

static void collect(struct sim_disk *k) {
    for (int i = 0; i < MAX_DIRS; i++)
        if (k->dirs[i].name == NAME_NONE && k->dirs[i].durable_name == NAME_NONE)
            k->dirs[i].used = false;
}

static void sync_parent(struct sim_disk *k) {
    for (int i = 0; i < k->n_pending; i++)
        apply(k, &k->pending[i], true);
    k->n_pending = 0;
    collect(k);
}

static void move(struct sim_disk *k, struct sim_move m) {
    if (k->n_pending == MAX_PENDING)
        sync_parent(k); // a real one writes back at times, too
    k->pending[k->n_pending++] = m;
    apply(k, &m, false);
}

static void move_one(struct sim *s, struct sim_dir *d, enum sim_name to) {
    move(&s->disk, (struct sim_move){{index_of(s, d), -1}, {to, NAME_NONE}});
}

struct sim_dir *sim_find(struct sim *s, uint64_t step, uint64_t epoch, uint32_t attempt) {
    for (int i = 0; i < MAX_DIRS; i++) {
        struct sim_dir *d = &s->disk.dirs[i];
        if (d->used && d->name == NAME_TEMPORARY && d->step == step && d->epoch == epoch &&
            d->attempt == attempt)
            return d;
    }
    return NULL;
}

static struct sim_dir *final_of(struct sim *s, uint64_t step) {
    for (int i = 0; i < MAX_DIRS; i++)
        if (s->disk.dirs[i].used && s->disk.dirs[i].name == NAME_FINAL &&
            s->disk.dirs[i].step == step)
            return &s->disk.dirs[i];
    return NULL;
}

void sim_make_temporary(struct sim *s, uint64_t step, uint64_t epoch, uint32_t attempt) {
    int i = 0;
    if (sim_find(s, step, epoch, attempt))
        return;
    while (i < MAX_DIRS && s->disk.dirs[i].used)
        i++;
    TSR_ASSERT(i < MAX_DIRS);
    s->disk.dirs[i] = (struct sim_dir){
        .used = true, .step = step, .epoch = epoch, .attempt = attempt, .n_rows = s->rows};
    move_one(s, &s->disk.dirs[i], NAME_TEMPORARY);
}

// ---- contents

static int n_digests(int rows) {
    return (rows + ROWS_PER_RANGE - 1) / ROWS_PER_RANGE;
}

uint64_t sim_digest(const struct sim_dir *d, int range, bool durable) {
    uint64_t h = 14695981039346656037u;
    for (int i = 0; i < ROWS_PER_RANGE; i++) {
        int row = range * ROWS_PER_RANGE + i;
        if (row < d->n_rows)
            h = (h ^ (durable ? d->durable[row] : d->seen[row])) * 1099511628211u;
    }
    return h;
}

static bool verifies(const struct sim_dir *d) {
    if (!d->manifest)
        return false;
    for (int r = 0; r < n_digests(d->n_rows); r++)
        if (d->digest[r] != sim_digest(d, r, false))
            return false;
    return true;
}

uint64_t sim_newest(struct sim *s) {
    uint64_t newest = 0;
    for (int i = 0; i < MAX_DIRS; i++) {
        const struct sim_dir *d = &s->disk.dirs[i];
        if (d->used && d->name == NAME_FINAL && d->step > newest && verifies(d))
            newest = d->step;
    }
    return newest;
}

// ---- what must hold

// A directory that has a checkpoint's name would survive a crash now, and is what was trained.
static void check_whole(struct sim *s, const struct sim_dir *d) {
    char name[64];
    snprintf(name, sizeof name, "step %" PRIu64 " of epoch %" PRIu64, d->step, d->epoch);
    for (int i = 0; i < d->n_rows; i++) {
        if (d->seen[i] != sim_truth(d->epoch, d->step, i))
            sim_violation(s, "%s: row %d is not what was trained", name, i);
        if (d->durable[i] != d->seen[i])
            sim_violation(s, "%s: row %d is not on the disk", name, i);
    }
    if (!d->manifest || !d->manifest_synced || !d->manifest_named)
        sim_violation(s, "%s: its manifest is not on the disk", name);
    if (!d->files_durable)
        sim_violation(s, "%s: the names of its files are not on the disk", name);
    if (!verifies(d))
        sim_violation(s, "%s: its manifest doesn't fit", name);
}

static void check_published(struct sim *s, const struct sim_proc *p, const struct sim_dir *d,
                            const struct sim_dir *old) {
    s->n_commits++;
    check_whole(s, d);
    if ((int)d->epoch != p->epoch || (uint64_t)p->epoch < s->disk.fenced)
        sim_violation(s,
                      "epoch %d publishes step %" PRIu64 " of epoch %" PRIu64
                      " after epoch %" PRIu64 " has begun",
                      p->epoch, d->step, d->epoch, s->disk.fenced);
    if (old && old->epoch != d->epoch && s->epochs[d->epoch].again != d->step)
        sim_violation(s, "step %" PRIu64 " is published by epoch %" PRIu64 " and again by %" PRIu64,
                      d->step, old->epoch, d->epoch);
}

static bool listed(const struct sim_id *list, int n, struct sim_id id) {
    for (int i = 0; i < n; i++)
        if (list[i].step == id.step && list[i].epoch == id.epoch && list[i].attempt == id.attempt)
            return true;
    return false;
}

static void list(struct sim_id *list_of, int *n, struct sim_id id) {
    TSR_ASSERT(*n < MAX_ANNOUNCED);
    list_of[(*n)++] = id;
}

bool sim_announced(const struct sim *s, int epoch, uint64_t step, uint32_t attempt) {
    return listed(s->announced, s->n_announced, (struct sim_id){step, (uint64_t)epoch, attempt});
}

// A newer epoch may have found it, made newer ones and retired it before its own is told.
void sim_announce(struct sim *s, const struct sim_proc *p, uint64_t step, uint32_t attempt) {
    struct sim_id id = {step, (uint64_t)p->epoch, attempt};
    if (sim_announced(s, p->epoch, step, attempt))
        return;
    const struct sim_dir *d = final_of(s, step);
    bool there =
        d && d->durable_name == NAME_FINAL && d->epoch == id.epoch && d->attempt == attempt;
    if (!there && !listed(s->retired, s->n_retired, id))
        sim_violation(s, "epoch %d announces step %" PRIu64 ", which is not on the disk", p->epoch,
                      step);
    list(s->announced, &s->n_announced, id);
    if (step > s->newest_announced)
        s->newest_announced = step;
}

// ---- steps of a commit

static int fail(const char *why) {
    return tsr_fail(TSR_EIO, "simulated: %s", why);
}

// Is the directory published as this very save?
static bool published(struct sim *s, const struct tsr_coord_save *v) {
    const struct sim_dir *d = final_of(s, v->step);
    if (!d || d->epoch != v->epoch || d->attempt != v->attempt)
        return false;
    for (uint64_t r = 0; r < v->n_ranges; r++) {
        uint64_t digest;
        memcpy(&digest, v->digests[r].b, sizeof digest);
        if (d->digest[r] != digest)
            return false;
    }
    return true;
}

static int write_manifest(struct sim_dir *d, const struct tsr_coord_save *v) {
    for (uint64_t r = 0; r < v->n_ranges; r++)
        memcpy(&d->digest[r], v->digests[r].b, sizeof d->digest[r]);
    d->manifest = true;
    d->manifest_synced = false;
    return 0;
}

static int rename_to_final(struct sim *s, struct sim_proc *p, struct sim_dir *d) {
    struct sim_dir *old = final_of(s, d->step);
    struct sim_dir was = old ? *old : (struct sim_dir){0};
    move(&s->disk,
         (struct sim_move){{index_of(s, d), old ? index_of(s, old) : -1}, {NAME_FINAL, NAME_NONE}});
    check_published(s, p, d, old ? &was : NULL);
    return 0;
}

static int retain(struct sim *s, int64_t keep) {
    for (;;) {
        struct sim_dir *oldest = NULL;
        int n = 0;
        for (int i = 0; i < MAX_DIRS; i++) {
            struct sim_dir *d = &s->disk.dirs[i];
            if (!d->used || d->name != NAME_FINAL)
                continue;
            n++;
            if (!oldest || d->step < oldest->step)
                oldest = d;
        }
        if (n <= keep)
            return 0;
        list(s->retired, &s->n_retired,
             (struct sim_id){oldest->step, oldest->epoch, oldest->attempt});
        move_one(s, oldest, NAME_NONE);
    }
}

int sim_disk_step(struct sim *s, struct sim_proc *p, uint64_t *value) {
    const struct tsr_coord_save *v = &p->save;
    *value = 0;
    if (p->job.step == TSR_DISK_FIND_NEWEST) {
        sync_parent(&s->disk);
        *value = sim_newest(s);
        return 0;
    }
    if (p->job.step == TSR_DISK_RETAIN)
        return retain(s, p->job.keep);
    struct sim_dir *d = sim_find(s, v->step, v->epoch, v->attempt);
    bool done = published(s, v);
    switch (p->job.step) {
    case TSR_DISK_WRITE_MANIFEST:
        return done ? 0 : d ? write_manifest(d, v) : fail("no temporary directory");
    case TSR_DISK_SYNC_MANIFEST:
        if (d)
            d->manifest_synced = true;
        return d || done ? 0 : fail("no temporary directory");
    case TSR_DISK_SYNC_DIRS:
        if (d)
            d->files_durable = d->manifest_named = true;
        return d || done ? 0 : fail("no temporary directory");
    case TSR_DISK_CHECK_EPOCH:
        *value = s->disk.epoch;
        return 0;
    case TSR_DISK_RENAME:
        return done ? 0 : d ? rename_to_final(s, p, d) : fail("nothing to rename");
    case TSR_DISK_SYNC_PARENT:
        sync_parent(&s->disk);
        return 0;
    default:
        TSR_ASSERT(p->job.step == TSR_DISK_REMOVE_TEMPORARY);
        if (d)
            move_one(s, d, NAME_NONE);
        return 0;
    }
}

// What the supervisor does first in a new epoch.
void sim_fence(struct sim *s, uint64_t epoch) {
    for (int i = 0; i < MAX_DIRS; i++) {
        struct sim_dir *d = &s->disk.dirs[i];
        if (d->used && d->name == NAME_TEMPORARY && d->epoch < epoch && s->bug != BUG_NO_FENCE)
            move_one(s, d, NAME_NONE);
    }
    sync_parent(&s->disk);
    s->disk.fenced = epoch;
}

// ---- a crash

static bool taken(const struct sim_disk *k, const struct sim_move *m) {
    const struct sim_dir *d = &k->dirs[m->dir[0]];
    for (int i = 0; i < MAX_DIRS; i++)
        if (m->to[0] == NAME_FINAL && i != m->dir[0] && i != m->dir[1] && k->dirs[i].used &&
            k->dirs[i].durable_name == NAME_FINAL && k->dirs[i].step == d->step)
            return true;
    return false;
}

static void lose_contents(struct sim *s, struct sim_dir *d) {
    bool named = d->files_durable || sim_chance(s, 0.5);
    for (int i = 0; i < d->n_rows; i++) {
        if (d->seen[i] != d->durable[i] && sim_chance(s, 0.5))
            d->durable[i] = d->seen[i];
        if (!named)
            d->durable[i] = 0;
        d->seen[i] = d->durable[i];
    }
    d->files_durable = true;
    if (d->manifest && !d->manifest_named && sim_chance(s, 0.5))
        d->manifest = false;
    if (d->manifest && !d->manifest_synced && sim_chance(s, 0.5))
        memset(d->digest, 0, sizeof d->digest);
    d->manifest_synced = d->manifest_named = d->manifest;
}

// Half of the time the directory's journal keeps a prefix, else any part.
void sim_power_loss(struct sim *s) {
    struct sim_disk *k = &s->disk;
    bool ordered = sim_chance(s, 0.5);
    int prefix = (int)sim_random(s, (uint64_t)k->n_pending + 1);
    for (int i = 0; i < k->n_pending; i++)
        if ((ordered ? i < prefix : sim_chance(s, 0.5)) && !taken(k, &k->pending[i]))
            apply(k, &k->pending[i], true);
    k->n_pending = 0;
    for (int i = 0; i < MAX_DIRS; i++) {
        struct sim_dir *d = &k->dirs[i];
        if (!d->used)
            continue;
        d->name = d->durable_name;
        lose_contents(s, d);
    }
    collect(k);
    for (int i = 0; i < MAX_DIRS; i++)
        if (k->dirs[i].used && k->dirs[i].name == NAME_FINAL)
            check_whole(s, &k->dirs[i]);
    if (sim_newest(s) < s->newest_announced)
        sim_violation(s, "step %" PRIu64 " was announced and is lost", s->newest_announced);
}

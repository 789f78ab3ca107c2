#include "launcher/coordinator/disk.h"

#include <stdlib.h>
#include <string.h>
#include "core/checkpoint_publish.h"
#include "core/error.h"
#include "core/io.h"
#include "core/log.h"
#include "launcher/epoch.h"

struct tsr_disk {
    uv_loop_t *loop;
    uv_work_t work;
    char run_dir[TSR_PATH_MAX];
    struct tsr_known_good known;
    void (*done)(void *arg, uint64_t id, int rc, const char *error, uint64_t value);
    void *arg;
    struct tsr_disk_job job; // what follows belongs to the worker while busy
    bool busy, stopped;
    int rc;
    uint64_t value;
    char error[TSR_ERROR_TEXT];
};

// The newest checkpoint that is whole by its manifest and sizes. An earlier coordinator may have
// died between its rename and the fsync of the folder: what is reported must not vanish later.
static int find_newest(const char *run_dir, uint64_t *value) {
    char path[TSR_PATH_MAX];
    int64_t step = INT64_MAX;
    *value = 0;
    TSR_TRY(tsr_path_join(path, run_dir, "checkpoints"));
    if (!tsr_path_is_dir(path))
        return 0;
    TSR_TRY(tsr_fsync_path(path));
    for (;;) {
        int found;
        TSR_TRY(found = tsr_checkpoint_latest(run_dir, step, &step, path));
        if (!found)
            return 0;
        int rc = tsr_checkpoint_verify_quick(path);
        if (rc == 0) {
            *value = (uint64_t)step;
            return 0;
        }
        if (rc != TSR_EMODEL && rc != TSR_EIO) // as a rank that resumes
            return rc;
        tsr_log(rc == TSR_EIO ? TSR_LOG_WARN : TSR_LOG_DEBUG, "coordinator: %s is not whole: %s",
                path, tsr_error_text());
    }
}

static int publish(const struct tsr_disk *d) {
    const struct tsr_coord_save *s = d->job.save;
    const struct tsr_publish p = {.run_dir = d->run_dir,
                                  .step = (int64_t)s->step,
                                  .temporary = s->temporary,
                                  .range_bytes = s->range_bytes,
                                  .files = s->files,
                                  .n_files = s->n_files,
                                  .digests = s->digests};
    switch (d->job.step) {
    case TSR_DISK_WRITE_MANIFEST:
        return tsr_publish_write_manifest(&p);
    case TSR_DISK_SYNC_MANIFEST:
        return tsr_publish_sync_manifest(&p);
    case TSR_DISK_SYNC_DIRS:
        return tsr_publish_sync_dirs(&p);
    case TSR_DISK_RENAME:
        return tsr_publish_rename(&p);
    default:
        TSR_ASSERT(d->job.step == TSR_DISK_SYNC_PARENT);
        return tsr_publish_sync_parent(&p);
    }
}

static int run_job(struct tsr_disk *d) {
    switch (d->job.step) {
    case TSR_DISK_CHECK_EPOCH:
        return tsr_epoch_read(d->run_dir, &d->value);
    case TSR_DISK_RETAIN:
        return tsr_checkpoint_retain(d->run_dir, d->job.keep, &d->known);
    case TSR_DISK_REMOVE_TEMPORARY:
        return tsr_publish_remove_temporary(d->run_dir, d->job.save->temporary);
    case TSR_DISK_FIND_NEWEST:
        return find_newest(d->run_dir, &d->value);
    default:
        return publish(d);
    }
}

static void on_work(uv_work_t *w) {
    struct tsr_disk *d = w->data;
    d->value = 0;
    d->rc = run_job(d);
    snprintf(d->error, sizeof d->error, "%s", d->rc < 0 ? tsr_error_text() : "");
}

static void on_done(uv_work_t *w, int status) {
    struct tsr_disk *d = w->data;
    (void)status; // never cancelled
    d->busy = false;
    if (!d->stopped)
        d->done(d->arg, d->job.id, d->rc, d->error, d->value);
}

int tsr_disk_open(struct tsr_disk **out, uv_loop_t *loop, const char *run_dir,
                  void (*done)(void *arg, uint64_t id, int rc, const char *error, uint64_t value),
                  void *arg) {
    struct tsr_disk *d = calloc(1, sizeof *d);
    if (!d)
        return tsr_fail(TSR_ENOMEM, "no memory for the coordinator");
    int rc = tsr_path_join(d->run_dir, run_dir, "");
    if (rc < 0) {
        free(d);
        return rc;
    }
    d->loop = loop;
    d->done = done;
    d->arg = arg;
    d->work.data = d;
    *out = d;
    return 0;
}

void tsr_disk_start(struct tsr_disk *d, const struct tsr_disk_job *job) {
    TSR_ASSERT(!d->busy && !d->stopped);
    d->job = *job;
    d->busy = true;
    TSR_ASSERT(uv_queue_work(d->loop, &d->work, on_work, on_done) == 0);
}

void tsr_disk_stop(struct tsr_disk *d) {
    d->stopped = true;
}

bool tsr_disk_busy(const struct tsr_disk *d) {
    return d->busy;
}

void tsr_disk_close(struct tsr_disk *d) {
    TSR_ASSERT(!d || !d->busy);
    free(d);
}

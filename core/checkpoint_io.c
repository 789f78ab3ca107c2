// Bytes to files in the background. Whoever writes a checkpoint fills one buffer (and digests it)
// while threads hand the others to the disk: two, so that it has the next write when one is done.
#include "core/checkpoint_private.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"

enum {
    MIN_DIRECT = 32 << 10, // bytes below which the page cache gathers better than the disk
    MAX_ERROR = 1024,
    N_THREADS = 2,
};

// ---- one file, two ways

static bool is_unsupported(int err) {
    return err == EINVAL || err == EOPNOTSUPP || err == ENOTSUP;
}

int tsr_ckpt_sink_open(struct tsr_ckpt_sink *sink, const char *dir, const char *name,
                       bool buffered) {
    TSR_TRY(tsr_path_join(sink->path, dir, name));
    sink->fd = open(sink->path, O_WRONLY | O_CLOEXEC);
    sink->direct = -1;
    atomic_store(&sink->refused, false);
    if (sink->fd < 0)
        return tsr_fail_errno(errno, "cannot open", sink->path);
    if (buffered)
        return 0;
    sink->direct = open(sink->path, O_WRONLY | O_CLOEXEC | O_DIRECT);
    if (sink->direct < 0 && !is_unsupported(errno)) {
        int rc = tsr_fail_errno(errno, "cannot open", sink->path);
        tsr_ckpt_sink_close(sink);
        return rc;
    }
    return 0;
}

int tsr_ckpt_sink_close(struct tsr_ckpt_sink *sink) {
    int fd = sink->fd;
    if (sink->direct >= 0)
        close(sink->direct); // what it wrote has been answered for
    sink->fd = sink->direct = -1;
    // Network file systems may report a failed write only here.
    return fd < 0 || close(fd) == 0 ? 0 : tsr_fail_errno(errno, "cannot write", sink->path);
}

// Writes whole pages. *done may be less than n when this file (or this disk: larger blocks) turns
// out not to take them, or after a short write that leaves the rest unaligned.
static int write_direct(struct tsr_ckpt_sink *sink, const char *p, uint64_t offset, size_t n,
                        size_t *done) {
    *done = 0;
    while (*done < n && *done % TSR_CKPT_PAGE == 0) {
        ssize_t k = pwrite(sink->direct, p + *done, n - *done, (off_t)(offset + *done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && is_unsupported(errno)) {
            atomic_store(&sink->refused, true);
            return 0;
        }
        if (k <= 0)
            return tsr_fail_errno(k < 0 ? errno : EIO, "cannot write", sink->path);
        *done += (size_t)k;
    }
    return 0;
}

// [offset, offset + n) of memory that begins as far from a page's border as the file's bytes: whole
// pages by O_DIRECT, the rest through the page cache.
static int write_to_sink(struct tsr_ckpt_sink *sink, const char *p, uint64_t offset, size_t n) {
    size_t head = (size_t)(TSR_CKPT_PAGE - offset % TSR_CKPT_PAGE) % TSR_CKPT_PAGE;
    size_t pages = head < n ? (n - head) / TSR_CKPT_PAGE * TSR_CKPT_PAGE : 0, done;
    if (sink->direct >= 0 && !atomic_load(&sink->refused) && pages >= MIN_DIRECT &&
        offset <= INT64_MAX - n) {
        TSR_TRY(tsr_pwrite_all(sink->fd, p, head, offset, sink->path));
        TSR_TRY(write_direct(sink, p + head, offset + head, pages, &done));
        p += head + done;
        offset += head + done;
        n -= head + done;
    }
    return tsr_pwrite_all(sink->fd, p, n, offset, sink->path);
}

// ---- the threads

struct job {
    struct tsr_ckpt_sink *sink;
    char *buf;
    uint64_t base;
    size_t lo, hi;
};

struct tsr_ckpt_io {
    pthread_t threads[N_THREADS];
    int n_threads;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    char *memory;
    char *free[TSR_CKPT_N_BUFFERS];
    int n_free;
    struct job jobs[TSR_CKPT_N_BUFFERS]; // a ring of those that nobody has begun
    int first, n_jobs;
    int n_writing; // begun and not yet done
    bool stop;
    int rc; // the first failure, and its text
    char error[MAX_ERROR];
};

static struct job take_job(struct tsr_ckpt_io *io) {
    struct job j = io->jobs[io->first];
    io->first = (io->first + 1) % TSR_CKPT_N_BUFFERS;
    io->n_jobs--;
    io->n_writing++;
    return j;
}

static void *run_jobs(void *arg) {
    struct tsr_ckpt_io *io = arg;
    pthread_mutex_lock(&io->lock);
    for (;;) {
        while (io->n_jobs == 0 && !io->stop)
            pthread_cond_wait(&io->changed, &io->lock);
        if (io->n_jobs == 0)
            break;
        struct job j = take_job(io);
        bool skip = io->rc < 0 || io->stop;
        pthread_mutex_unlock(&io->lock);
        int rc = skip ? 0 : write_to_sink(j.sink, j.buf + j.lo, j.base + j.lo, j.hi - j.lo);
        pthread_mutex_lock(&io->lock);
        if (rc < 0 && io->rc == 0) {
            io->rc = rc;
            snprintf(io->error, sizeof io->error, "%s", tsr_error_text());
        }
        io->free[io->n_free++] = j.buf;
        io->n_writing--;
        pthread_cond_broadcast(&io->changed);
    }
    pthread_mutex_unlock(&io->lock);
    return NULL;
}

int tsr_ckpt_io_open(struct tsr_ckpt_io **out) {
    struct tsr_ckpt_io *io = calloc(1, sizeof *io);
    if (!io)
        return tsr_fail(TSR_ENOMEM, "no memory to write a checkpoint");
    pthread_mutex_init(&io->lock, NULL);
    pthread_cond_init(&io->changed, NULL);
    io->memory = tsr_io_memory((size_t)TSR_CKPT_N_BUFFERS * TSR_CKPT_BUFFER);
    int err = io->memory ? 0 : ENOMEM;
    for (int i = 0; err == 0 && i < TSR_CKPT_N_BUFFERS; i++)
        io->free[io->n_free++] = io->memory + (size_t)i * TSR_CKPT_BUFFER;
    for (int i = 0; err == 0 && i < N_THREADS; i++) {
        err = pthread_create(&io->threads[i], NULL, run_jobs, io);
        io->n_threads += err == 0;
    }
    if (err != 0) {
        tsr_ckpt_io_close(io);
        return tsr_fail(TSR_ENOMEM, "no memory or no thread to write a checkpoint: %s",
                        strerror(err));
    }
    *out = io;
    return 0;
}

void tsr_ckpt_io_close(struct tsr_ckpt_io *io) {
    if (!io)
        return;
    pthread_mutex_lock(&io->lock);
    io->stop = true;
    pthread_cond_broadcast(&io->changed);
    pthread_mutex_unlock(&io->lock);
    for (int i = 0; i < io->n_threads; i++)
        pthread_join(io->threads[i], NULL);
    pthread_cond_destroy(&io->changed);
    pthread_mutex_destroy(&io->lock);
    free(io->memory);
    free(io);
}

static int failure(const struct tsr_ckpt_io *io) {
    return io->rc < 0 ? tsr_fail((enum tsr_code)io->rc, "%s", io->error) : 0;
}

int tsr_ckpt_io_take(struct tsr_ckpt_io *io, char **buf) {
    pthread_mutex_lock(&io->lock);
    while (io->n_free == 0)
        pthread_cond_wait(&io->changed, &io->lock);
    int rc = failure(io);
    if (rc == 0)
        *buf = io->free[--io->n_free];
    pthread_mutex_unlock(&io->lock);
    return rc;
}

void tsr_ckpt_io_submit(struct tsr_ckpt_io *io, struct tsr_ckpt_sink *sink, char *buf,
                        uint64_t base, size_t lo, size_t hi) {
    pthread_mutex_lock(&io->lock);
    TSR_ASSERT(io->n_jobs < TSR_CKPT_N_BUFFERS);
    io->jobs[(io->first + io->n_jobs++) % TSR_CKPT_N_BUFFERS] =
        (struct job){sink, buf, base, lo, hi};
    pthread_cond_broadcast(&io->changed);
    pthread_mutex_unlock(&io->lock);
}

int tsr_ckpt_io_drain(struct tsr_ckpt_io *io) {
    pthread_mutex_lock(&io->lock);
    while (io->n_jobs > 0 || io->n_writing > 0)
        pthread_cond_wait(&io->changed, &io->lock);
    int rc = failure(io);
    pthread_mutex_unlock(&io->lock);
    return rc;
}

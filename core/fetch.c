#include "core/fetch.h"

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"

enum {
    N_THREADS = 3,
    AT_ONCE = 2 << 20, // bytes of one call
    MAX_ERROR = 1024,
};

struct worker {
    struct tsr_fetcher *r;
    pthread_t thread;
    char *stage; // (AT_ONCE) or NULL
};

struct tsr_fetcher {
    struct worker workers[N_THREADS];
    int n_threads;
    pthread_mutex_t lock;
    pthread_cond_t wanted, finished;
    struct tsr_stretch *first, **last; // that nobody has begun
    bool stop;
    char error[MAX_ERROR]; // the first failure's text
    bool failed;
};

// ---- one file, two ways

static bool is_unsupported(int err) {
    return err == EINVAL || err == EOPNOTSUPP || err == ENOTSUP;
}

int tsr_fetch_file_open(struct tsr_fetch_file *f, const char *path, bool buffered) {
    *f = (struct tsr_fetch_file){.path = path, .fd = -1, .direct = -1};
    f->fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (f->fd < 0)
        return tsr_fail_errno(errno, "cannot open", path);
    if (buffered)
        return 0;
    f->direct = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK | O_DIRECT);
    if (f->direct < 0 && !is_unsupported(errno)) {
        int rc = tsr_fail_errno(errno, "cannot open", path);
        tsr_fetch_file_close(f);
        return rc;
    }
    return 0;
}

void tsr_fetch_file_close(struct tsr_fetch_file *f) {
    if (f->fd >= 0)
        close(f->fd);
    if (f->direct >= 0)
        close(f->direct);
    f->fd = f->direct = -1;
}

// Reads n bytes, rounded up to whole pages as O_DIRECT wants them: the file's end cuts them off.
// *done may be less than n when this file turns out not to be read that way, or after a short read
// that leaves the rest unaligned.
static int read_direct(const struct tsr_fetch_file *f, char *to, uint64_t offset, size_t n,
                       size_t *done) {
    const size_t whole = (n + TSR_FETCH_PAGE - 1) / TSR_FETCH_PAGE * TSR_FETCH_PAGE;
    *done = 0;
    while (*done < n && *done % TSR_FETCH_PAGE == 0) {
        ssize_t k = pread(f->direct, to + *done, whole - *done, (off_t)(offset + *done));
        if (k < 0 && errno == EINTR)
            continue;
        if (k < 0 && is_unsupported(errno))
            return 0;
        if (k < 0)
            return tsr_fail_errno(errno, "cannot read", f->path);
        if (k == 0)
            return 0; // the other way tells what is missing
        *done += (size_t)k;
    }
    *done = *done < n ? *done : n;
    return 0;
}

static int read_part(const struct tsr_fetch_file *f, char *to, uint64_t offset, size_t n) {
    size_t done = 0;
    if (f->direct >= 0)
        TSR_TRY(read_direct(f, to, offset, n, &done));
    return tsr_pread_all(f->fd, to + done, n - done, offset + done, f->path);
}

static int read_stretch(const struct tsr_stretch *s, char *stage) {
    for (size_t at = 0; at < s->n_bytes; at += AT_ONCE) {
        size_t n = s->n_bytes - at < AT_ONCE ? s->n_bytes - at : AT_ONCE;
        TSR_TRY(read_part(s->file, stage ? stage : s->to + at, s->offset + at, n));
        if (stage)
            memcpy(s->to + at, stage, n);
    }
    return 0;
}

// ---- the threads

static void *run(void *arg) {
    const struct worker *w = arg;
    struct tsr_fetcher *r = w->r;
    pthread_mutex_lock(&r->lock);
    for (;;) {
        while (!r->first && !r->stop)
            pthread_cond_wait(&r->wanted, &r->lock);
        if (r->stop)
            break;
        struct tsr_stretch *s = r->first;
        r->first = s->next;
        if (!r->first)
            r->last = &r->first;
        pthread_mutex_unlock(&r->lock);
        int rc = read_stretch(s, w->stage);
        pthread_mutex_lock(&r->lock);
        if (rc < 0 && !r->failed) {
            r->failed = true;
            snprintf(r->error, sizeof r->error, "%s", tsr_error_text());
        }
        s->rc = rc;
        s->done = true;
        pthread_cond_broadcast(&r->finished);
    }
    pthread_mutex_unlock(&r->lock);
    return NULL;
}

int tsr_fetch_open(struct tsr_fetcher **out, bool staged) {
    struct tsr_fetcher *r = calloc(1, sizeof *r);
    int err = r ? 0 : ENOMEM;
    if (r) {
        r->last = &r->first;
        pthread_mutex_init(&r->lock, NULL);
        pthread_cond_init(&r->wanted, NULL);
        pthread_cond_init(&r->finished, NULL);
    }
    for (int i = 0; err == 0 && i < N_THREADS; i++) {
        struct worker *w = &r->workers[i];
        *w = (struct worker){.r = r, .stage = staged ? tsr_io_memory(AT_ONCE) : NULL};
        err = staged && !w->stage ? ENOMEM : pthread_create(&w->thread, NULL, run, w);
        r->n_threads += err == 0;
    }
    if (err != 0) {
        tsr_fetch_close(r);
        return tsr_fail(TSR_ENOMEM, "no memory or no thread to read files: %s", strerror(err));
    }
    *out = r;
    return 0;
}

void tsr_fetch_close(struct tsr_fetcher *r) {
    if (!r)
        return;
    pthread_mutex_lock(&r->lock);
    r->stop = true;
    pthread_cond_broadcast(&r->wanted);
    pthread_mutex_unlock(&r->lock);
    for (int i = 0; i < r->n_threads; i++)
        pthread_join(r->workers[i].thread, NULL);
    for (int i = 0; i < N_THREADS; i++)
        free(r->workers[i].stage);
    pthread_cond_destroy(&r->finished);
    pthread_cond_destroy(&r->wanted);
    pthread_mutex_destroy(&r->lock);
    free(r);
}

void tsr_fetch_submit(struct tsr_fetcher *r, struct tsr_stretch *s) {
    TSR_ASSERT(s->offset % TSR_FETCH_PAGE == 0 && (uintptr_t)s->to % TSR_FETCH_PAGE == 0);
    s->done = false;
    s->rc = 0;
    s->next = NULL;
    pthread_mutex_lock(&r->lock);
    *r->last = s;
    r->last = &s->next;
    pthread_cond_signal(&r->wanted);
    pthread_mutex_unlock(&r->lock);
}

int tsr_fetch_wait(struct tsr_fetcher *r, struct tsr_stretch *s) {
    pthread_mutex_lock(&r->lock);
    while (!s->done)
        pthread_cond_wait(&r->finished, &r->lock);
    int rc = s->rc < 0 ? tsr_fail((enum tsr_code)s->rc, "%s", r->error) : 0;
    pthread_mutex_unlock(&r->lock);
    return rc;
}

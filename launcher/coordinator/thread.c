// A coordinator on a thread of rank 0, for a run that was started by mpirun itself.
#include <signal.h>
#include <stdlib.h>
#include "core/error.h"
#include "launcher/coordinator/loop.h"

struct tsr_coordinator_thread {
    const struct tsr_coordinator_opt *opt; // during open
    uv_thread_t thread;
    uv_loop_t loop;
    uv_async_t stop;
    uv_sem_t ready;
    int rc;
    char error[TSR_ERROR_TEXT];
    struct tsr_address address;
};

static void on_stop(uv_async_t *s) {
    uv_stop(s->loop);
}

static void run(void *arg) {
    struct tsr_coordinator_thread *t = arg;
    struct tsr_coordinator *c = NULL;
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL); // signals are the main thread's
    t->rc = tsr_coordinator_open(&c, &t->loop, t->opt);
    if (t->rc == 0)
        t->address = *tsr_coordinator_address(c);
    else
        snprintf(t->error, sizeof t->error, "%s", tsr_error_text());
    bool opened = t->rc == 0;
    uv_sem_post(&t->ready);
    if (opened)
        uv_run(&t->loop, UV_RUN_DEFAULT); // until on_stop
    uv_close((uv_handle_t *)&t->stop, NULL);
    tsr_coordinator_close(c);
    uv_run(&t->loop, UV_RUN_DEFAULT);
    TSR_ASSERT(uv_loop_close(&t->loop) == 0);
}

static int fail_uv(const char *what, int rc) {
    return tsr_fail(rc == UV_ENOMEM ? TSR_ENOMEM : TSR_EIO, "the coordinator gets no %s: %s", what,
                    uv_strerror(rc));
}

static int start(struct tsr_coordinator_thread *t) {
    int rc = uv_loop_init(&t->loop);
    if (rc < 0)
        return fail_uv("event loop", rc);
    rc = uv_async_init(&t->loop, &t->stop, on_stop);
    if (rc < 0) {
        uv_loop_close(&t->loop);
        return fail_uv("descriptor", rc);
    }
    uv_unref((uv_handle_t *)&t->stop); // it alone doesn't keep the loop running
    TSR_ASSERT(uv_sem_init(&t->ready, 0) == 0);
    rc = uv_thread_create(&t->thread, run, t);
    if (rc == 0) {
        uv_sem_wait(&t->ready);
        if (t->rc == 0)
            return 0;
        rc = tsr_fail((enum tsr_code)t->rc, "%s", t->error);
        uv_thread_join(&t->thread);
    } else {
        uv_close((uv_handle_t *)&t->stop, NULL);
        uv_run(&t->loop, UV_RUN_DEFAULT);
        uv_loop_close(&t->loop);
        rc = fail_uv("thread", rc);
    }
    uv_sem_destroy(&t->ready);
    return rc;
}

int tsr_coordinator_thread_open(struct tsr_coordinator_thread **out,
                                const struct tsr_coordinator_opt *opt,
                                struct tsr_address *address) {
    struct tsr_coordinator_thread *t = calloc(1, sizeof *t);
    if (!t)
        return tsr_fail(TSR_ENOMEM, "no memory for the coordinator");
    t->opt = opt;
    int rc = start(t);
    if (rc < 0) {
        free(t);
        return rc;
    }
    *address = t->address;
    *out = t;
    return 0;
}

void tsr_coordinator_thread_close(struct tsr_coordinator_thread *t) {
    if (!t)
        return;
    uv_async_send(&t->stop);
    uv_thread_join(&t->thread);
    uv_sem_destroy(&t->ready);
    free(t);
}

// The supervisor's event loop: signals, children that end, and what the ranks print.
#include "launcher/supervise_private.h"

#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

enum { TICK_MS = 50, CHUNK = 4096, MAX_PENDING = 16 << 20 };
#define STOP_S  60.0
#define FLUSH_S 2.0

int tsr_process_code(const struct tsr_process *c) {
    return WIFSIGNALED(c->status) ? 128 + WTERMSIG(c->status) : WEXITSTATUS(c->status);
}

static void note_end(struct tsr_process *c, pid_t pid, int status) {
    if (c->pid != pid)
        return;
    c->ended = true;
    c->status = status;
}

// Adopted orphans are reaped here too.
static void on_child(uv_signal_t *h, int sig) {
    struct tsr_super *s = h->data;
    int status;
    pid_t pid;
    (void)sig;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        note_end(&s->coordinator, pid, status);
        note_end(&s->ranks, pid, status);
        for (int i = 0; i < s->n_probes; i++)
            note_end(&s->probes[i], pid, status);
    }
}

static void on_signal(uv_signal_t *h, int sig) {
    struct tsr_super *s = h->data;
    if (s->n_signals++ > 0)
        return;
    s->signal = sig;
    s->signal_s = tsr_now();
    tsr_info("%s: the run stops after this step and a checkpoint; a second signal stops it at once",
             sig == SIGINT ? "interrupted" : strsignal(sig));
}

static void on_tick(uv_timer_t *t) {
    (void)t; // it only ends uv_run, so that deadlines are looked at
}

bool tsr_super_must_end(const struct tsr_super *s) {
    return s->n_signals > 1 || (s->n_signals == 1 && tsr_now() - s->signal_s > STOP_S);
}

static int watch_signal(struct tsr_super *s, uv_signal_t *h, uv_signal_cb fn, int sig) {
    struct sigaction old;
    TSR_ASSERT(uv_signal_init(&s->loop, h) == 0);
    h->data = s;
    if (sig == SIGHUP && sigaction(sig, NULL, &old) == 0 && old.sa_handler == SIG_IGN)
        return 0; // started by nohup
    int rc = uv_signal_start(h, fn, sig);
    return rc == 0 ? 0 : tsr_fail(TSR_EIO, "cannot watch for signals: %s", uv_strerror(rc));
}

int tsr_super_loop_open(struct tsr_super *s) {
    int rc = uv_loop_init(&s->loop);
    if (rc != 0)
        return tsr_fail(TSR_EIO, "cannot open an event loop: %s", uv_strerror(rc));
    s->loop_is_open = true;
    TSR_ASSERT(uv_timer_init(&s->loop, &s->tick) == 0);
    TSR_ASSERT(uv_timer_start(&s->tick, on_tick, TICK_MS, TICK_MS) == 0);
    TSR_TRY(watch_signal(s, &s->on_child, on_child, SIGCHLD));
    TSR_TRY(watch_signal(s, &s->on_interrupt, on_signal, SIGINT));
    TSR_TRY(watch_signal(s, &s->on_terminate, on_signal, SIGTERM));
    TSR_TRY(watch_signal(s, &s->on_user, on_signal, SIGUSR1)); // as ranks of a bare mpirun
    return watch_signal(s, &s->on_hangup, on_signal, SIGHUP);
}

static void close_handle(uv_handle_t *h, void *arg) {
    (void)arg;
    if (!uv_is_closing(h))
        uv_close(h, NULL);
}

void tsr_super_loop_close(struct tsr_super *s) {
    if (!s->loop_is_open)
        return;
    uv_walk(&s->loop, close_handle, NULL);
    while (uv_loop_close(&s->loop) == UV_EBUSY)
        uv_run(&s->loop, UV_RUN_ONCE);
}

// ---- what the ranks print

// To standard error as far as it takes it now: whoever reads it may be slow, and signals must not
// wait for him. A pipe that polls as writable takes at least PIPE_BUF bytes.
static void write_pending(struct tsr_super *s) {
    struct pollfd p = {STDERR_FILENO, POLLOUT, 0};
    size_t at = 0;
    while (at < s->pending.len && poll(&p, 1, 0) > 0) {
        size_t n = s->pending.len - at < CHUNK ? s->pending.len - at : CHUNK;
        ssize_t w = write(STDERR_FILENO, s->pending.data + at, n);
        if (w < 0 && (errno == EINTR || errno == EAGAIN))
            break;
        at = w < 0 ? s->pending.len : at + (size_t)w; // nobody listens any more
    }
    if (at > 0) {
        memmove(s->pending.data, s->pending.data + at, s->pending.len - at);
        s->pending.len -= at;
    }
}

static void log_paragraphs(struct tsr_super *s) {
    if (s->paragraphs.len == 0)
        return;
    tsr_super_ranks_hear(s, s->paragraphs.data);
    tsr_log_file(TSR_LOG_INFO, "mpirun: %s", s->paragraphs.data);
    s->paragraphs.len = 0;
}

static void on_err(uv_poll_t *h, int status, int events) {
    struct tsr_super *s = h->data;
    char data[1 << 16];
    (void)events;
    ssize_t n = status < 0 ? 0 : read(s->err_pipe, data, sizeof data);
    if (n < 0 && (errno == EAGAIN || errno == EINTR))
        return;
    if (n > 0)
        (void)tsr_noise_feed(&s->filter, data, (size_t)n, tsr_now(), &s->pending, &s->paragraphs);
    else
        s->err_ended = uv_poll_stop(h) == 0;
    log_paragraphs(s);
    write_pending(s);
}

int tsr_super_forward(struct tsr_super *s, int fd) {
    int rc = uv_poll_init(&s->loop, &s->err_poll, fd);
    if (rc != 0) {
        close(fd);
        return tsr_fail(TSR_EIO, "cannot watch a pipe: %s", uv_strerror(rc));
    }
    s->err_pipe = fd;
    s->err_ended = false;
    s->err_poll.data = s;
    TSR_ASSERT(uv_poll_start(&s->err_poll, UV_READABLE, on_err) == 0);
    return 0;
}

static bool all_written(struct tsr_super *s) {
    return s->pending.len == 0 && s->err_ended;
}

static void closed(uv_handle_t *h) {
    struct tsr_super *s = h->data;
    close(s->err_pipe);
    s->err_pipe = -1;
}

static bool is_closed(struct tsr_super *s) {
    return s->err_pipe < 0;
}

void tsr_super_forward_end(struct tsr_super *s) {
    if (s->err_pipe < 0)
        return;
    tsr_super_wait(s, all_written, FLUSH_S);
    (void)tsr_noise_flush(&s->filter, tsr_now(), true, &s->pending, &s->paragraphs);
    log_paragraphs(s);
    tsr_super_wait(s, all_written, FLUSH_S);
    uv_close((uv_handle_t *)&s->err_poll, closed);
    tsr_super_wait(s, is_closed, FLUSH_S);
    tsr_noise_free(&s->filter);
    tsr_buf_free(&s->pending);
    tsr_buf_free(&s->paragraphs);
}

static void tend_output(struct tsr_super *s) {
    if (s->err_pipe < 0 || uv_is_closing((uv_handle_t *)&s->err_poll))
        return;
    (void)tsr_noise_flush(&s->filter, tsr_now(), false, &s->pending, &s->paragraphs);
    log_paragraphs(s);
    write_pending(s);
    if (s->err_ended)
        return;
    if (s->pending.len > MAX_PENDING)
        uv_poll_stop(&s->err_poll); // mpirun keeps the rest
    else if (!uv_is_active((uv_handle_t *)&s->err_poll))
        uv_poll_start(&s->err_poll, UV_READABLE, on_err);
}

void tsr_super_turn(struct tsr_super *s) {
    uv_run(&s->loop, UV_RUN_ONCE);
    tend_output(s);
}

bool tsr_super_wait(struct tsr_super *s, bool (*done)(struct tsr_super *s), double timeout_s) {
    double end = tsr_now() + timeout_s;
    while (!done(s)) {
        if (tsr_now() >= end)
            return false;
        tsr_super_turn(s);
    }
    return true;
}

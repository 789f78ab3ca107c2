#include "launcher/child.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "launcher/supervise_spawn.h"

enum { KEEP = 64 << 10 }; // bytes of output

static int keep(struct tsr_buf *b, const char *p, size_t n) {
    TSR_TRY(tsr_buf_append(b, p, n));
    if (b->len > 2 * KEEP) {
        memmove(b->data, b->data + b->len - KEEP, KEEP + 1);
        b->len = KEEP;
    }
    return 0;
}

// Reads until the end of the pipe or the deadline. Returns 0, 1 at the deadline, or a code.
static int listen_to(int fd, double deadline, struct tsr_buf *out) {
    char text[4096];
    for (;;) {
        int wait_ms = -1;
        if (deadline > 0) {
            double left = deadline - tsr_now();
            if (left <= 0)
                return 1;
            wait_ms = left > 1000 ? 1000 : (int)(left * 1000) + 1;
        }
        struct pollfd p = {.fd = fd, .events = POLLIN};
        int n_ready = poll(&p, 1, wait_ms);
        if (n_ready < 0 && errno != EINTR)
            return tsr_fail(TSR_EIO, "cannot wait for a program: %s", strerror(errno));
        if (n_ready <= 0)
            continue;
        ssize_t n = read(fd, text, sizeof text);
        if (n == 0)
            return 0;
        if (n > 0)
            TSR_TRY(keep(out, text, (size_t)n));
        else if (errno != EINTR && errno != EAGAIN)
            return tsr_fail(TSR_EIO, "cannot read a program's output: %s", strerror(errno));
    }
}

// Ends what is left and collects every child, adopted ones too.
static void end_all(pid_t pid, int *status) {
    for (int i = 0; i < 200 && tsr_signal_descendants(SIGKILL, NULL, 0) > 0; i++) {
        pid_t got;
        int s;
        while ((got = waitpid(-1, &s, WNOHANG)) > 0)
            if (got == pid)
                *status = s;
        usleep(10000);
    }
}

static int run(const struct tsr_child *c, const int pipe_[2], struct tsr_child_result *out) {
    struct tsr_spawn s = {
        .argv = c->argv, .env = c->env, .in = -1, .out = pipe_[1], .err = pipe_[1]};
    pid_t pid = 0;
    int status = -1;
    int null = open("/dev/null", O_RDONLY | O_CLOEXEC);
    s.in = null;
    int rc = tsr_spawn(&s, &pid);
    if (null >= 0)
        close(null);
    close(pipe_[1]);
    TSR_TRY(rc);
    rc = listen_to(pipe_[0], c->timeout_s > 0 ? tsr_now() + c->timeout_s : 0, &out->out);
    out->timed_out = rc == 1;
    if (rc == 0)
        while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
            ;
    end_all(pid, &status);
    out->exit_code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return rc < 0 ? rc : 0;
}

int tsr_child_run(const struct tsr_child *c, struct tsr_child_result *out) {
    int pipe_[2];
    *out = (struct tsr_child_result){0};
    if (pipe2(pipe_, O_CLOEXEC) < 0)
        return tsr_fail(TSR_EIO, "cannot start %s: %s", c->argv[0], strerror(errno));
    tsr_adopt_orphans();
    int rc = run(c, pipe_, out);
    close(pipe_[0]);
    if (rc < 0)
        tsr_buf_free(&out->out);
    return rc;
}

// docs/operations.md says why: ranks wait by polling, two runs would be bound to the same cores,
// and a rank dies with the thread that started it.
int tsr_mpirun_words(const char *argv[static 16], char count[static 16], int n) {
    static const char *const words[] = {
        "mpirun", "--oversubscribe",       "--bind-to", "none", "--mca", "mpi_yield_when_idle", "1",
        "--mca",  "odls_base_num_threads", "0",         "-np"};
    int k = 0;
    for (; k < (int)(sizeof words / sizeof *words); k++)
        argv[k] = words[k];
    snprintf(count, 16, "%d", n);
    argv[k++] = count;
    return k;
}

const char *const *tsr_mpirun_env(void) {
    static const char *const root[] = {"OMPI_ALLOW_RUN_AS_ROOT=1",
                                       "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1", NULL};
    return geteuid() == 0 ? root : root + 2;
}

int tsr_own_program(char out[static TSR_PATH_MAX]) {
    ssize_t n = readlink("/proc/self/exe", out, TSR_PATH_MAX - 1);
    if (n <= 0)
        return tsr_fail(TSR_EIO, "/proc/self/exe: cannot find this program: %s", strerror(errno));
    out[n] = 0;
    return 0;
}

#include "launcher/supervise_spawn.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>
#include "core/error.h"

enum { EXIT_ORPHANED = 4 };

static void default_signals(void) {
    sigset_t none;
    for (int sig = 1; sig < NSIG; sig++)
        signal(sig, SIG_DFL); // some refuse: those have no other state
    sigemptyset(&none);
    sigprocmask(SIG_SETMASK, &none, NULL);
}

static void become(int from, int to) {
    if (from >= 0 && from != to)
        dup2(from, to);
    else if (from == to)
        fcntl(to, F_SETFD, 0);
}

_Noreturn static void child(const struct tsr_spawn *s, pid_t parent, int report) {
    setsid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) // it ended before the request stood
        _exit(EXIT_ORPHANED);
    default_signals();
    become(s->in, 0);
    become(s->out, 1);
    become(s->err, 2);
    for (int i = 0; s->env && s->env[i]; i++)
        putenv((char *)s->env[i]); // kept by reference until the exec
    execvp(s->argv[0], (char *const *)s->argv);
    int err = errno;
    ssize_t n = write(report, &err, sizeof err);
    _exit(n == sizeof err ? 127 : EXIT_ORPHANED);
}

int tsr_spawn(const struct tsr_spawn *s, pid_t *pid) {
    int report[2], err = 0;
    pid_t parent = getpid();
    ssize_t n;
    if (pipe2(report, O_CLOEXEC) < 0)
        return tsr_fail(TSR_EIO, "cannot start %s: %s", s->argv[0], strerror(errno));
    *pid = fork();
    if (*pid == 0)
        child(s, parent, report[1]);
    err = *pid < 0 ? errno : 0;
    close(report[1]);
    if (*pid > 0) {
        do // the end of the pipe is a successful exec
            n = read(report[0], &err, sizeof err);
        while (n < 0 && errno == EINTR);
    }
    close(report[0]);
    if (err == 0)
        return 0;
    return tsr_fail(err == ENOENT || err == EACCES   ? TSR_EUSAGE
                    : err == EAGAIN || err == ENOMEM ? TSR_ENOMEM
                                                     : TSR_EIO,
                    "cannot start %s: %s", s->argv[0], strerror(err));
}

void tsr_die_with_parent(void) {
    pid_t parent = getppid();
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent)
        _exit(EXIT_ORPHANED);
}

void tsr_adopt_orphans(void) {
    prctl(PR_SET_CHILD_SUBREAPER, 1);
}

struct process {
    pid_t pid, parent;
};

// Parent and state of a process; false when it is gone or a zombie. One that can't be looked at
// for another reason (no descriptor is left) has an unknown parent, 0.
static bool look_at(const char *name, struct process *p) {
    char path[64], text[512];
    snprintf(path, sizeof path, "/proc/%.20s/stat", name);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, text, sizeof text - 1);
    bool gone = n == 0 || (n < 0 && (errno == ENOENT || errno == ESRCH));
    if (fd >= 0)
        close(fd);
    *p = (struct process){(pid_t)atoi(name), 0};
    if (n <= 0)
        return !gone;
    text[n] = 0;
    const char *after = strrchr(text, ')'); // the name inside may hold anything
    char state;
    int parent;
    if (!after || sscanf(after + 1, " %c %d", &state, &parent) != 2 || state == 'Z')
        return false;
    *p = (struct process){(pid_t)atoi(name), parent};
    return true;
}

bool tsr_process_lives(pid_t pid) {
    char name[24];
    struct process p;
    if (kill(pid, 0) < 0 && errno == ESRCH)
        return false;
    snprintf(name, sizeof name, "%ld", (long)pid);
    return access("/proc/self/stat", R_OK) < 0 || look_at(name, &p);
}

void tsr_end_daemon(void) {
    char path[64], name[16] = "";
    pid_t parent = getppid();
    snprintf(path, sizeof path, "/proc/%ld/comm", (long)parent);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t n = fd < 0 ? -1 : read(fd, name, sizeof name - 1);
    if (fd >= 0)
        close(fd);
    if (n > 0 && (strcmp(name, "orted\n") == 0 || strcmp(name, "prted\n") == 0))
        kill(parent, SIGTERM);
}

static int all_processes(struct process **out) {
    DIR *d = opendir("/proc");
    const struct dirent *e;
    int n = 0, cap = 0;
    *out = NULL;
    while (d && (e = readdir(d))) {
        struct process p;
        if (!isdigit((unsigned char)e->d_name[0]) || !look_at(e->d_name, &p))
            continue;
        if (n == cap) {
            cap = cap ? 2 * cap : 256;
            struct process *more = realloc(*out, (size_t)cap * sizeof **out);
            if (!more)
                break; // what was found is better than nothing
            *out = more;
        }
        (*out)[n++] = p;
    }
    if (d)
        closedir(d);
    return d ? n : -1;
}

int tsr_descendants(pid_t **out) {
    struct process *all;
    int n_all = all_processes(&all), n = 0;
    *out = n_all > 0 ? malloc((size_t)n_all * sizeof **out) : NULL;
    if (n_all > 0 && !*out)
        n_all = -1;
    // Generation by generation: [0, n) are known, each is looked up as a parent once.
    for (int next = -1; n_all > 0 && next < n; next++) {
        pid_t parent = next < 0 ? getpid() : (*out)[next];
        for (int i = 0; i < n_all; i++)
            if (all[i].parent == parent)
                (*out)[n++] = all[i].pid;
    }
    free(all);
    return n_all < 0 ? -1 : n;
}

int tsr_signal_descendants(int sig, const pid_t *keep, int n_keep) {
    pid_t *pids;
    int n = tsr_descendants(&pids), sent = 0;
    for (int i = 0; i < n; i++) {
        bool spared = false;
        for (int k = 0; k < n_keep; k++)
            spared |= pids[i] == keep[k];
        if (!spared && kill(pids[i], sig) == 0)
            sent++;
    }
    free(pids);
    return sent;
}

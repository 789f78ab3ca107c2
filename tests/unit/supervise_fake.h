// What the supervisor starts in its tests: this very program again, as a coordinator that speaks
// the real protocol but watches nobody, and as ranks that follow a script.
//
// RUN_DIR/script has a line for each start of the ranks, of words:
//   commit=N   makes checkpoints/step-N       sleep=S    seconds
//   exit=N     ends with that code            kill       ends by SIGKILL
//   report     the coordinator says that rank 0 failed
//   nocoord    the coordinator ends by SIGKILL, once
//   stopcoord  the coordinator stops by SIGSTOP, once
//   takeover   another supervisor begins an incarnation
//   orphan     starts a process in a session of its own that stays
//   freeze     stops mpirun by SIGSTOP
//   hang       does nothing until the coordinator was told Stop, then exits with 5
// All processes leave their pid in RUN_DIR/pids.
#ifndef TSR_TESTS_SUPERVISE_FAKE_H
#define TSR_TESTS_SUPERVISE_FAKE_H

#include <arpa/inet.h>
#include <fcntl.h>
#include <inttypes.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>
#include "core/error.h"
#include "core/io.h"
#include "launcher/epoch.h"
#include "launcher/supervise_spawn.h"

static inline void nap(double seconds) {
    struct timespec t = {(time_t)seconds, (long)((seconds - (double)(time_t)seconds) * 1e9)};
    nanosleep(&t, NULL);
}

static inline bool there(const char *dir, const char *name) {
    char path[TSR_PATH_MAX];
    return tsr_path_join(path, dir, name) == 0 && tsr_path_exists(path);
}

static inline void unlink_in(const char *dir, const char *name) {
    char path[TSR_PATH_MAX];
    if (tsr_path_join(path, dir, name) < 0 || unlink(path) < 0)
        abort();
}

static inline void append(const char *dir, const char *name, const char *text) {
    char path[TSR_PATH_MAX];
    if (tsr_path_join(path, dir, name) < 0)
        abort();
    int fd = open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    if (fd < 0 || write(fd, text, strlen(text)) != (ssize_t)strlen(text))
        abort();
    close(fd);
}

static inline void leave_pid(const char *dir) {
    char text[32];
    snprintf(text, sizeof text, "%d\n", (int)getpid());
    append(dir, "pids", text);
}

// ---- coordinator

struct fake {
    const char *dir;
    int fd; // of the supervisor's connection, or -1
    struct tsr_session *session;
};

static inline void fake_send(struct fake *f, uint16_t type, const ProtobufCMessage *m) {
    struct tsr_buf out = {0};
    if (tsr_session_seal(f->session, type, m, &out) < 0)
        abort();
    if (write(f->fd, out.data, out.len) != (ssize_t)out.len)
        abort();
    tsr_buf_free(&out);
}

static inline int fake_message(void *arg, uint16_t type, const ProtobufCMessage *m) {
    struct fake *f = arg;
    (void)m;
    if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_HELLO) {
        Tessera__Control__Welcome w = TESSERA__CONTROL__WELCOME__INIT;
        fake_send(f, TESSERA__CONTROL__FRAME_TYPE__FRAME_WELCOME, &w.base);
    } else if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_STATUS_REQUEST) {
        Tessera__Control__RankStatus rank = TESSERA__CONTROL__RANK_STATUS__INIT, *ranks = &rank;
        Tessera__Control__Status s = TESSERA__CONTROL__STATUS__INIT;
        rank.alive = 1;
        s.ranks = &ranks;
        s.n_ranks = 1;
        fake_send(f, TESSERA__CONTROL__FRAME_TYPE__FRAME_STATUS, &s.base);
    } else if (type == TESSERA__CONTROL__FRAME_TYPE__FRAME_STOP) {
        append(f->dir, "stop", "");
    }
    return 0;
}

static inline void fake_accept(struct fake *f, int listener, uint64_t epoch) {
    struct tsr_session_opt opt = {.server = true};
    Tessera__Control__Challenge c = TESSERA__CONTROL__CHALLENGE__INIT;
    f->fd = accept(listener, NULL, NULL);
    if (f->fd < 0 || tsr_run_key(f->dir, opt.secret) < 0 ||
        tsr_random_bytes(opt.nonce, sizeof opt.nonce) < 0 ||
        tsr_session_open(&f->session, &opt) < 0)
        abort();
    c.version = TSR_PROTOCOL_VERSION;
    c.nonce = (ProtobufCBinaryData){TSR_NONCE, opt.nonce};
    c.epoch = epoch;
    fake_send(f, TESSERA__CONTROL__FRAME_TYPE__FRAME_CHALLENGE, &c.base);
}

static inline void fake_read(struct fake *f) {
    char data[4096];
    ssize_t n = read(f->fd, data, sizeof data);
    if (n > 0 && tsr_session_feed(f->session, data, (size_t)n, fake_message, f) == 0)
        return;
    tsr_session_close(f->session);
    close(f->fd);
    f->fd = -1;
}

static inline void fake_watch(struct fake *f) {
    if (there(f->dir, "report") && f->fd >= 0 && tsr_session_ready(f->session)) {
        Tessera__Control__Failed failed = TESSERA__CONTROL__FAILED__INIT;
        failed.rank = 0;
        failed.host = (char *)"elsewhere";
        failed.cause = (char *)"its connection ended";
        failed.operation = (char *)"forward, micro-batch 2";
        failed.step = 41;
        fake_send(f, TESSERA__CONTROL__FRAME_TYPE__FRAME_FAILED, &failed.base);
        unlink_in(f->dir, "report");
    }
    if (there(f->dir, "nocoord")) {
        unlink_in(f->dir, "nocoord");
        raise(SIGKILL);
    }
    if (there(f->dir, "stopcoord")) {
        unlink_in(f->dir, "stopcoord");
        raise(SIGSTOP);
    }
}

static inline int fake_listen(int *port) {
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)*port)};
    socklen_t n = sizeof a;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0), on = 1;
    a.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&a, n) < 0 || listen(fd, 8) < 0 ||
        getsockname(fd, (struct sockaddr *)&a, &n) < 0)
        abort();
    *port = ntohs(a.sin_port);
    return fd;
}

// argv as the supervisor gives it: coordinator … --epoch=N --port=P … -- RUN_DIR
static inline int fake_coordinator(int argc, char **argv) {
    struct fake f = {.dir = argv[argc - 1], .fd = -1};
    struct tsr_address a = {.host = "127.0.0.1", .pid = getpid()};
    for (int i = 1; i < argc; i++) {
        if (strncmp(argv[i], "--epoch=", 8) == 0)
            a.epoch = strtoull(argv[i] + 8, NULL, 10);
        if (strncmp(argv[i], "--port=", 7) == 0)
            a.port = atoi(argv[i] + 7);
    }
    leave_pid(f.dir);
    int listener = fake_listen(&a.port);
    if (tsr_address_write(f.dir, &a) < 0)
        abort();
    printf("ready\n");
    fflush(stdout);
    for (;;) {
        struct pollfd p[2] = {{listener, POLLIN, 0}, {f.fd, POLLIN, 0}};
        poll(p, 2, 10);
        if (p[0].revents && f.fd < 0)
            fake_accept(&f, listener, a.epoch);
        if (f.fd >= 0 && p[1].revents)
            fake_read(&f);
        fake_watch(&f);
    }
}

// ---- ranks

static inline _Noreturn void stay(void) {
    for (;;)
        pause();
}

static inline void do_word(const char *dir, const char *word) {
    char path[TSR_PATH_MAX], name[64];
    const char *value = strchr(word, '=');
    if (strncmp(word, "commit=", 7) == 0) {
        snprintf(name, sizeof name, "checkpoints/step-%08d", atoi(value + 1));
        if (tsr_path_join(path, dir, name) < 0 || tsr_mkdir_p(path) < 0)
            abort();
    } else if (strncmp(word, "sleep=", 6) == 0) {
        nap(atof(value + 1));
    } else if (strncmp(word, "exit=", 5) == 0) {
        _exit(atoi(value + 1));
    } else if (strcmp(word, "kill") == 0) {
        raise(SIGKILL);
    } else if (strcmp(word, "report") == 0 || strcmp(word, "nocoord") == 0 ||
               strcmp(word, "stopcoord") == 0) {
        append(dir, word, "");
    } else if (strcmp(word, "takeover") == 0) {
        uint64_t epoch;
        if (tsr_epoch_take(dir, &epoch) < 0)
            abort();
    } else if (strcmp(word, "freeze") == 0) {
        kill(getppid(), SIGSTOP);
    } else if (strcmp(word, "orphan") == 0) {
        if (fork() == 0) {
            setsid();
            leave_pid(dir);
            stay();
        }
        nap(0.05);
    } else if (strcmp(word, "hang") == 0) {
        while (!there(dir, "stop"))
            nap(0.01);
        _exit(5);
    }
}

// The line of the script for this start; the last one counts for all that follow.
static inline void fake_script(const char *dir, char line[static 512]) {
    char path[TSR_PATH_MAX], *starts = NULL, *script;
    size_t n;
    if (tsr_path_join(path, dir, "starts") < 0 ||
        tsr_read_file(path, 1 << 16, TSR_EDATA, &starts, &n) < 0)
        abort();
    int k = 0;
    for (size_t i = 0; i < n; i++)
        k += starts[i] == '\n';
    free(starts);
    if (tsr_path_join(path, dir, "script") < 0 ||
        tsr_read_file(path, 1 << 16, TSR_EDATA, &script, &n) < 0)
        abort();
    char *at = script, *newline;
    while (--k > 0 && (newline = strchr(at, '\n')) && newline[1])
        at = newline + 1;
    snprintf(line, 512, "%.*s", (int)strcspn(at, "\n"), at);
    free(script);
}

// argv: train -- RUN_DIR/run.yaml … parallel.tp=T parallel.pp=P parallel.dp=D
static inline int fake_rank(int argc, char **argv) {
    char dir[TSR_PATH_MAX], line[512], text[300];
    const char *rank = getenv("OMPI_COMM_WORLD_RANK");
    if (tsr_path_dir(dir, argv[3]) < 0)
        abort();
    tsr_die_with_parent();
    leave_pid(dir);
    if (rank && strcmp(rank, "0") != 0)
        stay();
    snprintf(text, sizeof text, "%s %s %s %s\n", argv[argc - 3], argv[argc - 2], argv[argc - 1],
             getenv("TESSERA_EPOCH"));
    append(dir, "starts", text);
    fprintf(stderr, "a line of the rank\n");
    fake_script(dir, line);
    for (char *word = strtok(line, " "); word; word = strtok(NULL, " "))
        do_word(dir, word);
    return 0;
}

#endif

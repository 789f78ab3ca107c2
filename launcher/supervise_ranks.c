// Ranks of this machine, seen from outside: which of them ended first?
//
// The coordinator sees that sooner and knows more, but not before a rank has joined it, nor while
// it is dead itself. And Open MPI 4.1.4 may wait for ever for a rank that was killed while it
// introduced itself to mpirun.
#include "launcher/supervise_private.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include "core/clock.h"
#include "core/error.h"
#include "core/io.h"
#include "launcher/coordinator/membership.h"
#include "launcher/supervise_spawn.h"

enum { MAX_ENVIRONMENT = 4 << 20 };
#define LOOK_S       0.1  // between looks while ranks start
#define LOOK_LATER_S 0.25 // once the coordinator knows all of them
#define VANISHED_S   10.0 // mpirun ends its job within two seconds, or a little more, if it notices
#define BEFORE_S     0.5  // what the coordinator saw so much later was a consequence

struct tsr_rank_seen {
    pid_t pid;              // 0: not found yet
    struct tsr_member last; // as the last status said: phase, micro_batch, collective, step
    bool joined;
};

int tsr_super_ranks_open(struct tsr_super *s) {
    tsr_super_ranks_close(s);
    s->seen = calloc((size_t)s->world, sizeof *s->seen);
    s->first_ended = s->failed_rank = -1;
    return s->seen ? 0 : tsr_fail(TSR_ENOMEM, "no memory for %" PRId64 " ranks", s->world);
}

void tsr_super_ranks_close(struct tsr_super *s) {
    free(s->seen);
    s->seen = NULL;
    s->n_seen = 0;
    s->all_joined = false;
}

void tsr_super_ranks_status(struct tsr_super *s, const Tessera__Control__Status *m) {
    int64_t n_joined = 0;
    for (size_t i = 0; s->seen && i < m->n_ranks; i++) {
        const Tessera__Control__RankStatus *r = m->ranks[i];
        if (r->rank >= s->world || r->pid == 0)
            continue;
        n_joined++;
        s->seen[r->rank].joined = true;
        s->seen[r->rank].last = (struct tsr_member){.step = r->step,
                                                    .collective = r->collective,
                                                    .phase = (uint32_t)r->phase,
                                                    .micro_batch = r->micro_batch};
    }
    s->all_joined |= n_joined > 0 && (size_t)n_joined == m->n_ranks; // of very many, the first
}

// The number that mpirun gave a process, or -1 for one that is no rank (yet).
static int64_t rank_of(pid_t pid) {
    static const char name[] = "OMPI_COMM_WORLD_RANK=";
    char path[64], chunk[4096];
    struct tsr_buf env = {0};
    ssize_t n;
    snprintf(path, sizeof path, "/proc/%ld/environ", (long)pid);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    while (fd >= 0 && env.len < MAX_ENVIRONMENT && (n = read(fd, chunk, sizeof chunk)) > 0)
        if (tsr_buf_append(&env, chunk, (size_t)n) < 0)
            break;
    if (fd >= 0)
        close(fd);
    int64_t rank = -1;
    for (size_t at = 0; at < env.len; at += strlen(env.data + at) + 1)
        if (strncmp(env.data + at, name, sizeof name - 1) == 0)
            rank = atoll(env.data + at + sizeof name - 1);
    tsr_buf_free(&env);
    return rank;
}

static void find(struct tsr_super *s) {
    pid_t *pids;
    int n = tsr_descendants(&pids);
    for (int i = 0; i < n; i++) {
        int64_t rank = pids[i] == s->coordinator.pid ? -1 : rank_of(pids[i]);
        if (rank < 0 || rank >= s->world || s->seen[rank].pid)
            continue;
        s->seen[rank].pid = pids[i];
        s->n_seen++;
    }
    free(pids);
}

static void note_end(struct tsr_super *s, int64_t rank, const char *host, bool is_sure) {
    s->first_ended = rank;
    s->first_ended_s = tsr_now();
    s->first_is_sure = is_sure;
    snprintf(s->first_host, sizeof s->first_host, "%s", host);
}

static void look(struct tsr_super *s) {
    char host[TSR_HOST_NAME] = "";
    int64_t first = -1, n = 0;
    if (s->err_pipe < 0 && s->n_seen == 0) { // no mpirun between
        s->seen[0].pid = s->ranks.pid;
        s->n_seen = 1;
    }
    if (s->n_seen < s->world && !s->all_joined)
        find(s);
    for (int64_t r = 0; r < s->world; r++) {
        if (s->seen[r].pid == 0 || tsr_process_lives(s->seen[r].pid))
            continue;
        first = first < 0 ? r : first;
        n++;
    }
    gethostname(host, sizeof host - 1);
    if (n > 0)
        note_end(s, first, host, n == 1);
}

void tsr_super_ranks_hear(struct tsr_super *s, const char *paragraph) {
    const char *at = strstr(paragraph, "process rank ");
    char host[TSR_HOST_NAME];
    long long rank;
    int end = 0;
    if (!at || !s->seen || tsr_super_ranks_is_sure(s) ||
        sscanf(at, "process rank %lld with PID %*d on node %255s exited on signal%n", &rank, host,
               &end) != 2 ||
        end == 0 || rank < 0 || rank >= s->world)
        return;
    note_end(s, rank, host, true);
}

bool tsr_super_ranks_is_sure(const struct tsr_super *s) {
    return s->first_ended >= 0 && s->first_is_sure;
}

static void tell(struct tsr_super *s, int64_t rank) {
    const struct tsr_rank_seen *r = &s->seen[rank];
    char operation[128];
    tsr_member_operation(&r->last, operation, sizeof operation);
    snprintf(s->cause, sizeof s->cause,
             "rank %" PRId64 " on %s failed: its process ended; %s, step %" PRIu64, rank,
             s->first_host, operation, r->joined ? r->last.step : (uint64_t)s->policy.committed);
}

void tsr_super_ranks_look(struct tsr_super *s) {
    double now = tsr_now();
    if (!tsr_hosts_are_here(&s->hosts))
        return;
    if (s->first_ended < 0 && now - s->looked_s >= (s->all_joined ? LOOK_LATER_S : LOOK_S)) {
        s->looked_s = now;
        look(s);
    }
    // Before all have joined nobody else may notice.
    if (s->first_ended < 0 || s->all_joined || now - s->first_ended_s < VANISHED_S)
        return;
    tell(s, s->first_ended);
    s->failed = true;
}

bool tsr_super_ranks_name(struct tsr_super *s) {
    if (s->world == 1 && s->first_ended < 0 && tsr_hosts_are_here(&s->hosts))
        look(s);
    if (s->first_ended < 0 || s->failed_rank == s->first_ended ||
        (s->failed && s->failed_s - s->first_ended_s < BEFORE_S))
        return s->failed;
    tell(s, s->first_ended);
    return true;
}
